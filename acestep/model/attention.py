"""Which kernels compute attention on a graphics card."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_ASK_CUDNN_FIRST = (9, 10)
"""Major compute capabilities (Hopper, Blackwell of the data centre) on which torch asks cuDNN first by itself."""


def attention_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Inside, cuDNN's attention is asked before the plain one, which torch otherwise takes first on most cards.

    The model's sliding windows and padded conditions need a mask, and its keys have fewer heads than its queries.
    Flash attention takes no masks, and whether the memory-efficient kernel takes fewer heads depends on torch's
    version; what is left computes the whole matrix of scores. For one layer of the 2B sizes and four minutes of music,
    forward and backward on an H200, that is 8.7 ms and 2.4 GB where cuDNN takes 1.1 ms and 0.1 GB
    (benchmarks/attention.py).
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] in _ASK_CUDNN_FIRST:
        return nullcontext()
    kernels = [
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.MATH,
    ]
    return sdpa_kernel(kernels, set_priority=True)

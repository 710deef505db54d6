"""Attention with a mask never falls to the kernel that computes the whole matrix of scores while cuDNN is there."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from acestep.model.attention import attention_kernels

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def order() -> list[int]:
    return torch._C._get_sdp_priority_order()


@pytest.mark.parametrize("capability, changed", [((7, 5), True), ((8, 9), True), ((12, 0), True), ((9, 0), False)])
def test_cudnn_is_asked_before_the_plain_kernel(
    capability: tuple[int, int], changed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    before = order()
    with attention_kernels(CUDA):
        inside = order()
    assert order() == before
    assert (inside != before) == changed
    if changed:
        assert inside.index(SDPBackend.CUDNN_ATTENTION.value) < inside.index(SDPBackend.MATH.value)


def test_the_order_changes_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 6))
    queries, keys, values = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    mask = torch.rand(2, 1, 1, 5) < 0.7
    mask[..., 0] = True

    def attended(device: torch.device) -> torch.Tensor:
        with attention_kernels(device):
            return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)

    torch.testing.assert_close(attended(CUDA), attended(CPU))

"""What attention costs by kernel, at the sizes of one layer of the 2B model, forward and backward.

    python benchmarks/attention.py                    (needs an NVIDIA card)
    python benchmarks/attention.py --device cpu       (shows that it runs)

"torch's choice" is what a call takes by itself on this machine, "ours" what it takes inside `attention_kernels`. The
plain kernel, which computes the whole matrix of scores, is what remains where no other takes a mask together with
fewer key heads than query heads.

On an H200 with torch 2.11 torch's choice is cuDNN by itself: 1.1 ms and 100 MB for windowed attention over 240 s, where
the plain kernel takes 8.7 ms and 2381 MB (60 s: 0.5 ms and 25 MB, plain 1.4 ms and 162 MB).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from acestep.model.attention import attention_kernels

HEADS, KEY_HEADS, HEAD_WIDTH, WINDOW = 16, 8, 128, 128
TOKENS_PER_S = 12.5
KERNELS = {
    "plain": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}


def cases(seconds: list[float], device: torch.device) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
    """Queries, keys (values are alike) and mask of each kind of attention in the model."""
    found: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
    for duration_s in seconds:
        tokens = round(duration_s * TOKENS_PER_S)
        places = torch.arange(tokens, device=device)
        window = (places[:, None] - places[None]).abs() <= WINDOW
        padded = (torch.arange(300, device=device) < 263)[None, None, None]
        queries, keys = (heads(count, tokens, device) for count in (HEADS, KEY_HEADS))
        found[f"whole piece, {duration_s:g} s"] = queries, keys, None
        found[f"window, {duration_s:g} s"] = queries, keys, window[None, None]
        found[f"padded condition, {duration_s:g} s"] = queries, heads(KEY_HEADS, 300, device), padded
    return found


def heads(count: int, tokens: int, device: torch.device) -> Tensor:
    return torch.randn(1, count, tokens, HEAD_WIDTH, device=device, dtype=torch.bfloat16, requires_grad=True)


def measured(
    call: Callable[[], Tensor], kernels: AbstractContextManager[None], device: torch.device, repeats: int
) -> str:
    """Median time and peak memory of forward and backward; a dash where no such kernel takes the call."""
    on_card = device.type == "cuda"
    try:
        with kernels:
            times = []
            for _ in range(repeats + 2):
                if on_card:
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                began = time.perf_counter()
                call().sum().backward()
                if on_card:
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("No available kernel", "No viable backend")):
            raise
        return "-"
    memory = f"{(torch.cuda.max_memory_allocated() - before) / 1e6:6.0f} MB" if on_card else ""
    return f"{1000 * statistics.median(times[2:]):7.2f} ms {memory}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, nargs="+", default=[60, 240])
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no NVIDIA card here; --device cpu shows that the script runs.")
    print(torch.cuda.get_device_name() if options.device == "cuda" else "CPU", f"torch {torch.__version__}")
    for name, (queries, keys, mask) in cases(options.seconds, device).items():

        def call(queries: Tensor = queries, keys: Tensor = keys, mask: Tensor | None = mask) -> Tensor:
            return scaled_dot_product_attention(queries, keys, keys, attn_mask=mask, enable_gqa=True)

        print(name)
        rows = {"torch's choice": nullcontext(), "ours": attention_kernels(device)}
        rows |= {label: sdpa_kernel(kernel) for label, kernel in KERNELS.items()}
        for label, kernels in rows.items():
            print(f"  {label:<15} {measured(call, kernels, device, options.repeats)}", flush=True)


if __name__ == "__main__":
    main()

"""The C library's heap, on machines that compute on the processor: freed pages serve the next tensor.

glibc maps every large block by itself and gives it back to the system when it is freed. A training step or a pass of
the VAE frees and asks for the same blocks over and over, and the kernel clears each of their pages every time:
`benchmarks/heap.py` measures what that costs.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # mallopt(3)
_KEPT_AT_MOST = 1_000_000_000
"""Bytes free at the heap's end before it shrinks; `release_freed_pages` gives them back as well."""
_GROWS_BY = 64_000_000


@lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    """The C library of this process if it is glibc."""
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has none under this name
        return None
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None


@lru_cache(maxsize=1)
def keep_freed_pages() -> bool:
    """From now on take large blocks from the heap and keep what is freed. Says whether that is possible here."""
    glibc = _glibc()
    if glibc is None:
        return False
    wanted = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _KEPT_AT_MOST, _TOP_PAD: _GROWS_BY}
    return all(glibc.mallopt(option, value) for option, value in wanted.items())


def release_freed_pages() -> None:
    """Give all pages that hold nothing back to the system."""
    if (glibc := _glibc()) is not None:
        glibc.malloc_trim(0)

"""Freed pages serve the next block, until they are given back."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

CHILD = """
import json, resource
from acestep.core.heap import keep_freed_pages, release_freed_pages

def faults(action):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    action()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def fill():
    block = bytearray(100_000_000)
    block[::4096] = b"1" * len(block[::4096])

plain = [faults(fill) for _ in range(3)]
assert keep_freed_pages()
kept = [faults(fill) for _ in range(3)]
full = held()
release_freed_pages()
print(json.dumps({"plain": plain, "kept": kept, "given_back": full - held()}))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_blocks_are_used_again_and_given_back() -> None:
    found = json.loads(subprocess.run([sys.executable, "-c", CHILD], check=True, capture_output=True).stdout)
    pages = 100_000_000 // 4096
    assert min(found["plain"]) > pages / 1000, "every block was fetched anew"  # big pages count as one
    assert max(found["kept"][1:]) < min(found["plain"]) / 2
    assert found["given_back"] > 90_000_000

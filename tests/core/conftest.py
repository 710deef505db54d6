"""Disks that are too small or cannot be written, for the tests of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or not mount("-t", "tmpfs", "-o", "size=256k", "none", str(folder)):
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def read_only_folder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder nobody can write into, not even root, who ignores permissions. It holds old.json."""
    if os.geteuid() == 0:
        folder = request.getfixturevalue("small_disk")
        (folder / "old.json").write_text("{}")
        assert mount("-o", "remount,ro", str(folder))
        yield folder
        return
    folder = tmp_path / "read-only"
    folder.mkdir()
    (folder / "old.json").write_text("{}")
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)

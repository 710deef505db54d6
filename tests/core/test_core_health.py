"""What the installation check sees, on installations that are broken on purpose."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from acestep.core import health
from acestep.core.errors import UserError


def fake_package(folder: Path, name: str, version: str, code: str | None) -> None:
    """A package as an installer leaves it; without code its files are missing."""
    listing = folder / f"{name}-{version}.dist-info"
    listing.mkdir()
    (listing / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if code is not None:
        (folder / f"{name}.py").write_text(code)


def pins(folder: Path, *lines: str) -> Path:
    path = folder / "requirements.txt"
    path.write_text("# a comment\n\n" + "\n".join(lines) + "\n")
    return path


def test_every_requirement_is_pinned_and_can_be_found() -> None:
    lines = [line for line in health.REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    assert len(health.pinned_versions()) == len(lines)
    wrong = [str(check) for check in health.check_packages() if check.status != "ok"]
    assert wrong == []


@pytest.mark.parametrize(
    ("installed", "code", "status", "words"),
    [
        ("1.2", "", "ok", "1.2"),
        ("1.2+cpu", "", "ok", "1.2+cpu"),
        ("1.3", "", "warning", "1.3 is installed, 1.2 is tested"),
        ("1.2", None, "error", "its files are missing"),
        ("1.2", "import not_there_at_all", "error", "cannot be imported (ModuleNotFoundError"),
        ("1.2", "raise OSError('libsomething.so: file too short')", "error", "file too short"),
        ("1.2", "def broken(", "error", "cannot be imported (SyntaxError"),
    ],
)
def test_a_package_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str, code: str | None, status: str, words: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    fake_package(tmp_path, "songbird", installed, code)
    check = health.check_packages(pins(tmp_path, "songbird==1.2"), import_them=True)[0]
    sys.modules.pop("songbird", None)
    assert (check.name, check.status) == ("songbird", status)
    assert words in str(check)
    assert (check.fix == "") == (status == "ok")


def test_a_missing_package_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    health.require_packages()
    requirements = pins(tmp_path, "no-such-songbird==1.0", "numpy==0.0.1")
    checks = health.check_packages(requirements)
    assert [check.status for check in checks] == ["error", "warning"]
    assert health.failed(checks) and not health.failed(checks[1:])
    monkeypatch.setattr(health, "check_packages", lambda: checks)
    with pytest.raises(UserError, match=r"not complete: no-such-songbird missing\. Run \./install\.sh"):
        health.require_packages()


def test_an_old_python_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert health.check_python().status == "ok"
    monkeypatch.setattr(health, "OLDEST_PYTHON", (9, 1))
    assert health.check_python().status == "error"
    with pytest.raises(UserError, match=r"too old.*9\.1"):
        health.require_packages()


def test_the_check_needs_nothing_installed() -> None:
    """The module must say what is missing on a bare Python, without any package on its path."""
    root = Path(health.__file__).resolve().parents[2]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); from acestep.core import health; print(health.main())"
    child = subprocess.run([sys.executable, "-S", "-E", "-c", code], capture_output=True, text=True)
    assert child.stdout.strip() == "1"
    assert "torch: is missing." in child.stderr
    assert "Traceback" not in child.stderr


def test_an_idle_graphics_card_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Some Card 9000'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    check = health.check_torch()
    assert check.status == "warning"
    assert "Some Card 9000 is there" in check.found
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert health.check_torch().status == "ok"


def test_memory_and_disk_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GiB free" in health.check_memory().found
    assert str(tmp_path) in health.check_disk(tmp_path / "not" / "there").found
    monkeypatch.setattr(health, "_LOW_MEMORY_GIB", 1_000_000)
    monkeypatch.setattr(health, "_LOW_DISK_GIB", 1_000_000_000)
    assert health.check_memory().status == "warning"
    assert health.check_disk(tmp_path).status == "warning"


def test_all_checks_have_names_and_can_be_json(tmp_path: Path) -> None:
    checks = health.all_checks(tmp_path)
    names = [check.name for check in checks]
    assert names[0] == "Python"
    assert {"device", "memory", "disk", "torch"} <= set(names)
    assert all(set(check.to_dict()) == {"name", "status", "found", "fix"} for check in checks)
    assert importlib.util.find_spec("torchaudio") is None  # its CPU wheel breaks transformers, peft and diffusers

"""What is installed and what this machine offers: for `acestep doctor`, the installers and the launcher.

The standard library alone is imported here, because this must work where the installation is broken.
`python -m acestep.core.health` imports every required package and exits with 1 if one is missing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from acestep.core.errors import UserError
from acestep.core.paths import nearest_existing

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
OLDEST_PYTHON = (3, 11)
REMEDY = "Run ./install.sh (Windows: install.bat) again."

_MODULE_NAMES = {
    "google-genai": "google.genai",
    "lycoris-lora": "lycoris",
    "pytest-xdist": "xdist",
    "nvidia-ml-py": "pynvml",
}  # where it is not the package's name with _
_GIB = 1 << 30
_LOW_MEMORY_GIB = 8  # the 2B model's 4.8 GB of weights, the text encoder and some room
_LOW_DISK_GIB = 20  # one 2B checkpoint with VAE and text encoder, tensors, and the checkpoints of a run


@dataclass(frozen=True)
class Check:
    """One thing looked at. An "error" stops the work, a "warning" may; `fix` says what to do then."""

    name: str
    status: Literal["ok", "warning", "error"]
    found: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.found}" + (f" {self.fix}" if self.fix else "")

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def all_checks(folder: Path) -> list[Check]:
    """Every check of the installation and the machine; `folder` is where results would be written."""
    return [check_python(), *check_packages(), check_torch(), check_gpu(), check_memory(), check_disk(folder)]


def check_python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] < OLDEST_PYTHON:
        oldest = ".".join(str(part) for part in OLDEST_PYTHON)
        return Check("Python", "error", f"{version} is too old.", f"Install Python {oldest} or newer. {REMEDY}")
    return Check("Python", "ok", version)


def pinned_versions(requirements: Path = REQUIREMENTS) -> dict[str, str]:
    """Package name → version of every `name==version` line of a requirements file."""
    lines = requirements.read_text(encoding="utf-8").splitlines()
    matches = (re.match(r"([\w.-]+)==([^\s#;]+)", line.strip()) for line in lines)
    return {match[1]: match[2] for match in matches if match}


def check_packages(requirements: Path = REQUIREMENTS, import_them: bool = False) -> list[Check]:
    """One check a required package: is it there, in the tested version, and (optionally) can it be imported?"""
    return [_check_package(*pin, import_them) for pin in pinned_versions(requirements).items()]


def _check_package(name: str, version: str, import_it: bool) -> Check:
    module = _MODULE_NAMES.get(name, name.replace("-", "_"))
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "error", "is missing.", REMEDY)
    if importlib.util.find_spec(module) is None:
        return Check(name, "error", f"{installed} is listed, but its files are missing.", REMEDY)
    if import_it:
        try:
            importlib.import_module(module)
        # what packages raise whose files are damaged or do not fit one another
        except (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError, SyntaxError) as error:
            return Check(name, "error", f"{installed} cannot be imported ({type(error).__name__}: {error}).", REMEDY)
    if installed.partition("+")[0] != version:
        return Check(name, "warning", f"{installed} is installed, {version} is tested.", REMEDY)
    return Check(name, "ok", installed)


def require_packages() -> None:
    """Raise a UserError that names the required packages that are missing; nothing is imported."""
    python = check_python()
    if python.status == "error":
        raise UserError(f"Python {python.found}", fix=python.fix)
    missing = [check.name for check in check_packages() if check.status == "error"]
    if missing:
        raise UserError(f"The installation is not complete: {', '.join(missing)} missing.", fix=REMEDY)


def check_torch() -> Check:
    """Which build of torch this is, the device that would be chosen, and whether a graphics card lies idle."""
    try:
        import torch

        from acestep.core.device import choose_device, device_memory, unusable_card
    except (ImportError, OSError) as error:
        return Check("device", "error", f"torch cannot be imported ({error}).", REMEDY)
    choice = choose_device()
    if trouble := unusable_card():
        again = "Delete env/ and run the installer again: it takes the build for such cards."
        return Check("device", "warning", f"{trouble}.", again)
    card = _nvidia_card()
    if choice.device == "cpu" and card:
        return Check(
            "device",
            "warning",
            f"{card} is there, but torch {torch.__version__} cannot use it.",
            "Update the driver; or delete env/, install uv and run the installer again.",
        )
    memory = device_memory()
    room = f", {memory[0] / _GIB:.1f} of {memory[1] / _GIB:.1f} GiB free" if memory else ""
    return Check("device", "ok", f"{choice}{room}, torch {torch.__version__}")


def check_gpu() -> Check:
    """The card's memory, load and temperature, and other programs on it."""
    try:
        from acestep.core.gpu import describe_gpu, read_gpu

        reading = read_gpu()
    except (ImportError, OSError) as error:
        return Check("graphics card", "error", f"cannot be asked ({error}).", REMEDY)
    return Check("graphics card", "ok", describe_gpu(reading))


def _nvidia_card() -> str:
    """Name of the first NVIDIA card by the driver's own tool, or an empty string."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    try:
        answer = subprocess.run(
            [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip().splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else ""


def check_memory() -> Check:
    try:
        import psutil
    except ImportError:
        return Check("memory", "error", "psutil is missing, so the free memory is not known.", REMEDY)
    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"
    if memory.available < _LOW_MEMORY_GIB * _GIB:
        return Check("memory", "warning", f"{found}.", f"Real models want {_LOW_MEMORY_GIB} GiB: close other programs.")
    return Check("memory", "ok", found)


def check_disk(folder: Path) -> Check:
    """Free space where `folder` is or will be."""
    there = nearest_existing(folder)
    usage = shutil.disk_usage(there)
    found = f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free at {there}"
    if usage.free < _LOW_DISK_GIB * _GIB:
        return Check("disk", "warning", f"{found}.", f"A model and a run want {_LOW_DISK_GIB} GiB: free some space.")
    return Check("disk", "ok", found)


def failed(checks: Iterable[Check]) -> bool:
    return any(check.status == "error" for check in checks)


def main() -> int:
    """Import every required package; say what is wrong, if anything."""
    checks = [check_python(), *check_packages(import_them=True)]
    for check in checks:
        if check.status != "ok":
            sys.stderr.write(f"{check}\n")
    return int(failed(checks))


if __name__ == "__main__":
    sys.exit(main())

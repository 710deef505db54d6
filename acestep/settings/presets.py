"""Presets: named settings files for training, shipped in presets/ or written by the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acestep.core.errors import UserError, did_you_mean
from acestep.settings.base import read_values
from acestep.settings.train import TrainSettings

PRESETS_FOLDER = Path(__file__).resolve().parents[2] / "presets"


def preset_files(folder: Path = PRESETS_FOLDER) -> dict[str, Path]:
    """The presets of a folder by name."""
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def preset_values(name: str) -> dict[str, Any]:
    """The settings a preset changes, by its name or the path of its file; checked, unknown names refused."""
    path = Path(name)
    if path.suffix != ".json":
        shipped = preset_files()
        if name not in shipped:
            known = ", ".join(shipped)
            raise UserError(
                f'There is no preset "{name}".{did_you_mean(name, shipped)}', fix=f"Choose one of: {known}."
            )
        path = shipped[name]
    values = read_values(path, "the preset")
    TrainSettings.parse(values, str(path))
    return values

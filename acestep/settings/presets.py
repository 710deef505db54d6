"""Presets: named settings files for training, shipped in presets/ or written by the user."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acestep.core.errors import UserError, did_you_mean
from acestep.core.paths import read_json, safe_name, write_json
from acestep.settings.base import SCHEMA_VERSION, read_values
from acestep.settings.train import TrainSettings

PRESETS_FOLDER = Path(__file__).resolve().parents[2] / "presets"

AUTO = "auto"
"""Name that stands for the tier that fits the graphics card and the kind of adapter."""

GIB = 1 << 30

TIERS: tuple[tuple[int, str], ...] = ((24, "24gb"), (16, "16gb"), (10, "12gb"), (0, "8gb"))
"""From how many GiB on, which tier; the largest first."""

LYCORIS_ADAPTERS = frozenset({"lokr", "loha"})
"""Kinds that take the LoKr values of a tier; the others take those of LoRA."""


@dataclass(frozen=True)
class Preset:
    """A preset file: what it is for, what in it departs from where it came from, and the settings it changes."""

    name: str
    path: Path
    description: str
    notes: tuple[str, ...]
    values: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "path": str(self.path),
            "description": self.description,
            "notes": list(self.notes),
            "values": self.values,
        }


def preset_files() -> dict[str, Path]:
    """The presets in presets/ by name."""
    return {path.stem: path for path in sorted(PRESETS_FOLDER.glob("*.json"))}


def preset_path(name: str) -> Path:
    """The file of a preset given by its name, or by the path of its file."""
    path = Path(name)
    if path.suffix == ".json":
        return path
    shipped = preset_files()
    if name not in shipped:
        known = ", ".join([*shipped, AUTO])
        raise UserError(f'There is no preset "{name}".{did_you_mean(name, shipped)}', fix=f"Choose one of: {known}.")
    return shipped[name]


def preset_values(name: str) -> dict[str, Any]:
    """The settings a preset changes, by its name or the path of its file; checked, unknown names refused."""
    path = preset_path(name)
    values = read_values(path, "the preset")
    TrainSettings.parse(values, str(path))
    return values


def load_preset(name: str) -> Preset:
    """A preset with its description and notes, by its name or the path of its file."""
    path = preset_path(name)
    values = preset_values(name)
    comments = read_json(path, "the preset")
    notes = comments.get("_note", [])
    return Preset(
        name=path.stem,
        path=path,
        description=str(comments.get("_description", "")),
        notes=tuple(str(note) for note in (notes if isinstance(notes, list) else [notes]) if note),
        values=values,
    )


def auto_preset(memory_bytes: int | None, adapter: str = "lora") -> str:
    """Name of the tier for a graphics card with so much memory in all; None, for no card, takes the smallest.

    Cards report a little less than the size they are sold by, so a begun GiB counts as whole.
    """
    gib = math.ceil(memory_bytes / GIB) if memory_bytes else 0
    return _tier_name(next(name for least, name in TIERS if gib >= least), adapter)


def same_tier(name: str, adapter: str) -> str | None:
    """The tier of the same size for another kind of adapter; None for a preset that is no tier."""
    return next((_tier_name(tier, adapter) for _, tier in TIERS if name.startswith(f"tier_{tier}_")), None)


def _tier_name(tier: str, adapter: str) -> str:
    return f"tier_{tier}_{'lokr' if adapter in LYCORIS_ADAPTERS else 'lora'}"


def save_preset(target: str, values: dict[str, Any], description: str, notes: tuple[str, ...] = ()) -> Path:
    """Write a preset under a name (into the folder of presets) or to a path that ends in .json; returns its path.

    The values are checked first. An existing file is never replaced.
    """
    path = _new_preset_path(target)
    TrainSettings.parse(values, str(path))
    comments: dict[str, Any] = {"_description": description}
    if notes:
        comments["_note"] = list(notes)
    write_json(path, {"schema_version": SCHEMA_VERSION, **comments, **values})
    return path


def _new_preset_path(target: str) -> Path:
    path = Path(target).expanduser()
    if path.suffix != ".json":
        if target == AUTO or safe_name(target) != target:
            raise UserError(
                f'"{target}" cannot be the name of a preset.',
                fix="Use letters, digits, - and _, or give a path that ends in .json.",
            )
        path = PRESETS_FOLDER / f"{target}.json"
    if path.exists():
        raise UserError(f"{path} exists already and is not replaced.", fix="Choose another name, or remove it first.")
    return path

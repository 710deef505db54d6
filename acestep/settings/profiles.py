"""Profiles: the settings of every stage in one file, saved and loaded whole. They never hold secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acestep.core.errors import UserError, did_you_mean
from acestep.core.paths import write_json
from acestep.settings.base import SCHEMA_VERSION, Settings, read_values
from acestep.settings.foreign import SECTIONS

PROFILE_KIND = "profile"

_SECRET = re.compile(r"(^|_)(api_key|key|token|secret|password)s?$")


def save_profile(path: Path, sections: Mapping[str, Settings]) -> None:
    """Write the settings of some stages (dataset, preprocess, train, generate), without anything secret."""
    for name, settings in sections.items():
        _require_section(name, str(path))
        if not isinstance(settings, SECTIONS[name]):
            raise TypeError(f"section {name} takes {SECTIONS[name].__name__}, not {type(settings).__name__}")
    values = {name: _without_secrets(name, settings) for name, settings in sections.items()}
    write_json(path, {"schema_version": SCHEMA_VERSION, "kind": PROFILE_KIND, "sections": values})


def load_profile(path: Path) -> dict[str, Settings]:
    """The settings of every stage a profile holds; unknown sections and names are refused with the nearest known."""
    values = read_values(path, "the profile")
    if values.pop("kind", None) != PROFILE_KIND or not isinstance(values.get("sections"), dict):
        raise UserError(f"{path} is no profile of this program.", fix="Choose a file that was saved as a profile.")
    sections: dict[str, Any] = values.pop("sections")
    for name in values:
        raise UserError(f'{path}: A profile has no "{name}".{did_you_mean(name, ["sections"])}', fix="Remove it.")
    loaded: dict[str, Settings] = {}
    for name, part in sections.items():
        _require_section(name, str(path))
        if not isinstance(part, dict):
            raise UserError(f'{path}: Section "{name}" must hold an object.', fix="Write it as {…}.")
        loaded[name] = SECTIONS[name].parse(part, f"{path}, section {name}")
    return loaded


def _require_section(name: str, source: str) -> None:
    if name not in SECTIONS:
        raise UserError(
            f'{source}: There is no section "{name}".{did_you_mean(name, SECTIONS)}',
            fix=f"Sections are {', '.join(SECTIONS)}.",
        )


def _without_secrets(section: str, settings: Settings) -> dict[str, Any]:
    """Only what the section declares, whatever subclass the settings are of, and no keys, tokens or passwords."""
    names = {name for name in SECTIONS[section].model_fields if not _SECRET.search(name)}
    return settings.model_dump(mode="json", include=names)

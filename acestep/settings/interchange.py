"""Settings files whatever program wrote them: recognised by their keys, read whole or refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acestep.core.errors import UserError
from acestep.core.paths import existing_file, read_json, write_json
from acestep.settings.base import read_values
from acestep.settings.foreign import Imported, best_match
from acestep.settings.original import PROGRAM as ORIGINAL
from acestep.settings.original import TRAINING_KEYS, from_original, from_original_profile
from acestep.settings.profiles import PROFILE_KIND, load_profile
from acestep.settings.side_step import KEYS as SIDE_STEP_KEYS
from acestep.settings.side_step import PROGRAM as SIDE_STEP
from acestep.settings.side_step import from_side_step, to_side_step
from acestep.settings.train import TrainSettings

LARGEST_FILE_BYTES = 1 << 20


def import_settings(path: str | Path) -> Imported:
    """The settings in a file of Side-Step, of ace-lora-trainer or of this program.

    Raises UserError when the file is larger than 1 MB, no JSON object, of no known program, or holds values of a
    wrong kind.
    """
    file = existing_file(path, "the settings file")
    if file.stat().st_size > LARGEST_FILE_BYTES:
        raise UserError(f"{file} is larger than 1 MB, which no settings file is.", fix="Choose another file.")
    values = read_json(file, "the settings file")
    try:
        return _imported(file, values)
    except UserError as error:
        if str(file) in error.message:
            raise
        raise UserError(f"{file}: {error.message}", fix=error.fix, detail=error.detail) from error


def _imported(file: Path, values: dict[str, Any]) -> Imported:
    if "ui_state" in values:
        return from_original_profile(values)
    if values.get("kind") == PROFILE_KIND:
        sections = {name: settings.model_dump() for name, settings in load_profile(file).items()}
        return Imported(sections, {}, name=file.stem)
    if "schema_version" in values:
        train = read_values(file)
        TrainSettings.parse(train, str(file))
        return Imported({"train": train}, {}, name=file.stem, description=str(values.get("_description", "")))
    program = best_match(values, {SIDE_STEP: SIDE_STEP_KEYS, ORIGINAL: TRAINING_KEYS})
    if program is None:
        raise UserError(
            f"{file} is no settings file of {SIDE_STEP}, {ORIGINAL} or this program.",
            fix="Choose the JSON file of a preset, a profile or a run.",
        )
    return from_side_step(values) if program == SIDE_STEP else from_original(values)


def export_side_step(path: str | Path, settings: TrainSettings, description: str = "") -> Path:
    """Write a Side-Step preset; its name there is the file's. An existing file is never replaced."""
    file = Path(path).expanduser()
    file = file if file.suffix == ".json" else file.with_name(f"{file.name}.json")
    if file.exists():
        raise UserError(f"{file} exists already and is not replaced.", fix="Choose another name, or remove it first.")
    write_json(file, to_side_step(settings, file.stem, description))
    return file

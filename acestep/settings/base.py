"""How settings are declared, read from files and checked. The groups of settings stand in their own modules."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from acestep.core.errors import UserError, did_you_mean
from acestep.core.paths import read_json, write_json

SCHEMA_VERSION = 1
"""Version of saved settings files. Raise it with a function in MIGRATIONS that lifts the older form."""

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From version n to n + 1: takes the values of a file written by version n, returns those of n + 1."""

Level = Literal["basic", "advanced", "expert"]
S = TypeVar("S", bound="Settings")


def knob(
    default: Any,
    help: str,
    *,
    group: str,
    level: Level = "advanced",
    ge: float | None = None,
    le: float | None = None,
    gt: float | None = None,
    lt: float | None = None,
) -> Any:
    """Declare one setting: default, one line of help, group on the page, how prominent, and bounds."""
    extra: dict[str, Any] = {"group": group, "level": level}
    return Field(default, description=help, ge=ge, le=le, gt=gt, lt=lt, json_schema_extra=extra)


class SettingsError(UserError):
    """Wrong values of settings. `fields` holds the sentence about each wrong field, for screens that show it there."""

    def __init__(self, source: str, settings: type[Settings], error: ValidationError) -> None:
        sentences = explain(settings, error)
        super().__init__(f"{source}: {' '.join(sentences)}")
        places = [item["loc"] for item in error.errors()]
        self.fields = {
            str(place[0]): sentence for place, sentence in reversed(list(zip(places, sentences, strict=True))) if place
        }


class Settings(BaseModel):
    """A group of settings. Values are checked when set; unknown names are errors."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, validate_default=True, frozen=True, allow_inf_nan=False
    )

    @classmethod
    def parse(cls, values: dict[str, Any], source: str) -> Self:
        """Settings from plain values, or a UserError that names `source` and each wrong field."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError(source, cls, error) from error

    def changed(self, **values: Any) -> Self:
        """A copy with some values replaced, checked again."""
        return type(self).parse({**self.model_dump(), **values}, "The settings")


@dataclass(frozen=True)
class Knob:
    """One declared setting, as the command line, the apps and the guide read it."""

    name: str
    help: str
    group: str
    level: Level
    default: Any
    annotation: Any
    minimum: float | None
    maximum: float | None
    bounds: str


def fields_of(settings: type[Settings]) -> Iterator[Knob]:
    """Every setting of a class, in order of declaration."""
    for name, info in settings.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        limits = {
            key: getattr(part, key) for part in info.metadata for key in ("ge", "gt", "le", "lt") if hasattr(part, key)
        }
        yield Knob(
            name=name,
            help=info.description or "",
            group=str(extra.get("group", "")),
            level=extra.get("level", "advanced"),  # type: ignore[arg-type]  # put there by knob()
            default=info.default,
            annotation=info.annotation,
            minimum=limits.get("ge", limits.get("gt")),
            maximum=limits.get("le", limits.get("lt")),
            bounds=_bounds(limits),
        )


def _bounds(limits: dict[str, float]) -> str:
    words = []
    if "ge" in limits and "le" in limits:
        return f"{limits['ge']:g} to {limits['le']:g}"
    for key, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
        if key in limits:
            words.append(f"{word} {limits[key]:g}")
    return ", ".join(words)


def explain(settings: type[Settings], error: ValidationError) -> list[str]:
    """One sentence for each wrong field of a pydantic error."""
    sentences = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]) or "settings"
        if item["type"] == "extra_forbidden":
            sentences.append(f'There is no setting "{name}".{did_you_mean(name, settings.model_fields)}')
        else:
            message = item["msg"].removeprefix("Value error, ").rstrip(".")
            shown = "" if item["type"] == "value_error" else f" (got {reprlib.repr(item['input'])})"
            sentences.append(f'Setting "{name}": {message}{shown}.' if item["loc"] else f"{message}.")
    return sentences


def load_settings(settings: type[S], path: Path, what: str = "the settings file") -> S:
    """Read a settings file: JSON with a schema_version, unknown names refused, older versions lifted.

    Keys that begin with an underscore are comments.
    """
    return settings.parse(read_values(path, what), str(path))


def read_values(path: Path, what: str = "the settings file") -> dict[str, Any]:
    """The values of a settings or preset file after migrations, without comments."""
    values = {key: value for key, value in read_json(path, what).items() if not key.startswith("_")}
    version = values.pop("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(f'{path}: "schema_version" must be a whole number from 1.', fix="Remove it or correct it.")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path} was written by a newer version of this program (schema {version}, known up to {SCHEMA_VERSION}).",
            fix="Update this program.",
        )
    for step in range(version, SCHEMA_VERSION):
        values = MIGRATIONS[step](values)
    return values


def save_settings(settings: Settings, path: Path) -> None:
    """Write all values with the schema version."""
    write_json(path, {"schema_version": SCHEMA_VERSION, **settings.model_dump(mode="json")})

"""Settings files of other programs: one row says what a key becomes here, one reader does it for every table.

Nothing in such a file is dropped without a word. A key is set here, or it means what this program does anyway, or it
stands in `Imported.ignored` with the reason. A value that nothing can be done with is a UserError.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from acestep.core.errors import UserError, did_you_mean
from acestep.settings.base import Settings, explain
from acestep.settings.dataset import DatasetSettings
from acestep.settings.generate import GenerateSettings
from acestep.settings.preprocess import PreprocessSettings
from acestep.settings.train import TrainSettings

Section = Literal["dataset", "preprocess", "train", "generate"]
Kind = Literal["whole", "number", "switch", "text", "words"]

SECTIONS: dict[str, type[Settings]] = {
    "dataset": DatasetSettings,
    "preprocess": PreprocessSettings,
    "train": TrainSettings,
    "generate": GenerateSettings,
}
"""The stages that have settings, by the name a file gives them."""

HIGHEST_FIXED_RATE = 1e-2
"""Rates above this are meant for optimizers that find their own, and ruin a run with any other."""

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True)
class ForeignKey:
    """One key of another program's file.

    setting: ours, in `section`; empty where there is none. default: what the other program takes when the key is
    missing; None leaves our own. words: their value → ours, where the two differ. neutral: values that ask for what
    this program does anyway. matters: the key has an effect only where another key has one of these values.
    reason: why there is no setting. by_hand: read by the program's own module, not by the general rule.
    """

    name: str
    kind: Kind
    setting: str = ""
    section: Section = "train"
    default: Any = None
    words: Mapping[Any, Any] = field(default_factory=dict)
    neutral: tuple[Any, ...] = ()
    matters: tuple[str, tuple[Any, ...]] | None = None
    reason: str = ""
    aliases: tuple[str, ...] = ()
    by_hand: bool = False


@dataclass(frozen=True)
class Imported:
    """What a foreign file becomes: settings by section, the keys that are left out and why, and remarks."""

    sections: dict[str, dict[str, Any]]
    ignored: dict[str, str]
    notes: tuple[str, ...] = ()
    name: str = ""
    description: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """The settings of training."""
        return self.sections.get("train", {})


class ForeignReader:
    """Reads the values of one file by the rows of one table."""

    def __init__(self, program: str, keys: Sequence[ForeignKey], values: Mapping[str, Any]) -> None:
        self.program = program
        self.sections: dict[str, dict[str, Any]] = {}
        self.ignored: dict[str, str] = {}
        self.notes: list[str] = []
        self._keys = {key.name: key for key in keys}
        self.given = self._typed(values)

    def value(self, name: str) -> Any:
        """What the file says, or the other program's default where it says nothing."""
        return self.given.get(name, self._keys[name].default)

    def set(self, setting: str, value: Any, name: str, section: Section = "train") -> bool:
        """Give one of our settings a value that came from the key `name`; False when there is no such choice yet."""
        settings = SECTIONS[section]
        if setting not in settings.model_fields:
            self.ignore(name)
            return False
        try:
            checked = getattr(settings.model_validate({setting: value}), setting)
        except ValidationError as error:
            kinds = {item["type"] for item in error.errors() if item["loc"]}
            if not kinds:  # it does not go with another setting, which may still come
                self.sections.setdefault(section, {})[setting] = value
                return True
            if kinds == {"literal_error"}:
                kept = settings.model_fields[setting].default
                self.ignored[name] = f'not supported: {name} "{self.value(name)}"; "{setting}" stays {kept}.'
                return False
            raise UserError(
                f'"{name}" of {self.program}: {" ".join(explain(settings, error))}', fix="Correct it in the file."
            ) from error
        self.sections.setdefault(section, {})[setting] = checked
        return True

    def set_optimizer_and_rate(self) -> None:
        """An optimizer that there is no such choice for takes a rate that was meant for it alone away with it."""
        optimizer, rate = self.given.get("optimizer_type"), self.value("learning_rate")
        known = optimizer is None or self.set("optimizer", optimizer, "optimizer_type")
        if rate is None:
            return
        if known or rate <= HIGHEST_FIXED_RATE:
            self.set("learning_rate", rate, "learning_rate")
        else:
            self.ignore("learning_rate", f"not used: a rate of {rate:g} is meant for {optimizer}.")

    def set_best_after(self, epoch: int, epochs: int, name: str) -> None:
        """An epoch from which the best is looked for becomes a share of the run."""
        if epoch >= epochs:
            self.ignore(
                name, f"not used: the best epoch was to be looked for from epoch {epoch}; the run has {epochs}."
            )
            return
        if self.set("best_after_share", epoch / epochs, name) and epoch:
            self.notes.append(
                f'"{name}" {epoch} of {epochs} epochs becomes best_after_share {epoch / epochs:.3g}; '
                "it counts where no songs are held out."
            )

    def set_patience(self, epochs: int, name: str) -> None:
        """Epochs without improvement become judgements: there is one an epoch."""
        if self.set("early_stop_patience", epochs, name) and epochs:
            self.notes.append(
                f'"{name}": {epochs} epochs become {epochs} judgements in a row without improvement, one an epoch.'
            )

    def ignore(self, name: str, reason: str = "") -> None:
        """Leave a key out; the reason is a sentence."""
        shown = reprlib.repr(self.value(name)) if name in self._keys else ""
        self.ignored[name] = reason or f"not supported: {name} ({shown})."

    def read_rows(self) -> None:
        """Apply the general rule to every row that is not read by hand."""
        for key in self._keys.values():
            if not key.by_hand:
                self._read_row(key)

    def finish(self, name: str = "", description: str = "") -> Imported:
        """Check all sections as a whole and hand them over."""
        for section, values in self.sections.items():
            SECTIONS[section].parse(values, f"The values from {self.program}")
        return Imported(self.sections, self.ignored, tuple(self.notes), name, description)

    def _read_row(self, key: ForeignKey) -> None:
        value = self.value(key.name)
        if value is None:
            return
        if key.setting in SECTIONS[key.section].model_fields:
            self.set(key.setting, key.words.get(value, value), key.name, key.section)
        elif key.name in self.given and value not in key.neutral and self._matters(key):
            self.ignore(key.name, key.reason)

    def _matters(self, key: ForeignKey) -> bool:
        return key.matters is None or self.value(key.matters[0]) in key.matters[1]

    def _typed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values under their canonical names, numbers read from text; every value that makes no sense is named."""
        spellings = {alias: key for key in self._keys.values() for alias in key.aliases}
        typed: dict[str, Any] = {}
        wrong: list[str] = []
        # canonical names first, so that an alias beside them is the one that gives way
        for name in sorted(values, key=lambda name: name not in self._keys):
            key = self._keys.get(name) or spellings.get(name)
            if key is None:
                if not name.startswith("_"):
                    near = did_you_mean(name, self._keys)
                    self.ignored[name] = f"not supported: {name} is no setting of {self.program} known here.{near}"
                continue
            if values[name] is None:
                continue
            try:
                value = _coerced(key.kind, values[name])
            except ValueError as error:
                wrong.append(f'"{name}" must be {error}, not {reprlib.repr(values[name])}.')
                continue
            if key.name not in typed:
                typed[key.name] = value
            elif typed[key.name] != value:
                self.ignored[name] = f'not used: "{key.name}" says otherwise and wins.'
        if wrong:
            raise UserError(f"The settings of {self.program}: {' '.join(wrong)}", fix="Correct them in the file.")
        return typed


def _coerced(kind: Kind, value: Any) -> Any:
    """The value in its type. Raises ValueError with the words for what it must be."""
    if kind == "switch":
        return _switch(value)
    if kind == "text":
        if not isinstance(value, str):
            raise ValueError("text")
        return value
    if kind == "words":
        parts = re.split(r"[\s,]+", value) if isinstance(value, str) else value
        if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
            raise ValueError("names with blanks between them")
        return [part for part in parts if part]
    number = _number(value)
    if kind == "whole":
        if number != int(number):
            raise ValueError("a whole number")
        return int(number)
    return number


def _switch(value: Any) -> bool:
    word = str(value).strip().lower() if isinstance(value, bool | int | str) else ""
    if word not in _TRUE | _FALSE:
        raise ValueError("true or false")
    return word in _TRUE


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a number")
    try:
        number = _parsed(value) if isinstance(value, str) else value
        finite = math.isfinite(number)
    except (ValueError, OverflowError) as error:
        raise ValueError("a number") from error
    if not finite:
        raise ValueError("a finite number")
    return number


def _parsed(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def best_match(values: Iterable[str], tables: Mapping[str, Sequence[ForeignKey]]) -> str | None:
    """The program whose table knows the most of these keys; None when none knows three. The first wins a tie."""
    names = set(values)
    counts = {
        program: len(names & {spelling for key in keys for spelling in (key.name, *key.aliases)})
        for program, keys in tables.items()
    }
    best = max(counts, key=lambda program: counts[program])
    return best if counts[best] >= 3 else None

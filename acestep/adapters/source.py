"""An adapter's files as they lie on disk, read and checked without torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from acestep.adapters.specs import Spec
from acestep.core.errors import UserError
from acestep.model.prompt import with_tag
from acestep.settings.dataset import TagPosition


@dataclass(frozen=True)
class TriggerTag:
    """The word that calls an adapter in a prompt, and where it stands. No word: no tag."""

    word: str = ""
    position: TagPosition = "prepend"

    def in_caption(self, caption: str) -> str:
        """The caption with the word in its place; one that says the word anywhere stays as it is."""
        word = self.word.strip()
        if word and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption, flags=re.IGNORECASE):
            return caption
        return with_tag(caption, self.word, self.position)

    def to_config(self) -> dict[str, str]:
        """The fields of a configuration file; none without a word."""
        return {"trigger_word": self.word, "tag_position": self.position} if self.word else {}

    @classmethod
    def from_config(cls, config: dict[str, Any], source: Path) -> TriggerTag:
        word, position = config.get("trigger_word"), config.get("tag_position")
        if not isinstance(word, str | None):
            raise UserError(f'{source}: "trigger_word" must be a text.', fix="Correct it or remove it.")
        if position not in (None, "", *get_args(TagPosition)):
            raise UserError(
                f'{source}: "tag_position" must be {", ".join(get_args(TagPosition))}.', fix="Correct it or remove it."
            )
        return cls(word or "", position or "prepend")


@dataclass(frozen=True)
class Header:
    """What a safetensors file says about itself before its data: shapes and types by name, and text metadata."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]


@dataclass(frozen=True)
class AdapterSource:
    """One adapter on disk. `keys` leads from the names this program uses to those in the file."""

    kind: str
    path: Path
    weights: Path
    spec: Spec
    targets: tuple[str, ...] | None
    tag: TriggerTag
    header: Header
    keys: dict[str, str]
    attention: str | None = None
    """Attention blocks that bare names in `targets` stand for, where the file says so."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.header.shapes[key] for name, key in self.keys.items()}


def read_header(path: Path) -> Header:
    """The header of a safetensors file; a UserError when the file is truncated or no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  # not a dict
            return Header(
                {key: tuple(part.get_shape()) for key, part in slices.items()},
                {key: str(part.get_dtype()) for key, part in slices.items()},
                dict(file.metadata() or {}),
            )
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged or not a safetensors file.", fix="Copy or download it again.", detail=str(error)
        ) from error


def clean_keys(header: Header, path: Path, clean: Callable[[str], str]) -> dict[str, str]:
    """The file's keys by their cleaned names; a UserError when two keys mean the same tensor."""
    keys: dict[str, str] = {}
    for key in header.shapes:
        name = clean(key)
        if name in keys:
            raise UserError(f"{path} holds {name} twice, as {keys[name]} and {key}.", fix="Take the original files.")
        keys[name] = key
    if not keys:
        raise UserError(f"{path} holds no tensors.", fix="Take the adapter's original files.")
    return keys


def target_modules(config: dict[str, Any], source: Path) -> tuple[str, ...] | None:
    """The names in `target_modules` of a configuration, None for null; a UserError where they are no list."""
    value = config.get("target_modules")
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(
            f'{source}: "target_modules" must be a list of names.', fix="Take the adapter's original files."
        )
    return tuple(value)

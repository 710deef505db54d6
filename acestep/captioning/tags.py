"""The tags that clap_tags.py chooses from: dimensions such as genre and mood, each with its candidates.

tags.json beside this file holds the built-in list; the setting `tags_file` names another of the same form.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from acestep.core.errors import UserError
from acestep.core.paths import read_json, value_hash

BUILT_IN = Path(__file__).with_name("tags.json")

_Label = Annotated[str, Field(min_length=1, max_length=100)]
_Pattern = Annotated[str, Field(max_length=100, pattern=r"^[^{}]*\{\}[^{}]*$")]


class Dimension(BaseModel):
    """One question about a song: of its candidate `labels`, at most `top` are chosen.

    A label is compared in the words of every template, with {} where the label goes, and stands in captions in those
    of `caption`. The dimension called genre also gives the field genre.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: _Label
    labels: tuple[_Label, ...] = Field(min_length=2, max_length=1000)
    top: int = Field(1, ge=1, le=20)
    templates: tuple[_Pattern, ...] = Field(("{}",), min_length=1, max_length=50)
    caption: _Pattern = "{}"


class Tags(BaseModel):
    """Every dimension, in the order in which captions tell them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dimensions: tuple[Dimension, ...] = Field(min_length=1, max_length=100)

    @model_validator(mode="after")
    def _told_apart(self) -> Tags:
        names = [dimension.name for dimension in self.dimensions]
        if len(set(names)) < len(names):
            raise ValueError("two dimensions have the same name")
        return self

    @property
    def content_hash(self) -> str:
        """Identity of what is compared; how captions word it does not count."""
        return value_hash([[it.name, list(it.labels), list(it.templates)] for it in self.dimensions])


def read_tags(path: str) -> Tags:
    """The tags in a JSON file, or the built-in ones for an empty path. Raises UserError that says what is wrong."""
    file = Path(path).expanduser() if path else BUILT_IN
    values = read_json(file, "the file of tags")
    try:
        return Tags.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = " → ".join(str(part) for part in first["loc"])
        raise UserError(
            f"{file}: {place + ': ' if place else ''}{first['msg']}.", fix=f"Follow the form of {BUILT_IN}."
        ) from error

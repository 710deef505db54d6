"""Who is asked for what: the backends of the settings, the songs of each, and the fields it may write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from acestep.captioning.contract import Backend, Field
from acestep.captioning.registry import BACKENDS, backend
from acestep.captioning.services import key_of
from acestep.core.errors import UserError
from acestep.dataset.song import DEFAULT, EDITED, NOT_SAID, Song, is_machine
from acestep.settings.caption import CaptionSettings

ROLES: dict[str, tuple[Field, ...]] = {
    "metadata_by": ("bpm", "keyscale", "timesignature"),
    "caption_by": ("caption", "genre"),
    "lyrics_by": ("lyrics", "language"),
}
"""Settings that name a backend, in the order they are run, and the fields each one is for."""


@dataclass(frozen=True)
class Step:
    """One backend's walk over the songs: song and the fields it is to be asked for."""

    backend: Backend
    songs: tuple[tuple[Song, frozenset[Field]], ...]


def plan_steps(songs: Sequence[Song], settings: CaptionSettings) -> list[Step]:
    """Which backends will be asked for what about which songs. Raises UserError for a backend that cannot do it."""
    asked: dict[str, set[Field]] = {}
    named = {"metadata_by": settings.metadata_by, "caption_by": settings.caption_by, "lyrics_by": settings.lyrics_by}
    for role, fields in ROLES.items():
        name = named[role]
        if not name or (role == "lyrics_by" and settings.instrumental == "yes"):
            continue
        can = backend(name).facts.gives.intersection(fields)
        if not can:
            raise UserError(
                f"{role}: {name} does not give {' or '.join(fields)}.", fix="Choose another backend or leave it empty."
            )
        asked.setdefault(name, set()).update(can)
    steps = []
    for name, wanted in asked.items():
        maker = backend(name)
        due = [(song, due_fields(song, frozenset(wanted), maker, settings)) for song in songs]
        if due := [(song, fields) for song, fields in due if fields]:
            steps.append(Step(maker, tuple(due)))
    return steps


def check_keys(steps: Sequence[Step], keys: Mapping[str, str]) -> None:
    """Raise UserError unless every key that will be needed is there, rather than after the first backend's hour."""
    for step in steps:
        key_of(step.backend.facts, keys)


def due_fields(song: Song, wanted: frozenset[Field], maker: Backend, settings: CaptionSettings) -> frozenset[Field]:
    """The fields of `wanted` that may be written for a song.

    Missing ones are due, except those that this backend could not tell before; with fill "machine" also what a
    backend wrote, though never a measured value by one that guesses; with "all" everything.
    """
    if settings.fill == "all":
        return wanted
    due: set[Field] = set()
    for name in wanted:
        source, value = song.sources.get(name, DEFAULT), getattr(song, name)
        if name == "lyrics":
            missing = source == DEFAULT or (not value and not song.is_instrumental)
        elif name == "language" and song.is_instrumental and song.sources.get("is_instrumental", DEFAULT) != DEFAULT:
            missing = False
        else:
            missing = value == NOT_SAID[name] and source not in (EDITED, maker.facts.name)
        if missing or (settings.fill == "machine" and is_machine(source) and not _was_measured(source, maker)):
            due.add(name)
    return frozenset(due)


def _was_measured(source: str, maker: Backend) -> bool:
    if maker.facts.origin == "analysis" or source not in BACKENDS:
        return False
    return backend(source).facts.origin == "analysis"

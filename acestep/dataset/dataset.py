"""A dataset: songs, what is true of all of them, and the problems found while reading them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from acestep.core.errors import Problem
from acestep.dataset.freshness import FilesRead
from acestep.dataset.labels import in_words
from acestep.dataset.song import Song
from acestep.settings.dataset import DatasetSettings

GENRE_SEED = 42
"""Seed of the draw of songs prompted by genre; other ACE-Step trainers draw with the same."""


@dataclass
class Dataset:
    """Songs below the folder `root`. `extra` holds keys of the dataset file that this program does not know.

    `known` are the dataset files that it was read from or saved to, by resolved path: the text that was read, or that
    would have been written then, had no other program changed anything there.
    """

    root: Path
    settings: DatasetSettings
    songs: list[Song] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    known: dict[Path, str] = field(default_factory=dict, compare=False, repr=False)
    files: FilesRead = field(default_factory=FilesRead, compare=False, repr=False)

    @property
    def labeled_songs(self) -> list[Song]:
        return [song for song in self.songs if song.labeled]

    def tag_of(self, song: Song) -> str:
        """The trigger word of a song: its own, else the dataset's."""
        return song.custom_tag or self.settings.trigger_word.strip()


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


def genre_songs(songs: Sequence[_Identified], ratio: int) -> set[str]:
    """Ids of the songs prompted by genre: `ratio` percent of the labelled songs given, rounded down.

    They are the first of a shuffle with a fixed seed, so the same songs in the same order give the same choice.
    """
    order = list(range(len(songs)))
    random.Random(GENRE_SEED).shuffle(order)
    return {songs[number].id for number in order[: int(len(songs) * ratio / 100)]}


@dataclass(frozen=True)
class Summary:
    """A dataset in numbers. Errors are files left out, warnings everything else worth knowing."""

    name: str
    songs: int
    labeled: int
    regularization: int
    instrumental: int
    with_lyrics: int
    duration_s: float
    labeled_duration_s: float
    disagreements: int
    errors: int
    warnings: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def summary(dataset: Dataset) -> Summary:
    """Count what a dataset holds. A disagreement is a song with a label that two files give differently."""
    songs = dataset.songs
    errors = sum(problem.severity == "error" for problem in dataset.problems)
    return Summary(
        name=dataset.settings.name,
        songs=len(songs),
        labeled=len(dataset.labeled_songs),
        regularization=sum(song.regularization for song in songs),
        instrumental=sum(song.is_instrumental for song in songs),
        with_lyrics=sum(bool(song.lyrics) and not song.is_instrumental for song in songs),
        duration_s=sum(song.duration_s for song in songs),
        labeled_duration_s=sum(song.duration_s for song in dataset.labeled_songs),
        disagreements=sum(bool(song.overruled) for song in songs),
        errors=errors,
        warnings=len(dataset.problems) - errors,
    )


class LabelProblem(Problem):
    """A problem that goes away as labels are written."""


def problems_now(dataset: Dataset) -> list[Problem]:
    """The problems found while reading, with those about missing captions as they are by now."""
    found = [problem for problem in dataset.problems if not isinstance(problem, LabelProblem)]
    return [*found, *label_problems(dataset.songs, dataset.settings.name)]


def label_problems(songs: Sequence[Song], subject: str) -> list[Problem]:
    """A warning when songs have neither caption nor genre, so that nobody wonders why they are not trained on."""
    missing = [song.relative for song in songs if not song.labeled]
    if not missing:
        return []
    if len(missing) == len(songs):
        message = (
            "None of the songs has a caption, so there is nothing to train on; write captions or caption the folder."
        )
    else:
        message = (
            f"{len(missing)} of {len(songs)} songs {'has' if len(missing) == 1 else 'have'} no caption and will not be "
            f"trained on: {in_words(missing)}."
        )
    return [LabelProblem(subject, message, "warning")]

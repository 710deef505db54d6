"""What a labelling backend is: what it gives, what it needs, and how it answers for one song.

A backend is opened once for a batch (its model is loaded, its client made), answers song by song, and is closed.
It never writes files and never decides what may be overwritten: the batch run does (batch.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.settings.caption import CaptionSettings

Field = Literal["caption", "genre", "lyrics", "bpm", "keyscale", "timesignature", "language"]
FIELDS: tuple[Field, ...] = ("caption", "genre", "lyrics", "bpm", "keyscale", "timesignature", "language")

Origin = Literal["analysis", "model", "service"]
"""Where a value comes from. Measured values win over those of language models; hand-made ones win over both."""


@dataclass(frozen=True)
class Guess:
    """One value as sidecars spell it, the backend's confidence (0 to 1, None where it has none), and the runner-up."""

    value: Any
    confidence: float | None = None
    runner_up: Any = None


@dataclass(frozen=True)
class Answer:
    """What a backend says about one song. A field it knows nothing about is absent, never empty or invented.

    `timed_lyrics` is LRC text of the same words as the lyrics. `notes` are sentences worth telling ("the lyrics may
    be cut off"). `usage` counts what it cost: tokens, seconds of audio, US dollars.
    """

    values: Mapping[Field, Guess] = field(default_factory=dict)
    timed_lyrics: str = ""
    notes: tuple[str, ...] = ()
    usage: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Hearing:
    """The form in which a backend hears songs: sample rate in Hz, and 1 or 2 channels."""

    sample_rate: int
    channels: int


@dataclass(frozen=True)
class SongToLabel:
    """One song as a backend gets it.

    `samples` is float32 [channels, N] in the form the backend's facts ask for, or None where it reads the file
    itself. `wanted` are the fields asked for; `language` is a code where the user has said it, else empty; `known` are
    the labels it has in other fields.
    """

    path: Path
    duration_s: float
    wanted: frozenset[Field]
    samples: np.ndarray | None = None
    language: str = ""
    known: Mapping[Field, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BackendFacts:
    """What a backend gives and needs, known without loading anything.

    `model` is its default on the Hugging Face Hub or at the service; `key_variable` the environment variable of its
    key, without which it does not answer where `key_needed`; `parallel` whether several songs may be under way at
    once; `packages` what must be importable.
    """

    name: str
    title: str
    origin: Origin
    gives: frozenset[Field]
    hears: Hearing | None = None
    model: str = ""
    memory_gib: float = 0.0
    key_variable: str = ""
    key_needed: bool = True
    network: bool = False
    parallel: bool = False
    packages: tuple[str, ...] = ()


class OpenBackend(Protocol):
    """A backend ready to answer. Safe to call from several threads where its facts say `parallel`."""

    def label(self, song: SongToLabel) -> Answer:
        """The fields of `song.wanted` that this backend can tell.

        Raises UserError for trouble with this song, TryAgain for trouble that may pass, BackendUnusable for trouble
        that every further song would meet.
        """
        ...


class Backend(Protocol):
    """A kind of labelling. Making one loads nothing."""

    facts: BackendFacts

    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> AbstractContextManager[OpenBackend]:
        """Load the model or make the client; leaving the context frees it.

        `keys` holds secrets by environment variable, from a password field or the environment; they are used and
        forgotten. Raises UserError when something it needs is missing.
        """
        ...


class TryAgain(UserError):
    """Trouble that may pass: a busy service, a broken connection. `after_s` is when the service asks to come back."""

    def __init__(self, message: str, *, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class BackendUnusable(UserError):
    """Trouble that every song would meet, such as a refused key: the batch ends."""

"""One song and everything that is said about it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from acestep.core.errors import UserError
from acestep.dataset.labels import ALIASES, Labels, set_label
from acestep.dataset.lrc import plain_lyrics
from acestep.model.facts import INSTRUMENTAL, UNKNOWN_LANGUAGE
from acestep.model.prompt import PromptLabels

PromptSource = Literal["caption", "genre"]

EDITED = "edited"
"""What `Song.sources` names for a value the user typed in this program. It stands above every file."""

DEFAULT = "default"
"""What `Song.sources` names for a value nobody gave."""


def is_machine(source: str) -> bool:
    """Does a source name a labelling backend? Their names have no dot, those of label files always have one."""
    return source not in ("", EDITED, DEFAULT) and "." not in source


NOT_SAID: dict[str, Any] = {
    "caption": "",
    "genre": "",
    "lyrics": "",
    "bpm": None,
    "keyscale": "",
    "timesignature": "",
    "language": UNKNOWN_LANGUAGE,
    "is_instrumental": True,
    "custom_tag": "",
    "prompt_override": None,
    "repeat": 1,
    "regularization": False,
}
"""The labels of a song, each with its value where nothing is known."""


@dataclass
class Song:
    """An audio file and its labels.

    `id` is 16 hex digits of the hash of the file's bytes, `relative` the path below the dataset's root (posix).
    `lyrics` have no time stamps, are [Instrumental] where there is no voice, and empty where there is one but no
    words are known. `timed_lyrics` is the original LRC text; its wording may differ from `lyrics` when those came
    from another file. `sources` names the file or the labelling backend each label came from, `overruled` the files
    that said otherwise in this scan. A song marked `regularization` only keeps the model as it is: it is no example
    of what is to be learned and never gets the trigger word.
    `extra` holds keys of the dataset file that this program does not know.
    """

    id: str
    path: Path
    relative: str
    duration_s: float
    caption: str = ""
    genre: str = ""
    lyrics: str = ""
    timed_lyrics: str = ""
    bpm: int | None = None
    keyscale: str = ""
    timesignature: str = ""
    language: str = UNKNOWN_LANGUAGE
    is_instrumental: bool = True
    custom_tag: str = ""
    prompt_override: PromptSource | None = None
    repeat: int = 1
    regularization: bool = False
    sources: dict[str, str] = field(default_factory=dict)
    overruled: dict[str, list[str]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def labeled(self) -> bool:
        """Can this song be trained on? It needs a caption or a genre."""
        return bool(self.caption or self.genre)

    @property
    def times_fit(self) -> bool:
        """Are the words of `timed_lyrics` those of `lyrics`, so that their times tell what is sung when?"""
        return bool(self.timed_lyrics) and plain_lyrics(self.timed_lyrics) == self.lyrics.strip()

    @property
    def written_lyrics(self) -> str:
        """The lyrics as they are shown and kept: with the times, where there are any of these words."""
        return self.timed_lyrics if self.times_fit else self.lyrics

    def labels(self, text: str, duration_s: float) -> PromptLabels:
        """What prompts say about the song, with `text` as the caption, for `duration_s` seconds of it."""
        return PromptLabels(
            caption=text,
            lyrics=INSTRUMENTAL if self.is_instrumental else self.lyrics,
            language=self.language,
            bpm=self.bpm,
            keyscale=self.keyscale,
            timesignature=self.timesignature,
            duration_s=duration_s,
        )

    def prompt_source(self, genre_ids: Set[str]) -> PromptSource:
        """Which text prompts the song: its own choice first, else genre where it is among `genre_ids`."""
        return self.prompt_override or ("genre" if self.id in genre_ids else "caption")

    def words(self, source: PromptSource) -> str:
        """The caption or the genre, and the other one where that is empty."""
        return (self.genre or self.caption) if source == "genre" else (self.caption or self.genre)

    def copy(self) -> Self:
        """The same song, sharing nothing that is changed in place."""
        overruled = {name: list(files) for name, files in self.overruled.items()}
        return replace(self, sources=dict(self.sources), overruled=overruled)

    def said(self, name: str) -> tuple[Any, ...]:
        """Everything about one label by which it can be told whether somebody changed it."""
        return getattr(self, name), self.sources.get(name), self.written_lyrics if name == "lyrics" else ""

    def take(self, other: Song, name: str) -> None:
        """Take over one label of `other`, and where it came from."""
        self.set_from(other.sources.get(name, DEFAULT), name, getattr(other, name))
        if name == "lyrics":
            self.timed_lyrics = other.timed_lyrics

    def set_from(self, source: str, name: str, value: Any) -> None:
        """Set one label in canonical spelling as `source` gives it, above all files that said otherwise."""
        setattr(self, name, value)
        self.sources[name] = source
        self.overruled.pop(name, None)

    def edit(self, **values: Any) -> list[str]:
        """Set labels as the user typed them; they stand above every file from now on. Returns warnings.

        Spellings are normalised as everywhere. A value that cannot be read is a UserError that names the label,
        and then nothing is changed. None or empty text clears a label. Lyrics and the instrumental mark follow
        each other; where both are given, the mark decides.
        """
        typed = Labels(EDITED)
        for name, value in values.items():
            if name not in ALIASES:
                raise UserError(f'A song has no label "{name}".', fix=f"There are: {', '.join(ALIASES)}.")
            known = len(typed.warnings)
            set_label(typed, name, value)
            if name not in typed.values and len(typed.warnings) > known:
                raise UserError(typed.warnings[-1], fix="Correct it or leave it empty.")
        for name in {**values, **typed.values}:
            self._set_edited(name, typed.values.get(name, NOT_SAID[name]))
        if "lyrics" in values:
            self.timed_lyrics = typed.timed_lyrics
            if "is_instrumental" not in values and (self.lyrics or not self.is_instrumental):
                # without words too: whoever takes them away has not said that nobody sings
                self._set_edited("is_instrumental", self.lyrics == INSTRUMENTAL)
        if typed.values.get("language") and self.sources.get("is_instrumental") == DEFAULT:
            self._set_edited("is_instrumental", False)  # nobody had said so, and a language means that somebody sings
        if self.is_instrumental and ("is_instrumental" in typed.values or self.lyrics != INSTRUMENTAL):
            self._set_edited("lyrics", INSTRUMENTAL)
            self.timed_lyrics = ""
        elif not self.is_instrumental and self.lyrics == INSTRUMENTAL:
            self._set_edited("lyrics", "")
        if self.lyrics and self.sources.get("lyrics") == EDITED:
            self.sources["is_instrumental"] = EDITED
        return typed.warnings

    def _set_edited(self, name: str, value: Any) -> None:
        self.set_from(EDITED, name, value)

"""Which source decides each label of a song when several speak, and what to tell the user about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from acestep.core.errors import Problem
from acestep.dataset.labels import Labels, same_value
from acestep.dataset.sidecars import Kind
from acestep.dataset.song import DEFAULT, EDITED, NOT_SAID, Song, is_machine
from acestep.model.facts import INSTRUMENTAL, UNKNOWN_LANGUAGE

Source = Literal["edit", "csv", "machine", "saved"] | Kind
"""Besides the sidecars: what the user typed into a dataset file, CSV rows, what labelling backends left in song.json,
and what a dataset file remembers of an earlier scan or of a backend."""

PRECEDENCE: dict[str, tuple[Source, ...]] = {
    **dict.fromkeys(NOT_SAID, ("edit", "csv", "json", "txt", "machine", "saved")),
    "caption": ("edit", "csv", "json", "caption_txt", "prompt_txt", "txt", "machine", "saved"),
    "lyrics": ("edit", "lyrics_txt", "underscore_lyrics", "csv", "json", "lrc", "txt", "machine", "saved"),
}
"""The sources of each label, the deciding one first."""


@dataclass
class Evidence:
    """Everything found about one song.

    `typed` are the labels the user set in this program, emptied ones among them: no file speaks against those.
    `remembered` tells where the values of the source "saved" once came from, `machines` which backend gave those of
    the source "machine".
    """

    found: dict[Source, Labels] = field(default_factory=dict)
    typed: frozenset[str] = frozenset()
    remembered: dict[str, str] = field(default_factory=dict)
    machines: dict[str, str] = field(default_factory=dict)

    def add_sidecar(self, kind: Kind, labels: Labels, machines: dict[str, str]) -> None:
        """Take in what a sidecar says; the values of backends in it stand for themselves, below all files."""
        own = {name: value for name, value in labels.values.items() if name not in machines}
        self.found[kind] = Labels(labels.source, own, labels.timed_lyrics if "lyrics" in own else "", labels.warnings)
        if machines:
            told = {name: value for name, value in labels.values.items() if name in machines}
            timed_lyrics = labels.timed_lyrics if "lyrics" in told else ""
            self.found["machine"] = Labels(labels.source, told, timed_lyrics)
            self.machines = machines

    def add_edits(self, labels: Labels, names: frozenset[str], newer: bool) -> None:
        """Take in what the user typed into a song.json, instead of the dataset file's word only if it is `newer`."""
        edits = self.found.get("edit", Labels(EDITED))
        known = self.typed | edits.values.keys()
        taken = names if newer else names - known
        values = {name: value for name, value in edits.values.items() if name not in taken}
        values |= {name: value for name, value in labels.values.items() if name in taken}
        timed_lyrics = labels.timed_lyrics if "lyrics" in taken else edits.timed_lyrics
        self.found["edit"] = Labels(edits.source, values, timed_lyrics, edits.warnings)
        self.typed |= names


def apply_evidence(song: Song, evidence: Evidence) -> list[Problem]:
    """Set the labels of `song` from the evidence and return what is worth telling, all of it warnings."""
    words = [f"{labels.source}: {warning}" for labels in evidence.found.values() for warning in labels.warnings]
    disagreements = []
    for name, order in PRECEDENCE.items():
        decided_by = _decide(song, name, order, evidence)
        if decided_by and name in song.overruled and name not in evidence.typed:
            others = song.overruled[name]
            say = "says" if len(others) == 1 else "say"
            disagreements.append(f"{name} is taken from {decided_by}; {' and '.join(others)} {say} otherwise")
    for source in PRECEDENCE["lyrics"]:
        labels = evidence.found.get(source)
        if source == "machine" and not is_machine(song.sources.get("lyrics", "")):
            continue  # times of other words than the user's
        if labels is not None and not song.timed_lyrics:
            song.timed_lyrics = labels.timed_lyrics
    if disagreements:
        words.append(f"{'. '.join(disagreements)}.")
    words += _settle_voice(song)
    return [Problem(song.relative, word, "warning") for word in words]


def _decide(song: Song, name: str, order: tuple[Source, ...], evidence: Evidence) -> str:
    """Give `song` the value of the first source that speaks about `name` and note those that disagree.

    Returns the file name of the source, empty when there is none or the user decided.
    """
    if name in evidence.typed:
        song.sources[name] = EDITED
    winner: Any = None
    decided_by = ""
    for source in order:
        labels = evidence.found.get(source)
        if labels is None or name not in labels.values:
            continue
        value = labels.values[name]
        if winner is None:
            if name in evidence.typed and source != "edit":
                return ""  # the user emptied it
            winner, decided_by = value, labels.source
            setattr(song, name, value)
            origins = {"saved": evidence.remembered, "machine": evidence.machines}.get(source, {})
            song.sources[name] = EDITED if source == "edit" else origins.get(name, decided_by)
        elif source not in ("machine", "saved") and not same_value(name, winner, value):
            others = song.overruled.setdefault(name, [])
            if labels.source not in others:
                others.append(labels.source)
    asked = evidence.machines.get(name) or evidence.remembered.get(name, "")
    if winner is None and is_machine(asked) and name not in evidence.typed:
        song.sources[name] = asked  # it was asked and could not tell
    return decided_by


def _settle_voice(song: Song) -> list[str]:
    """Make lyrics, language and the instrumental mark agree; returns sentences where they did not.

    Words outrank the mark. Without words the mark decides, then a language (somebody sings), else there is no voice.
    """
    told = song.sources.get("is_instrumental")
    from_lyrics = song.sources.get("lyrics", DEFAULT)
    sentences = []
    if song.lyrics:
        without_voice = song.lyrics == INSTRUMENTAL
        if told not in (None, DEFAULT) and song.is_instrumental != without_voice:
            said, found = ("there is a voice", INSTRUMENTAL) if without_voice else ("there is no voice", "words")
            sentences.append(f"{told} says {said}, but the lyrics in {from_lyrics} are {found}; the lyrics decide.")
        if told in (None, DEFAULT) or is_machine(told) or song.is_instrumental != without_voice:
            song.sources["is_instrumental"] = from_lyrics
        song.is_instrumental = without_voice
    elif told is None:
        song.is_instrumental = song.language == UNKNOWN_LANGUAGE
        song.sources["is_instrumental"] = DEFAULT if song.is_instrumental else song.sources["language"]
    if song.is_instrumental and not song.lyrics:
        song.lyrics = INSTRUMENTAL
        song.sources["lyrics"] = song.sources["is_instrumental"]
    if not song.lyrics:
        sentences.append(f"It has a voice but no lyrics, so prompts will say {INSTRUMENTAL}; add its lyrics.")
    return sentences

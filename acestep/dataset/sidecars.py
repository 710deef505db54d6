"""The files people put beside a song, in all conventions of ACE-Step trainers and captioners.

For `song.mp3`: song.json, song.lyrics.txt, song.caption.txt, song_prompt.txt, song_lyrics.txt, song.lrc, and
song.txt, which is a sheet of `key: value` lines, tagged text (<CAPTION>…</CAPTION>), or bare lyrics.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from acestep.dataset.labels import ALIASES, Labels, field_name, noted_origin, read_labels, set_label
from acestep.dataset.song import EDITED, NOT_SAID, is_machine
from acestep.dataset.text import NotText, clean, read_text

Kind = Literal["json", "lyrics_txt", "caption_txt", "prompt_txt", "underscore_lyrics", "lrc", "txt"]

SUFFIXES: dict[str, Kind] = {
    ".lyrics.txt": "lyrics_txt",
    ".caption.txt": "caption_txt",
    "_prompt.txt": "prompt_txt",
    "_lyrics.txt": "underscore_lyrics",
    ".json": "json",
    ".lrc": "lrc",
    ".txt": "txt",
}
"""What a sidecar's name adds to the stem of its song."""

SPEAKING_ENDINGS = (".lyrics.txt", ".caption.txt", "_prompt.txt", "_lyrics.txt", ".lrc")
"""Endings that only sidecars have; a file with one of them and no song is worth a word."""

JOINED_ENDINGS = ("_prompt", "_lyrics")
"""What joins the stem of a song without a dot, before the suffix."""

_WHOLE_TEXT: dict[Kind, str] = {
    "lyrics_txt": "lyrics",
    "underscore_lyrics": "lyrics",
    "lrc": "lyrics",
    "caption_txt": "caption",
    "prompt_txt": "caption",
}

_SHEET_ONLY = {"tags": "tags", "duration": ""}
_JSON_ONLY = frozenset({"prompt", "description", "lyric", "norm_lyrics", "tag", "instrumental"})
_SHEET_LINE = re.compile(r"([A-Za-z][A-Za-z _-]{0,30}?)[ \t]*[:\uff1a](.*)")
_TAGS = ("caption", "lyrics", "genre", "bpm", "keyscale", "timesignature", "duration", "language")
_TAG = re.compile(rf"<(/?)({'|'.join(_TAGS)})>", re.IGNORECASE)


@dataclass
class Pairing:
    """Which sidecars belong to which audio file of one folder, and those that belong to none."""

    of_audio: dict[str, dict[Kind, str]] = field(default_factory=dict)
    without_audio: list[str] = field(default_factory=list)


def pair(audio_names: Iterable[str], other_names: Iterable[str]) -> Pairing:
    """Attach the files of one folder to its audio files by stem.

    A name that fits several stems goes to the longest (beside song.mp3 and song_lyrics.mp3, song_lyrics.txt
    belongs to the second). Spelling decides first, then case and Unicode form are let pass.
    """
    stems: dict[str, list[str]] = {}
    similar: dict[str, list[str]] = {}
    for name in audio_names:
        stem = Path(name).stem
        stems.setdefault(stem, []).append(name)
        similar.setdefault(_similar(stem), []).append(name)
    pairing = Pairing()
    exact: list[tuple[str, Kind, list[str]]] = []
    inexact: list[tuple[str, Kind, list[str]]] = []
    for name in sorted(other_names):
        if (match := _longest_stem(name, stems, exact=True)) is not None:
            exact.append((name, match[0], stems[match[1]]))
        elif (match := _longest_stem(name, similar, exact=False)) is not None:
            inexact.append((name, match[0], similar[match[1]]))
        elif name.lower().endswith(SPEAKING_ENDINGS):
            pairing.without_audio.append(name)
    for name, kind, audio in [*exact, *inexact]:  # a song's own spelling first
        for audio_name in audio:
            pairing.of_audio.setdefault(audio_name, {}).setdefault(kind, name)
    return pairing


def _longest_stem(name: str, stems: dict[str, list[str]], exact: bool) -> tuple[Kind, str] | None:
    best: tuple[Kind, str] | None = None
    for suffix, kind in SUFFIXES.items():
        if name.lower().endswith(suffix):
            stem = name[: -len(suffix)]
            stem = stem if exact else _similar(stem)
            if stem in stems and (best is None or len(stem) > len(best[1])):
                best = kind, stem
    return best


def _similar(stem: str) -> str:
    return unicodedata.normalize("NFC", stem).casefold()


@dataclass
class Sidecar:
    """What a sidecar says. `labels` is None when it cannot be used; `problem` then says why.

    `edited` are the labels a song.json marks as typed by the user in this program, emptied ones among them, and
    `machines` those that a labelling backend wrote there: label → its name. Both are as they were written.
    """

    labels: Labels | None
    problem: str = ""
    is_dataset: bool = False
    edited: frozenset[str] = frozenset()
    machines: dict[str, str] = field(default_factory=dict)


def read_sidecar(path: Path, kind: Kind) -> Sidecar:
    """Read one sidecar. Trouble is returned, not raised, so that the song goes on without it."""
    try:
        content = read_text(path)
    except NotText as reason:
        return Sidecar(None, str(reason))
    if kind == "json":
        sidecar = parse_json(content.text, path.name)
    else:
        sidecar = Sidecar(parse_text(content.text, kind, path.name))
    if content.warning and sidecar.labels is not None:
        sidecar.labels.warnings.insert(0, content.warning)
    return sidecar


def parse_json(text: str, source: str) -> Sidecar:
    """The labels of a song.json. A saved dataset that merely has a song's name is told apart."""
    if not text.strip():
        return Sidecar(Labels(source))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return Sidecar(
            None, f"It is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); correct it."
        )
    except (RecursionError, ValueError) as error:  # nested without end; a number of thousands of digits
        return Sidecar(None, f"It cannot be read as JSON ({error}); write it again.")
    if is_dataset(value):
        return Sidecar(None, is_dataset=True)
    if not isinstance(value, dict):
        return Sidecar(None, 'It must hold a JSON object such as {"caption": "…"}; correct it.')
    return Sidecar(read_labels(value, source), edited=edited_labels(value), machines=machine_labels(value))


def edited_labels(raw: dict[str, Any]) -> frozenset[str]:
    """The labels that the "sources" of a song.json mark as typed by the user."""
    sources = raw.get("sources")
    return frozenset(name for name in NOT_SAID if isinstance(sources, dict) and sources.get(name) == EDITED)


def machine_labels(raw: dict[str, Any]) -> dict[str, str]:
    """Label → backend for the values in a song.json that a backend wrote and nobody changed since.

    A label that is not there was asked for, and the backend could not tell.
    """
    notes = raw.get("sources")
    if not isinstance(notes, dict):
        return {}
    origins = {name: noted_origin(notes.get(name), _raw_value(raw, name)) for name in NOT_SAID}
    return {name: origin for name, origin in origins.items() if origin and is_machine(origin)}


def _raw_value(raw: dict[str, Any], name: str) -> Any:
    spelled = {key.strip().lower().replace(" ", "_").replace("-", "_"): key for key in raw}
    return next((raw[spelled[alias]] for alias in ALIASES[name] if alias in spelled), None)


def is_dataset(value: Any) -> bool:
    """Is this parsed JSON a saved dataset (with "samples", or a bare list of them) rather than one song?"""
    if isinstance(value, dict):
        return isinstance(value.get("samples"), list)
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def parse_text(text: str, kind: Kind, source: str) -> Labels:
    """The labels of a text sidecar."""
    labels, text = Labels(source), clean(text)
    if kind in _WHOLE_TEXT:
        set_label(labels, _WHOLE_TEXT[kind], text)
        return labels
    raw = parse_tags(text)
    if raw is None:
        raw = parse_sheet(text)
    if raw is None:
        set_label(labels, "lyrics", text)
        return labels
    return read_labels(raw, source)


def parse_sheet(text: str) -> dict[str, str] | None:
    """The fields of a `key: value` sheet, or None when the first line that is no comment opens no known key.

    Lines without a known key go on with the value before them; from `lyrics:` on everything is lyrics. A
    second value for the same key is left out. `tags` means a trigger word when it is one, a caption when it
    is a list.
    """
    lines = text.splitlines()
    fields: dict[str, list[str]] = {}
    current: list[str] | None = None
    for number, line in enumerate(lines):
        bare = line.strip()
        if not bare or bare.startswith("#"):
            continue
        opened = _sheet_key(line)
        if opened is None:
            if current is None:
                return None
            current.append(bare)
            continue
        name, value = opened
        if name == "lyrics":
            fields.setdefault(name, ["\n".join([value, *lines[number + 1 :]])])
            break
        current = [value]
        fields.setdefault(name, current)
    if current is None and "lyrics" not in fields:
        return None
    sheet = {name: "\n".join(parts).strip() for name, parts in fields.items() if name}
    if "tags" in sheet:
        tags = sheet.pop("tags")
        sheet.setdefault("caption" if "," in tags else "custom_tag", tags)
    return sheet


def _sheet_key(line: str) -> tuple[str, str] | None:
    """The field a sheet line opens ("" for those not used) and the rest of the line."""
    match = _SHEET_LINE.match(line.strip())
    if match is None:
        return None
    word = match[1].strip().lower().replace(" ", "_").replace("-", "_")
    name = _SHEET_ONLY.get(word) if word in _SHEET_ONLY else field_name(word)
    if name is None or word in _JSON_ONLY:  # those open lines of ordinary text as well
        return None
    return name, match[2].strip()


def parse_tags(text: str) -> dict[str, str] | None:
    """The fields of tagged text (<CAPTION>…</CAPTION><BPM>…), or None when it does not begin with such a tag.

    A value whose closing tag is missing ends at the next tag.
    """
    first = _TAG.match(text.lstrip())
    if first is None or first[1]:
        return None
    fields: dict[str, str] = {}
    marks = list(_TAG.finditer(text))
    position = 0
    while position < len(marks):
        mark = marks[position]
        position += 1
        name = mark[2].lower()
        if mark[1] or name in fields:
            continue
        closing = next((i for i in range(position, len(marks)) if marks[i][1] and marks[i][2].lower() == name), None)
        if closing is None:
            end = marks[position].start() if position < len(marks) else len(text)
        else:
            end, position = marks[closing].start(), closing + 1
        fields[name] = text[mark.end() : end].strip()
    return fields

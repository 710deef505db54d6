"""What one source (a sidecar, a CSV row, a dataset file) says about one song, in canonical spelling."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from acestep.core.paths import value_hash
from acestep.dataset import spelling
from acestep.dataset.lrc import is_timed, plain_lyrics
from acestep.dataset.spelling import Reading
from acestep.dataset.text import clean, is_error_text, one_line
from acestep.model.facts import INSTRUMENTAL

ALIASES: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "caption": ("caption", "prompt", "tags", "description"),
        "genre": ("genre", "genres"),
        "lyrics": ("lyrics", "lyric", "norm_lyrics"),
        "bpm": ("bpm", "tempo"),
        "keyscale": ("keyscale", "key", "key_scale", "scale"),
        "timesignature": ("timesignature", "time_signature", "signature", "sig"),
        "language": ("language", "vocal_language", "lang"),
        "is_instrumental": ("is_instrumental", "instrumental"),
        "custom_tag": ("custom_tag", "trigger", "trigger_word", "tag"),
        "prompt_override": ("prompt_override",),
        "repeat": ("repeat", "repeats"),
        "regularization": ("regularization", "regularisation", "is_regularization"),
    }
)
"""Every label a source can give → the names it may have, the preferred one first. Names are compared in lower
case, with underscores for blanks and hyphens."""

_SECTION_TAG = re.compile(r"\[[^\[\]\n]*\]")
_FIELD_OF = MappingProxyType({alias: name for name, aliases in ALIASES.items() for alias in aliases})


@dataclass
class Labels:
    """Canonical values by field (only those that say something), the original text of timed lyrics, and warnings.

    `source` is the file name shown to users. Lyrics have no time stamps; the marker of a piece without voice is
    always spelled [Instrumental]. `keys` are those of a raw object that were used.
    """

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    timed_lyrics: str = ""
    warnings: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)


def field_name(raw: str) -> str | None:
    """The label that a key, column or tag name means, or None."""
    return _FIELD_OF.get(raw.strip().lower().replace(" ", "_").replace("-", "_"))


def read_labels(raw: Mapping[str, Any], source: str) -> Labels:
    """Labels from the keys of a JSON object, a sheet or a CSV row. Other keys are not looked at."""
    labels = Labels(source)
    spelled = {key.strip().lower().replace(" ", "_").replace("-", "_"): key for key in raw}
    for name, aliases in ALIASES.items():
        for alias in aliases:
            if alias in spelled and name not in labels.values:
                labels.keys.add(spelled[alias])
                set_label(labels, name, raw[spelled[alias]], shown_name=spelled[alias])
    return labels


def set_label(labels: Labels, name: str, raw: object, shown_name: str = "") -> None:
    """Read `raw` as the field `name` and keep it if it says something; what is wrong becomes a warning."""
    if name == "language" and spelling.means_instrumental(raw):
        labels.values.setdefault("is_instrumental", True)
        return
    reading = _READERS[name](raw)
    if reading.warning:
        labels.warnings.append(f'"{shown_name or name}": {reading.warning}.')
    if reading.value is None or reading.value == "" or (name == "language" and reading.value == "unknown"):
        return
    labels.values[name] = reading.value
    if name == "lyrics":
        original = clean(_joined(raw, "\n") or "")
        labels.timed_lyrics = original.strip() if is_timed(original) else ""


def _joined(raw: object, separator: str) -> str | None:
    """Text, or a list of texts as one; None for anything else."""
    if isinstance(raw, str):
        return raw
    if isinstance(raw, list) and all(isinstance(item, str) for item in raw):
        return separator.join(item for item in raw if item.strip())
    return None


def _line(raw: object) -> Reading[str]:
    """A caption, genre or tag: one line of text."""
    if raw is None:
        return Reading()
    text = _joined(raw, ", ")
    if text is None:
        return Reading(warning=f"it must be text, not {_kind(raw)}")
    text = one_line(text)
    if is_error_text(text):
        return Reading(warning=f'it holds an error message ("{_short(text)}"), which is not used')
    return Reading(text)


def _lyrics(raw: object) -> Reading[str]:
    if raw is None:
        return Reading()
    text = _joined(raw, "\n")
    if text is None:
        return Reading(warning=f"they must be text, not {_kind(raw)}")
    text = plain_lyrics(clean(text))
    if is_error_text(text):
        return Reading(warning=f'they hold an error message ("{_short(text)}"), which is not used')
    return Reading(INSTRUMENTAL if spelling.means_instrumental(text) else text)


_READERS: MappingProxyType[str, Callable[[object], Reading[Any]]] = MappingProxyType(
    {
        "caption": _line,
        "genre": _line,
        "lyrics": _lyrics,
        "bpm": spelling.bpm,
        "keyscale": spelling.key_scale,
        "timesignature": spelling.time_signature,
        "language": spelling.language,
        "is_instrumental": spelling.boolean,
        "custom_tag": _line,
        "prompt_override": spelling.prompt_override,
        "repeat": spelling.repeat,
        "regularization": spelling.boolean,
    }
)


def origin_note(origin: str, value: Any) -> str:
    """How a label's origin is noted in a file: its name and a short hash of the value, which tells later changes."""
    return f"{origin} #{value_hash(value)[:8]}"


def noted_origin(note: Any, value: Any) -> str | None:
    """The origin in a note, or None when there is no note or the value was changed by hand since."""
    if not isinstance(note, str):
        return None
    origin = note.rpartition(" #")[0]
    return origin if origin and note == origin_note(origin, value) else None


def same_value(name: str, one: Any, other: Any) -> bool:
    """Do two values of a field say the same? In texts case and white space make no difference, in lyrics section
    tags neither."""
    if name not in ("caption", "genre", "lyrics", "custom_tag"):
        return bool(one == other)
    texts = [str(one), str(other)]
    if name == "lyrics" and INSTRUMENTAL not in texts:
        texts = [_SECTION_TAG.sub(" ", text) for text in texts]
    first, second = (one_line(text).casefold() for text in texts)
    return first == second


def in_words(items: Iterable[str], most: int = 3) -> str:
    """ "a, b, c and 9 more", for messages."""
    listed = list(items)
    shown = ", ".join(listed[:most])
    return shown if len(listed) <= most else f"{shown} and {len(listed) - most} more"


def _kind(raw: object) -> str:
    if isinstance(raw, bool):
        return "true or false"
    if isinstance(raw, int | float):
        return "a number" if math.isfinite(raw) else "no number at all"
    if isinstance(raw, list):
        return "a list with other things than text in it"
    return "an object" if isinstance(raw, dict) else type(raw).__name__


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= 60 else line[:60] + "…"

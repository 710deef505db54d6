"""One spelling for tempo, key, metre and language, whatever the source wrote.

Every function takes any value, never raises and never guesses: what it cannot read becomes None. A `warning` is set
when there was something to read but it could not be used, or was used although it looks wrong; an absent value
(empty, "N/A", "unknown") is no reason to warn.
"""

from __future__ import annotations

import math
import re
import reprlib
import unicodedata
from dataclasses import dataclass
from typing import Generic, TypeVar

from acestep.dataset.languages import CANTONESE_REGIONS, LANGUAGE_CODES
from acestep.model.facts import BPM_RANGE, UNKNOWN_LANGUAGE

T = TypeVar("T")

MAX_BPM = 1000
"""Above this a number is not taken for a tempo."""

MAX_REPEAT = 1000

_ABSENT = frozenset({"", "n/a", "na", "none", "null", "nil", "unknown", "-", "--", "?"})
_LONGEST = 200  # no spelling of these values is longer; keeps odd input from costing time

_MINOR_OF_CAMELOT = ("Ab", "Eb", "Bb", "F", "C", "G", "D", "A", "E", "B", "F#", "Db")
_MAJOR_OF_CAMELOT = ("B", "F#", "Db", "Ab", "Eb", "Bb", "F", "C", "G", "D", "A", "E")

_KEY = re.compile(
    r"(?:music )?(?:in )?(?:the )?(?:key of )?"
    r"(?P<letter>[A-Ga-g])(?:[ -]?(?P<accidental>#|b|[Ss]harp|SHARP|[Ff]lat|FLAT))??"
    r"[ :-]*(?P<mode>m|M|(?i:min|minor|maj|major))?(?:[ -]scale)?"
)
_CAMELOT = re.compile(r"0?([1-9]|1[0-2]) ?([ABab])")
_METRE = re.compile(r"([0-9]{1,3})(?:\.0+)?(?: ?/ ?([0-9]{1,3}))?(?: time)?")
_METRES = {"2": "2", "3": "3", "4": "4", "6": "6", "2/4": "2", "2/2": "2", "3/4": "3", "4/4": "4", "6/8": "6"}
_METRE_WORDS = {"common": "4", "common time": "4", "cut": "2", "cut time": "2", "alla breve": "2"}
_NUMBER = r"([0-9]{1,6}(?:[.,][0-9]{1,30})?)"
_BPM = re.compile(rf"(?:~|ca\.? ?|about |around )?{_NUMBER}(?: ?(?:-|to) ?{_NUMBER})?(?: ?(?:bpm|beats per minute))?")
_TRUE = frozenset({"true", "yes", "y", "1", "on"})
_FALSE = frozenset({"false", "no", "n", "0", "off"})


@dataclass(frozen=True)
class Reading(Generic[T]):
    """What a value was read as: the canonical value or None, and why a warning is due (empty: none is)."""

    value: T | None = None
    warning: str = ""


def key_scale(raw: object) -> Reading[str]:
    """A key as prompts name it: letter A-G, optional # or b, "major" or "minor" ("Am", "8A" → "A minor").

    A bare letter is major; a lone m is minor and a lone M major. Camelot codes are understood too.
    """
    text = _plain(raw)
    if text is None:
        return Reading(warning=_not_understood(raw, "a key"))
    text = text.replace("♯", "#").replace("♭", "b").replace("_", " ")
    if text.lower() in _ABSENT:
        return Reading()
    if camelot := _CAMELOT.fullmatch(text):
        number, minor = int(camelot[1]) - 1, camelot[2] in "Aa"
        letter = (_MINOR_OF_CAMELOT if minor else _MAJOR_OF_CAMELOT)[number]
        return Reading(f"{letter} {'minor' if minor else 'major'}")
    match = _KEY.fullmatch(text)
    if match is None:
        return Reading(warning=_not_understood(raw, "a key"))
    accidental = {"#": "#", "s": "#", "b": "b", "f": "b"}[match["accidental"][0].lower()] if match["accidental"] else ""
    mode = match["mode"] or ""
    minor = mode == "m" or mode.lower().startswith("min")
    return Reading(f"{match['letter'].upper()}{accidental} {'minor' if minor else 'major'}")


def time_signature(raw: object) -> Reading[str]:
    """The metre as prompts name it: "2", "3", "4" or "6" ("4/4", 4, "common" → "4"; "6/8" → "6")."""
    text = _plain(raw)
    if text is None:
        return Reading(warning=_not_understood(raw, "a time signature"))
    text = text.lower()
    if text in _ABSENT or text in ("0", "0.0"):
        return Reading()
    value = _METRE_WORDS.get(text)
    if value is None and (match := _METRE.fullmatch(text)):
        value = _METRES.get(match[1] if match[2] is None else f"{match[1]}/{match[2]}")
    if value is None:
        return Reading(warning=f"{_shown(raw)} is no time signature the model knows (2/4, 3/4, 4/4, 6/8)")
    return Reading(value)


def bpm(raw: object) -> Reading[int]:
    """Beats in a minute, rounded: 128, "128.0", "128 BPM"; "120-130" becomes its middle. 0 means not known."""
    text = _plain(raw)
    if text is None:
        return Reading(warning=_not_understood(raw, "a tempo"))
    text = text.lower()
    if text in _ABSENT:
        return Reading()
    number = _number(text)
    if number is None:
        match = _BPM.fullmatch(text)
        if match is None:
            return Reading(warning=_not_understood(raw, "a tempo"))
        ends = [float(part.replace(",", ".")) for part in match.groups() if part]
        number = sum(ends) / len(ends)
    if number <= 0.5:  # rounds to none at all
        return Reading(warning=f"{_shown(raw)} is no tempo" if number < 0 else "")
    if number > MAX_BPM:
        return Reading(warning=f"{_shown(raw)} is no tempo")
    value = round(number)
    low, high = BPM_RANGE
    return Reading(value, "" if low <= value <= high else f"{value} BPM is outside the usual {low} to {high}")


def language(raw: object) -> Reading[str]:
    """One of the model's 51 codes: names and regional codes too ("English", "pt-BR" → "pt", "zh-HK" → "yue").

    "instrumental" is no language: it reads as "unknown", and `means_instrumental` tells it apart.
    """
    text = _plain(raw)
    if text is None:
        return Reading(warning=_not_understood(raw, "a language"))
    text = re.sub(r" ?\([^()]*\)$", "", text.lower())
    if text == UNKNOWN_LANGUAGE or means_instrumental(text):
        return Reading(UNKNOWN_LANGUAGE)
    if text in _ABSENT or text == "auto":
        return Reading()
    words = text.replace("_", "-").split("-")
    code = LANGUAGE_CODES.get(text) or LANGUAGE_CODES.get(" ".join(words))
    if code is None and len(words) > 1 and all(re.fullmatch(r"[a-z0-9]{2,8}", word) for word in words):
        # tags such as zh-Hant-HK; a name before the hyphen ("german-english") does not count as one
        code = LANGUAGE_CODES.get(words[0]) if len(words[0]) <= 3 else None
        if code == "zh" and not CANTONESE_REGIONS.isdisjoint(words[1:]):
            code = "yue"
    if code is None:
        return Reading(warning=f"{_shown(raw)} is no language the model knows")
    return Reading(code)


def means_instrumental(raw: object) -> bool:
    """Does a whole text say no more than that there is no voice: [Instrumental], [inst], instrumental?"""
    return isinstance(raw, str) and raw.strip().lower() in (
        "[instrumental]",
        "[inst]",
        "instrumental",
        "(instrumental)",
    )


def boolean(raw: object) -> Reading[bool]:
    """True or false, as JSON or in words (yes, no, on, off, 1, 0)."""
    if isinstance(raw, bool):
        return Reading(raw)
    text = _plain(raw)
    if text is not None:
        if text.lower() in _TRUE | _FALSE:
            return Reading(text.lower() in _TRUE)
        if text.lower() in _ABSENT:
            return Reading()
    return Reading(warning=f"{_shown(raw)} is neither true nor false")


def repeat(raw: object) -> Reading[int]:
    """How often a song counts: a whole number from 1."""
    text = _plain(raw)
    if text is not None and text.lower() in _ABSENT:
        return Reading()
    number = None if text is None else _number(text)
    if number is None or number != int(number) or not 1 <= number <= MAX_REPEAT:
        return Reading(warning=f"{_shown(raw)} is no whole number from 1 to {MAX_REPEAT}")
    return Reading(int(number))


def prompt_override(raw: object) -> Reading[str]:
    """Which text a song is prompted with whatever the genre ratio: "caption" or "genre"."""
    text = _plain(raw)
    if text is not None and text.lower() in ("caption", "genre"):
        return Reading(text.lower())
    if text is not None and text.lower() in _ABSENT:
        return Reading()
    return Reading(warning=f'{_shown(raw)} is neither "caption" nor "genre"')


def _plain(raw: object) -> str | None:
    """Text or number as text with single spaces, plain hyphens and accidentals; None for any other type."""
    if raw is None:
        return ""
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        return None
    if isinstance(raw, int):
        return str(raw) if abs(raw) < 10**15 else None
    if isinstance(raw, float):
        return repr(raw) if math.isfinite(raw) else None
    if len(raw) > _LONGEST:
        return None
    text = unicodedata.normalize("NFKC", raw)
    text = re.sub(r"[\u2010-\u2015\u2212]", "-", text)
    return " ".join(text.split())


def _number(text: str) -> float | None:
    """A finite number written with digits, or None."""
    if not re.fullmatch(r"[+-]?[0-9]{1,15}(\.[0-9]{0,30})?(e[+-]?[0-9]{1,3})?", text, flags=re.IGNORECASE):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def _shown(raw: object) -> str:
    if isinstance(raw, str):
        return f'"{raw if len(raw) <= 40 else raw[:40] + "…"}"'
    try:
        return reprlib.repr(raw)
    except ValueError:  # whole numbers of thousands of digits cannot be written out
        return "a value without end"


def _not_understood(raw: object, what: str) -> str:
    return f"{_shown(raw)} is not understood as {what}"

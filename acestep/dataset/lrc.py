"""Timed lyrics (LRC): the words without stamps for prompts, and the lines with their times for cropping.

Understood are [m:ss], [m:ss.f], [m:ss:ff] and [h:mm:ss.f] before a line, several of them where the line comes
back, <m:ss.f> before words, and ID tags such as [ar:…]. Structure tags ([Chorus], [Guitar Solo]) stay.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_HOURS = r"([0-9]{1,3}):([0-9]{1,2}):([0-9]{1,2})\.([0-9]{1,6})"
_MINUTES = r"([0-9]{1,5}):([0-9]{1,2})(?:[.:]([0-9]{1,6}))?"
_STAMP = re.compile(rf"\[\s*(?:{_HOURS}|{_MINUTES})\s*\]")
_WORD_STAMP = re.compile(rf"<\s*(?:{_HOURS}|{_MINUTES})\s*>")
_LEADING_STAMPS = re.compile(rf"\s*(?:{_STAMP.pattern}\s*)+")
_ID_TAG = re.compile(r"\[\s*(ti|ar|al|au|by|re|ve|offset|length|lr|tool|#)\s*:(.*)\]", re.IGNORECASE)
_STRUCTURE = re.compile(r"\[[^\[\]]*\]")
_LONGEST_OFFSET_S = 600.0
_MOST_NESTED = 20  # a bound on the work a malformed line can ask for


@dataclass(frozen=True)
class TimedLine:
    """One line of lyrics and when it begins, in seconds; structure tags have the time of the line after them."""

    time_s: float
    text: str


def is_timed(text: str) -> bool:
    """Does any line begin with a time stamp?"""
    return "[" in text and any(line.times for line in _parse(text))


def plain_lyrics(text: str) -> str:
    """The words and structure tags alone, lines that come back written out in order of time.

    Blank lines between parts stay, at most one at a time. Lyrics without stamps keep their order.
    """
    parsed = _parse(text)
    if any(len(line.times) > 1 for line in parsed):
        words = [line.text for line in timed_lines(text)]
    else:
        words = [line.text for line in parsed]
    return _joined(words)


def lyrics_between(text: str, start_s: float, end_s: float) -> str:
    """The lines of timed lyrics that begin from `start_s` on and before `end_s`, without stamps.

    The structure tag in force at `start_s` comes first, so that the model is told which part it hears; a line that
    began before counts to what came before.
    """
    lines = timed_lines(text)
    inside = [line.text for line in lines if start_s <= line.time_s < end_s]
    tags = [line.text for line in lines if line.time_s < start_s and _STRUCTURE.fullmatch(line.text)]
    first = next((line for line in inside if line), "")
    if tags and not _STRUCTURE.fullmatch(first):
        inside.insert(0, tags[-1])
    return _joined(inside)


def _joined(words: list[str]) -> str:
    """Lines as one text, with at most one blank line between two parts."""
    lines: list[str] = []
    for word in words:
        if word or (lines and lines[-1]):
            lines.append(word)
    return "\n".join(lines).strip()


def timed_lines(text: str) -> list[TimedLine]:
    """Every line with its time, in order of time; empty for lyrics without stamps.

    A line without a stamp goes with the stamped line before it, a structure tag with the one after it.
    """
    parsed = _parse(text)
    if not any(line.times for line in parsed):
        return []
    shift_s = _offset_s(text)
    groups: list[tuple[float, list[str]]] = []  # a time and the lines sung or shown from then on
    headings: list[str] = []
    latest = 0  # the group of the last stamped line where it first comes
    for line in parsed:
        if line.times:
            latest = len(groups)
            for number, time_s in enumerate(line.times):
                words = [*headings, line.text] if number == 0 else [line.text]
                groups.append((max(0.0, time_s - shift_s), words))
            headings = []
        elif not groups or not line.text or _STRUCTURE.fullmatch(line.text) or headings:
            headings.append(line.text)
        else:
            groups[latest][1].append(line.text)
    if headings:
        groups.append((max(time_s for time_s, _ in groups), headings))
    groups.sort(key=lambda group: group[0])
    return [TimedLine(time_s, word) for time_s, words in groups for word in words]


@dataclass(frozen=True)
class _Line:
    times: tuple[float, ...]
    text: str


def _parse(text: str) -> list[_Line]:
    lines = []
    for raw in text.splitlines():
        rest, times = raw.strip(), []
        if "[" not in rest and "<" not in rest:
            lines.append(_Line((), rest))
            continue
        for _ in range(_MOST_NESTED):  # taking a stamp out can leave another
            before = rest
            if match := _LEADING_STAMPS.match(rest):
                times += [_seconds(stamp) for stamp in _STAMP.finditer(match.group())]
                rest = _without(_STAMP, rest)  # some programs stamp words like lines
            rest = _without(_WORD_STAMP, rest)
            if rest == before:
                break
        if _ID_TAG.fullmatch(rest) is None:
            lines.append(_Line(tuple(times), rest))
    return lines


def _without(stamp: re.Pattern[str], text: str) -> str:
    return " ".join(stamp.sub("", text).split()) if stamp.search(text) else text


def _seconds(stamp: re.Match[str]) -> float:
    hours, minutes, seconds, fraction, only_minutes, only_seconds, only_fraction = stamp.groups()
    if hours is not None:
        whole = int(hours) * 3600 + int(minutes) * 60 + int(seconds)
    else:
        whole, fraction = int(only_minutes) * 60 + int(only_seconds), only_fraction
    return whole + (float(f"0.{fraction}") if fraction else 0.0)


def _offset_s(text: str) -> float:
    """What an [offset:…] tag asks for: milliseconds by which every line comes earlier."""
    for line in text.splitlines():
        match = _ID_TAG.fullmatch(line.strip())
        if match and match[1].lower() == "offset":
            number = re.fullmatch(r"\s*([+-]?[0-9]{1,9})\s*", match[2])
            shift_s = int(number[1]) / 1000 if number else 0.0
            return shift_s if abs(shift_s) <= _LONGEST_OFFSET_S else 0.0
    return 0.0

"""Words with times → lyric lines, sections and LRC text.

Lines end where a sentence or clause does, or where the singer pauses: 0.8 s, in Chinese, Japanese and Korean 0.5 s.
Sections end at pauses of SECTION_PAUSE_S.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from acestep.dataset import spelling
from acestep.dataset.text import one_line

LINE_PAUSE_S = 0.8
CJK_LINE_PAUSE_S = 0.5
SECTION_PAUSE_S = 4.0

_CJK_LANGUAGES = frozenset({"zh", "ja", "ko", "yue"})
_NO_SPACES = re.compile(
    r"[\u0e00-\u0eff\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
_ENDS_CLAUSE = re.compile(r"[,.!?;:，。！？；、…][\"'”’）)]*$")
_DROPPED_AT_END = ",.，。、"
_EVENT = re.compile(r"[\[(（♪♫*].*[\])）♪♫*]|[♪♫]+")
_SHORTEST_LINE = 3  # words before a comma ends a line
_LONGEST_LINE = 60  # characters; of writing without blanks half of it


@dataclass(frozen=True)
class Word:
    """One word, its begin and end in seconds; None where the transcriber gave no time."""

    text: str
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class LyricLine:
    """One line of lyrics, when it begins in seconds, and whether a new section begins with it."""

    text: str
    start_s: float
    begins_section: bool = False


def language_code(raw: object) -> str:
    """The model's code of a language as services name it ("english", "jpn", "zh-TW"); empty where there is none."""
    code = spelling.language(raw).value
    return code if code and code != "unknown" else ""


def lyric_lines(words: Iterable[Word], language: object = "") -> list[LyricLine]:
    """Lines of words in their order. Sounds that are no words ("[music]") are left out."""
    spoken = [word for word in (_cleaned(word) for word in words) if word is not None]
    is_cjk = language_code(language) in _CJK_LANGUAGES
    if not language_code(language):
        is_cjk = sum(bool(_CJK.search(word.text)) for word in spoken) > len(spoken) / 2
    pause_s = CJK_LINE_PAUSE_S if is_cjk else LINE_PAUSE_S
    lines: list[LyricLine] = []
    current: list[Word] = []
    clock_s = 0.0  # end of the last word that has a time; begins never go back behind it
    begin_s = 0.0
    is_new_section = True
    for word in spoken:
        start_s = clock_s if word.start_s is None else max(clock_s, word.start_s)
        gap_s = start_s - clock_s
        if current and (gap_s > pause_s or _is_full(current, word)):
            lines.append(LyricLine(_joined(current), begin_s, is_new_section))
            current, is_new_section = [], False
        if not current:
            begin_s = start_s
            is_new_section = not lines or gap_s >= SECTION_PAUSE_S
        current.append(word)
        clock_s = start_s if word.end_s is None else max(start_s, word.end_s)
        if _ends_line(current):
            lines.append(LyricLine(_joined(current), begin_s, is_new_section))
            current = []
    if current:
        lines.append(LyricLine(_joined(current), begin_s, is_new_section))
    return [line for line in lines if line.text]


def lyrics_text(lines: Iterable[LyricLine]) -> str:
    """The lines under a [Verse] tag for each section, numbered where there are several; empty without lines."""
    return "\n".join(text for text, _ in _tagged(list(lines)))


def lrc_text(lines: Iterable[LyricLine]) -> str:
    """The same text with a time before each line, in hundredths of a second; `plain_lyrics` of it is `lyrics_text`."""
    return "\n".join(f"[{_stamp(time_s)}]{text}" if text else "" for text, time_s in _tagged(list(lines)))


def plain_verse(text: object) -> str:
    """Text without times as one [Verse]; empty where it says nothing."""
    lines = [one_line(line) for line in text.splitlines()] if isinstance(text, str) else []
    kept = "\n".join(lines).strip()
    return f"[Verse]\n{kept}" if kept else ""


def _tagged(lines: list[LyricLine]) -> list[tuple[str, float]]:
    sections = sum(line.begins_section for line in lines)
    rows: list[tuple[str, float]] = []
    number = 0
    for line in lines:
        if line.begins_section or not rows:
            number += 1
            if rows:
                rows.append(("", line.start_s))
            rows.append((f"[Verse {number}]" if sections > 1 else "[Verse]", line.start_s))
        rows.append((line.text, line.start_s))
    return rows


def _cleaned(word: Word) -> Word | None:
    """The word without marks that mean something in lyrics files, and with usable times; None for no word at all."""
    text = one_line(word.text)
    if not text or _EVENT.fullmatch(text):
        return None
    text = one_line(re.sub(r"[\[\]<>]", " ", text))
    times = [
        time_s if time_s is not None and math.isfinite(time_s) and 0 <= time_s < 86_400 else None
        for time_s in (word.start_s, word.end_s)
    ]
    return Word(text, *times) if text else None


def _is_full(current: list[Word], word: Word) -> bool:
    length = len(_joined([*current, word]))
    return length > (_LONGEST_LINE // 2 if _NO_SPACES.search(word.text) else _LONGEST_LINE)


def _ends_line(current: list[Word]) -> bool:
    last = current[-1].text
    if not _ENDS_CLAUSE.search(last):
        return False
    if last.rstrip("\"'”’)）")[-1:] in ".!?。！？…":
        return True
    return len(current) >= _SHORTEST_LINE or len(last) >= 2 * _SHORTEST_LINE


def _joined(words: list[Word]) -> str:
    """Words with a blank between them, but none beside writing that has none (Han, kana, Thai)."""
    text = ""
    for word in words:
        is_close = _NO_SPACES.match(word.text) or _NO_SPACES.match(text[-1:]) or _ENDS_CLAUSE.match(word.text)
        text += f" {word.text}" if text and not is_close else word.text
    return text.rstrip(_DROPPED_AT_END).rstrip() or text


def _stamp(time_s: float) -> str:
    hundredths = round(time_s * 100)
    return f"{hundredths // 6000:02d}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"

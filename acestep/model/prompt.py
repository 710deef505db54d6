"""The two texts the model is conditioned on. Training and generation both take them from here.

The forms are those the models were trained with, byte for byte; every newline counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from acestep.model.facts import (
    END_OF_TEXT,
    FALLBACK_DURATION_S,
    INSTRUCTION,
    INSTRUMENTAL,
    NOT_AVAILABLE,
    UNKNOWN_LANGUAGE,
)

TagPlace = Literal["none", "prepend", "append", "replace"]
"""Where a trigger word stands: not at all, before the caption, after it, or instead of it."""

TAG_PLACES: tuple[TagPlace, ...] = ("none", "prepend", "append", "replace")

_TEXT_FORM = re.compile(
    re.escape(f"# Instruction\n{INSTRUCTION}\n\n# Caption\n") + r"(?P<caption>.*)\n\n# Metas\n"
    r"- bpm: (?P<bpm>\d+|N/A)\n- timesignature: (?P<timesignature>.*?)\n- keyscale: (?P<keyscale>.*?)\n"
    r"- duration: (?P<duration>\d+) seconds\n" + re.escape(f"{END_OF_TEXT}\n"),
    re.DOTALL,
)
_LYRIC_FORM = re.compile(
    r"# Languages\n(?P<language>.*?)\n\n# Lyric\n(?P<lyrics>.*)" + re.escape(END_OF_TEXT), re.DOTALL
)


@dataclass(frozen=True)
class PromptLabels:
    """What is said about one piece of music. Empty texts and None mean unknown.

    `caption` is the final text, with the trigger word where it has one. `duration_s` is the length of the
    audio that is encoded or asked for, in seconds.
    """

    caption: str
    lyrics: str = INSTRUMENTAL
    language: str = UNKNOWN_LANGUAGE
    bpm: int | None = None
    keyscale: str = ""
    timesignature: str = ""
    duration_s: float = 0.0


def metas(labels: PromptLabels) -> str:
    """The four lines about tempo, metre, key and length; each ends in a newline."""
    bpm = str(int(labels.bpm)) if labels.bpm is not None and labels.bpm > 0 else NOT_AVAILABLE
    duration_s = int(labels.duration_s) if labels.duration_s > 0 else FALLBACK_DURATION_S
    return (
        f"- bpm: {bpm}\n"
        f"- timesignature: {_or_unknown(labels.timesignature)}\n"
        f"- keyscale: {_or_unknown(labels.keyscale)}\n"
        f"- duration: {duration_s} seconds\n"
    )


def text_prompt(labels: PromptLabels) -> str:
    """The text prompt: instruction, caption and metas. A newline follows the end token."""
    return f"# Instruction\n{INSTRUCTION}\n\n# Caption\n{labels.caption}\n\n# Metas\n{metas(labels)}{END_OF_TEXT}\n"


def lyric_prompt(labels: PromptLabels) -> str:
    """The lyric prompt: language and lyrics. Nothing follows the end token."""
    return f"# Languages\n{language_code(labels)}\n\n# Lyric\n{sung_text(labels)}{END_OF_TEXT}"


def sung_text(labels: PromptLabels) -> str:
    """The lyrics as the prompt holds them: [Instrumental] when there are none."""
    bare = labels.lyrics.strip()
    return INSTRUMENTAL if not bare or bare.casefold() == INSTRUMENTAL.casefold() else labels.lyrics


def language_code(labels: PromptLabels) -> str:
    """The language as the prompt holds it: "unknown" when it is not given."""
    return labels.language.strip() or UNKNOWN_LANGUAGE


def with_tag(text: str, tag: str, position: TagPlace) -> str:
    """The caption `text` with the trigger word `tag` in its place.

    A caption that already begins or ends with the tag as a word of its own, whatever the case, stays as it is:
    the tag is never there twice.
    """
    tag = tag.strip()
    if not tag or position == "none":
        return text
    if position == "replace" or not text.strip():
        return tag
    word = re.escape(tag)
    if re.search(rf"\A\s*{word}(?!\w)|(?<!\w){word}[\s.]*\Z", text, flags=re.IGNORECASE):
        return text
    return f"{tag}, {text}" if position == "prepend" else f"{text}, {tag}"


def _or_unknown(value: str) -> str:
    return value if value.strip() else NOT_AVAILABLE


def read_prompts(text: str, lyrics: str) -> PromptLabels | None:
    """The labels that `text_prompt` and `lyric_prompt` were given for these two texts; None for other texts."""
    found, sung = _TEXT_FORM.fullmatch(text), _LYRIC_FORM.fullmatch(lyrics)
    if found is None or sung is None:
        return None
    bpm, timesignature, keyscale = (
        "" if value == NOT_AVAILABLE else value for value in found.group("bpm", "timesignature", "keyscale")
    )
    return PromptLabels(
        caption=found["caption"],
        lyrics=sung["lyrics"],
        language=sung["language"],
        bpm=int(bpm) if bpm else None,
        keyscale=keyscale,
        timesignature=timesignature,
        duration_s=float(found["duration"]),
    )

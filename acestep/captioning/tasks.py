"""What models that hear and write are asked, on this machine or on a server, and what is made of their answers.

The wordings are those ACE-Step's captioner and transcriber were trained with (their cards on the Hub).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence, Set

from acestep.captioning.contract import Answer, Field, Guess
from acestep.captioning.lyrics import join_lyrics
from acestep.captioning.parsing import parse_caption, parse_transcript

SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
    "visual inputs, as well as generating text and speech."
)
TRANSCRIBE = "*Task* Transcribe this audio in detail"
_DESCRIBE = "*Task* Describe this audio in detail"
_LINES: dict[Field, str] = {
    "bpm": "BPM: beats per minute as a number",
    "keyscale": "Key: note and major or minor",
    "timesignature": "Time signature: beats of a bar and note value",
    "genre": "Genre: one to three genres",
}
"""The lines asked for beside the description. No line shows a value: models repeat what they are shown."""

CAPTIONER_GIVES: frozenset[Field] = frozenset({"caption", *_LINES})
TRANSCRIBER_GIVES: frozenset[Field] = frozenset({"lyrics", "language"})

_LINE_TOKENS = 16
_LYRICS_TOKENS_A_SECOND = 8  # fast rap, and scripts with a token for each character
_FEWEST_LYRICS_TOKENS = 96  # headings, tags, and the odd line of a short window


def caption_task(wanted: Set[Field], max_tokens: int) -> tuple[str, int]:
    """The question for the wanted fields, and room for its answer in tokens, `max_tokens` of them for the caption."""
    extra = [line for field, line in _LINES.items() if field in wanted]
    if not extra:
        return _DESCRIBE, max_tokens
    wishes = "\n".join(f"- {line}" for line in extra)
    question = f"{_DESCRIBE}\nAfter the description, add these lines, with unknown where you cannot tell:\n{wishes}"
    return question, max_tokens + _LINE_TOKENS * len(extra)


def lyrics_tokens(duration_s: float) -> int:
    """Room for as many words as can be sung in so many seconds, in tokens."""
    return _FEWEST_LYRICS_TOKENS + math.ceil(_LYRICS_TOKENS_A_SECOND * duration_s)


def caption_answer(text: str, wanted: Set[Field], *, is_whole: bool, excerpts: int, heard_s: float) -> Answer:
    """The wanted fields of a description of a song that was heard in so many excerpts, together `heard_s` long."""
    parsed = parse_caption(text)
    notes = list(parsed.notes)
    if excerpts > 1:
        notes.append(f"Too long to be heard as a whole: {excerpts} excerpts were, together {heard_s:.0f} s.")
    if not is_whole:
        notes.append("The description was cut off at its longest; raise max_tokens.")
    values = {field: Guess(value) for field, value in parsed.values.items() if field in wanted}
    return Answer(values, notes=tuple(notes))


def lyrics_answer(texts: Sequence[str], wanted: Set[Field], *, cut_off: int) -> Answer:
    """The wanted fields of the transcripts of a song's windows in their order, of which `cut_off` were cut off."""
    parts = [parse_transcript(text) for text in texts]
    values: dict[Field, Guess] = {}
    if "lyrics" in wanted and (lyrics := join_lyrics([part.values.get("lyrics", "") for part in parts])):
        values["lyrics"] = Guess(lyrics)
    heard = Counter(part.values["language"] for part in parts if "language" in part.values)
    if "language" in wanted and heard:
        ranks = heard.most_common(2)
        values["language"] = Guess(ranks[0][0], ranks[0][1] / heard.total(), ranks[1][0] if len(ranks) > 1 else None)
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    if cut_off:
        where = "" if len(texts) == 1 else f" in {cut_off} of {len(texts)} parts of the song"
        notes.append(f"The lyrics may be cut off{where}.")
    return Answer(values, notes=tuple(notes))

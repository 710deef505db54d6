"""What the transcribers share: the words of overlapping pieces joined, and the answer made of timed words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from acestep.captioning.contract import Answer, Field, Guess, SongToLabel
from acestep.captioning.lines import Word, lrc_text, lyric_lines, lyrics_text, plain_verse
from acestep.dataset import spelling
from acestep.model.facts import INSTRUMENTAL, UNKNOWN_LANGUAGE

_SAME_WORD_S = 0.1


def join_pieces(heard: Sequence[tuple[float, Sequence[Word]]], overlap_s: float) -> list[Word]:
    """The words of a whole song from those of its overlapping pieces (second at which each begins, its words).

    In the middle of an overlap one piece gives way to the next: there both have heard the words around. A word
    without a time stays with the one before it.
    """
    joined: list[Word] = []
    end_s = float("-inf")
    for number, (start_s, words) in enumerate(heard):
        until_s = heard[number + 1][0] + overlap_s / 2 if number + 1 < len(heard) else float("inf")
        after_s, is_kept = end_s - _SAME_WORD_S, False
        for word in words:
            placed = Word(word.text, _shifted(word.start_s, start_s), _shifted(word.end_s, start_s))
            if placed.start_s is not None:
                is_kept = after_s <= placed.start_s < until_s
            if is_kept:
                joined.append(placed)
                end_s = max(end_s, placed.start_s or end_s, placed.end_s or end_s)
    return joined


def transcript_answer(
    song: SongToLabel,
    words: Sequence[Word],
    text: str,
    language: Guess,
    *,
    confidence: float | None = None,
    notes: Sequence[str] = (),
    usage: Mapping[str, float] | None = None,
) -> Answer:
    """Lyrics, their LRC and the language of a transcript; nothing heard at all means an instrumental song.

    `text` is the transcript as one piece, for services that give no times. `language` is as the service names it.
    """
    notes = list(notes)
    lines = lyric_lines(words, song.language or language.value)
    lyrics = lyrics_text(lines) or plain_verse(text)
    values: dict[Field, Guess] = {"lyrics": Guess(lyrics or INSTRUMENTAL, confidence if lyrics else None)}
    if lyrics and not song.language:
        reading = spelling.language(language.value)
        if reading.value and reading.value != UNKNOWN_LANGUAGE:
            values["language"] = Guess(reading.value, language.confidence)
        elif reading.warning:
            notes.append(f"The language of the lyrics: {reading.warning}.")
    return Answer(
        {name: guess for name, guess in values.items() if name in song.wanted},
        timed_lyrics=lrc_text(lines) if "lyrics" in song.wanted else "",
        notes=tuple(notes),
        usage=usage or {},
    )


def language_hint(song: SongToLabel) -> str:
    """The code of the language where the user has said it, as services take it; else empty."""
    return "" if song.language == UNKNOWN_LANGUAGE else song.language


def _shifted(time_s: float | None, by_s: float) -> float | None:
    return None if time_s is None else time_s + by_s

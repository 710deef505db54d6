"""Words with times become lines, sections and LRC text that reads back as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.captioning.lines import Word, language_code, lrc_text, lyric_lines, lyrics_text, plain_verse
from acestep.dataset.lrc import plain_lyrics, timed_lines


def spoken(text: str, gap_s: float = 0.1, start_s: float = 0.0) -> list[Word]:
    return [
        Word(word, start_s + number * (0.3 + gap_s), start_s + number * (0.3 + gap_s) + 0.3)
        for number, word in enumerate(text.split())
    ]


def test_lines_end_at_marks_and_pauses_and_sections_at_long_pauses() -> None:
    words = [*spoken("Hello my friend, how are you?"), *spoken("New day", 0.9, 9.0), Word("[music]", 12, 13)]
    lines = lyric_lines(words, "english")
    assert [line.text for line in lines] == ["Hello my friend", "how are you?", "New", "day"]
    assert [line.begins_section for line in lines] == [True, False, True, False]
    assert lyrics_text(lines) == "[Verse 1]\nHello my friend\nhow are you?\n\n[Verse 2]\nNew\nday"
    assert lrc_text(lines).splitlines()[:2] == ["[00:00.00][Verse 1]", "[00:00.00]Hello my friend"]
    assert lyrics_text(lyric_lines(spoken("one two"))) == "[Verse]\none two"


def test_writing_without_blanks_is_joined_and_breaks_at_shorter_pauses() -> None:
    words = [Word("你", 0, 0.2), Word("好", 0.2, 0.4), Word("吗", 1.0, 1.2)]
    for language in ("chinese", "zh", "zho", ""):
        assert [line.text for line in lyric_lines(words, language)] == ["你好", "吗"]
    assert [line.text for line in lyric_lines(words, "english")] == ["你好吗"]
    korean = [Word("사랑", 0, 0.3), Word("노래", 0.4, 0.6), Word("love", 0.7, 0.9)]
    assert lyric_lines(korean, "kor")[0].text == "사랑 노래 love"
    mixed = [Word("君", 0, 0.2), Word("と", 0.2, 0.4), Word("love", 0.5, 0.7), Word("song。", 0.8, 1.0)]
    assert lyric_lines(mixed, "Japanese")[0].text == "君とlove song"


def test_endless_talk_without_pauses_is_broken_into_lines() -> None:
    lines = lyric_lines(spoken("word " * 100))
    assert max(len(line.text) for line in lines) <= 60 and sum(len(line.text.split()) for line in lines) == 100


@pytest.mark.parametrize(
    ("raw", "code"),
    [("english", "en"), ("jpn", "ja"), ("ZH-tw", "zh"), ("zh-HK", "yue"), ("xx", ""), (None, ""), ("nn", "no")],
)
def test_languages_of_services(raw: object, code: str) -> None:
    assert language_code(raw) == code


def test_text_without_times() -> None:
    assert plain_verse(" one \n two ") == "[Verse]\none\ntwo"
    assert plain_verse("  ") == plain_verse(None) == ""


times = st.none() | st.floats(-5, 500) | st.sampled_from([float("nan"), float("inf")])


some_words = st.lists(st.builds(Word, st.text(max_size=12), times, times), max_size=40)


@given(some_words, st.sampled_from(["", "en", "ja", "?"]))
def test_times_survive_whatever_words_and_times_come(words: list[Word], language: str) -> None:
    lines = lyric_lines(words, language)
    begins = [line.start_s for line in lines]
    assert begins == sorted(begins) and all(0 <= begin < 86_400 for begin in begins)
    text, timed = lyrics_text(lines), lrc_text(lines)
    if any("[" in line.text or "<" in line.text or not line.text.strip() for line in lines):
        raise AssertionError("marks of lyrics files must not come from words")
    assert plain_lyrics(timed) == plain_lyrics(text) == text.strip()
    read = [(line.text, line.time_s) for line in timed_lines(timed) if line.text and not line.text.startswith("[Verse")]
    assert [words for words, _ in read] == [line.text for line in lines]
    assert all(abs(time_s - line.start_s) <= 0.0051 for (_, time_s), line in zip(read, lines, strict=True))

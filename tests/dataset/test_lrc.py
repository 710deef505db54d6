"""Timed lyrics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.dataset.lrc import TimedLine, is_timed, lyrics_between, plain_lyrics, timed_lines

SONG = """\ufeff[ti:Title]
[ar: Somebody]
[offset: 0]
[length:03:10]
[#:a comment]
[Verse 1]
[00:10.00]first line
[0:12]second <00:12.50>line
[00:14:50]third


[Chorus]
[00:20.00][00:40.00] [100:00.123]come back
[Guitar Solo]
[00:30]last
"""

PIECES = st.sampled_from(
    [
        "[00:10.00]",
        "[1:2]",
        "[00:01:02.5]",
        "<00:11.2>",
        "[Chorus]",
        "[ti:x]",
        "[offset:+100]",
        "\n",
        "\n\n",
        " ",
        "la",
        "[",
        "<0:",
        "]",
        "1>",
        "\r\n",
        "\u2028",
    ]
)


def test_only_words_and_structure_tags_are_left_in_order_of_time() -> None:
    assert plain_lyrics(SONG.lstrip("\ufeff")).split("\n") == [
        "[Verse 1]",
        "first line",
        "second line",
        "third",
        "",
        "[Chorus]",
        "come back",
        "[Guitar Solo]",
        "last",
        "come back",
        "come back",
    ]


def test_every_line_has_its_time() -> None:
    lines = [line for line in timed_lines(SONG.lstrip("\ufeff")) if line.text]
    assert lines == [
        TimedLine(10.0, "[Verse 1]"),
        TimedLine(10.0, "first line"),
        TimedLine(12.0, "second line"),
        TimedLine(14.5, "third"),
        TimedLine(20.0, "[Chorus]"),
        TimedLine(20.0, "come back"),
        TimedLine(30.0, "[Guitar Solo]"),
        TimedLine(30.0, "last"),
        TimedLine(40.0, "come back"),
        TimedLine(6000.123, "come back"),
    ]


@pytest.mark.parametrize(
    ("stamp", "time_s"),
    [
        ("[00:05]", 5),
        ("[00:05.5]", 5.5),
        ("[00:05.25]", 5.25),
        ("[00:05.125]", 5.125),
        ("[0:5]", 5),
        ("[123:05]", 7385),
        ("[00:05:25]", 5.25),
        ("[01:00:05.5]", 3605.5),
    ],
)
def test_forms_of_stamps(stamp: str, time_s: float) -> None:
    assert timed_lines(f"{stamp}word") == [TimedLine(time_s, "word")]
    assert plain_lyrics(f"{stamp} word") == "word"


def test_offset_moves_lines_earlier_and_never_before_the_start() -> None:
    assert [line.time_s for line in timed_lines("[offset:+1500]\n[00:01.00]a\n[00:10.00]b")] == [0.0, 8.5]
    assert [line.time_s for line in timed_lines("[offset:-500]\n[00:01.00]a")] == [1.5]
    assert [line.time_s for line in timed_lines("[offset:soon]\n[00:01.00]a")] == [1.0]


def test_lyrics_without_stamps_stay_as_they_are() -> None:
    lyrics = "[Verse 1: Somebody]\nWord  and word, 3:45 in the morning\n\n[Chorus]\n(la la)"
    assert not is_timed(lyrics)
    assert timed_lines(lyrics) == []
    assert plain_lyrics(lyrics) == lyrics
    assert plain_lyrics("\n\na\n\n\n\nb\n\n") == "a\n\nb"


@given(st.lists(PIECES, max_size=30).map("".join) | st.text())
def test_never_raises_and_leaves_no_stamp(text: str) -> None:
    plain = plain_lyrics(text)
    assert not is_timed(plain)
    assert plain_lyrics(plain) == plain
    times = [line.time_s for line in timed_lines(text)]
    assert times == sorted(times)
    assert bool(times) == is_timed(text)


@given(
    st.lists(st.tuples(st.integers(0, 5999), st.sampled_from(["one", "two words", "[Chorus]", "(echo)"])), min_size=1)
)
def test_written_lines_are_read_back(lines: list[tuple[int, str]]) -> None:
    text = "\n".join(f"[{time // 60:02d}:{time % 60:02d}.00]{word}" for time, word in lines)
    assert timed_lines(text) == [TimedLine(float(time), word) for time, word in sorted(lines, key=lambda line: line[0])]
    assert plain_lyrics(text).split("\n") == [word for _, word in lines]


def test_a_hostile_line_takes_no_time() -> None:
    assert plain_lyrics("<0:" * 20_000 + "<0:1>" + "1>" * 20_000)
    assert plain_lyrics("[0:1]" * 50_000) == ""


@pytest.mark.parametrize(
    ("start_s", "end_s", "lyrics"),
    [
        (0.0, 60.0, "[Verse]\none\ntwo\n\n[Chorus]\nthree"),
        (2.0, 3.0, "[Verse]\ntwo"),  # the part that goes on is named again
        (3.5, 9.0, "[Chorus]"),  # nobody sings
        (3.0, 9.0, "[Chorus]\nthree"),  # its own tag, and not that of the part before
        (1.0, 2.0, "[Verse]\none"),
    ],
)
def test_lyrics_of_a_window(start_s: float, end_s: float, lyrics: str) -> None:
    text = "[Verse]\n[00:01.00]one\n[00:02.00]two\n\n[Chorus]\n[00:03.00]three"
    assert lyrics_between(text, start_s, end_s) == lyrics


def test_windows_side_by_side_hold_every_line_once() -> None:
    text = "\n".join(f"[00:{second:02}.00]line {second}" for second in range(60))
    windows = [lyrics_between(text, 7.5 * number, 7.5 * (number + 1)).splitlines() for number in range(8)]
    assert [line for window in windows for line in window] == [f"line {second}" for second in range(60)]
    assert lyrics_between("no times at all", 0, 60) == ""

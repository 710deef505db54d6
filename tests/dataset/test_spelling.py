"""Canonical spellings of tempo, key, metre and language."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.dataset import spelling
from acestep.model.facts import LANGUAGES, TIME_SIGNATURES

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.text(), max_size=3),
    st.dictionaries(st.text(), st.integers(), max_size=2),
    st.just(10**5000),
    st.just([10**5000]),
)
CANONICAL_KEYS = {
    f"{letter}{sign} {mode}" for letter in "ABCDEFG" for sign in ("", "#", "b") for mode in ("major", "minor")
}


@pytest.mark.parametrize(
    ("written", "key"),
    [
        *[(text, "A minor") for text in ("Am", "Amin", "A min", "A-minor", "a minor", "A Minor", "A:min", "8A", "8a")],
        *[(text, "C major") for text in ("C", "c", "CM", "Cmaj", "C Maj", "C Major", "C_major", "8B")],
        *[(text, "C# minor") for text in ("C#m", "C♯m", "C sharp minor", "c#min", "music in the key of C sharp minor")],
        *[(text, "Bb major") for text in ("Bb", "bb", "B♭", "B flat major", "Bbmaj", "6B")],
        *[
            ("b", "B major"),
            ("bm", "B minor"),
            ("bbm", "Bb minor"),
            ("Ab", "Ab major"),
            ("10B", "D major"),
            ("am", "A minor"),
        ],
        *[("F♯  MAJOR", "F# major"), ("E\u2011flat\u00a0minor", "Eb minor"), ("AM", "A major"), ("08A", "A minor")],
    ],
)
def test_keys(written: str, key: str) -> None:
    assert spelling.key_scale(written) == spelling.Reading(key)


def test_the_camelot_wheel_is_in_fifths() -> None:
    """One step on the wheel is a fifth up, and A and B of one number share their notes."""
    pitch = {"C": 0, "Db": 1, "D": 2, "Eb": 3, "E": 4, "F": 5, "F#": 6, "G": 7, "Ab": 8, "A": 9, "Bb": 10, "B": 11}

    def tonic(code: str) -> int:
        value = spelling.key_scale(code).value
        assert value is not None
        assert value.endswith("minor" if code[-1] == "A" else "major")
        return pitch[value.split()[0]]

    for number in range(1, 13):
        following = number % 12 + 1
        assert (tonic(f"{number}A") + 7) % 12 == tonic(f"{following}A")
        assert (tonic(f"{number}A") + 3) % 12 == tonic(f"{number}B")
    assert spelling.key_scale("8A").value == "A minor"


@pytest.mark.parametrize("written", ["", "N/A", "n/a", "unknown", None, "  ", "-"])
def test_an_absent_value_is_no_reason_to_warn(written: str | None) -> None:
    for read in (spelling.key_scale, spelling.time_signature, spelling.bpm):
        assert read(written) == spelling.Reading(None)


@pytest.mark.parametrize(
    "written", ["H minor", "D dorian", "Bbb", "C##", "do majeur", "13A", "0B", 7, True, ["Am"], "A minorr"]
)
def test_what_is_no_key_becomes_none_with_a_warning(written: object) -> None:
    reading = spelling.key_scale(written)
    assert reading.value is None
    assert reading.warning


@pytest.mark.parametrize(
    ("written", "metre"),
    [
        *[(text, "4") for text in (4, 4.0, "4", "4/4", " 4 / 4 ", "common", "Common time", "4.0")],
        *[("3/4", "3"), ("3/4 time", "3"), ("2/4", "2"), ("cut", "2"), ("6/8", "6"), (6, "6")],
    ],
)
def test_metres(written: object, metre: str) -> None:
    assert spelling.time_signature(written) == spelling.Reading(metre)


@pytest.mark.parametrize("written", ["5/4", "12/8", "7", "3/8", "four", True, [4], -4])
def test_other_metres_are_none_with_a_warning(written: object) -> None:
    reading = spelling.time_signature(written)
    assert reading.value is None
    assert reading.warning


@pytest.mark.parametrize(
    ("written", "tempo"),
    [
        *[
            (text, 128)
            for text in (
                128,
                128.0,
                "128",
                "128.0",
                "128 BPM",
                "128bpm",
                "127,9",
                127.9,
                "~128",
                "128 Beats per minute",
            )
        ],
        *[("120-130", 125), ("120 – 130 BPM", 125), ("120 to 130", 125), ("96.0", 96)],
    ],
)
def test_tempos(written: object, tempo: int) -> None:
    assert spelling.bpm(written) == spelling.Reading(tempo)


def test_tempos_that_are_not_there_or_look_wrong() -> None:
    assert spelling.bpm(0) == spelling.bpm("0") == spelling.Reading(None)
    for value in (-5, "fast", True, 1e9, "12 34", math.nan, math.inf, [120], {}):
        reading = spelling.bpm(value)
        assert reading.value is None, value
        assert reading.warning, value
    assert spelling.bpm(310).value == 310
    assert "310" in spelling.bpm(310).warning
    assert spelling.bpm(20).warning
    assert not spelling.bpm(30).warning
    assert not spelling.bpm(300).warning


@pytest.mark.parametrize(
    ("written", "code"),
    [
        *[(text, "en") for text in ("en", "EN", "English", "en-US", "en_GB", "eng", "English (US)")],
        *[(text, "zh") for text in ("zh-CN", "zh_TW", "zh-Hans", "Chinese", "Mandarin", "中文")],
        *[(text, "yue") for text in ("yue", "zh-HK", "zh-Hant-HK", "Cantonese", "粵語", "yue-HK")],
        *[("nb", "no"), ("nn-NO", "no"), ("Norwegian Bokmål", "no"), ("fil", "tl"), ("iw", "he"), ("pt-BR", "pt")],
        *[("Deutsch", "de"), ("日本語", "ja"), ("français", "fr"), ("unknown", "unknown"), ("instrumental", "unknown")],
    ],
)
def test_languages(written: str, code: str) -> None:
    assert spelling.language(written) == spelling.Reading(code)


def test_languages_the_model_does_not_know() -> None:
    for written in ("eo", "Klingon", "en, ja", "german-english", 5, ["en"]):
        reading = spelling.language(written)
        assert reading.value is None, written
        assert reading.warning, written
    assert spelling.language("") == spelling.language(None) == spelling.language("auto") == spelling.Reading(None)


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_code_of_the_model_stays_as_it_is(code: str) -> None:
    assert spelling.language(code) == spelling.Reading(code)


def test_marks_of_music_without_a_voice() -> None:
    assert all(spelling.means_instrumental(text) for text in ("[Instrumental]", " [INST] ", "instrumental"))
    assert not any(
        spelling.means_instrumental(text) for text in ("", "[Instrumental]\nla la", None, True, "[Guitar Solo]")
    )


def test_booleans_repeats_and_overrides() -> None:
    assert [spelling.boolean(raw).value for raw in (True, "yes", 1, "FALSE", 0, "", None)] == [
        True,
        True,
        True,
        False,
        False,
        None,
        None,
    ]
    assert spelling.boolean("maybe").warning
    assert [spelling.repeat(raw).value for raw in (3, "3", 3.0, 0, -1, 2.5, "many", True)] == [3, 3, 3, *[None] * 5]
    assert spelling.prompt_override("Genre").value == "genre"
    assert spelling.prompt_override("none") == spelling.Reading(None)
    assert spelling.prompt_override("both").warning


@pytest.mark.parametrize(
    "read",
    [
        spelling.key_scale,
        spelling.time_signature,
        spelling.bpm,
        spelling.language,
        spelling.boolean,
        spelling.repeat,
        spelling.prompt_override,
    ],
)
def test_readers_never_raise_and_their_results_read_as_themselves(
    read: Callable[[object], spelling.Reading[object]],
) -> None:
    @given(ANYTHING | st.from_regex(r"[A-Ga-g0-9][#b♯♭ABab0-9]? ?(m|maj|min|/[0-9]|bpm|-[A-Z]{2})?"))
    def check(raw: object) -> None:
        reading = read(raw)
        if reading.value is not None:
            assert read(reading.value).value == reading.value

    check()


@given(ANYTHING)
def test_only_canonical_values_come_out(raw: object) -> None:
    assert spelling.key_scale(raw).value in {None, *CANONICAL_KEYS}
    assert spelling.time_signature(raw).value in {None, *TIME_SIGNATURES}
    assert spelling.language(raw).value in {None, *LANGUAGES}
    tempo = spelling.bpm(raw).value
    assert tempo is None or (type(tempo) is int and 0 < tempo <= spelling.MAX_BPM)

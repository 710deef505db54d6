"""The prompt texts against diffusers' own formatting, which is what generation uses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.model.facts import LANGUAGES
from acestep.model.prompt import PromptLabels, language_code, lyric_prompt, sung_text, text_prompt, with_tag

labels = st.builds(
    PromptLabels,
    caption=st.text(),
    lyrics=st.text(),
    language=st.sampled_from(LANGUAGES),
    bpm=st.none() | st.integers(-1, 400),
    keyscale=st.sampled_from(["", "  ", "C major", "F# minor", "B♭ major"]) | st.text(max_size=5),
    timesignature=st.sampled_from(["", " ", "2", "3", "4", "6"]),
    duration_s=st.floats(0, 4000, allow_nan=False),
)


@settings(max_examples=300, deadline=None)
@given(labels)
def test_equals_the_text_of_the_pipeline_byte_for_byte(labels):
    from diffusers import AceStepPipeline

    text, lyrics = AceStepPipeline._format_prompt(
        AceStepPipeline,
        prompt=labels.caption,
        lyrics=sung_text(labels),
        vocal_language=labels.language,
        audio_duration=labels.duration_s,
        bpm=labels.bpm,
        keyscale=labels.keyscale,
        timesignature=labels.timesignature,
    )
    assert text_prompt(labels).encode() == text.encode()
    assert lyric_prompt(labels).encode() == lyrics.encode()


def test_the_published_form_letter_by_letter():
    labels = PromptLabels("a song", "[verse]\nla la", "en", 120, "C major", "4", 187.9)
    assert text_prompt(labels) == (
        "# Instruction\nFill the audio semantic mask based on the given conditions:\n\n"
        "# Caption\na song\n\n"
        "# Metas\n- bpm: 120\n- timesignature: 4\n- keyscale: C major\n- duration: 187 seconds\n<|endoftext|>\n"
    )
    assert lyric_prompt(labels) == "# Languages\nen\n\n# Lyric\n[verse]\nla la<|endoftext|>"


def test_unknown_labels_are_not_available():
    text = text_prompt(PromptLabels(caption=""))
    for line in ("- bpm: N/A", "- timesignature: N/A", "- keyscale: N/A", "- duration: 30 seconds"):
        assert f"{line}\n" in text


@pytest.mark.parametrize("lyrics", ["", "  \n", "[Instrumental]", "[instrumental]", " [INSTRUMENTAL]\n"])
def test_music_without_a_voice_says_instrumental(lyrics):
    assert lyric_prompt(PromptLabels("x", lyrics)) == "# Languages\nunknown\n\n# Lyric\n[Instrumental]<|endoftext|>"


def test_sung_lyrics_are_left_alone():
    assert sung_text(PromptLabels("x", "\n la \n\n")) == "\n la \n\n"


def test_no_language_is_the_unknown_language():
    assert language_code(PromptLabels("x", language=" ")) == "unknown"
    assert len(LANGUAGES) == len(set(LANGUAGES)) == 51


@pytest.mark.parametrize(
    ("position", "expected"),
    [("prepend", "zxy, warm piano"), ("append", "warm piano, zxy"), ("replace", "zxy"), ("none", "warm piano")],
)
def test_a_trigger_word_stands_in_its_place(position, expected):
    assert with_tag("warm piano", " zxy ", position) == expected


@pytest.mark.parametrize("position", ["prepend", "append"])
@pytest.mark.parametrize("caption", ["zxy, warm piano", "ZXY warm piano", "warm piano, zxy", "warm piano, Zxy."])
def test_a_trigger_word_is_not_applied_twice(position, caption):
    assert with_tag(caption, "zxy", position) == caption


@pytest.mark.parametrize("caption", ["zxyphone", "piano by azxy", "zxy_2 solo"])
def test_a_part_of_a_word_is_not_the_trigger_word(caption):
    assert with_tag(caption, "zxy", "prepend") == f"zxy, {caption}"


@pytest.mark.parametrize("position", ["prepend", "append", "replace"])
def test_a_song_without_caption_has_the_trigger_word_alone(position):
    assert with_tag("", "zxy", position) == "zxy"


@given(st.text(), st.text(), st.sampled_from(["none", "prepend", "append", "replace"]))
def test_applying_a_tag_twice_is_applying_it_once(text, tag, position):
    once = with_tag(text, tag, position)
    assert with_tag(once, tag, position) == once
    assert with_tag(text, "  ", position) == text

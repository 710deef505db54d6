"""Sidecars: which belongs to which song, how they are decoded, and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.dataset.sidecars import SUFFIXES, pair, parse_json, parse_sheet, parse_tags, parse_text, read_sidecar
from acestep.dataset.text import NotText, decode, is_error_text

Write = Callable[[str, str | bytes], Path]


def test_sidecars_go_to_the_longest_stem() -> None:
    names = ["song_lyrics.txt", "song.txt", "song.json", "song.lyrics.txt", "song_prompt.txt", "song.caption.txt"]
    alone = pair(["song.mp3"], names)
    assert alone.of_audio == {
        "song.mp3": {
            "underscore_lyrics": "song_lyrics.txt",
            "txt": "song.txt",
            "json": "song.json",
            "lyrics_txt": "song.lyrics.txt",
            "prompt_txt": "song_prompt.txt",
            "caption_txt": "song.caption.txt",
        }
    }
    both = pair(["song.mp3", "song_lyrics.mp3"], names)
    assert both.of_audio["song_lyrics.mp3"] == {"txt": "song_lyrics.txt"}
    assert "underscore_lyrics" not in both.of_audio["song.mp3"]
    dotted = pair(["a.mp3", "a.lyrics.mp3"], ["a.lyrics.txt", "a.lyrics.lyrics.txt"])
    assert dotted.of_audio == {"a.lyrics.mp3": {"txt": "a.lyrics.txt", "lyrics_txt": "a.lyrics.lyrics.txt"}}


def test_exact_spelling_comes_before_similar() -> None:
    both = pair(["Song.wav", "song.flac"], ["song.txt", "SONG.JSON"])
    assert both.of_audio["song.flac"]["txt"] == "song.txt"
    assert "txt" not in both.of_audio["Song.wav"]
    assert both.of_audio["Song.wav"]["json"] == both.of_audio["song.flac"]["json"] == "SONG.JSON"
    composed = pair(["Caf\u00e9.wav"], ["Cafe\u0301.txt"])
    assert composed.of_audio == {"Caf\u00e9.wav": {"txt": "Cafe\u0301.txt"}}


def test_sidecars_without_a_song_are_named_and_other_files_are_not() -> None:
    pairing = pair(["song.mp3"], ["sonng.lyrics.txt", "other.lrc", "readme.txt", "notes.json", "x_prompt.txt"])
    assert pairing.without_audio == ["other.lrc", "sonng.lyrics.txt", "x_prompt.txt"]


@given(
    st.lists(st.sampled_from(["a", "a_lyrics", "a.b", "A", ""]).map(lambda stem: stem + ".wav"), unique=True),
    st.lists(
        st.sampled_from(["a", "a_lyrics", "a.b", "A", "c"]).flatmap(
            lambda stem: st.sampled_from([stem + suffix for suffix in SUFFIXES])
        ),
        unique=True,
    ),
)
def test_a_file_never_belongs_to_songs_of_two_stems(audio: list[str], others: list[str]) -> None:
    pairing = pair(audio, others)
    for name in others:
        owners = {Path(song).stem.casefold() for song, kinds in pairing.of_audio.items() if name in kinds.values()}
        assert len(owners) <= 1


LYRICS = "[Verse]\nÜber den Wölken – “frei”"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_encodings(encoding: str, line_end: str, beside: Write) -> None:
    path = beside("song.lyrics.txt", LYRICS.replace("\n", line_end).encode(encoding))
    sidecar = read_sidecar(path, "lyrics_txt")
    assert sidecar.labels is not None
    assert sidecar.labels.values == {"lyrics": LYRICS}
    assert ["Windows-1252" in warning for warning in sidecar.labels.warnings] == (
        [True] if encoding == "cp1252" else []
    )


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_json_in_utf16_and_files_that_are_not_text(order: str, beside: Write) -> None:
    mark = "\ufeff".encode(order)
    sidecar = read_sidecar(beside("song.json", mark + '{"caption": "für Elise"}'.encode(order)), "json")
    assert sidecar.labels is not None
    assert sidecar.labels.values == {"caption": "für Elise"}
    for data in ("no mark".encode(order), b"\x00\x01binary", mark + b"odd"):
        with pytest.raises(NotText):
            decode(data)
        broken = read_sidecar(beside("song.txt", data), "txt")
        assert broken.labels is None
        assert "UTF-8" in broken.problem


@given(st.binary())
def test_any_bytes_are_text_or_a_sentence(data: bytes) -> None:
    try:
        decode(data).text.encode("utf-8")
    except NotText as reason:
        assert str(reason).endswith(".")


def test_a_huge_file_is_not_read_as_lyrics(beside: Write) -> None:
    sidecar = read_sidecar(beside("song.txt", b"la " * 2_000_000), "txt")
    assert sidecar.labels is None
    assert "MiB" in sidecar.problem


def test_json_spellings() -> None:
    text = json.dumps(
        {
            "Prompt": "ignored, because a caption is there",
            "caption": "  two\nlines ",
            "genres": ["pop", "rock"],
            "tempo": "120-130",
            "key": "8A",
            "time_signature": 4,
            "vocal_language": "English",
            "norm_lyrics": "[00:01.00]la la",
            "trigger": "zyd",
            "repeats": "2",
            "prompt_override": "none",
            "duration": "12",
            "music_analysis": {"deep": [1]},
        }
    )
    labels = parse_json(text, "song.json").labels
    assert labels is not None
    assert labels.values == {
        "caption": "two lines",
        "genre": "pop, rock",
        "bpm": 125,
        "keyscale": "A minor",
        "timesignature": "4",
        "language": "en",
        "lyrics": "la la",
        "custom_tag": "zyd",
        "repeat": 2,
    }
    assert labels.timed_lyrics == "[00:01.00]la la"
    assert labels.warnings == []


def test_wrong_types_are_told_and_the_other_fields_go_on() -> None:
    wrong = {
        "caption": {"text": "x"},
        "genre": 5,
        "lyrics": [1, 2],
        "bpm": [120],
        "keyscale": 3,
        "timesignature": {"a": 1},
        "is_instrumental": "perhaps",
        "repeat": -1,
        "language": "en",
    }
    labels = parse_json(json.dumps(wrong), "song.json").labels
    assert labels is not None
    assert labels.values == {"language": "en"}
    for name in wrong.keys() - {"language"}:
        assert sum(warning.startswith(f'"{name}"') for warning in labels.warnings) == 1, name


@pytest.mark.parametrize("text", ["{", '{"caption": }', "[1, 2]", '"text"', "3", "[" * 100_000, "{'caption': 'x'}"])
def test_json_that_cannot_be_used(text: str) -> None:
    sidecar = parse_json(text, "song.json")
    assert sidecar.labels is None
    assert sidecar.problem.endswith(".")


@pytest.mark.parametrize(
    "text",
    ["Error: out of memory", "ERROR: no audio", "error : x", "[Error]: y", "Traceback (most recent call last):\n x"],
)
def test_error_texts_are_no_labels(text: str) -> None:
    assert is_error_text(text)
    labels = parse_json(json.dumps({"caption": text, "lyrics": text, "genre": text}), "song.json").labels
    assert labels is not None
    assert labels.values == {}
    assert sum("error message" in warning for warning in labels.warnings) == 3
    assert parse_text(text, "caption_txt", "song.caption.txt").values == {}


def test_captions_about_errors_are_labels() -> None:
    assert not is_error_text("errors and glitches over a broken beat")
    assert not is_error_text("trial and error: a slow waltz")


def test_instrumental_in_every_spelling() -> None:
    for raw in ({"lyrics": "[INST]"}, {"lyrics": "[Instrumental]"}):
        labels = parse_json(json.dumps(raw), "s").labels
        assert labels is not None
        assert labels.values == {"lyrics": "[Instrumental]"}
    for raw in ({"language": "instrumental"}, {"instrumental": True}, {"is_instrumental": "true"}):
        labels = parse_json(json.dumps(raw), "s").labels
        assert labels is not None
        assert labels.values == {"is_instrumental": True}


SHEET = """# made by hand

Caption: a slow song
  with two lines
genre: pop
[not a key: really]
Key: C sharp minor
tempo: 90 BPM
signature: 3/4
lang: German
is_instrumental: false
repeats: 3
duration: 200
lyrics:
[Verse]
caption: is a word here
bpm: too
"""


def test_sheet() -> None:
    labels = parse_text(SHEET, "txt", "song.txt")
    assert labels.values == {
        "caption": "a slow song with two lines",
        "genre": "pop [not a key: really]",
        "keyscale": "C# minor",
        "bpm": 90,
        "timesignature": "3",
        "language": "de",
        "is_instrumental": False,
        "repeat": 3,
        "lyrics": "[Verse]\ncaption: is a word here\nbpm: too",
    }
    assert labels.warnings == []


def test_what_is_no_sheet_is_lyrics() -> None:
    for text in (
        "[Verse]\ncaption: x",
        "He said: hello\nbpm: 3",
        "just words",
        "Prompt: at eight",
        "title: x\ncaption: y",
    ):
        assert parse_sheet(text) is None
        assert parse_text(text, "txt", "song.txt").values == {"lyrics": text}
    assert parse_sheet("") is None
    assert parse_sheet("# only a comment") is None


def test_tags_of_a_sheet_call_or_describe() -> None:
    assert parse_sheet("bpm: 90\ntags: zydeco") == {"bpm": "90", "custom_tag": "zydeco"}
    assert parse_sheet("bpm: 90\ntags: pop, slow") == {"bpm": "90", "caption": "pop, slow"}
    assert parse_sheet("caption: x\ntags: pop, slow") == {"caption": "x"}


def test_the_first_of_two_values_counts() -> None:
    assert parse_sheet("caption: one\nbpm: 90\ncaption: two\nmore") == {"caption": "one", "bpm": "90"}


def test_tagged_text() -> None:
    text = (
        "<CAPTION>a slow\nsong</CAPTION><LYRICS>[Verse]\nla <3 la</LYRICS>\n<BPM>90</BPM><KEYSCALE>Am</KEYSCALE>"
        "<TIMESIGNATURE>4/4</TIMESIGNATURE><DURATION>12</DURATION><LANGUAGE>en"
    )
    assert parse_text(text, "txt", "song.txt").values == {
        "caption": "a slow song",
        "lyrics": "[Verse]\nla <3 la",
        "bpm": 90,
        "keyscale": "A minor",
        "timesignature": "4",
        "language": "en",
    }
    assert parse_tags("no <CAPTION>at the start</CAPTION>") is None


@given(
    st.lists(
        st.sampled_from(
            [
                *SHEET.splitlines(keepends=True),
                "<CAPTION>",
                "</CAPTION>",
                "<LYRICS>",
                "</BPM>",
                "x",
                "\n",
                "\uff1a",
                "key：",
            ]
        ),
        max_size=20,
    ).map("".join)
    | st.text()
)
def test_text_sidecars_never_raise(text: str) -> None:
    parse_sheet(text)
    parse_tags(text)
    for kind in SUFFIXES.values():
        if kind != "json":
            parse_text(text, kind, "song.txt")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "caption",
                "tags",
                "lyrics",
                "bpm",
                "key",
                "sig",
                "lang",
                "instrumental",
                "repeat",
                "regularization",
                "prompt_override",
                "trigger",
                "genre",
                "other",
            ]
        ),
        JSON,
    )
    | JSON
)
def test_json_sidecars_never_raise(value: object) -> None:
    parse_json(json.dumps(value), "song.json")

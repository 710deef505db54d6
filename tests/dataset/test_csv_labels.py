"""CSV tables of labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.dataset.csv_labels import find_delimiter, parse_table, read_csv_folder

Write = Callable[[str, str | bytes], Path]


def read(beside: Write, text: str | bytes, audio: list[str], name: str = "keys.csv"):
    return read_csv_folder([beside(name, text)], audio)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_an_export_of_key_bpm_finder(delimiter: str, mark: bytes, beside: Write) -> None:
    rows = [
        ["File", "Artist", "Title", "BPM", "Key", "Camelot", "Caption"],
        ["a.mp3", "Some; body", "x", "127.9", "Am", "8A", "slow, sad"],
        ["gone.mp3", "", "", "100", "", "", ""],
    ]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    labels = read(beside, mark + text.getvalue().encode(), ["a.mp3", "b.mp3"])
    assert labels.of_audio["a.mp3"].values == {"bpm": 128, "keyscale": "A minor", "caption": "slow, sad"}
    told = {problem.subject: problem.message for problem in labels.problems}
    assert told["keys.csv, line 3"] == 'No audio file is called "gone.mp3".'
    assert "b.mp3" in told["keys.csv"]
    assert all(problem.severity == "warning" for problem in labels.problems)


def test_headers_are_trimmed_in_any_case_and_under_other_names(beside: Write) -> None:
    header = " FILENAME ; Tempo;keyscale ;Description; Genre;Language;Time Signature;Lyrics"
    text = f"{header}\n a.mp3 ; 90 ;C;x;pop;German;3/4;la\n"
    assert read(beside, text, ["a.mp3"]).of_audio["a.mp3"].values == {
        "bpm": 90,
        "keyscale": "C major",
        "caption": "x",
        "genre": "pop",
        "language": "de",
        "timesignature": "3",
        "lyrics": "la",
    }


@pytest.mark.parametrize("header", ["File,Key,Camelot,", "File,Key,Camelot"])
def test_an_unnamed_column_after_camelot_is_the_caption(header: str, beside: Write) -> None:
    labels = read(beside, f"{header}\na.mp3,,8A,soft rain\n", ["a.mp3"])
    assert labels.of_audio["a.mp3"].values == {"caption": "soft rain", "keyscale": "A minor"}


def test_camelot_only_where_the_key_is_empty_or_unreadable(beside: Write) -> None:
    labels = read(beside, "File,Key,Camelot\na.mp3,C,8A\nb.mp3,,8A\nc.mp3,H moll,9B\n", ["a.mp3", "b.mp3", "c.mp3"])
    assert [labels.of_audio[name].values["keyscale"] for name in ("a.mp3", "b.mp3", "c.mp3")] == [
        "C major",
        "A minor",
        "G major",
    ]


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("song.mp3", ["song.mp3", "sub/song.mp3"]),
        ("SONG.mp3", ["SONG.mp3"]),
        ("Song.MP3", ["SONG.mp3", "song.mp3", "sub/song.mp3"]),
        ("other.wav", ["other.flac"]),
        ("other", ["other.flac"]),
        ("OTHER", ["other.flac"]),
        ("Cafe\u0301.mp3", ["Caf\u00e9.mp3"]),
        ("sub/song.mp3", ["sub/song.mp3"]),
        ("sub\\song.mp3", ["sub/song.mp3"]),
        ("C:\\music\\sub\\song.mp3", ["sub/song.mp3"]),
        ("/elsewhere/other.flac", ["other.flac"]),
        ("v1.2 mix", ["v1.2 mix.mp3"]),
        ("missing.mp3", []),
    ],
)
def test_names_are_matched_from_exact_to_similar(cell: str, found: list[str], beside: Write) -> None:
    audio = ["SONG.mp3", "song.mp3", "sub/song.mp3", "other.flac", "Caf\u00e9.mp3", "v1.2 mix.mp3"]
    labels = read(beside, f'File,BPM\n"{cell}",90\n', audio)
    assert sorted(labels.of_audio) == sorted(found)


def test_the_path_of_a_captioners_csv_tells_equal_names_apart(beside: Write) -> None:
    text = "filename,path,caption\nsong.mp3,/old/place/a/song.mp3,first\nsong.mp3,/old/place/b/song.mp3,second\n"
    labels = read(beside, text, ["a/song.mp3", "b/song.mp3"])
    assert {name: found.values["caption"] for name, found in labels.of_audio.items()} == {
        "a/song.mp3": "first",
        "b/song.mp3": "second",
    }
    assert labels.problems == []


def test_a_row_by_its_whole_path_beats_rows_by_file_name(beside: Write) -> None:
    audio = ["song.wav", "live/song.wav", "demo/song.wav"]
    rows = ["live/song.wav,on stage", "song.wav,in the studio"]
    for text in (rows, rows[::-1]):
        labels = read(beside, "\n".join(["file,caption", *text]), audio)
        captions = {name: found.values["caption"] for name, found in labels.of_audio.items()}
        assert captions == {
            "song.wav": "in the studio",
            "live/song.wav": "on stage",
            "demo/song.wav": "in the studio",  # the name alone means every folder
        }
        assert labels.problems == []


def test_duplicate_rows_are_told_and_merged(beside: Write) -> None:
    labels = read(beside, "File,BPM,Caption\na.mp3,90,first\na.mp3,,second\n", ["a.mp3"])
    assert labels.of_audio["a.mp3"].values == {"bpm": 90, "caption": "second"}
    assert [problem.subject for problem in labels.problems] == ["keys.csv"]
    assert "Lines 2 and 3" in labels.problems[0].message


def test_several_files_are_merged_by_field_in_order_of_name(beside: Write) -> None:
    files = [beside("b.csv", "File,Caption\na.mp3,from b\n"), beside("a.csv", "File,BPM,Caption\na.mp3,90,from a\n")]
    labels = read_csv_folder(files, ["a.mp3"])
    assert labels.of_audio["a.mp3"].values == {"bpm": 90, "caption": "from b"}
    assert any("differs between a.csv and b.csv" in warning for warning in labels.of_audio["a.mp3"].warnings)


def test_unknown_headers_are_told_with_their_columns(beside: Write) -> None:
    labels = read(beside, "Song,Speed\na.mp3,90\n", ["a.mp3"])
    assert labels.of_audio == {}
    assert [problem.severity for problem in labels.problems] == ["error"]
    assert "Song, Speed" in labels.problems[0].message
    useless = read(beside, "File,Artist\na.mp3,Somebody\n", ["a.mp3"])
    assert [problem.severity for problem in useless.problems] == ["warning"]


def test_wrong_cells_and_broken_files(beside: Write) -> None:
    labels = read(beside, "File,BPM,Key,Caption\na.mp3,fast,Z,Error: failed\n", ["a.mp3"])
    assert labels.of_audio["a.mp3"].values == {}
    assert len(labels.of_audio["a.mp3"].warnings) == 3
    assert all("line 2" in warning for warning in labels.of_audio["a.mp3"].warnings)
    huge = read(beside, f'File,Caption\na.mp3,"{"x" * 200_000}"\n', ["a.mp3"])
    assert [problem.severity for problem in huge.problems] == ["error"]
    binary = read(beside, b"File\x00,BPM", ["a.mp3"])
    assert [problem.severity for problem in binary.problems] == ["error"]
    assert read(beside, "", ["a.mp3"]).problems == []
    assert read(beside, "File,Caption\n", ["a.mp3"]).problems == []


def test_cells_may_hold_line_breaks_and_quotes(beside: Write) -> None:
    text = 'File,Lyrics,Caption\n"a, ""b"".mp3","[Verse]\nla, la","x"\nsecond.mp3,,y\n'
    labels = read(beside, text, ['a, "b".mp3', "second.mp3"])
    assert labels.of_audio['a, "b".mp3'].values == {"lyrics": "[Verse]\nla, la", "caption": "x"}


def test_delimiters() -> None:
    assert find_delimiter("File;BPM, exact;Key") == ";"
    assert find_delimiter("File\tBPM\tKey") == "\t"
    assert find_delimiter('"a;b;c",d') == ","
    assert find_delimiter("File") == ","
    assert find_delimiter("sep=;\nFile;BPM") == ";"
    assert len(parse_table("sep=;\nFile;BPM\na.mp3;90", "x").rows) == 1


def test_encoding_of_windows(beside: Write) -> None:
    labels = read(beside, "File;Caption\nmüll.mp3;schöne Töne\n".encode("cp1252"), ["müll.mp3"])
    assert labels.of_audio["müll.mp3"].values == {"caption": "schöne Töne"}
    assert "Windows-1252" in labels.problems[0].message


@given(
    st.text()
    | st.lists(st.lists(st.sampled_from(["File", "BPM", "a.mp3", "Camelot", "", '"', "8A", "\n"])).map(",".join)).map(
        "\n".join
    )
)
def test_never_raises(text: str) -> None:
    parse_table(text, "x.csv")


CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12).map(str.strip)


@given(
    st.lists(
        CELL.filter(lambda cell: cell and "/" not in cell and "\\" not in cell), min_size=1, max_size=4, unique=True
    ),
    st.sampled_from(",;\t"),
)
def test_written_rows_are_read_back(names: list[str], delimiter: str) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([["File", "BPM", "Key"], *[[name, "90", ""] for name in names]])
    rows = parse_table(text.getvalue(), "x.csv").rows
    assert [row.names for row in rows] == [(name,) for name in names if name]
    assert all(row.labels.values == {"bpm": 90} for row in rows)

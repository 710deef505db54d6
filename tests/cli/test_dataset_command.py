"""`acestep dataset`: edits are shown first, kept where the command says, and written as tables, pieces and folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from acestep.cli import main
from acestep.dataset.scan import scan_folder
from acestep.dataset.store import load_dataset


@pytest.fixture
def songs(demo_songs: Path, tmp_path: Path) -> Path:
    """Two of the demo songs, to write beside."""
    folder = tmp_path / "songs"
    folder.mkdir()
    for stem in ("Night Train", "Clockwork March"):
        for path in demo_songs.glob(f"{stem}.*"):
            shutil.copy(path, folder)
    return folder


def result(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert main(["dataset", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_edits_are_shown_first_and_then_kept_beside_the_songs(songs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in songs.iterdir()}
    edits = ["--set", "bpm=77", "key=Dm", "--replace", "caption", "reedy (\\w+)", "\\1", "--pattern", "--songs", "N*"]
    changes = result(capsys, songs, *edits, "--preview")["changes"]
    assert {(change["song"], change["field"]) for change in changes} == {
        ("Night Train.mp3", name) for name in ("bpm", "keyscale", "caption")
    }
    assert {path: path.read_bytes() for path in songs.iterdir()} == before
    assert result(capsys, songs, *edits)["changes"] == changes
    march, train = scan_folder(songs).songs
    assert (train.bpm, train.keyscale) == (77, "D minor") and "reedy" not in train.caption
    assert march.bpm == 112 and "reedy" in march.caption
    assert main(["dataset", str(songs), "--set", "bpm=fast"]) == 1
    assert 'Clockwork March.mp3: "bpm"' in capsys.readouterr().err
    for wrong in (["--set", "bpm"], ["--set", "colour=red"], ["--songs", "nothing*"]):
        assert main(["dataset", str(songs), *wrong]) == 1


def test_one_is_told_as_one(songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (songs / "Night Train.mp3").unlink()
    split = ["--split", "600", "--split-into", str(tmp_path / "cut")]
    assert main(["dataset", str(songs), "--set", "bpm=77", *split]) == 0
    printed = capsys.readouterr()
    for words in ("1 song, ", "1 change in 1 song.", "1 piece in "):
        assert words in printed.out
    assert "scan songs: 1 of 1 song in" in printed.err


def test_edits_of_a_dataset_file_are_kept_in_it(
    songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, before = tmp_path / "set.json", {path: path.read_bytes() for path in songs.iterdir()}
    result(capsys, songs, "--save", file, "--set", "genre=house")
    result(capsys, file, "--set", "repeat=3")
    assert [(song.genre, song.repeat) for song in load_dataset(file).songs] == [("house", 3)] * 2
    assert {path: path.read_bytes() for path in songs.iterdir()} == before


def test_settings_of_a_dataset_file_are_kept_in_it_and_can_go_back_to_their_defaults(
    songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "set.json"
    values = {"name": "zydeco", "trigger_word": "zyd", "tag_position": "append", "genre_ratio": 30}
    flags = ["--name", "zydeco", "--trigger-word", "zyd", "--tag_position", "append", "--genre-ratio=30"]
    result(capsys, songs, "--save", file, *flags)
    assert load_dataset(file).settings.model_dump() == values
    result(capsys, file, "--set", "repeat=2")
    assert load_dataset(file).settings.model_dump() == values

    before = file.read_bytes()
    back = ["--trigger-word", "", "--tag-position", "prepend", "--genre-ratio", "0"]
    shown = result(capsys, file, *back, "--preview")["changes"]
    assert {change["field"]: change["after"] for change in shown} == {
        "trigger_word": "",
        "tag_position": "prepend",
        "genre_ratio": 0,
    }
    assert file.read_bytes() == before
    assert main(["dataset", str(file), *back]) == 0
    printed = capsys.readouterr().out
    assert f"3 changes in the dataset. Kept in {file}." in printed and "dataset: genre_ratio: 30 -> 0" in printed
    assert load_dataset(file).settings.model_dump() == {
        "name": "zydeco",
        "trigger_word": "",
        "tag_position": "prepend",
        "genre_ratio": 0,
    }
    assert {song.repeat for song in load_dataset(file).songs} == {2}

    both = result(capsys, file, "--set", "bpm=90", "--genre-ratio", "5", "--save", tmp_path / "other.json")["changes"]
    assert {change["song"] for change in both} == {"", "Night Train.mp3", "Clockwork March.mp3"}
    assert [load_dataset(path).settings.genre_ratio for path in (file, tmp_path / "other.json")] == [0, 5]


@pytest.mark.parametrize("flags", [["--trigger-word", "zyd"], ["--genre-ratio", "0"], ["--name=a", "--set", "bpm=90"]])
def test_settings_have_no_place_in_a_folder(
    songs: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in songs.iterdir()}
    assert main(["dataset", str(songs), *flags]) == 1
    error = capsys.readouterr().err
    assert flags[0].partition("=")[0] in error and "Add --save FILE." in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in songs.iterdir()} == before
    archive = Path(shutil.make_archive(str(tmp_path / "upload"), "zip", songs))
    assert main(["dataset", str(archive), *flags, "--unpack-into", str(tmp_path / "unpacked")]) == 1
    assert "Add --save FILE." in capsys.readouterr().err and not (tmp_path / "unpacked").exists()


def test_a_preview_is_refused_where_files_would_be_written(
    songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writing = {"--csv": tmp_path / "lab.csv", "--save": tmp_path / "set.json", "--split": "2"}
    for flag, value in writing.items():
        words = [flag, str(value), "--split-into", str(tmp_path / "pieces")]
        assert main(["dataset", str(songs), "--set", "bpm=77", "--preview", *words]) == 1
        printed = capsys.readouterr()
        assert flag in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert list(tmp_path.iterdir()) == [songs]


def test_results_with_names_in_any_script_go_into_a_file_of_any_encoding(songs: Path) -> None:
    shutil.copy(songs / "Night Train.mp3", songs / "夜.mp3")
    (songs / "Night Train.mp3").unlink()
    command = [sys.executable, "-m", "acestep", "dataset", str(songs), "--set", "genre=夜", "--preview"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    plain, data = (
        subprocess.run([*command, *flags], capture_output=True, env=environment, check=True).stdout
        for flags in ([], ["--json"])
    )
    assert "夜.mp3: genre" in plain.decode("utf-8")
    assert "夜.mp3" in {change["song"] for change in json.loads(data.decode("utf-8"))["changes"]}


def test_a_table_pieces_and_an_archive(songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "upload.zip", "w") as archive:
        for path in songs.iterdir():
            archive.write(path, path.name)
        archive.writestr("notes.pdf", b"x")
    out = tmp_path / "made"
    found = result(capsys, tmp_path / "upload.zip", "--unpack-into", out, "--csv", out / "table.csv", "--split", "4")
    assert found["songs"] == 2 and any("notes.pdf" in problem["subject"] for problem in found["problems"])
    assert (out / "upload" / "Night Train.mp3").exists()
    assert "Night Train.mp3" in (out / "table.csv").read_text("utf-8")
    assert found["pieces"] and all(Path(piece).parent == out / "upload_pieces" for piece in found["pieces"])
    assert all(song.caption for song in scan_folder(out / "upload_pieces").songs)

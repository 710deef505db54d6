"""`acestep dataset`: edits are shown first, kept where the command says, and written as tables, pieces and folders."""

from __future__ import annotations

import json
import shutil
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


def test_edits_of_a_dataset_file_are_kept_in_it(
    songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, before = tmp_path / "set.json", {path: path.read_bytes() for path in songs.iterdir()}
    result(capsys, songs, "--save", file, "--set", "genre=house")
    result(capsys, file, "--set", "repeat=3")
    assert [(song.genre, song.repeat) for song in load_dataset(file).songs] == [("house", 3)] * 2
    assert {path: path.read_bytes() for path in songs.iterdir()} == before


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

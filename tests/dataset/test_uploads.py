"""Songs dropped one by one: they and their label files keep names that belong together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep.core.errors import UserError
from acestep.dataset.scan import scan_folder
from acestep.dataset.uploads import take_in

MakeSong = Callable[..., Path]

DOTTED = {".caption.txt": "a waltz", ".lyrics.txt": "la la la"}
JOINED = {"_prompt.txt": "a waltz", "_lyrics.txt": "la la la"}


def dropped(tmp_path: Path, song: Path, stem: str, number: int = 0, endings: dict[str, str] = DOTTED) -> list[Path]:
    """A song of that name with its label files, as a browser uploads them: each in a folder of its own."""
    files = []
    for ending in (".wav", *endings):
        folder = tmp_path / f"upload {number}" / ending
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{stem}{ending}"
        if ending == ".wav":
            shutil.copyfile(song, target)
        else:
            target.write_text(endings[ending], encoding="utf-8")
        files.append(target)
    return files


@pytest.mark.parametrize("endings", [DOTTED, JOINED], ids=["dotted", "joined"])
@pytest.mark.parametrize(
    "stem",
    [
        "Hello (Live)",
        "Why me?",
        "My Song 🎵",
        "a" * 84,
        "...Baby",
        "Prélude n° 4",
        "dots. and more. ",
        "-",
        " ",
        " ..",
        " _lyrics",
        "_prompt",
        "con",
    ],
)
def test_a_song_keeps_its_labels_whatever_it_is_called(
    tmp_path: Path, make_song: MakeSong, stem: str, endings: dict[str, str]
) -> None:
    result = take_in(dropped(tmp_path, make_song("one.wav"), stem, endings=endings), tmp_path / "songs", "drop")
    (song,) = scan_folder(result.folder).songs
    assert (song.caption, song.lyrics) == ("a waltz", "la la la") and not result.skipped


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stem=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40),
    endings=st.sampled_from([DOTTED, JOINED]),
)
def test_any_name_stays_inside_the_folder_and_with_its_labels(
    tmp_path: Path, make_song: MakeSong, stem: str, endings: dict[str, str]
) -> None:
    shutil.rmtree(tmp_path / "upload 0", ignore_errors=True)
    result = take_in(dropped(tmp_path, make_song("one.wav"), stem, endings=endings), tmp_path / "songs", "drop")
    assert all((result.folder / name).resolve().parent == result.folder for name in result.files)
    (song,) = scan_folder(result.folder).songs
    assert (song.caption, song.lyrics) == ("a waltz", "la la la")


def test_two_songs_of_one_name_are_both_taken_and_labels_only_once(tmp_path: Path, make_song: MakeSong) -> None:
    first = dropped(tmp_path, make_song("one.wav"), "01", 1)
    second = dropped(tmp_path, make_song("two.wav"), "01", 2)
    result = take_in([*first, *second], tmp_path / "songs", "drop")
    assert sorted(result.files) == ["01.caption.txt", "01.lyrics.txt", "01.wav", "01_2.wav"]
    assert [problem.subject for problem in result.skipped] == ["01.caption.txt", "01.lyrics.txt"]


def test_a_name_too_long_for_any_disk_is_a_sentence(tmp_path: Path, make_song: MakeSong) -> None:
    files = dropped(tmp_path, make_song("one.wav"), "é" * 110)
    with pytest.raises(UserError, match="too long"):
        take_in(files, tmp_path / "songs", "drop")
    assert not list((tmp_path / "songs").iterdir())

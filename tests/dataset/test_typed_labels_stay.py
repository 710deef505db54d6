"""What somebody typed stays, whatever else is written into the same song.json, or read beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from acestep.dataset.dataset import Dataset
from acestep.dataset.editing import History, add_text, replace_text, set_labels
from acestep.dataset.label_files import LabelWriter, hand_made
from acestep.dataset.scan import scan_folder
from acestep.dataset.song import Song
from acestep.dataset.store import save_dataset

MakeSong = Callable[..., Path]
Beside = Callable[[str, str | bytes], Path]


@pytest.fixture
def one_song(music: Path, make_song: MakeSong) -> Path:
    make_song("a.wav")
    return music


def edit(dataset: Dataset, **values: object) -> None:
    History(dataset).apply(set_labels(dataset.songs, **values))


def the_song(folder: Path) -> Song:
    (song,) = scan_folder(folder).songs
    return song


def test_typed_words_stay_beside_an_lrc_of_other_words(one_song: Path, beside: Beside) -> None:
    beside("a.lrc", "[00:00.50]old words")
    edit(scan_folder(one_song), lyrics="new words")
    edit(scan_folder(one_song), caption="a waltz")
    dataset = scan_folder(one_song)
    with LabelWriter(dataset) as writer:
        dataset.songs[0].set_from("machine:test", "bpm", 90)
        writer.write(dataset.songs[0])
    assert the_song(one_song).lyrics == "new words" == json.loads((one_song / "a.json").read_text())["lyrics"]
    (change,) = add_text(scan_folder(one_song).songs, "lyrics", "[Verse]").changes
    assert change.after == "[Verse]\nnew words"
    (change,) = replace_text(scan_folder(one_song).songs, "lyrics", "new", "newer").changes
    assert change.after == "newer words"


def test_times_of_the_same_words_are_kept_with_them(one_song: Path, beside: Beside) -> None:
    beside("a.lrc", "[00:00.50]old words")
    edit(scan_folder(one_song), lyrics="[00:00.70]old words")
    edit(scan_folder(one_song), caption="a waltz")
    assert the_song(one_song).timed_lyrics == "[00:00.70]old words"


def test_a_window_leaves_what_another_one_typed_meanwhile(one_song: Path) -> None:
    edit(scan_folder(one_song), caption="first", lyrics="la")
    early, late = scan_folder(one_song), scan_folder(one_song)
    edit(late, caption="better", bpm=120, lyrics="[00:00.50]la")
    edit(early, genre="waltz")
    song = the_song(one_song)
    assert (song.caption, song.bpm, song.genre) == ("better", 120, "waltz")
    assert song.timed_lyrics == "[00:00.50]la"
    edit(early, caption="the last word")
    assert the_song(one_song).caption == "the last word"


def test_undo_in_one_window_leaves_what_another_one_typed_meanwhile(one_song: Path) -> None:
    early, late = scan_folder(one_song), scan_folder(one_song)
    history = History(early)
    history.apply(set_labels(early.songs, caption="one", genre="waltz"))
    edit(late, bpm=120)
    history.undo()
    song = the_song(one_song)
    assert (song.caption, song.genre, song.bpm) == ("", "", 120)


def test_a_batch_takes_over_what_was_typed_again_meanwhile(one_song: Path) -> None:
    edit(scan_folder(one_song), caption="first", language="de")
    dataset = scan_folder(one_song)
    edit(scan_folder(one_song), caption="better")
    with LabelWriter(dataset) as writer:
        assert writer.take_over(dataset.songs[0]) == {"caption"}
        dataset.songs[0].set_from("machine:test", "bpm", 90)
        writer.write(dataset.songs[0])
    song = the_song(one_song)
    assert (song.caption, song.bpm) == ("better", 90) and {"caption", "language"} <= hand_made(song)


def test_what_a_newer_dataset_file_says_is_not_undone_by_the_sidecar(one_song: Path) -> None:
    edit(scan_folder(one_song), caption="first")
    dataset, file = scan_folder(one_song), one_song / "set.json"
    History(dataset, file).apply(set_labels(dataset.songs, caption="better"))
    assert the_song(one_song).caption == "better"
    read = scan_folder(one_song)
    with LabelWriter(read) as writer:
        assert "caption" not in writer.take_over(read.songs[0])
        writer.write(read.songs[0])
    assert the_song(one_song).caption == "better"


def test_renumbered_songs_keep_their_own_labels(music: Path, make_song: MakeSong) -> None:
    for name in ("01.wav", "02.wav"):
        make_song(name)
    dataset = scan_folder(music)
    for song in dataset.songs:
        song.edit(caption=f"recording {song.relative[:2]}")
    save_dataset(dataset, music / "set.json")
    (music / "02.wav").rename(music / "03.wav")
    (music / "01.wav").rename(music / "02.wav")
    make_song("01.wav", seed=7)
    read = scan_folder(music)
    assert [(song.relative, song.caption) for song in read.songs] == [
        ("01.wav", ""),
        ("02.wav", "recording 01"),
        ("03.wav", "recording 02"),
    ]
    assert not any("has changed" in problem.message for problem in read.problems)


def test_a_recording_made_anew_keeps_the_labels_of_its_name_and_is_told(music: Path, make_song: MakeSong) -> None:
    make_song("01.wav")
    dataset = scan_folder(music)
    dataset.songs[0].edit(caption="a waltz")
    save_dataset(dataset, music / "set.json")
    make_song("01.wav", seed=7)
    read = scan_folder(music)
    assert read.songs[0].caption == "a waltz"
    assert any(problem.subject == "01.wav" and "has changed since" in problem.message for problem in read.problems)

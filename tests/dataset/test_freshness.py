"""What another program changes in the files of a dataset is noticed, and what this one writes is not taken for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from acestep.cli import main
from acestep.dataset.dataset import Dataset
from acestep.dataset.editing import History, set_dataset, set_labels
from acestep.dataset.label_files import LabelWriter
from acestep.dataset.store import load_dataset, save_dataset

MakeSong = Callable[..., Path]
Write = Callable[[str, str], Path]


@pytest.fixture
def songs(music: Path, make_song: MakeSong, beside: Write) -> Path:
    for name in ("a.wav", "sub/b.wav"):
        make_song(name)
    beside("a.caption.txt", "a waltz")
    beside("sub/b.json", '{"caption": "a polka"}')
    return music


def caption(dataset: Dataset, words: str, file: Path | None = None) -> History:
    history = History(dataset, file)
    history.apply(set_labels(dataset.songs, caption=words))
    return history


CHANGES: dict[str, Callable[[Path], object]] = {
    "a label in place": lambda songs: (songs / "a.caption.txt").write_text("a march"),
    "a song.json": lambda songs: (songs / "a.json").write_text("{}"),
    "a song.json in a sub-folder": lambda songs: (songs / "sub" / "b.json").write_text('{"caption": "a march"}'),
    "a table": lambda songs: (songs / "all.csv").write_text("file,caption\na.wav,a march\n"),
    "another song": lambda songs: shutil.copyfile(songs / "a.wav", songs / "c.wav"),
    "a song away": lambda songs: (songs / "sub" / "b.wav").unlink(),
    "labels by the command line": lambda songs: main(
        ["caption", str(songs), "--metadata-by", "analysis", "--caption-by", "", "--lyrics-by", ""]
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_the_folder_is_noticed_until_it_is_read(songs: Path, change: str) -> None:
    dataset = load_dataset(songs)
    assert not dataset.files.changed(None)
    CHANGES[change](songs)
    assert dataset.files.changed(None)
    assert not load_dataset(songs).files.changed(None)


def test_what_is_no_song_and_no_label_does_not_count(songs: Path) -> None:
    dataset = load_dataset(songs)
    for name in ("cover.jpg", ".hidden.json", "half.wav.part"):
        (songs / name).write_bytes(b"x")
    assert not dataset.files.changed(None)


def test_a_file_with_its_old_size_and_time_is_not_read(songs: Path) -> None:
    dataset, file = load_dataset(songs), songs / "a.caption.txt"
    before = file.stat()
    file.write_text("a polka")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not dataset.files.changed(None), "a look costs no more than a look"


def test_own_edits_are_no_change(songs: Path) -> None:
    dataset = load_dataset(songs)
    history = caption(dataset, "typed")
    history.undo()
    history.redo()
    with LabelWriter(dataset) as writer:
        for song in dataset.songs:
            song.set_from("analysis", "bpm", 90)
            writer.write(song)
    assert not dataset.files.changed(None)
    file = save_dataset(dataset, songs / "set.json")
    assert not dataset.files.changed(None) and not dataset.files.changed(file)
    caption(dataset, "typed again", file)
    assert not dataset.files.changed(file)


def test_what_was_changed_just_before_an_own_edit_is_noticed(songs: Path) -> None:
    dataset = load_dataset(songs)
    (songs / "a.json").write_text('{"genre": "waltz"}')
    caption(dataset, "typed")
    assert dataset.files.changed(None)


def test_a_dataset_file_is_watched_alone(songs: Path) -> None:
    file = save_dataset(load_dataset(songs), songs.parent / "lists" / "set.json")
    here, there = load_dataset(file), load_dataset(file)
    (songs / "a.caption.txt").write_text("a march")
    assert not here.files.changed(file), "beside a dataset file nothing else is read"
    History(there, file).apply(set_dataset(there, trigger_word="zug"))
    assert here.files.changed(file) and not there.files.changed(file)
    caption(here, "typed", file)
    assert here.files.changed(file), "the file holds both now, and this program knows its own only"
    again = load_dataset(file)
    assert not again.files.changed(file) and again.settings.trigger_word == "zug"
    file.unlink()
    assert again.files.changed(file)

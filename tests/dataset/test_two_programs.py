"""Two programs that edit the same dataset file at once: what either changed is in it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from acestep.cli import main
from acestep.core.errors import UserError
from acestep.core.jobs import state_folder
from acestep.dataset import store
from acestep.dataset.dataset import Dataset
from acestep.dataset.editing import History, set_dataset, set_labels
from acestep.dataset.label_files import LabelWriter
from acestep.dataset.scan import scan_folder
from acestep.dataset.song import Song
from acestep.dataset.store import load_dataset, save_dataset

MakeSong = Callable[..., Path]


@pytest.fixture
def file(music: Path, make_song: MakeSong) -> Path:
    """The dataset file of two songs in another folder, so that nothing is kept beside them."""
    for name in ("a.wav", "b.wav"):
        make_song(name)
    return save_dataset(scan_folder(music), music.parent / "lists" / "set.json")


def edit(dataset: Dataset, file: Path, name: str = "a.wav", **values: Any) -> History:
    history = History(dataset, file)
    history.apply(set_labels([song for song in dataset.songs if song.relative == name], **values))
    return history


def in_file(file: Path) -> dict[str, Song]:
    return {song.relative: song for song in load_dataset(file).songs}


def test_each_programs_changes_stay(file: Path) -> None:
    early, late = load_dataset(file), load_dataset(file)
    edit(late, file, caption="theirs", lyrics="[00:00.50]la")
    edit(late, file, "b.wav", bpm=90)
    edit(early, file, genre="waltz")
    edit(late, file, "b.wav", keyscale="A minor")
    edit(early, file, "b.wav", language="de")
    songs = in_file(file)
    assert (songs["a.wav"].caption, songs["a.wav"].genre) == ("theirs", "waltz")
    assert songs["a.wav"].timed_lyrics == "[00:00.50]la" and not songs["a.wav"].is_instrumental
    assert (songs["b.wav"].bpm, songs["b.wav"].keyscale, songs["b.wav"].language) == (90, "A minor", "de")


def test_the_last_one_to_change_a_label_wins(file: Path) -> None:
    early, late = load_dataset(file), load_dataset(file)
    edit(late, file, caption="first", genre="theirs")
    edit(early, file, caption="last")
    song = in_file(file)["a.wav"]
    assert (song.caption, song.genre) == ("last", "theirs")
    edit(late, file, caption="the very last")
    assert in_file(file)["a.wav"].caption == "the very last"


def test_undo_takes_back_only_its_own(file: Path) -> None:
    early, late = load_dataset(file), load_dataset(file)
    history = edit(early, file, caption="one", genre="waltz")
    edit(late, file, bpm=120)
    history.undo()
    song = in_file(file)["a.wav"]
    assert (song.caption, song.genre, song.bpm) == ("", "", 120)


def test_settings_of_the_dataset_are_merged_too(file: Path) -> None:
    early, late = load_dataset(file), load_dataset(file)
    History(late, file).apply(set_dataset(late, trigger_word="zug", genre_ratio=20))
    edit(early, file, caption="mine")
    History(early, file).apply(set_dataset(early, genre_ratio=30))
    read = load_dataset(file)
    assert (read.settings.trigger_word, read.settings.genre_ratio) == ("zug", 30)
    assert read.songs[0].caption == "mine" and read.songs[1].custom_tag == ""


def test_songs_added_and_removed_stay_so(file: Path, music: Path, make_song: MakeSong) -> None:
    early = load_dataset(file)
    make_song("new.wav")
    late = load_dataset(music, edits=file)
    save_dataset(late, file)
    edit(early, file, caption="mine")
    assert in_file(file).keys() == {"a.wav", "b.wav", "new.wav"}
    edit(late, file, "new.wav", caption="theirs")
    edit(early, file, genre="waltz")
    assert in_file(file)["new.wav"].caption == "theirs"

    content = json.loads(file.read_text("utf-8"))
    content["samples"] = [sample for sample in content["samples"] if sample["filename"] == "a.wav"]
    file.write_text(json.dumps(content), encoding="utf-8")
    edit(early, file, bpm=90)
    assert in_file(file).keys() == {"a.wav"}
    edit(early, file, "b.wav", caption="still wanted")
    assert in_file(file)["b.wav"].caption == "still wanted"


def test_samples_without_their_audio_stay(file: Path, music: Path) -> None:
    (music / "b.wav").rename(music.parent / "away.wav")
    early, late = load_dataset(file), load_dataset(file)
    edit(late, file, bpm=90)
    edit(early, file, caption="mine")
    (music.parent / "away.wav").rename(music / "b.wav")
    assert in_file(file).keys() == {"a.wav", "b.wav"}


def test_a_song_renamed_and_scanned_elsewhere_keeps_its_new_place(file: Path, music: Path) -> None:
    early = load_dataset(file)
    (music / "a.wav").rename(music / "renamed.wav")
    save_dataset(load_dataset(music, edits=file), file)
    edit(early, file, caption="mine")
    assert in_file(file)["renamed.wav"].caption == "mine"


def test_what_is_typed_elsewhere_outranks_a_machine_here(file: Path) -> None:
    labelling, typing = load_dataset(file), load_dataset(file)
    with LabelWriter(labelling, file) as writer:
        edit(typing, file, caption="typed")
        edit(typing, file, "b.wav", language="de")
        for song in labelling.songs:
            song.set_from("machine", "caption", "heard")
            song.set_from("machine", "language", "en")
            writer.write(song)
    songs = in_file(file)
    assert [song.caption for song in songs.values()] == ["typed", "heard"]
    assert [song.language for song in songs.values()] == ["en", "de"]


def test_a_file_that_two_programs_make_holds_the_labels_of_both(music: Path, make_song: MakeSong) -> None:
    make_song("a.wav")
    first, second = (scan_folder(music, edits=music / "set.json") for _ in range(2))
    edit(first, music / "set.json", caption="one")
    edit(second, music / "set.json", genre="waltz")
    song = in_file(music / "set.json")["a.wav"]
    assert (song.caption, song.genre) == ("one", "waltz")


def test_another_dataset_file_is_replaced(file: Path) -> None:
    dataset = load_dataset(file)
    edit(load_dataset(file), file, caption="in the first file")
    other = save_dataset(dataset, file.with_name("other.json"))
    edit(load_dataset(other), other, caption="in the other file")
    save_dataset(load_dataset(file), other)
    assert in_file(other)["a.wav"].caption == "in the first file"


def test_a_foreign_file_keeps_what_somebody_writes_into_it_meanwhile(file: Path, music: Path) -> None:
    samples = [{"path": str(music / "a.wav"), "genres": "pop", "bpm": "120 BPM"}, {"path": "gone/../x.wav", "bpm": 80}]
    file.write_text(json.dumps(samples), encoding="utf-8")
    dataset = load_dataset(file)
    samples[0] |= {"bpm": "90 BPM", "rating": 5}
    file.write_text(json.dumps(samples), encoding="utf-8")
    edit(dataset, file, caption="mine")
    written, missing = json.loads(file.read_text("utf-8"))["samples"]
    assert [written[name] for name in ("caption", "genre", "bpm", "rating")] == ["mine", "pop", 90, 5]
    assert missing == samples[1]


def test_the_command_line_beside_an_open_app(file: Path) -> None:
    opened = load_dataset(file)
    assert main(["dataset", str(file), "--set", "caption=from the terminal", "--trigger-word", "zug"]) == 0
    edit(opened, file, genre="waltz")
    read = load_dataset(file)
    assert read.settings.trigger_word == "zug"
    assert [(song.caption, song.genre) for song in read.songs] == [
        ("from the terminal", "waltz"),
        ("from the terminal", ""),
    ]


def test_saves_at_the_same_moment_lose_nothing(file: Path) -> None:
    programs = {name: load_dataset(file) for name in ("caption", "genre", "custom_tag")}

    def type_in(name: str) -> None:
        for number in range(8):
            edit(programs[name], file, **{name: f"{name} {number}"})

    threads = [threading.Thread(target=type_in, args=[name]) for name in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    song = in_file(file)["a.wav"]
    assert {name: getattr(song, name) for name in programs} == {name: f"{name} 7" for name in programs}


def test_labels_are_kept_where_no_lock_can_be(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    early, late = load_dataset(file), load_dataset(file)
    monkeypatch.setenv("ACESTEP_STATE_DIR", str(file / "no folder"))
    edit(late, file, caption="theirs")
    edit(early, file, genre="waltz")
    assert (in_file(file)["a.wav"].caption, in_file(file)["a.wav"].genre) == ("theirs", "waltz")


def test_a_program_that_never_ends_its_save_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_WAIT_S", 0.0)
    dataset, before = load_dataset(file), file.read_bytes()
    with FileLock(state_folder() / "dataset-files.lock"), pytest.raises(UserError, match="another program"):
        edit(dataset, file, caption="mine")
    assert file.read_bytes() == before and dataset.songs[0].caption == ""

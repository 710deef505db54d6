"""Dataset files: nothing is lost by saving and loading, files of other trainers are read, edits outrank everything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from acestep.core.errors import UserError
from acestep.dataset.dataset import Dataset
from acestep.dataset.fingerprints import Fingerprints
from acestep.dataset.scan import scan_folder
from acestep.dataset.song import EDITED, Song
from acestep.dataset.store import load_dataset, save_dataset
from acestep.model.facts import LANGUAGES
from acestep.settings.dataset import DatasetSettings

Write = Callable[[str, str | bytes], Path]
MakeSong = Callable[..., Path]


def problems_of(dataset: Dataset) -> dict[str, str]:
    return {problem.subject: problem.message for problem in dataset.problems}


def write(path: Path, samples: Any, **metadata: Any) -> Path:
    path.write_text(json.dumps({"metadata": metadata, "samples": samples}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def two_songs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fingerprints]:
    """A folder with two songs that stays as it is, and a memory that knows them."""
    folder = tmp_path_factory.mktemp("two songs")
    for number, name in enumerate(("one.wav", "sub/two.wav")):
        (folder / name).parent.mkdir(exist_ok=True)
        soundfile.write(folder / name, np.random.default_rng(number).uniform(-0.1, 0.1, 8800), 8000)
    return folder, Fingerprints(folder / "known.json")


TEXT = st.text(max_size=20).filter(lambda text: "\x00" not in text)
LABELS = st.fixed_dictionaries(
    {},
    optional={
        "caption": TEXT,
        "genre": TEXT,
        "lyrics": TEXT | st.sampled_from(["[Instrumental]", "[00:01.00]la\n[00:02.00]lo", "[Verse]\nla"]),
        "bpm": st.none() | st.integers(30, 300),
        "keyscale": st.sampled_from(["", "A minor", "C# major"]),
        "timesignature": st.sampled_from(["", "3", "4"]),
        "language": st.sampled_from(LANGUAGES),
        "is_instrumental": st.booleans(),
        "custom_tag": TEXT,
        "prompt_override": st.sampled_from([None, "caption", "genre"]),
        "repeat": st.integers(1, 9),
        "regularization": st.booleans(),
    },
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
EXTRA = st.dictionaries(st.text("xyz", min_size=1, max_size=4), JSON, max_size=2)


@given(
    labels=LABELS,
    settings=st.builds(
        DatasetSettings,
        name=st.text("ab c", min_size=1).map(str.strip).filter(bool),
        trigger_word=st.text("ab c", max_size=5).map(lambda text: " ".join(text.split())),
        tag_position=st.sampled_from(["prepend", "append", "replace"]),
        genre_ratio=st.integers(0, 100),
    ),
    extra=EXTRA,
    song_extra=EXTRA,
    metadata_extra=EXTRA,
)
def test_nothing_is_lost_by_saving_and_loading(
    two_songs: tuple[Path, Fingerprints],
    labels: dict[str, Any],
    settings: DatasetSettings,
    extra: dict[str, Any],
    song_extra: dict[str, Any],
    metadata_extra: dict[str, Any],
) -> None:
    folder, memory = two_songs
    (folder / "set.json").unlink(missing_ok=True)
    dataset = scan_folder(folder, settings, cache=memory)
    try:
        dataset.songs[0].edit(**labels)
    except UserError:  # a drawn text that looks like an error message
        return
    dataset.songs[0].extra = song_extra
    dataset.extra = {**extra, **({"metadata": metadata_extra} if metadata_extra else {})}
    path = save_dataset(dataset, folder / "set.json", clock=lambda: 0.0)
    loaded = load_dataset(path, cache=memory)
    assert loaded.songs == dataset.songs
    assert loaded.settings == dataset.settings
    assert loaded.root == dataset.root
    assert loaded.extra.pop("metadata").keys() == {"created_at", *metadata_extra}
    dataset.extra.pop("metadata", None)
    assert loaded.extra == dataset.extra
    # a scan that meets the file keeps what was typed, and saving again changes nothing
    scanned = scan_folder(folder, cache=memory)
    assert scanned.songs == dataset.songs
    text = path.read_text(encoding="utf-8")
    save_dataset(load_dataset(path, cache=memory), path)
    assert path.read_text(encoding="utf-8") == text


FOREIGN = {
    "id": "1a2b3c4d",
    "audio_path": "one.wav",
    "filename": "one.wav",
    "caption": "a caption",
    "genre": "pop",
    "lyrics": "[Instrumental]",
    "raw_lyrics": "raw words",
    "formatted_lyrics": "",
    "bpm": 120,
    "keyscale": "Am",
    "timesignature": "4",
    "duration": 1,
    "language": "unknown",
    "is_instrumental": True,
    "custom_tag": "zyd",
    "labeled": True,
    "prompt_override": None,
}


def test_a_dataset_of_the_official_trainer(music: Path, make_song: MakeSong) -> None:
    make_song("one.wav")
    path = write(
        music / "set.json",
        [FOREIGN],
        name="Mine",
        custom_tag="zyd",
        tag_position="append",
        genre_ratio=30,
        all_instrumental=True,
        num_samples=1,
        mood=5,
    )
    dataset = load_dataset(path)
    (song,) = dataset.songs
    assert dataset.problems == []
    assert dataset.settings == DatasetSettings(name="Mine", trigger_word="zyd", tag_position="append", genre_ratio=30)
    assert (song.caption, song.genre, song.bpm, song.keyscale, song.lyrics, song.is_instrumental) == (
        "a caption",
        "pop",
        120,
        "A minor",
        "[Instrumental]",
        True,
    )
    assert song.custom_tag == ""
    assert song.extra == {"raw_lyrics": "raw words", "formatted_lyrics": "", "original_id": "1a2b3c4d"}
    dataset.settings = dataset.settings.changed(trigger_word="new")
    save_dataset(dataset, path)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["metadata"]["mood"] == 5
    assert written["metadata"]["num_samples"] == 1
    assert {key: written["samples"][0][key] for key in FOREIGN if key != "id"} == {
        **{key: FOREIGN[key] for key in FOREIGN if key != "id"},
        "keyscale": "A minor",
        "custom_tag": "new",
    }
    assert written["samples"][0]["original_id"] == "1a2b3c4d"
    assert written["samples"][0]["id"] == song.id


def test_a_bare_list_and_other_names_of_the_audio(music: Path, make_song: MakeSong, beside: Write) -> None:
    make_song("sub/one.wav")
    make_song("two.wav")
    path = beside(
        "list.json",
        json.dumps([{"path": "sub\\one.wav", "tags": ["pop", "slow"]}, {"filename": "two.wav", "prompt": "x"}]),
    )
    dataset = load_dataset(path)
    assert [(song.relative, song.caption) for song in dataset.songs] == [("sub/one.wav", "pop, slow"), ("two.wav", "x")]
    assert dataset.settings.name == "list"
    assert load_dataset(beside("empty.json", "[]")).songs == []


def test_paths(music: Path, make_song: MakeSong, tmp_path: Path) -> None:
    make_song("one.wav")
    make_song("deep/er/two.wav")
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(make_song("three.wav"), outside / "four.wav")
    (music / "three.wav").unlink()
    (music / "words.txt").write_text("secret", encoding="utf-8")
    paths = [
        "one.wav",
        "/home/somebody/music/deep/er/two.wav",
        str(outside / "four.wav"),
        "../outside/four.wav",
        "deep/../../outside/four.wav",
        "gone.wav",
        "words.txt",
        str(tmp_path),
        "",
        7,
        None,
        "nul\x00.wav",
    ]
    path = write(
        music / "set.json", [{"audio_path": raw, "caption": f"song {number}"} for number, raw in enumerate(paths)]
    )
    dataset = load_dataset(path)
    assert [song.caption for song in dataset.songs] == ["song 0", "song 1", "song 2"]
    assert len([problem for problem in dataset.problems if problem.severity == "error"]) == 9
    told = problems_of(dataset)
    assert "outside" in told["set.json, sample 4 (../outside/four.wav)"]
    assert "missing" in told["set.json, sample 6 (gone.wav)"]


@pytest.mark.parametrize("place", ["music/set.json", "music/deep/set.json", "lists/set.json"])
def test_wherever_the_file_lies_the_songs_are_found_again(
    place: str, music: Path, make_song: MakeSong, tmp_path: Path
) -> None:
    make_song("one.wav")
    make_song("deep/two.wav")
    dataset = scan_folder(music)
    (tmp_path / "lists").mkdir()
    path = save_dataset(dataset, tmp_path / place)
    loaded = load_dataset(path)
    assert loaded.problems[:-1] == []  # the last one says that nothing is labelled
    assert loaded.songs == dataset.songs
    assert loaded.root == dataset.root
    if place == "music/set.json":
        assert [sample["audio_path"] for sample in json.loads(path.read_text("utf-8"))["samples"]] == [
            "deep/two.wav",
            "one.wav",
        ]
        assert str(tmp_path) not in path.read_text("utf-8")
        moved = tmp_path / "moved"
        music.rename(moved)
        assert [song.relative for song in load_dataset(moved / "set.json").songs] == ["deep/two.wav", "one.wav"]


def test_wrong_types_are_told_by_field(music: Path, make_song: MakeSong) -> None:
    make_song("one.wav")
    wrong = {
        "audio_path": "one.wav",
        "caption": 5,
        "genre": "pop",
        "bpm": {"a": 1},
        "lyrics": False,
        "repeat": "x",
        "sources": [1],
        "timed_lyrics": 3,
        "id": 7,
    }
    path = write(
        music / "set.json",
        [wrong, "text", None],
        name=3,
        tag_position="left",
        genre_ratio="many",
        custom_tag=[1],
        root=5,
    )
    dataset = load_dataset(path)
    (song,) = dataset.songs
    assert (song.caption, song.genre, song.bpm, song.lyrics) == ("", "pop", None, "[Instrumental]")
    words = " ".join(problem.message for problem in dataset.problems)
    for name in ("caption", "bpm", "lyrics", "repeat", "name", "tag_position", "genre_ratio", "custom_tag"):
        assert f'"{name}"' in words
    assert "Sample 2" in words
    assert "Sample 3" in words
    assert dataset.settings == DatasetSettings(name="set")
    assert load_dataset(write(music / "set.json", [])).songs == []
    (music / "set.json").write_text('{"metadata": 5, "samples": []}', encoding="utf-8")
    assert any("metadata" in problem.message for problem in load_dataset(music / "set.json").problems)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2]",
        '"x"',
        '{"samples": {}}',
        '{"caption": "one song"}',
        "[" * 100_000,
        '{"samples": [], "schema_version": 99}',
        "\x00\x01",
    ],
)
def test_files_that_are_no_dataset(text: str, beside: Write) -> None:
    path = beside("set.json", text)
    with pytest.raises(UserError) as caught:
        load_dataset(path)
    assert "set.json" in str(caught.value)
    if text:
        with pytest.raises(UserError, match="not replaced"):
            save_dataset(Dataset(path.parent, DatasetSettings()), path)
        assert path.read_text(encoding="utf-8") == text


@given(
    st.recursive(
        JSON,
        lambda inner: st.fixed_dictionaries(
            {},
            optional={
                "metadata": inner,
                "samples": st.lists(inner, max_size=2),
                "audio_path": st.just("one.wav"),
                "sources": inner,
                "id": inner,
            },
        ),
        max_leaves=8,
    )
)
def test_no_json_is_too_strange(two_songs: tuple[Path, Fingerprints], value: Any) -> None:
    folder, memory = two_songs
    path = folder / "odd" / "set.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    try:
        load_dataset(path, cache=memory)
    except UserError as error:
        assert "set.json" in str(error)


def test_half_characters_do_not_break_saving(music: Path, make_song: MakeSong) -> None:
    make_song("one.wav")
    path = music / "set.json"
    path.write_text(
        '{"samples": [{"audio_path": "one.wav", "caption": "half \\ud83d", "other": "\\ud83d"}], "x\\ud83d": 1}',
        encoding="utf-8",
    )
    dataset = load_dataset(path)
    assert dataset.songs[0].caption == "half"
    save_dataset(dataset, path)
    assert load_dataset(path).songs == dataset.songs


def test_typed_labels_outrank_every_file_and_others_follow_their_files(
    music: Path, make_song: MakeSong, beside: Write
) -> None:
    make_song("one.wav")
    beside("one.json", json.dumps({"caption": "first", "bpm": 90, "genre": "pop", "lyrics": "la"}))
    dataset = scan_folder(music)
    dataset.songs[0].edit(caption="typed", bpm=None)
    save_dataset(dataset, music / "set.json")
    beside("one.json", json.dumps({"caption": "second", "bpm": 100, "genre": "rock", "lyrics": "lo", "keyscale": "Am"}))
    (song,) = scan_folder(music).songs
    assert (song.caption, song.bpm) == ("typed", None)
    assert (song.genre, song.lyrics, song.keyscale) == ("rock", "lo", "A minor")
    assert song.sources["caption"] == song.sources["bpm"] == EDITED
    (music / "one.json").unlink()  # what it said is not lost
    (song,) = scan_folder(music).songs
    assert (song.caption, song.genre, song.lyrics) == ("typed", "pop", "la")
    assert song.sources["genre"] == "one.json"


def test_changes_made_with_a_text_editor_are_edits(music: Path, make_song: MakeSong, beside: Write) -> None:
    make_song("one.wav")
    beside("one.json", json.dumps({"caption": "first", "bpm": 90}))
    path = save_dataset(scan_folder(music), music / "set.json")
    path.write_text(path.read_text("utf-8").replace("first", "corrected"), encoding="utf-8")
    dataset = scan_folder(music)
    assert dataset.songs[0].caption == "corrected"
    assert "caption is taken from set.json; one.json says otherwise" in problems_of(dataset)["one.wav"]
    assert dataset.songs[0].sources["bpm"] == "one.json"


def test_edits_outside_the_folder_and_renamed_songs(music: Path, make_song: MakeSong, tmp_path: Path) -> None:
    make_song("one.wav")
    path = tmp_path / "lists" / "set.json"
    dataset = load_dataset(music, edits=path)
    dataset.songs[0].edit(caption="typed")
    save_dataset(dataset, path)
    (music / "one.wav").rename(music / "other.wav")
    make_song("new.wav")
    again = load_dataset(music, edits=path)
    assert {song.relative: song.caption for song in again.songs} == {"new.wav": "", "other.wav": "typed"}


def test_samples_whose_audio_is_missing_keep_their_labels(music: Path, make_song: MakeSong, tmp_path: Path) -> None:
    make_song("one.wav")
    make_song("two.wav")
    dataset = scan_folder(music)
    for song in dataset.songs:
        song.edit(caption=f"typed for {song.relative}")
    path = save_dataset(dataset, music / "set.json")
    (music / "two.wav").rename(tmp_path / "two.wav")
    loaded = load_dataset(path)
    assert "missing" in problems_of(loaded)["set.json, sample 2 (two.wav)"]
    assert [song.relative for song in loaded.songs] == ["one.wav"]
    save_dataset(loaded, path)
    save_dataset(scan_folder(music), path)
    assert json.loads(path.read_text("utf-8"))["samples"][1]["audio_path"] == "two.wav"
    (tmp_path / "two.wav").rename(music / "two.wav")
    assert load_dataset(path).songs == dataset.songs
    assert scan_folder(music).songs == dataset.songs


def test_audio_that_changed_is_told(music: Path, make_song: MakeSong) -> None:
    make_song("one.wav")
    dataset = scan_folder(music)
    dataset.songs[0].edit(caption="typed")
    path = save_dataset(dataset, music / "set.json")
    make_song("one.wav", seed=5)
    loaded = load_dataset(path)
    assert "changed" in problems_of(loaded)["one.wav"]
    assert loaded.songs[0].id != dataset.songs[0].id
    assert loaded.songs[0].caption == "typed"


def test_several_dataset_files_in_a_folder(music: Path, make_song: MakeSong) -> None:
    import os

    make_song("one.wav")
    for second, name in enumerate(("b.json", "a.json")):
        write(music / name, [{"audio_path": "one.wav", "caption": name}])
        os.utime(music / name, ns=(second * 10**9, second * 10**9))
    dataset = scan_folder(music)
    assert dataset.songs[0].caption == "a.json"
    assert "b.json" in problems_of(dataset)["a.json"]


def test_edit_normalises_and_refuses_whole() -> None:
    song = Song("0" * 16, Path("x.wav"), "x.wav", 2.0, lyrics="[Instrumental]")
    assert song.edit(caption=" two\nwords ", keyscale="8A", bpm="310 BPM", lyrics="[00:01.00]la") == [
        '"bpm": 310 BPM is outside the usual 30 to 300.'
    ]
    assert (song.caption, song.keyscale, song.bpm, song.lyrics, song.timed_lyrics) == (
        "two words",
        "A minor",
        310,
        "la",
        "[00:01.00]la",
    )
    assert not song.is_instrumental
    before = (song.caption, song.keyscale)
    for wrong in (
        {"keyscale": "H"},
        {"caption": "x", "bpm": "fast"},
        {"title": "x"},
        {"caption": "Error: x"},
        {"language": "Klingon"},
    ):
        with pytest.raises(UserError, match=next(reversed(wrong))):
            song.edit(**wrong)
        assert (song.caption, song.keyscale) == before
    song.edit(is_instrumental=True)
    assert (song.lyrics, song.timed_lyrics) == ("[Instrumental]", "")
    song.edit(is_instrumental=False)
    assert song.lyrics == ""
    song.edit(caption="", keyscale=None)
    assert not song.labeled
    assert song.keyscale == ""


def test_saving(music: Path, make_song: MakeSong) -> None:
    make_song("one.wav")
    dataset = scan_folder(music)
    assert save_dataset(dataset, music / "new" / "set.json").is_file()
    with pytest.raises(UserError, match=r"\.json"):
        save_dataset(dataset, music / "one.wav")
    (music / "one.json").write_text('{"caption": "a sidecar"}', encoding="utf-8")
    with pytest.raises(UserError, match="not replaced"):
        save_dataset(dataset, music / "one.json")
    assert (music / "one.json").read_text(encoding="utf-8") == '{"caption": "a sidecar"}'


def test_a_folder_is_scanned_and_a_file_is_read(music: Path, make_song: MakeSong) -> None:
    make_song("one.wav")
    settings = DatasetSettings(name="given", trigger_word="zyd")
    path = save_dataset(load_dataset(music, settings), music / "set.json")
    assert load_dataset(path).settings == settings
    assert load_dataset(music).settings == settings
    assert load_dataset(path, DatasetSettings(name="other")).settings.name == "other"
    with pytest.raises(UserError, match="does not exist"):
        load_dataset(music / "missing.json")

"""Editing labels: a preview tells what will happen, disk and memory agree, and undo restores both to the last byte."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from acestep.core.errors import UserError
from acestep.dataset import editing
from acestep.dataset.dataset import Dataset
from acestep.dataset.editing import History, add_text, override_language, replace_text, set_dataset, set_labels
from acestep.dataset.label_files import hand_made
from acestep.dataset.scan import scan_folder
from acestep.dataset.song import NOT_SAID, Song
from acestep.dataset.store import load_dataset, save_dataset
from acestep.dataset.table import filtered_rows, sorted_rows, table_rows, write_csv
from acestep.model.facts import LANGUAGES

MakeSong = Callable[..., Path]
Beside = Callable[[str, str | bytes], Path]


A_JSON = json.dumps({"prompt": "slow piano", "Tempo": "90", "artist": {"x": [1]}, "lyrics": "[Verse]\nla"})


def labels(song: Song) -> dict[str, object]:
    return {name: getattr(song, name) for name in NOT_SAID}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def dataset(music: Path, make_song: MakeSong, beside: Beside) -> Dataset:
    """Three songs: labelled in a song.json with keys of other programs, with timed lyrics, and without any label."""
    for name in ("a.wav", "b.wav", "sub/c.wav"):
        make_song(name)
    beside("a.json", A_JSON)
    beside("b.lrc", "[00:00.50]one day\n[00:00.90]one night")
    return scan_folder(music)


def test_a_draft_changes_nothing_and_shows_what_it_will_do(dataset: Dataset, music: Path) -> None:
    before, disk = [labels(song) for song in dataset.songs], files(music)
    draft = set_labels(dataset.songs, language="German", bpm="120 BPM")
    assert [(change.song, change.field, change.before, change.after) for change in draft.changes[:2]] == [
        ("a.wav", "bpm", 90, 120),
        ("a.wav", "language", "unknown", "de"),
    ]
    assert [labels(song) for song in dataset.songs] == before
    assert files(music) == disk


def test_edits_are_on_disk_at_once_keep_foreign_keys_and_outrank_every_file(
    dataset: Dataset, music: Path, beside: Beside
) -> None:
    History(dataset).apply(set_labels(dataset.songs, caption="warm jazz", bpm=77, genre=None))
    content = json.loads((music / "a.json").read_text())
    assert content["prompt"] == "warm jazz" and content["Tempo"] == 77 and content["artist"] == {"x": [1]}
    assert content["lyrics"] == "[Verse]\nla"
    beside("labels.csv", "File,BPM,Caption\na.wav,200,other\nb.wav,200,other\nc.wav,200,other\n")
    again = scan_folder(music)
    assert [(song.caption, song.bpm) for song in again.songs] == [("warm jazz", 77)] * 3
    assert all({"caption", "bpm", "genre"} <= hand_made(song) for song in again.songs)
    assert not any("otherwise" in problem.message for problem in again.problems)


def test_an_emptied_label_stays_empty_whatever_files_say(dataset: Dataset, music: Path, beside: Beside) -> None:
    History(dataset).apply(set_labels(dataset.songs[:1], caption=""))
    beside("a.caption.txt", "from another program")
    assert scan_folder(music).songs[0].caption == ""


def test_of_dataset_file_and_song_json_the_one_written_last_counts(dataset: Dataset, music: Path) -> None:
    file = music / "all.json"
    History(dataset).apply(set_labels(dataset.songs[:1], caption="beside the song"))
    dataset.songs[0].edit(caption="in the dataset file")
    save_dataset(dataset, file)
    now = (music / "a.json").stat().st_mtime_ns
    for shift_s, expected in ((10, "in the dataset file"), (-10, "beside the song")):
        os.utime(file, ns=(now + shift_s * 10**9,) * 2)
        assert scan_folder(music).songs[0].caption == expected


def test_a_dataset_file_takes_all_edits_and_the_folder_none(dataset: Dataset, music: Path, tmp_path: Path) -> None:
    disk, file = files(music), tmp_path / "set.json"
    history = History(dataset, file)
    history.apply(set_labels(dataset.songs, caption="x"))
    history.apply(set_dataset(dataset, trigger_word="mystyle", tag_position="append", genre_ratio=20))
    restored = load_dataset(file)
    assert restored.settings == dataset.settings and restored.settings.trigger_word == "mystyle"
    assert [labels(song) for song in restored.songs] == [labels(song) for song in dataset.songs]
    history.undo()
    history.undo()
    assert load_dataset(file).songs[0].caption == "slow piano" and dataset.settings.trigger_word == ""
    assert files(music) == disk
    history.redo()
    assert load_dataset(file).songs[0].caption == "x"


def test_values_of_the_whole_dataset_need_a_dataset_file(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="no place beside a song"):
        History(dataset).apply(set_dataset(dataset, trigger_word="x"))
    assert dataset.settings.trigger_word == ""
    with pytest.raises(UserError, match="genre_ratio"):
        set_dataset(dataset, genre_ratio=101)


TEXT = st.text("ab ,.\\[]\n0é", max_size=12)
EDITS = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {},
            optional={
                "caption": TEXT,
                "genre": TEXT,
                "lyrics": TEXT | st.sampled_from(["[Instrumental]", "[00:01.00]la\n[00:02.00]lo"]),
                "bpm": st.none() | st.integers(30, 300),
                "keyscale": st.sampled_from(["", "Am", "C# major"]),
                "timesignature": st.sampled_from(["", "3/4", "4"]),
                "language": st.sampled_from(LANGUAGES),
                "is_instrumental": st.booleans(),
                "custom_tag": TEXT,
                "prompt_override": st.sampled_from([None, "caption", "genre"]),
                "repeat": st.integers(1, 9),
            },
        ),
        st.tuples(st.sampled_from(["caption", "genre", "lyrics"]), TEXT.filter(bool), TEXT),
    ),
    max_size=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, which=st.lists(st.booleans(), min_size=3, max_size=3))
@example(
    edits=[{"lyrics": ""}], which=[False, True, False]
)  # words from a file, and nothing else that tells of a voice
def test_disk_follows_every_edit_and_undo_restores_both_to_the_last_byte(
    dataset: Dataset, music: Path, edits: list, which: list[bool]
) -> None:
    for name in ("a", "b", "sub/c"):  # what an example that failed has left
        (music / f"{name}.json").unlink(missing_ok=True)
    (music / "a.json").write_text(A_JSON)
    dataset = scan_folder(music)
    history = History(dataset)
    states = [([vars(song).copy() for song in dataset.songs], files(music))]
    for edit in edits:
        songs = list(itertools.compress(dataset.songs, which))
        draft = replace_text(songs, *edit) if isinstance(edit, tuple) else set_labels(songs, **edit)
        history.apply(draft)
        if not draft.songs:
            continue
        states.append(([json.loads(json.dumps(vars(song), default=str)) for song in dataset.songs], files(music)))
        for song, found in zip(dataset.songs, scan_folder(music).songs, strict=True):
            assert labels(found) == labels(song)
            assert hand_made(found) == hand_made(song)
    for memory, disk in reversed(states[:-1]):
        history.undo()
        assert json.dumps([vars(song) for song in dataset.songs], default=str) == json.dumps(memory, default=str)
        assert files(music) == disk
    with pytest.raises(UserError, match="nothing to undo"):
        history.undo()


@pytest.mark.parametrize("in_file", [False, True])
def test_amended_edits_are_one_to_take_back_and_to_make_again(
    dataset: Dataset, music: Path, tmp_path: Path, in_file: bool
) -> None:
    first, second = dataset.songs[:2]
    begin, on_disk = first.caption, files(music)
    history = History(dataset, tmp_path / "set.json" if in_file else None, most=1)
    for text in ("S", "Sl", "Slow"):
        history.amend(set_labels([first], caption=text))
    history.undo()
    assert (first.caption, files(music)) == (begin, on_disk)
    with pytest.raises(UserError, match="nothing to undo"):
        history.undo()
    history.redo()
    assert first.caption == "Slow"
    history.amend(set_labels([second], genre="ska"))
    history.undo()
    assert (first.caption, second.genre) == ("Slow", ""), "another song is an edit of its own"


def test_undo_leaves_what_another_program_wrote_meanwhile(dataset: Dataset, music: Path) -> None:
    history = History(dataset)
    history.apply(set_labels(dataset.songs, caption="new", bpm=100))
    content = json.loads((music / "a.json").read_text())
    (music / "a.json").write_text(json.dumps({**content, "rating": 5}))
    history.undo()
    left = json.loads((music / "a.json").read_text())
    assert left["rating"] == 5 and left["prompt"] == "slow piano" and left["Tempo"] == 90 and "sources" not in left
    assert not (music / "b.json").exists()
    assert scan_folder(music).songs[0].bpm == 90


def test_a_wrong_value_names_song_and_label_and_changes_nothing(dataset: Dataset) -> None:
    for values, words in (
        ({"bpm": "fast"}, "bpm"),
        ({"language": "klingon"}, "klingon"),
        ({"repeat": 0}, "repeat"),
        ({"keyscale": "H"}, "keyscale"),
        ({"colour": "red"}, "no label"),
    ):
        with pytest.raises(UserError, match=f"a.wav: .*{words}"):
            set_labels(dataset.songs, **values)
    with pytest.raises(UserError, match="no label with text"):
        replace_text(dataset.songs, "bpm", "1", "2")  # type: ignore[arg-type]


def test_replacing_plain_text_and_patterns(dataset: Dataset) -> None:
    songs = dataset.songs
    assert replace_text(songs, "caption", "SLOW", "fast").changes == []
    assert replace_text(songs, "caption", "SLOW", r"\1", match_case=False).changes[0].after == r"\1 piano"
    draft = replace_text(songs, "caption", r"(\w+) (\w+)", r"\2, \1", is_pattern=True)
    assert [(change.song, change.after) for change in draft.changes] == [("a.wav", "piano, slow")]
    timed = replace_text(songs, "lyrics", "one", "some").songs[0][1]
    assert (timed.relative, timed.lyrics) == ("b.wav", "some day\nsome night")
    assert timed.timed_lyrics == "[00:00.50]some day\n[00:00.90]some night"
    stamps = replace_text(songs, "lyrics", "^", "0", is_pattern=True)
    assert any("lose their times" in warning for warning in stamps.warnings)


@pytest.mark.parametrize(
    ("pattern", "template", "words"),
    [
        ("(", "", "no regular expression"),
        ("a{99999999999999999999}", "", "no regular expression"),
        ("piano", r"\9", "no replacement"),
        ("piano", r"\g<nobody>", "no replacement"),
        (r"(x|xx)+\d", "", "takes too long"),
        ("", "x", "1 to 1000 characters"),
    ],
)
def test_a_bad_or_endless_pattern_is_a_sentence(
    dataset: Dataset, pattern: str, template: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editing, "PATTERN_TIME_S", 0.2)
    dataset.songs[0].edit(caption="piano " * 60 + "x" * 60)
    with pytest.raises(UserError, match=words):
        replace_text(dataset.songs[:1], "caption", pattern, template, is_pattern=True)


def test_a_replacement_that_explodes_is_refused(dataset: Dataset) -> None:
    dataset.songs[0].edit(caption="x" * 5000)
    with pytest.raises(UserError, match="too long"):
        replace_text(dataset.songs, "caption", "(?=(.*))", r"\1" * 100, is_pattern=True)


def test_text_is_added_once_and_only_where_there_is_some(dataset: Dataset) -> None:
    history = History(dataset)
    for _ in range(2):
        history.apply(add_text(dataset.songs, "caption", "lo-fi, "))
        history.apply(add_text(dataset.songs, "caption", "2020s", "after"))
        history.apply(add_text(dataset.songs, "lyrics", "[Outro]", "after"))
    assert [song.caption for song in dataset.songs] == ["lo-fi, slow piano, 2020s", "", ""]
    assert [song.lyrics for song in dataset.songs] == [
        "[Verse]\nla\n[Outro]",
        "one day\none night\n[Outro]",
        "[Instrumental]",
    ]


def test_a_draft_does_not_overwrite_what_came_after_it(dataset: Dataset) -> None:
    history, draft = History(dataset), set_labels(dataset.songs, caption="old plan")
    history.apply(set_labels(dataset.songs, caption="new"))
    with pytest.raises(UserError, match="changed meanwhile"):
        history.apply(draft)
    assert dataset.songs[0].caption == "new"


def test_a_language_for_all_leaves_instrumental_pieces_alone(dataset: Dataset) -> None:
    changes = override_language(dataset.songs, "pt-BR").changes
    assert [(change.song, change.after) for change in changes] == [("a.wav", "pt"), ("b.wav", "pt")]


def test_history_is_bounded_and_says_when_it_is_empty(dataset: Dataset) -> None:
    history = History(dataset, most=2)
    for word in "abc":
        history.apply(set_labels(dataset.songs, caption=word))
    history.undo()
    history.undo()
    assert dataset.songs[0].caption == "a"
    with pytest.raises(UserError, match="nothing to undo"):
        history.undo()
    history.redo()
    history.redo()
    assert dataset.songs[0].caption == "c" and scan_folder(dataset.root).songs[0].caption == "c"
    with pytest.raises(UserError, match="nothing to redo"):
        history.redo()


@pytest.mark.parametrize("content", [b"{ not json", b'{"samples": []}', b"[1]", b"\xff\xfe\x00", b"x" * (5 << 20)])
def test_a_file_that_is_no_label_file_is_left_and_no_song_is_changed(
    dataset: Dataset, music: Path, content: bytes
) -> None:
    (music / "sub/c.json").write_bytes(content)
    disk = files(music)
    with pytest.raises(UserError, match=r"c\.json"):
        History(dataset).apply(set_labels(dataset.songs, caption="x"))
    assert files(music) == disk
    assert dataset.songs[0].caption == "slow piano"


def test_songs_that_would_share_a_label_file_are_told_apart(music: Path, make_song: MakeSong) -> None:
    make_song("same.wav")
    make_song("same.flac")
    with pytest.raises(UserError, match=r"share same\.json"):
        History(found := scan_folder(music)).apply(set_labels(found.songs, caption="x"))
    assert not (music / "same.json").exists()


def test_a_read_only_folder_is_a_sentence_with_the_way_out(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(UserError, match="dataset file in another place"):
        History(dataset).apply(set_labels([dataset.songs[1]], caption="Slow"))


def test_a_full_disk_takes_back_what_was_done(dataset: Dataset, music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, replace, calls = files(music), Path.replace, itertools.count()

    def refuse(self: Path, target: Path) -> Path:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UserError, match="disk is full"):
        History(dataset).apply(set_labels(dataset.songs, caption="x"))
    assert files(music) == disk
    assert dataset.songs[0].caption == "slow piano"


def test_rows_say_what_songs_are_and_can_be_sorted_and_filtered(dataset: Dataset) -> None:
    rows = table_rows(dataset)
    assert [(row.file, row.labelled, row.lyrics, row.bpm) for row in rows] == [
        ("a.wav", True, "words", 90),
        ("b.wav", False, "timed", None),
        ("sub/c.wav", False, "instrumental", None),
    ]
    assert [row.file for row in sorted_rows(rows, "file", descending=True)] == ["sub/c.wav", "b.wav", "a.wav"]
    assert sorted_rows(rows, "bpm", descending=True)[0].file == "a.wav"
    assert [row.file for row in filtered_rows(rows, "PIANO slow")] == ["a.wav"]
    assert [row.file for row in filtered_rows(rows, show="unlabelled")] == ["b.wav", "sub/c.wav"]
    with pytest.raises(UserError, match="no column"):
        sorted_rows(rows, "nothing")


def test_a_table_on_disk_reads_back_as_the_same_labels(dataset: Dataset, music: Path, tmp_path: Path) -> None:
    dataset.songs[0].edit(caption='with "quotes", commas; é', keyscale="Am", timesignature="6/8", language="fr")
    write_csv(dataset, tmp_path / "out.csv")
    copy = tmp_path / "copy"
    copy.mkdir()
    for song in dataset.songs:
        shutil.copy(song.path, copy / song.path.name)
    shutil.copy(tmp_path / "out.csv", copy / "labels.csv")
    found = {song.relative: song for song in scan_folder(copy).songs}
    for song in dataset.songs:
        assert labels(found[song.path.name]) == labels(song)
    with pytest.raises(UserError, match="exists already"):
        write_csv(dataset, tmp_path / "out.csv")

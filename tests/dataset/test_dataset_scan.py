"""Scanning folders: who wins, what is found, what is told, and how long it takes."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job
from acestep.dataset.dataset import Dataset, genre_songs, summary
from acestep.dataset.fingerprints import FILE_NAME, Fingerprints
from acestep.dataset.scan import scan_folder
from acestep.dataset.song import EDITED, Song
from acestep.dataset.store import load_dataset, save_dataset
from acestep.model.prompt import lyric_prompt, text_prompt
from acestep.settings.dataset import DatasetSettings

Write = Callable[[str, str | bytes], Path]
MakeSong = Callable[..., Path]


def only_song(folder: Path) -> Song:
    (song,) = scan_folder(folder).songs
    return song


def errors_of(dataset: Dataset) -> dict[str, str]:
    return {problem.subject: problem.message for problem in dataset.problems if problem.severity == "error"}


def warnings_of(dataset: Dataset, subject: str) -> str:
    return " ".join(p.message for p in dataset.problems if p.subject == subject and p.severity == "warning")


def saved_json(**labels: object) -> str:
    sample = {"audio_path": "song.wav", "caption": "", "lyrics": "[Instrumental]", "bpm": None, "language": "unknown"}
    return json.dumps({"metadata": {"name": "old"}, "samples": [{**sample, **labels}]})


SHEET = "caption: from sheet\nbpm: 61\nkey: D\nsignature: 2/4\nlanguage: fr\ngenre: sheet genre\nlyrics:\nsheet words"
EDIT = {
    "caption": "from edit",
    "lyrics": "edit words",
    "bpm": 65,
    "keyscale": "E major",
    "timesignature": "6",
    "language": "de",
}
JSON = {
    "caption": "from json",
    "lyrics": "json words",
    "bpm": 62,
    "keyscale": "G major",
    "timesignature": "3",
    "language": "es",
    "genre": "json genre",
}
FROM_SHEET = {
    "caption": "from sheet",
    "lyrics": "sheet words",
    "bpm": 61,
    "keyscale": "D major",
    "timesignature": "2",
    "language": "fr",
    "genre": "sheet genre",
}
FROM_CSV = {"caption": "from csv", "bpm": 63, "keyscale": "F major"}
SIDECARS: dict[str, tuple[str, dict[str, object]]] = {
    "set.json": (saved_json(**EDIT), EDIT),
    "keys.csv": ("File,BPM,Key,Caption\nsong.wav,63,F,from csv", FROM_CSV),
    "song.json": (json.dumps({**JSON, "keyscale": "G", "timesignature": "3/4"}), JSON),
    "song.caption.txt": ("from caption.txt", {"caption": "from caption.txt"}),
    "song_prompt.txt": ("from, prompt.txt", {"caption": "from, prompt.txt"}),
    "song.lyrics.txt": ("lyrics.txt words", {"lyrics": "lyrics.txt words"}),
    "song_lyrics.txt": ("underscore words", {"lyrics": "underscore words"}),
    "song.lrc": ("[00:01.00]lrc words", {"lyrics": "lrc words", "timed_lyrics": "[00:01.00]lrc words"}),
    "song.txt": (SHEET, FROM_SHEET),
}
ORDER = {
    "caption": ["set.json", "keys.csv", "song.json", "song.caption.txt", "song_prompt.txt", "song.txt"],
    "lyrics": ["set.json", "song.lyrics.txt", "song_lyrics.txt", "song.json", "song.lrc", "song.txt"],
    "bpm": ["set.json", "keys.csv", "song.json", "song.txt"],
    "keyscale": ["set.json", "keys.csv", "song.json", "song.txt"],
    "timesignature": ["set.json", "song.json", "song.txt"],
    "language": ["set.json", "song.json", "song.txt"],
    "genre": ["song.json", "song.txt"],
}


@pytest.mark.parametrize("name", SIDECARS)
def test_each_convention_alone(name: str, music: Path, make_song: MakeSong, beside: Write) -> None:
    make_song("song.wav")
    text, expected = SIDECARS[name]
    beside(name, text)
    song = only_song(music)
    assert {field: getattr(song, field) for field in expected} == expected
    assert song.labeled == ("caption" in expected)
    assert all(
        song.sources[field] == (EDITED if name == "set.json" else name) for field in expected if field != "timed_lyrics"
    )


@pytest.mark.parametrize("field", ORDER)
def test_the_winner_among_all_conventions_and_what_comes_after_it(
    field: str, music: Path, make_song: MakeSong, beside: Write
) -> None:
    make_song("song.wav")
    for name, (text, _) in SIDECARS.items():
        beside(name, text)
    for name in ORDER[field]:
        dataset = scan_folder(music)
        (song,) = dataset.songs
        assert getattr(song, field) == SIDECARS[name][1][field]
        remaining = ORDER[field][ORDER[field].index(name) + 1 :]
        assert song.overruled.get(field, []) == remaining
        if remaining:
            assert f"{field} is taken from {name}; {' and '.join(remaining)} say" in warnings_of(dataset, "song.wav")
            assert summary(dataset).disagreements == 1
        (music / name).unlink()
    assert getattr(only_song(music), field) in ("", None, "unknown", "[Instrumental]")


def test_empty_files_and_empty_values_count_as_absent(music: Path, make_song: MakeSong, beside: Write) -> None:
    make_song("song.wav")
    for name in ("song.caption.txt", "song.lyrics.txt", "song.json", "song.lrc"):
        beside(name, "  \n")
    beside("keys.csv", "File,Caption,BPM\nsong.wav,,N/A\n")
    beside("song.txt", SHEET)
    song = only_song(music)
    assert (song.caption, song.lyrics, song.bpm) == ("from sheet", "sheet words", 61)
    assert scan_folder(music).problems == []


def test_all_spellings_of_a_key_reach_the_prompt_alike(music: Path, make_song: MakeSong, beside: Write) -> None:
    spelled = {"a": "Am", "b": "A minor", "c": "8A", "d": "C sharp minor"}
    for name, key in spelled.items():
        make_song(f"{name}.wav")
        beside(
            f"{name}.json",
            json.dumps({"caption": "x", "key": key, "sig": "4/4", "bpm": "96.0", "vocal_language": "English"}),
        )
    prompts = [song.labels(song.caption, song.duration_s) for song in scan_folder(music).songs]
    assert [
        f"- keyscale: {key}\n" in text_prompt(labels)
        for key, labels in zip(["A minor"] * 3 + ["C# minor"], prompts, strict=True)
    ] == [True] * 4
    assert all(
        "- timesignature: 4\n" in text_prompt(labels) and "- bpm: 96\n" in text_prompt(labels) for labels in prompts
    )
    assert all(lyric_prompt(labels).startswith("# Languages\nen\n") for labels in prompts)


def test_csv_with_everything_at_once(music: Path, make_song: MakeSong, beside: Write) -> None:
    make_song("song.wav")
    beside(
        "keys.csv",
        b"\xef\xbb\xbfFile;Artist;Title;BPM;Key;Camelot;Caption\nsong.wav;;;96,0;;8A;slow; \ngone.mp3;;;1;;;\n",
    )
    dataset = scan_folder(music)
    assert (dataset.songs[0].bpm, dataset.songs[0].keyscale, dataset.songs[0].caption) == (96, "A minor", "slow")
    assert "gone.mp3" in warnings_of(dataset, "keys.csv, line 3")


def test_timed_lyrics_are_kept_beside_the_words(music: Path, make_song: MakeSong, beside: Write) -> None:
    make_song("song.wav")
    beside("song.lyrics.txt", "[Verse]\nla la")
    timed = beside("song.lrc", "[ar:x]\n[00:01.00][00:05.00]la la").read_text(encoding="utf-8")
    song = only_song(music)
    assert (song.lyrics, song.timed_lyrics) == ("[Verse]\nla la", timed)
    assert (music / "song.lrc").read_text(encoding="utf-8") == timed


@pytest.mark.parametrize(
    ("sidecars", "expected"),
    [
        ({}, (True, "[Instrumental]", "unknown")),
        ({"song.txt": "la la"}, (False, "la la", "unknown")),
        ({"song.txt": "[inst]"}, (True, "[Instrumental]", "unknown")),
        ({"song.json": {"language": "ja"}}, (False, "", "ja")),
        ({"song.json": {"language": "unknown"}}, (True, "[Instrumental]", "unknown")),
        ({"song.json": {"language": "instrumental"}}, (True, "[Instrumental]", "unknown")),
        ({"song.json": {"language": "ja", "is_instrumental": True}}, (True, "[Instrumental]", "ja")),
        ({"song.json": {"is_instrumental": False}}, (False, "", "unknown")),
        ({"song.json": {"is_instrumental": True}, "song.lyrics.txt": "la"}, (False, "la", "unknown")),
        ({"song.json": {"is_instrumental": False, "lyrics": "[Instrumental]"}}, (True, "[Instrumental]", "unknown")),
        ({"song.json": {"lyrics": "[Instrumental]"}, "song.lyrics.txt": "la"}, (False, "la", "unknown")),
    ],
)
def test_voice_or_no_voice(
    sidecars: dict[str, object], expected: tuple[bool, str, str], music: Path, make_song: MakeSong, beside: Write
) -> None:
    make_song("song.wav")
    for name, content in sidecars.items():
        beside(name, content if isinstance(content, str) else json.dumps(content))
    song = only_song(music)
    assert (song.is_instrumental, song.lyrics, song.language) == expected
    sung = lyric_prompt(song.labels("x", 1.0))
    assert ("[Instrumental]" in sung) == (expected[0] or not expected[1])


def test_contradictions_about_the_voice_are_told(music: Path, make_song: MakeSong, beside: Write) -> None:
    make_song("song.wav")
    beside("song.json", json.dumps({"is_instrumental": True}))
    beside("song.lyrics.txt", "la")
    assert "there is no voice" in warnings_of(scan_folder(music), "song.wav")
    (music / "song.lyrics.txt").unlink()
    beside("song.json", json.dumps({"language": "ja"}))
    assert "no lyrics" in warnings_of(scan_folder(music), "song.wav")


def test_error_texts_of_captioners_are_told_and_no_label(music: Path, make_song: MakeSong, beside: Write) -> None:
    make_song("song.wav")
    beside(
        "song.json", json.dumps({"caption": "Error: CUDA out of memory", "lyrics": "ERROR: none", "timesignature": "4"})
    )
    dataset = scan_folder(music)
    assert not dataset.songs[0].labeled
    assert dataset.songs[0].lyrics == "[Instrumental]"
    assert "CUDA out of memory" in warnings_of(dataset, "song.wav")
    beside("song.caption.txt", "a good caption")
    assert only_song(music).caption == "a good caption"


def test_odd_names_and_equal_stems(music: Path, make_song: MakeSong, beside: Write) -> None:
    stems = [
        "with space",
        'it\'s "quoted"',
        "\U0001f3b8 guitar",
        "x" * 200,
        "a/same",
        "b/same",
        "semi;colon, comma",
        "new\nline",
        "%s {0}",
        "-rf",
    ]
    for stem in stems:
        make_song(f"{stem}.wav")
        beside(f"{stem}.caption.txt", f"caption of {stem.replace(chr(10), ' ')}")
    dataset = scan_folder(music)
    assert errors_of(dataset) == {}
    assert sorted(song.relative for song in dataset.songs) == sorted(f"{stem}.wav" for stem in stems)
    assert all(song.caption == f"caption of {song.relative[:-4].replace(chr(10), ' ')}" for song in dataset.songs)
    again = load_dataset(save_dataset(dataset, music / "set.json"))
    assert again.songs == dataset.songs


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are always valid text there")
def test_a_name_that_is_no_text(music: Path, make_song: MakeSong) -> None:
    make_song("good.wav")
    shutil.copy(music / "good.wav", os.fsencode(music) + b"/bad \xff.wav")
    dataset = scan_folder(music)
    assert [song.relative for song in dataset.songs] == ["good.wav"]
    assert "rename" in errors_of(dataset)["bad \\udcff.wav"]


def test_bad_files_do_not_stop_the_good_ones(
    music: Path, make_song: MakeSong, beside: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_song("good.wav")
    make_song("short.wav", seconds=0.05)
    beside("empty.mp3", b"")
    beside("text.mp3", "this is no music")
    beside("header.wav", (music / "good.wav").read_bytes()[:44])
    beside("good.json", "{broken")
    beside("sub/list.json", "[1]")
    make_song("sub/list.flac")
    make_song("locked.wav")
    opened = open

    def refuse(file: object, *arguments: object, **named: object) -> object:
        if str(file).endswith("locked.wav"):
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", refuse)
    dataset = scan_folder(music)
    assert [song.relative for song in dataset.songs] == ["good.wav", "sub/list.flac"]
    told = errors_of(dataset)
    assert set(told) == {"short.wav", "empty.mp3", "text.mp3", "header.wav", "good.json", "sub/list.json", "locked.wav"}
    assert "Permission denied" in told["locked.wav"]
    assert "line 1, column 2" in told["good.json"]
    assert "0.05 s" in told["short.wav"]
    assert not any("Traceback" in message for message in told.values())


def test_hidden_and_unfinished_files_are_left_alone(music: Path, make_song: MakeSong, beside: Write) -> None:
    make_song("song.wav")
    for name in (
        ".hidden.wav",
        "._song.wav",
        "song.wav.part",
        "__MACOSX/song.wav",
        ".git/song.wav",
        ".writing-1.wav",
        "x.tmp",
        "cover.jpg",
        "video.mp4",
        ".38 Special/song.wav",
    ):
        beside(name, (music / "song.wav").read_bytes())
    beside(".cache/x", "no song")
    dataset = scan_folder(music)
    assert [song.relative for song in dataset.songs] == ["song.wav"]
    assert errors_of(dataset) == {}
    hidden = {problem.subject for problem in dataset.problems if "left out as hidden" in problem.message}
    assert hidden == {".hidden.wav", ".git", ".38 Special"}


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links(music: Path, make_song: MakeSong, tmp_path: Path) -> None:
    inner, outer = make_song("songs/one.wav"), tmp_path / "elsewhere"
    outer.mkdir()
    shutil.copy(make_song("two.wav"), outer / "secret.wav")
    (music / "loop").symlink_to(music)
    (music / "songs" / "up").symlink_to("..")
    (music / "circle.wav").symlink_to("circle.wav")
    (music / "nowhere.wav").symlink_to("missing.wav")
    (music / "again.wav").symlink_to(inner)
    (music / "out.wav").symlink_to(outer / "secret.wav")
    (music / "outer").symlink_to(outer)
    (music / ".store").mkdir()
    make_song(".store/kept.wav")
    (music / "kept.wav").symlink_to(music / ".store" / "kept.wav")
    dataset = scan_folder(music)
    assert [song.relative for song in dataset.songs] == ["kept.wav", "songs/one.wav", "two.wav"]
    assert set(errors_of(dataset)) == {"circle.wav", "nowhere.wav", "out.wav", "outer"}
    through_link = tmp_path / "link to music"
    through_link.symlink_to(music)
    assert [song.id for song in scan_folder(through_link).songs] == [song.id for song in dataset.songs]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are none")
def test_a_pipe_named_like_a_song_is_not_opened(music: Path, make_song: MakeSong) -> None:
    make_song("song.wav")
    os.mkfifo(music / "pipe.wav")
    (music / "folder.wav").mkdir()
    assert [song.relative for song in scan_folder(music).songs] == ["song.wav"]


def test_identical_recordings_count_once(music: Path, make_song: MakeSong) -> None:
    make_song("b/first.wav", seed=1)
    make_song("z.wav", seed=1)
    make_song("c.wav", seed=2)
    dataset = scan_folder(music)
    assert [song.relative for song in dataset.songs] == ["b/first.wav", "c.wav"]
    assert "b/first.wav" in warnings_of(dataset, "z.wav")


def test_songs_are_known_by_content(music: Path, make_song: MakeSong) -> None:
    before = only_song(make_song("one.wav").parent).id
    (music / "one.wav").rename(music / "renamed.wav")
    assert only_song(music).id == before
    assert len(before) == 16
    make_song("renamed.wav", seed=99)
    assert only_song(music).id != before


def test_folders_that_cannot_be_used(music: Path, tmp_path: Path, beside: Write) -> None:
    beside("notes.txt", "no songs")
    for folder in (music, tmp_path / "missing", music / "notes.txt"):
        with pytest.raises(UserError) as caught:
            scan_folder(folder)
        assert str(folder) in str(caught.value)


def test_stop_keeps_what_was_learnt(music: Path, make_song: MakeSong, tmp_path: Path) -> None:
    for number in range(4):
        make_song(f"{number}.wav")
    job = Job(lambda kind, what: kind == "progress" and what.done == 2 and job.request_stop())  # type: ignore[union-attr]
    with pytest.raises(Stopped):
        scan_folder(music, job=job)
    memory = json.loads((tmp_path / "state of this test" / FILE_NAME).read_text(encoding="utf-8"))
    assert len(memory["files"]) == 2
    progress: list[int] = []
    scan_folder(music, job=Job(lambda kind, what: kind == "progress" and progress.append(what.done)))  # type: ignore[union-attr]
    assert progress == [1, 2, 3, 4]


def test_unlabelled_songs_and_lost_sidecars_are_told(music: Path, make_song: MakeSong, beside: Write) -> None:
    make_song("one.wav")
    make_song("two.wav")
    beside("ome.lyrics.txt", "la")
    dataset = scan_folder(music)
    assert "None of the songs" in warnings_of(dataset, "music")
    assert warnings_of(dataset, "ome.lyrics.txt")
    beside("one.txt", "genre: rock")
    dataset = scan_folder(music)
    assert [song.labeled for song in dataset.songs] == [True, False]
    assert "two.wav" in warnings_of(dataset, "music")
    facts = summary(dataset)
    assert (facts.songs, facts.labeled, facts.instrumental, facts.errors) == (2, 1, 2, 0)
    assert facts.duration_s == pytest.approx(2.2, abs=0.01)


def test_a_dataset_file_in_the_folder_is_no_sidecar(music: Path, make_song: MakeSong, beside: Write) -> None:
    make_song("song.wav")
    make_song("my set.wav")
    beside("my set.json", saved_json(caption="typed"))
    dataset = scan_folder(music)
    assert {song.relative: song.caption for song in dataset.songs} == {"my set.wav": "", "song.wav": "typed"}
    assert dataset.settings.name == "old"
    beside("broken.json", '{"samples": [')
    assert "broken.json" in errors_of(scan_folder(music))


def test_trigger_words(music: Path, make_song: MakeSong, beside: Write) -> None:
    make_song("one.wav")
    make_song("two.wav")
    beside("two.json", json.dumps({"caption": "x", "custom_tag": "own"}))
    dataset = scan_folder(music, DatasetSettings(trigger_word=" zyd "))
    assert [dataset.tag_of(song) for song in dataset.songs] == ["zyd", "own"]
    dataset.settings = dataset.settings.changed(trigger_word="")
    assert [dataset.tag_of(song) for song in dataset.songs] == ["", "own"]
    assert all("zyd" not in song.caption for song in dataset.songs)


def test_genre_choice() -> None:
    songs = [Song(f"{number:016x}", Path("x.wav"), "x.wav", 2.0, caption="c", genre="g") for number in range(10)]
    order = list(range(10))
    random.seed(42)  # the draw of other trainers, made in their way
    random.shuffle(order)
    for ratio, count in ((0, 0), (9, 0), (25, 2), (100, 10)):
        assert genre_songs(songs, ratio) == {songs[number].id for number in order[:count]}
    chosen = genre_songs(songs, 50)
    songs[0].prompt_override = "caption" if songs[0].id in chosen else "genre"
    sources = {song.id: song.prompt_source(chosen) for song in songs}
    assert sources[songs[0].id] == songs[0].prompt_override
    assert all((sources[song.id] == "genre") == (song.id in chosen) for song in songs[1:])
    songs[1].genre = ""
    assert songs[1].words("genre") == "c"


def test_a_hundred_unchanged_songs_are_scanned_at_once_without_torch(
    music: Path, make_song: MakeSong, beside: Write
) -> None:
    for number in range(100):
        make_song(f"{number:03d}.wav", seconds=1.0)
        beside(f"{number:03d}.json", json.dumps({"caption": f"song {number}", "lyrics": "la la\n" * 40, "bpm": 90}))
        beside(f"{number:03d}.lyrics.txt", "la la\n" * 40)
    scan_folder(music)
    measure = (
        "import sys, time; from acestep.dataset.scan import scan_folder; start = time.perf_counter(); "
        "dataset = scan_folder(sys.argv[1]); taken = time.perf_counter() - start; "
        "heavy = {'torch', 'soundfile', 'av', 'numpy', 'librosa'} & set(sys.modules); "
        "print(len(dataset.songs), sum(song.labeled for song in dataset.songs), sorted(heavy), taken)"
    )
    best = 9.0
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", measure, str(music)], capture_output=True, text=True, check=True)
        *found, taken = done.stdout.split()
        assert found == ["100", "100", "[]"]
        best = min(best, float(taken))
    assert best < 0.3


def test_the_memory_of_fingerprints(
    music: Path, make_song: MakeSong, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, file = make_song("song.wav"), tmp_path / "memory" / "known.json"
    memory = Fingerprints(file)
    found = memory.of(path)
    memory.save()

    def fail(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("acestep.dataset.fingerprints.content_hash", fail)
    assert Fingerprints(file).of(path) == found
    later = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(later, later))
    with pytest.raises(AssertionError, match="read again"):
        Fingerprints(file).of(path)


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "[" * 50_000,
        '{"version": 1}',
        '{"version": 1, "files": []}',
        '{"version": 99, "files": {}}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_memory_only_costs_time(
    damage: str | bytes, music: Path, make_song: MakeSong, tmp_path: Path
) -> None:
    path, file = make_song("song.wav"), tmp_path / "known.json"
    found = Fingerprints(file).of(path)
    file.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    memory = Fingerprints(file)
    assert memory.of(path) == found
    memory.save()
    assert str(path) in json.loads(file.read_text(encoding="utf-8"))["files"]


def test_damaged_entries_are_not_believed(make_song: MakeSong, tmp_path: Path) -> None:
    path, file = make_song("song.wav"), tmp_path / "known.json"
    found, status = Fingerprints(file).of(path), path.stat()
    stamp = [status.st_size, status.st_mtime_ns]
    for entry in (
        None,
        3,
        [],
        [*stamp],
        [*stamp, "x", 1.0],
        [*stamp, "0" * 16, "1"],
        [*stamp, 5, 1.0],
        [*stamp, "0" * 16, -1.0],
        [*stamp, "0" * 16, float("nan")],
    ):
        file.write_text(json.dumps({"version": 1, "files": {str(path): entry}}), encoding="utf-8")
        assert Fingerprints(file).of(path) == found


def test_two_writers_keep_both_and_the_memory_stays_small(
    make_song: MakeSong, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "known.json"
    one, two = make_song("one.wav"), make_song("two.wav")
    first, second = Fingerprints(file), Fingerprints(file)
    first.of(one)
    second.of(two)
    first.save()
    second.save()
    assert set(json.loads(file.read_text(encoding="utf-8"))["files"]) == {str(one), str(two)}
    monkeypatch.setattr("acestep.dataset.fingerprints.MOST_ENTRIES", 2)
    third = Fingerprints(file)
    third.of(make_song("three.wav"))
    third.save()
    assert list(json.loads(file.read_text(encoding="utf-8"))["files"]) == [str(two), str(two.with_name("three.wav"))]


def test_a_memory_that_cannot_be_written_stops_nothing(make_song: MakeSong, tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("not a folder", encoding="utf-8")
    memory = Fingerprints(blocked / "known.json")
    assert memory.of(make_song("song.wav")).id
    memory.save()


def test_scanning_writes_nothing_into_the_folder(music: Path, make_song: MakeSong, beside: Write) -> None:
    make_song("song.wav")
    beside("song.json", '{"caption": "x"}')
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in music.iterdir()}
    scan_folder(music)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in music.iterdir()} == before

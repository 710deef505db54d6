"""Pieces of songs keep labels, and of lyrics just the lines that are sung in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from acestep.core.errors import UserError
from acestep.dataset.label_files import hand_made
from acestep.dataset.scan import scan_folder
from acestep.dataset.splitting import split_dataset

MakeSong = Callable[..., Path]
Beside = Callable[[str, str | bytes], Path]


def test_pieces_are_a_dataset_with_labels_and_the_lines_sung_in_them(
    music: Path, make_song: MakeSong, beside: Beside, tmp_path: Path
) -> None:
    make_song("timed.wav", 4.5)
    beside("timed.lrc", "[00:00.50]one\n[00:01.90]two\n[Chorus]\n[00:02.25]three\n[00:04.00]four")
    beside("timed.json", '{"caption": "duet", "bpm": 90, "language": "en", "repeat": 2}')
    make_song("sub/plain.wav", 4.0)
    beside("sub/plain.txt", "caption: solo\nlyrics: la la")
    make_song("sub/short.wav", 1.5)
    beside("sub/short.txt", "caption: brief\nlyrics: la")
    make_song("quiet.wav", 4.0)
    found = scan_folder(music)
    found.songs[1].edit(caption="by hand", genre="")

    report = split_dataset(found, tmp_path / "pieces", 2)
    assert [str(problem) for problem in report.problems] == [
        "sub/plain.wav: Its lyrics have no times, so its pieces have none; write theirs."
    ]
    songs = {song.relative: song for song in scan_folder(tmp_path / "pieces").songs}
    assert sorted(songs) == [
        *("quiet_001.flac", "quiet_002.flac", "sub/plain_001.flac", "sub/plain_002.flac"),
        *("sub/short_001.flac", "timed_001.flac", "timed_002.flac"),
    ]
    first, second = songs["timed_001.flac"], songs["timed_002.flac"]
    assert (first.bpm, first.language, first.repeat, first.is_instrumental) == (90, "en", 2, False)
    assert first.lyrics == "one\ntwo" and second.lyrics == "[Chorus]\nthree\nfour"
    assert second.timed_lyrics == "[00:00.25][Chorus]\n[00:00.25]three\n[00:02.00]four"
    assert songs["sub/short_001.flac"].lyrics == "la"
    assert songs["sub/plain_001.flac"].lyrics == "" and not songs["sub/plain_001.flac"].is_instrumental
    assert songs["quiet_001.flac"].is_instrumental
    edited = found.songs[1].path.stem
    copies = [song for song in songs.values() if song.relative.rpartition("/")[2].startswith(edited)]
    assert copies and all(song.caption == "by hand" and {"caption", "genre"} <= hand_made(song) for song in copies)


def test_pieces_do_not_mix_with_the_songs_and_one_bad_song_stops_nobody(
    music: Path, make_song: MakeSong, tmp_path: Path
) -> None:
    make_song("a.wav", 4.0)
    gone = make_song("b.wav", 4.0)
    found = scan_folder(music)
    with pytest.raises(UserError, match="count twice"):
        split_dataset(found, music / "pieces", 2)
    gone.unlink()
    (tmp_path / "pieces").mkdir()
    report = split_dataset(found, tmp_path / "pieces", 2)
    assert [problem.subject for problem in report.problems] == ["b.wav"]
    assert len(report.pieces) == 2
    before = {path: path.read_bytes() for path in (tmp_path / "pieces").iterdir()}
    again = split_dataset(found, tmp_path / "pieces", 2)
    assert not again.pieces and "exists already" in str(again.problems[0])
    assert {path: path.read_bytes() for path in (tmp_path / "pieces").iterdir()} == before

"""Splitting and drawing recordings: every sample arrives once, cuts fall into silence, and little memory is used."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from acestep.audio.split import split_audio
from acestep.audio.waveform import peaks
from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job

RATE = 8000


class StoppedLater(Job):
    """Work that the user stops in the middle of the second piece."""

    checks = 0

    def check_stop(self) -> None:
        self.checks += 1
        if self.checks == 6:
            self.request_stop()
        super().check_stop()


def noise(seconds: float, channels: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (round(seconds * RATE), channels))


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """34.7 s of stereo noise in 16 bits."""
    path = tmp_path / "concert.wav"
    soundfile.write(path, noise(34.7), RATE, subtype="PCM_16")
    return path


@pytest.mark.parametrize("suffix", [".flac", ".wav"])
def test_pieces_put_together_are_the_recording_bit_for_bit(recording: Path, tmp_path: Path, suffix: str) -> None:
    pieces = split_audio(recording, tmp_path / "new", 8, suffix=suffix)  # type: ignore[arg-type]
    assert [piece.path.name for piece in pieces] == [f"concert_{number:03d}{suffix}" for number in (1, 2, 3, 4)]
    assert [(piece.start_s, piece.end_s) for piece in pieces] == [(0, 8), (8, 16), (16, 24), (24, 34.7)]
    joined = np.concatenate([soundfile.read(piece.path, dtype="float32")[0] for piece in pieces])
    assert np.array_equal(joined, soundfile.read(recording, dtype="float32")[0])
    assert {path.name for path in (tmp_path / "new").iterdir()} == {piece.path.name for piece in pieces}


def test_overlapping_pieces_begin_earlier(recording: Path, tmp_path: Path) -> None:
    pieces = split_audio(recording, tmp_path / "new", 8, overlap_s=3)
    assert [(piece.start_s, piece.end_s) for piece in pieces] == [(0, 8), (5, 16), (13, 24), (21, 34.7)]
    whole = soundfile.read(recording)[0]
    for piece in pieces:
        expected = whole[round(piece.start_s * RATE) : round(piece.end_s * RATE)]
        assert np.array_equal(soundfile.read(piece.path)[0], expected)


def test_cuts_move_into_the_silence_nearest_to_them(tmp_path: Path) -> None:
    sound = noise(40, channels=1)
    for start_s in (8.6, 19.0, 23.0, 31.0):  # one before the first cut, two around the second
        sound[round(start_s * RATE) : round((start_s + 0.6) * RATE)] = 0
    soundfile.write(tmp_path / "set.flac", sound, RATE)
    pieces = split_audio(tmp_path / "set.flac", tmp_path / "new", 10, at_silence=True)
    starts = [piece.start_s for piece in pieces[1:]]
    assert len(starts) == 3
    for start_s, silence_s in zip(starts, (8.6, 19.0, 31.0), strict=True):
        assert silence_s <= start_s <= silence_s + 0.6
    assert pieces[-1].end_s == 40


@pytest.mark.parametrize("at_silence", [False, True])
def test_a_recording_that_ends_early_is_split_as_far_as_it_goes(tmp_path: Path, at_silence: bool) -> None:
    file = tmp_path / "cut.flac"
    soundfile.write(file, noise(300), RATE)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 6])
    pieces = split_audio(file, tmp_path / "new", 20, at_silence=at_silence)
    assert len(pieces) == 2 or len(pieces) == 3
    assert 45 < pieces[-1].end_s < 51 and all(soundfile.info(piece.path).duration > 5 for piece in pieces)


def test_a_short_recording_is_one_piece(recording: Path, tmp_path: Path) -> None:
    assert len(split_audio(recording, tmp_path / "new", 30)) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length_s": 0.1}, "0.1 s cannot be made"),
        ({"length_s": float("nan")}, "cannot be made"),
        ({"length_s": 8, "overlap_s": 5}, "overlap by 5 s"),
        ({"length_s": 8, "suffix": ".mp3"}, "cannot be written"),
    ],
)
def test_lengths_without_sense_are_refused(recording: Path, tmp_path: Path, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        split_audio(recording, tmp_path / "new", **options)


def test_nothing_is_overwritten_and_nothing_stays_after_a_failure(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "concert_003.flac").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"concert_003\.flac exists"):
        split_audio(recording, folder, 8)
    assert [path.read_bytes() for path in folder.iterdir()] == [b"mine"]

    sound = noise(30)
    sound[-100] = np.nan
    soundfile.write(tmp_path / "broken.wav", sound, RATE, subtype="FLOAT")
    with pytest.raises(UserError, match="NaN"):
        split_audio(tmp_path / "broken.wav", tmp_path / "other", 8, overlap_s=4)
    assert not list((tmp_path / "other").iterdir())

    with pytest.raises(Stopped):
        split_audio(recording, tmp_path / "third", 8, job=StoppedLater())
    assert not list((tmp_path / "third").iterdir())


def test_a_long_recording_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", RATE, 1, subtype="PCM_16") as file:
        for seed in range(60):
            file.write(noise(20, 1, seed))
    tracemalloc.start()
    try:
        split_audio(path, tmp_path / "new", 300, at_silence=True)
        peaks(path, memory=tmp_path)
        used = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert used < 4 << 20  # the sound itself is 38 MB


@pytest.mark.parametrize("bins", [1, 7, 1000])
@pytest.mark.parametrize("frames", [1, 5, 16_384, 16_385, 50_001])
def test_peaks_are_lowest_and_highest_of_equal_stretches(tmp_path: Path, frames: int, bins: int) -> None:
    path = tmp_path / "song.wav"
    sound = np.random.default_rng(frames).uniform(-1, 1, (frames, 2)).astype(np.float32)
    soundfile.write(path, sound, RATE, subtype="FLOAT")
    outline = peaks(path, bins, tmp_path)
    bins = min(bins, frames)
    owner = np.arange(frames) * bins // frames
    for number in range(bins):
        assert outline[0, number] == sound[owner == number].min()
        assert outline[1, number] == sound[owner == number].max()


def test_peaks_are_remembered_until_the_song_changes(tmp_path: Path, recording: Path) -> None:
    memory = tmp_path / "memory"
    first = peaks(recording, 50, memory)
    (file,) = memory.iterdir()
    np.save(file, first * 2)
    assert np.array_equal(peaks(recording, 50, memory), first * 2)
    file.write_bytes(b"damaged")
    assert np.array_equal(peaks(recording, 50, memory), first)
    soundfile.write(recording, noise(5, seed=9) / 4, RATE)
    assert np.abs(peaks(recording, 50, memory)).max() < 0.2
    sound = noise(2)
    sound[:RATE, 0] = np.nan
    soundfile.write(recording, sound, RATE, subtype="FLOAT")
    assert np.isfinite(peaks(recording, 50, memory)).all()
    with pytest.raises(UserError, match="does not exist"):
        peaks(tmp_path / "nowhere.wav", memory=memory)

"""Writing sound files: each format, long files, refusals, and that nothing half written is ever seen."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep.audio.write import WRITABLE_SUFFIXES, write_audio
from acestep.core.errors import UserError
from acestep.core.paths import TEMPORARY_PREFIX

RATE = 48_000


def two_tones(seconds: float) -> np.ndarray:
    time_s = np.arange(round(seconds * RATE)) / RATE
    return np.stack([0.4 * np.sin(2 * np.pi * 330 * time_s), 0.4 * np.sin(2 * np.pi * 550 * time_s)]).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "format_name", "subtype"),
    [
        (".wav", "WAV", "PCM_16"),
        (".flac", "FLAC", "PCM_16"),
        (".mp3", "MP3", "MPEG_LAYER_III"),
        (".ogg", "OGG", "VORBIS"),
        (".opus", "OGG", "OPUS"),
        (".WAV", "WAV", "PCM_16"),
    ],
)
def test_suffix_picks_the_format(tmp_path: Path, suffix: str, format_name: str, subtype: str) -> None:
    samples = two_tones(3)
    path = write_audio(tmp_path / f"out{suffix}", samples)
    info = soundfile.info(path)
    assert (info.format, info.subtype, info.samplerate, info.channels) == (format_name, subtype, RATE, 2)
    read, _ = soundfile.read(path)
    assert read.shape == (3 * RATE, 2)
    middle = slice(RATE, 2 * RATE)
    assert np.abs(read.T[:, middle] - samples[:, middle]).max() < 0.02


@given(
    frames=st.integers(1, 120_000), stereo=st.booleans(), suffix=st.sampled_from([".wav", ".flac"]), seed=st.integers(0)
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lossless_formats_keep_samples_to_16_bits(
    tmp_path: Path, frames: int, stereo: bool, suffix: str, seed: int
) -> None:
    samples = np.random.default_rng(seed).uniform(-1, 1, (2, frames) if stereo else frames).astype(np.float32)
    path = write_audio(tmp_path / f"noise{suffix}", samples, 44_100)
    read, rate = soundfile.read(path, always_2d=True)
    assert rate == 44_100
    np.testing.assert_allclose(read.T, np.atleast_2d(samples), atol=1.01 / 32_768)


def test_too_loud_samples_clip_and_do_not_wrap(tmp_path: Path) -> None:
    read, _ = soundfile.read(write_audio(tmp_path / "loud.wav", np.array([[1.5] * 10, [-1.5] * 10], np.float32)))
    assert (read[:, 0] > 0.999).all()
    assert (read[:, 1] < -0.999).all()


@pytest.mark.parametrize(("suffix", "seconds"), [(".ogg", 900), (".opus", 120)])
def test_long_songs_do_not_overflow_the_encoder(tmp_path: Path, suffix: str, seconds: int) -> None:
    path = write_audio(tmp_path / f"long{suffix}", np.tile(two_tones(1)[:1, :8000], seconds), 8000)
    assert soundfile.info(path).duration == pytest.approx(seconds, abs=0.1)


def test_readable_by_others_and_replaced_whole(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "out.wav", two_tones(1))
    write_audio(path, two_tones(2))
    assert soundfile.info(path).duration == 2
    assert list(tmp_path.iterdir()) == [path]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_failed_write_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_audio(tmp_path / "out.wav", two_tones(1))
    before = path.read_bytes()
    parts = []

    def fail_later(self: soundfile.SoundFile, data: np.ndarray) -> None:
        parts.append(len(data))
        if len(parts) > 1:
            raise soundfile.LibsndfileError(2)  # "System error", as on a full disk

    monkeypatch.setattr(soundfile.SoundFile, "write", fail_later)
    with pytest.raises(UserError, match=r"out\.wav could not be written"):
        write_audio(path, two_tones(3))
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = soundfile.SoundFile

    def open_on_full_disk(file: Path, *arguments: object, **options: object) -> soundfile.SoundFile:
        return real_open("/dev/full", *arguments, **options)

    monkeypatch.setattr(soundfile, "SoundFile", open_on_full_disk)
    with pytest.raises(UserError, match="could not be written"):
        write_audio(tmp_path / "out.wav", two_tones(3))
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.wma") as caught:
        write_audio(tmp_path / "out.wma", two_tones(1))
    assert all(suffix in str(caught.value) for suffix in WRITABLE_SUFFIXES)
    broken = two_tones(1)
    broken[1, 5] = np.nan
    with pytest.raises(UserError, match="NaN"):
        write_audio(tmp_path / "out.wav", broken)
    with pytest.raises(UserError, match="44100 Hz"):
        write_audio(tmp_path / "out.opus", two_tones(1), 44_100)
    with pytest.raises(ValueError, match=r"\[2, N\]"):
        write_audio(tmp_path / "out.wav", two_tones(1).T)
    assert list(tmp_path.iterdir()) == []

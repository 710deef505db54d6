"""Files the project did not synthesise or write, in every container: decoded to the right length and notes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from foreign_songs import FOREIGN_SONGS, SECONDS, ForeignSong, build_foreign_songs, missing_tools, write_m4a

from acestep.audio.decode import decode, probe
from acestep.audio.loudness import integrated_loudness, normalize
from acestep.core.errors import UserError

RATE = 48_000

needs_players = pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {', '.join(missing_tools())}")


@pytest.fixture(scope="module")
def foreign_songs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("foreign")
    return {path.relative_to(folder).as_posix(): path for path in build_foreign_songs(folder)}


def share_of_notes(samples: np.ndarray, lowest: int) -> np.ndarray:
    """Energy at the fundamentals of the 12 notes from MIDI number `lowest` up."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / RATE)
    notes = 440 * 2 ** ((lowest + np.arange(12) - 69) / 12)
    return np.array([spectrum[np.abs(frequencies / note - 1) < 0.025].sum() for note in notes])


@needs_players
@pytest.mark.parametrize("song", FOREIGN_SONGS, ids=lambda song: song.name)
def test_length_form_and_notes(foreign_songs: dict[str, Path], song: ForeignSong) -> None:
    path = foreign_songs[song.name]
    info = probe(path)
    assert (info.sample_rate, info.channels) == (song.rate, song.channels)
    assert info.duration_s == pytest.approx(SECONDS, abs=0.06)
    audio = decode(path)
    assert audio.warnings == ()
    assert audio.samples.shape[0] == 2
    assert audio.duration_s == pytest.approx(SECONDS, abs=0.06)
    assert audio.samples.dtype == np.float32
    assert 0.1 < np.abs(audio.samples).max() < 1.3
    assert (song.channels == 1) == np.array_equal(audio.samples[0], audio.samples[1])
    if not song.speech:
        # the drone is the strongest note of its octave; a wrong rate would move it
        assert np.argmax(share_of_notes(audio.samples[0], song.bass - 5)) == 5


@needs_players
def test_foreign_songs_are_enough_and_labelled(foreign_songs: dict[str, Path]) -> None:
    assert len(foreign_songs) >= 8
    assert {path.suffix for path in foreign_songs.values()} >= {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a"}
    for path in foreign_songs.values():
        assert path.with_suffix(".caption.txt").read_text(encoding="utf-8")


@needs_players
def test_foreign_songs_can_be_brought_to_one_loudness(foreign_songs: dict[str, Path]) -> None:
    for path in foreign_songs.values():
        samples = normalize(decode(path).samples, "peak_lufs")
        assert integrated_loudness(samples) <= -13.9
        assert np.abs(samples).max() <= 0.8913


# Formats that only PyAV reads, written without other programs


def test_m4a_begins_and_ends_where_the_music_does(tmp_path: Path) -> None:
    time_s = np.arange(3 * 44_100) / 44_100
    music = 0.3 * np.sin(2 * np.pi * np.stack([330 * time_s, 550 * time_s], axis=1))
    write_m4a(tmp_path / "song.m4a", music, 44_100)
    audio = decode(tmp_path / "song.m4a")
    assert audio.duration_s == pytest.approx(3, abs=0.03)
    time_s = np.arange(3 * RATE) / RATE
    middle = slice(RATE, 2 * RATE)
    expected = 0.3 * np.sin(2 * np.pi * np.stack([330 * time_s, 550 * time_s]))
    assert np.abs(audio.samples[:, middle] - expected[:, middle]).max() < 0.02
    cut = decode(tmp_path / "song.m4a", max_duration_s=1.25)
    np.testing.assert_allclose(cut.samples, audio.samples[:, : round(1.25 * RATE)], atol=1e-5)


def test_a_truncated_m4a_says_so(tmp_path: Path) -> None:
    write_m4a(tmp_path / "song.m4a", np.random.default_rng(0).uniform(-0.3, 0.3, (5 * 44_100, 2)), 44_100)
    content = (tmp_path / "song.m4a").read_bytes()
    (tmp_path / "song.m4a").write_bytes(content[: len(content) // 2])  # its index stands at the end
    with pytest.raises(UserError, match="cannot be read as audio"):
        decode(tmp_path / "song.m4a")


@pytest.mark.parametrize(("suffix", "codec"), [("aac", "aac"), ("wma", "wmav2"), ("mkv", "flac")])
def test_other_containers(tmp_path: Path, suffix: str, codec: str) -> None:
    import av

    path = tmp_path / f"song.{suffix}"
    time_s = np.arange(3 * 44_100) / 44_100
    wave = (0.3 * np.sin(2 * np.pi * 440 * time_s) * 32_767).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44_100, layout="mono")
        stream.bit_rate = 128_000
        frame = av.AudioFrame.from_ndarray(wave[None, :], format="s16", layout="mono")
        frame.sample_rate = 44_100
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    audio = decode(path)
    assert audio.duration_s == pytest.approx(3, abs=0.1)
    assert probe(path).duration_s == pytest.approx(3, abs=0.1)
    np.testing.assert_array_equal(audio.samples[0], audio.samples[1])
    assert np.abs(audio.samples[:, RATE : 2 * RATE]).max() == pytest.approx(0.3, abs=0.02)


def test_a_video_without_sound(tmp_path: Path) -> None:
    import av

    path = tmp_path / "film.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10, width=32, height=32)
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(stream.encode(None))
    with pytest.raises(UserError) as caught:
        decode(path)
    assert "no sound track" in caught.value.detail

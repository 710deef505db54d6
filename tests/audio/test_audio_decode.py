"""Decoding: the model's rules for rate and channels, lengths, cutting, and every kind of bad file."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep.audio.decode import decode, probe
from acestep.audio.format import MIN_DURATION_S, SAMPLE_RATE
from acestep.core.errors import UserError


def tone(seconds: float, rate: int, *frequencies: float, level: float = 0.3) -> np.ndarray:
    """Sines, one channel each: float64 [N, channels]."""
    time_s = np.arange(round(seconds * rate)) / rate
    return np.stack([level * np.sin(2 * np.pi * frequency * time_s) for frequency in frequencies], axis=1)


def amplitude_at(samples: np.ndarray, frequency: float) -> float:
    """Amplitude of a sine in one channel of 48 kHz sound."""
    time_s = np.arange(len(samples)) / SAMPLE_RATE
    return 2 * abs(np.mean(samples * np.exp(-2j * np.pi * frequency * time_s)))


def lame_frame_size(content: bytes, start: int) -> int:
    """Bytes of the MPEG-1 layer III frame at `start`."""
    bit_rates = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
    rates = (44_100, 48_000, 32_000)
    third = content[start + 2]
    return 144_000 * bit_rates[third >> 4] // rates[third >> 2 & 3] + (third >> 1 & 1)


@pytest.fixture(scope="module")
def vbr_mp3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 s at a variable bit rate: a quiet beginning, then noise, so that early bit rates mislead."""
    path = tmp_path_factory.mktemp("mp3") / "variable.mp3"
    samples = tone(30, 44_100, 440, 660)
    samples[10 * 44_100 :] += 0.2 * np.random.default_rng(0).standard_normal(samples[10 * 44_100 :].shape)
    soundfile.write(path, samples, 44_100, format="MP3", compression_level=0.5, bitrate_mode="VARIABLE")
    return path


# What good files become


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_any_rate_becomes_48_khz_with_the_same_tones(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "song.wav"
    soundfile.write(path, tone(2, rate, 440, 1000), rate, subtype="FLOAT")
    audio = decode(path)
    assert audio.samples.dtype == np.float32
    assert audio.samples.shape == (2, 2 * SAMPLE_RATE)
    assert audio.samples.flags.c_contiguous
    assert audio.duration_s == 2.0
    assert audio.warnings == ()
    middle = audio.samples[:, SAMPLE_RATE // 2 : -SAMPLE_RATE // 2]
    assert amplitude_at(middle[0], 440) == pytest.approx(0.3, abs=1e-4)
    assert amplitude_at(middle[1], 1000) == pytest.approx(0.3, abs=1e-4)
    expected = tone(2, SAMPLE_RATE, 440, 1000).T[:, SAMPLE_RATE // 2 : -SAMPLE_RATE // 2]
    assert np.abs(middle - expected).max() < 1e-4  # same place in time, too


def test_tones_above_the_new_range_are_filtered_out_not_folded_down(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "ultra.wav", tone(2, 96_000, 30_000) + tone(2, 96_000, 1000), 96_000, subtype="FLOAT")
    samples = decode(tmp_path / "ultra.wav").samples[0]
    assert amplitude_at(samples, 18_000) < 1e-5
    assert amplitude_at(samples, 1000) == pytest.approx(0.3, abs=1e-3)


def test_mono_is_doubled(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "mono.flac", tone(2, 32_000, 440), 32_000)
    samples = decode(tmp_path / "mono.flac").samples
    assert samples.shape[0] == 2
    np.testing.assert_array_equal(samples[0], samples[1])


def test_of_eight_channels_the_first_two_are_kept_with_a_warning(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "cinema.wav", tone(2, SAMPLE_RATE, *range(200, 1000, 100)), SAMPLE_RATE, subtype="FLOAT")
    audio = decode(tmp_path / "cinema.wav")
    np.testing.assert_array_equal(audio.samples, tone(2, SAMPLE_RATE, 200, 300).T.astype(np.float32))
    assert audio.warnings == ("has 8 channels; the first two are used",)
    assert probe(tmp_path / "cinema.wav").channels == 8


def test_samples_beyond_full_scale_are_kept(tmp_path: Path) -> None:
    loud = tone(2, SAMPLE_RATE, 440, 440, level=1.8)
    soundfile.write(tmp_path / "loud.wav", loud, SAMPLE_RATE, subtype="FLOAT")
    audio = decode(tmp_path / "loud.wav")
    np.testing.assert_array_equal(audio.samples, loud.T.astype(np.float32))
    assert audio.warnings == ()


def test_integers_stored_as_floats_draw_a_warning(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "wrong.wav", tone(2, SAMPLE_RATE, 440, level=32_767), SAMPLE_RATE, subtype="FLOAT")
    assert decode(tmp_path / "wrong.wav").warnings == ("peaks 90 dB above full scale; normalise it or export it again",)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("song.flac", {}),
        ("song.aiff", {}),
        ("song.mp3", {"format": "MP3"}),
        ("song.ogg", {"format": "OGG", "subtype": "VORBIS"}),
        ("song.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("wrong suffix.wav", {"format": "MP3"}),
    ],
)
def test_every_format_keeps_length_and_place(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    original = tone(3, SAMPLE_RATE, 440, 1000)
    soundfile.write(tmp_path / name, original, SAMPLE_RATE, **options)
    audio = decode(tmp_path / name)
    assert audio.samples.shape == (2, 3 * SAMPLE_RATE)
    middle = slice(SAMPLE_RATE, 2 * SAMPLE_RATE)
    assert np.abs(audio.samples[:, middle] - original.T[:, middle]).max() < 0.03
    assert probe(tmp_path / name).duration_s == pytest.approx(3.0, abs=0.001)


@given(
    frames=st.integers(SAMPLE_RATE, 2 * SAMPLE_RATE),
    channels=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_48_khz_samples_pass_untouched(tmp_path: Path, frames: int, channels: int, seed: int) -> None:
    original = np.random.default_rng(seed).uniform(-1, 1, (frames, channels)).astype(np.float32)
    soundfile.write(tmp_path / "noise.wav", original, SAMPLE_RATE, subtype="FLOAT")
    first, second = (0, 0) if channels == 1 else (0, 1)
    np.testing.assert_array_equal(decode(tmp_path / "noise.wav").samples, original[:, [first, second]].T)


# Cutting


@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000])
def test_a_cut_song_equals_the_beginning_of_the_whole(tmp_path: Path, rate: int) -> None:
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, (4 * rate, 2))
    soundfile.write(tmp_path / "song.flac", noise, rate)
    whole = decode(tmp_path / "song.flac")
    cut = decode(tmp_path / "song.flac", max_duration_s=1.7)
    assert cut.samples.shape[1] == round(1.7 * SAMPLE_RATE)
    assert cut.warnings == ()
    np.testing.assert_allclose(cut.samples, whole.samples[:, : cut.samples.shape[1]], atol=1e-5)


def test_a_limit_beyond_the_end_changes_nothing(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "song.wav", tone(2, 44_100, 440), 44_100)
    np.testing.assert_array_equal(
        decode(tmp_path / "song.wav", max_duration_s=60).samples, decode(tmp_path / "song.wav").samples
    )


@pytest.fixture(params=["hour.wav", "hour.flac", "hour.mp3"])
def one_hour(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / request.param
    minute = np.random.default_rng(2).uniform(-0.1, 0.1, 60 * 8000)
    with soundfile.SoundFile(path, "w", 8000, 1) as handle:
        for _ in range(1 if path.suffix == ".mp3" else 60):
            handle.write(minute)
    if path.suffix == ".mp3":
        path.write_bytes(path.read_bytes() * 60)
    return path


def test_one_hour_is_cut_without_reading_it_all(one_hour: Path) -> None:
    probe(one_hour)  # imports
    started = time.process_time()
    info = probe(one_hour)
    assert time.process_time() - started < 1.0
    tracemalloc.start()
    audio = decode(one_hour, max_duration_s=10)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - started < 2.5
    assert peak_bytes < 6 * audio.samples.nbytes
    assert info.duration_s == pytest.approx(3600, rel=0.01)
    assert audio.samples.nbytes == 10 * SAMPLE_RATE * 2 * 4
    assert audio.warnings == ()


# Lengths that headers do not tell, or tell wrongly


def test_an_mp3_without_frame_count_is_read_to_its_end(vbr_mp3: Path, tmp_path: Path) -> None:
    content = vbr_mp3.read_bytes()
    start = content.index(b"\xff\xfb")
    bare = tmp_path / "bare.mp3"
    bare.write_bytes(content[start + lame_frame_size(content, start) :])
    assert b"Xing" not in bare.read_bytes()
    assert soundfile.info(bare).duration < 20  # libsndfile's guess, which must not become ours
    assert probe(bare).duration_s == pytest.approx(30, abs=0.1)
    audio = decode(bare)
    assert audio.duration_s == pytest.approx(30, abs=0.1)
    assert audio.warnings == ()


def test_two_mp3_files_in_one_are_read_to_the_end(vbr_mp3: Path, tmp_path: Path) -> None:
    joined = tmp_path / "joined.mp3"
    joined.write_bytes(vbr_mp3.read_bytes() * 2)
    assert probe(joined).duration_s == pytest.approx(60, abs=0.2)
    assert decode(joined).duration_s == pytest.approx(60, abs=0.2)


def test_an_mp3_with_cover_and_broken_tags_decodes(vbr_mp3: Path, tmp_path: Path) -> None:
    frame = b"TIT2" + struct.pack(">I", 6) + b"\0\0" + b"\x03\xff\xfeabc"  # says UTF-8, is not
    cover = b"APIC" + struct.pack(">I", 60_000) + b"\0\0" + b"\0image/png\0\x03\0" + b"\xff\xfb\x90\x64" * 14_996
    body = frame + cover
    size = bytes(len(body) >> shift & 0x7F for shift in (21, 14, 7, 0))
    path = tmp_path / "tagged.mp3"
    path.write_bytes(b"ID3\x03\0\0" + size + body + vbr_mp3.read_bytes())
    assert decode(path).duration_s == pytest.approx(30, abs=0.01)
    assert probe(path).duration_s == pytest.approx(30, abs=0.01)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_is_read_to_the_end(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "one.ogg", tone(2, SAMPLE_RATE, 440, 660), SAMPLE_RATE, format="OGG", subtype=subtype)
    chained = tmp_path / "chained.ogg"
    chained.write_bytes((tmp_path / "one.ogg").read_bytes() * 2)
    assert probe(chained).duration_s == pytest.approx(4, abs=0.1)
    assert decode(chained).duration_s == pytest.approx(4, abs=0.1)


def test_flac_from_a_pipe_states_no_length_and_is_read_all_the_same(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "song.flac", tone(3, 44_100, 440), 44_100)
    content = bytearray((tmp_path / "song.flac").read_bytes())
    # total samples are the last 36 of the 64 bits that begin 18 bytes into the file
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (tmp_path / "piped.flac").write_bytes(content)
    assert probe(tmp_path / "piped.flac").duration_s == pytest.approx(3)
    assert decode(tmp_path / "piped.flac").duration_s == pytest.approx(3)


def test_probing_does_not_decode(vbr_mp3: Path) -> None:
    probe(vbr_mp3)  # imports
    started = time.process_time()
    probe(vbr_mp3)
    assert time.process_time() - started < 0.2


# Bad files: one clear sentence each, nothing on standard error


def refusal(path: Path, max_duration_s: float = 0.0) -> str:
    with pytest.raises(UserError) as caught:
        decode(path, max_duration_s)
    assert str(path) in caught.value.message
    assert caught.value.fix
    assert "\n" not in str(caught.value)
    return caught.value.message


TEXT = b"This is no music at all, only words in a file.\n" * 80


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.flac", "a.ogg", "a.m4a"])
@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty (0 bytes)"), (TEXT, "cannot be read as audio"), (bytes(5000), "cannot be read as audio")],
)
def test_empty_files_text_and_zeros(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert words in refusal(path)
    with pytest.raises(UserError):
        probe(path)
    assert capfd.readouterr().err == ""


def test_noise_under_an_audio_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "noise.mp3"
    path.write_bytes(np.random.default_rng(3).bytes(60_000))
    refusal(path)
    assert capfd.readouterr().err == ""


def test_a_truncated_mp3_gives_the_part_that_is_there(
    vbr_mp3: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = vbr_mp3.read_bytes()
    path = tmp_path / "cut off.mp3"
    path.write_bytes(content[: len(content) // 2])
    audio = decode(path)
    assert 5 < audio.duration_s < 25
    assert audio.warnings == (f"only {audio.duration_s:.1f} of its 30.0 s can be decoded; that part is used",)
    assert probe(path).duration_s == pytest.approx(audio.duration_s, abs=0.1)
    assert decode(path, max_duration_s=3).warnings == ()  # that part is whole
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_truncated_files_of_other_kinds(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"song.{suffix}"
    soundfile.write(path, np.random.default_rng(4).uniform(-0.5, 0.5, (10 * 44_100, 2)), 44_100)
    os.truncate(path, path.stat().st_size // 2)
    audio = decode(path)
    assert audio.duration_s == pytest.approx(5, abs=0.5)
    assert audio.warnings == (f"only {audio.duration_s:.1f} of its 10.0 s can be decoded; that part is used",)


def test_too_little_left_of_a_truncated_file(vbr_mp3: Path, tmp_path: Path) -> None:
    path = tmp_path / "stump.mp3"
    path.write_bytes(vbr_mp3.read_bytes()[:3000])
    assert "is cut off or damaged: only" in refusal(path)


def test_damage_in_the_middle_is_survived_and_told(vbr_mp3: Path, tmp_path: Path) -> None:
    content = bytearray(vbr_mp3.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 20_000] = bytes(20_000)
    path = tmp_path / "scratched.mp3"
    path.write_bytes(content)
    audio = decode(path)
    assert 25 < audio.duration_s < 30.1
    assert audio.warnings[0] == f"only {audio.duration_s:.1f} of its 30.0 s can be decoded; that part is used"


def test_header_without_sound(tmp_path: Path) -> None:
    path = tmp_path / "header.wav"
    soundfile.write(path, np.zeros((0, 2)), SAMPLE_RATE)
    assert refusal(path).endswith("holds no sound.")
    with pytest.raises(UserError, match="holds no sound"):
        probe(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_samples(tmp_path: Path, value: float) -> None:
    samples = tone(3, 44_100, 440, 440)
    samples[round(2.1 * 44_100), 1] = value
    path = tmp_path / "broken.wav"
    soundfile.write(path, samples, 44_100, subtype="FLOAT")
    assert "holds NaN or infinite samples, the first near 2.1 s" in refusal(path)
    assert decode(path, max_duration_s=1.5).samples.shape[1] == 72_000  # the broken part is not needed


def test_silence(tmp_path: Path) -> None:
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.full((2 * SAMPLE_RATE, 2), 5e-7), SAMPLE_RATE, subtype="FLOAT")
    assert refusal(path).endswith("is silent.")


def test_too_short(tmp_path: Path) -> None:
    path = tmp_path / "click.wav"
    soundfile.write(path, tone(0.05, SAMPLE_RATE, 440), SAMPLE_RATE)
    assert f"is 0.05 s long; at least {MIN_DURATION_S:g} s is needed" in refusal(path)


def test_missing_files_folders_and_pipes(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere.wav")
    (tmp_path / "folder.wav").mkdir()
    assert "is not a file" in refusal(tmp_path / "folder.wav")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    assert "cannot be opened" in refusal(tmp_path / "loop.wav")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.wav")
        assert "is not a file" in refusal(tmp_path / "pipe.wav")  # and does not wait for a writer


@pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "private.wav"
    soundfile.write(path, tone(2, SAMPLE_RATE, 440), SAMPLE_RATE)
    path.chmod(0)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65_534)  # root may read everything, nobody may not
    try:
        assert "permission denied" in refusal(path)
    finally:
        if was_root:
            os.seteuid(0)


def test_a_playlist_cannot_open_other_files(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "secret.wav", tone(2, SAMPLE_RATE, 440), SAMPLE_RATE)
    playlists = {
        "list.m4a": "ffconcat version 1.0\nfile secret.wav\n",
        "stream.mp3": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.wav\n#EXT-X-ENDLIST\n",
    }
    for name, text in playlists.items():
        (tmp_path / name).write_text(text)
        assert "cannot be read as audio" in refusal(tmp_path / name)


def test_hard_names(tmp_path: Path) -> None:
    for stem in ("two words", 'it\'s "quoted"', "émoji 🎵", "x" * 200, "-dash", "100% $HOME"):
        path = tmp_path / f"{stem}.flac"
        soundfile.write(path, tone(1.5, SAMPLE_RATE, 440), SAMPLE_RATE)
        assert decode(path).duration_s == 1.5

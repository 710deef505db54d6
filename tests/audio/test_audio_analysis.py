"""Analysis without a model: right on played music of known truth, silent about what has no tempo or key."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
import soundfile
import soxr
from foreign_songs import missing_tools
from played_pieces import Piece, draw_drum_pieces, draw_pieces, make_beatless, play, play_all

from acestep.audio.analysis import Analysis, analyze
from acestep.audio.hearing import EXCERPT_S, EXCERPTS, RATE, hear
from acestep.audio.key import NAMES
from acestep.audio.loudness import BLOCK_S, LoudnessMeter
from acestep.audio.weighing import decide
from acestep.core.errors import UserError

SEED = 77
"""Neither that of the fit nor that of the benchmark."""

needs_players = pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {', '.join(missing_tools())}")


def key_of(piece: Piece) -> str:
    return f"{NAMES[piece.mode][piece.tonic]} {piece.mode}"


def same_tempo(found: Analysis, piece: Piece) -> bool:
    return found.bpm.value is not None and abs(found.bpm.value / piece.tempo - 1) <= 0.02


def nothing_in(found: Analysis) -> bool:
    return found.bpm.value is None and found.keyscale.value is None and found.timesignature.value is None


# What is there is heard


@needs_players
def test_most_of_fifteen_pieces_in_five_formats_are_heard_rightly(tmp_path: Path) -> None:
    pieces = draw_pieces(15, SEED)
    assert {piece.metre for piece in pieces} == {"2", "3", "4", "6"}
    paths = play_all(pieces, tmp_path, seconds=20.0)
    assert {path.suffix for path in paths} == {".wav", ".flac", ".mp3", ".ogg", ".m4a"}
    found = [analyze(path) for path in paths]
    pairs = list(zip(found, pieces, strict=True))
    assert all(one.duration_s == pytest.approx(20.0, abs=0.1) for one in found)
    assert sum(same_tempo(one, piece) for one, piece in pairs) >= 12
    assert sum(one.timesignature.value == piece.metre for one, piece in pairs) >= 11
    assert sum(one.keyscale.value == key_of(piece) for one, piece in pairs) >= 11
    for one in found:
        for estimate in (one.bpm, one.keyscale, one.timesignature):
            assert 0 <= estimate.confidence <= 1
            assert estimate.value is None or estimate.runner_up != estimate.value
    sure = [same_tempo(one, piece) for one, piece in pairs if one.bpm.confidence > 0.9]
    assert len(sure) >= 6 and np.mean(sure) >= 0.9


@needs_players
def test_an_hour_is_heard_in_excerpts_and_little_memory(tmp_path: Path) -> None:
    piece = next(one for one in draw_pieces(40, SEED) if one.style.name == "house")
    samples, rate = soundfile.read(play(piece, tmp_path / "piece.wav", seconds=20.0), dtype="float32")
    samples, rate = soxr.resample(samples[:, 0], rate, 8000), 8000
    peaks, results = [], []
    for minutes in (4, 60):
        path = tmp_path / f"{minutes} minutes.wav"
        with soundfile.SoundFile(path, "w", rate, 1) as file:
            for _ in range(3 * minutes):
                file.write(samples)
        tracemalloc.start()
        results.append(analyze(path))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 400e6
    assert [round(one.duration_s) for one in results] == [240, 3600]
    assert all(same_tempo(one, piece) for one in results)
    parts = hear(tmp_path / "60 minutes.wav").excerpts
    assert [len(part) for part in parts] == [pytest.approx(EXCERPT_S * RATE, abs=2)] * EXCERPTS


@needs_players
def test_drums_alone_have_a_tempo_and_no_key(tmp_path: Path) -> None:
    pieces = draw_drum_pieces(3, SEED)
    found = [analyze(path) for path in play_all(pieces, tmp_path)]
    assert sum(same_tempo(one, piece) for one, piece in zip(found, pieces, strict=True)) >= 2
    assert sum(one.keyscale.value is None for one in found) >= 2


# What is not there is not invented


@needs_players
def test_noise_rain_speech_and_loose_notes_have_neither_tempo_nor_key(tmp_path: Path) -> None:
    found = [analyze(path) for path in make_beatless(tmp_path, 8, SEED)]
    assert sum(nothing_in(one) for one in found) >= 6


@pytest.mark.parametrize("seconds", [0.2, 1.0, 3.0])
def test_short_noise_says_its_length_and_nothing_else(tmp_path: Path, seconds: float) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * 44_100))
    soundfile.write(tmp_path / "noise.wav", noise, 44_100)
    found = analyze(tmp_path / "noise.wav")
    assert found.duration_s == pytest.approx(seconds, abs=1e-4)
    assert (found.loudness_lufs is None) == (seconds < 0.4)
    assert nothing_in(found)


@pytest.mark.parametrize("level", [0.0, 1e-7])
def test_silence_has_a_length_only(tmp_path: Path, level: float) -> None:
    soundfile.write(tmp_path / "silence.wav", np.full((5 * 44_100, 2), level), 44_100, subtype="FLOAT")
    found = analyze(tmp_path / "silence.wav")
    assert (found.duration_s, found.loudness_lufs) == (5.0, None)
    assert nothing_in(found)


def test_a_held_tone_has_no_tempo(tmp_path: Path) -> None:
    time_s = np.arange(12 * 48_000) / 48_000
    soundfile.write(tmp_path / "tone.wav", 0.3 * np.sin(2 * np.pi * 440 * time_s), 48_000)
    assert nothing_in(analyze(tmp_path / "tone.wav"))


def test_a_value_that_is_not_sure_enough_is_only_the_runner_up() -> None:
    unsure = decide(["2", "3", "4"], np.array([0.2, 0.35, 0.3]))
    assert (unsure.value, unsure.runner_up) == (None, "3")
    sure = decide(["2", "3", "4"], np.array([0.1, 0.6, 0.2]))
    assert (sure.value, sure.confidence, sure.runner_up) == ("3", 0.6, "4")


@needs_players
def test_level_and_offset_change_nothing_and_odd_rates_are_read(tmp_path: Path) -> None:
    piece = next(one for one in draw_pieces(40, SEED) if one.style.name == "house")
    samples, rate = soundfile.read(play(piece, tmp_path / "piece.wav", seconds=20.0), dtype="float32")
    plain = analyze(tmp_path / "piece.wav")
    assert same_tempo(plain, piece)
    for name, changed in {"quiet": 1e-4 * samples, "loud": 1e15 * samples, "offset": samples + 0.5}.items():
        soundfile.write(tmp_path / f"{name}.wav", changed, rate, subtype="FLOAT")
        found = analyze(tmp_path / f"{name}.wav")
        assert same_tempo(found, piece)
        assert (found.keyscale.value, found.timesignature.value) == (plain.keyscale.value, plain.timesignature.value)
    for odd in (1, 50, 2000, 4000):
        soundfile.write(tmp_path / "odd.wav", samples[: 3 * odd], odd)
        assert analyze(tmp_path / "odd.wav").duration_s == pytest.approx(3.0, abs=0.01)


# Files that are wrong


def test_what_cannot_be_heard_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("no music here, only words " * 50)
    soundfile.write(tmp_path / "header.wav", np.zeros((0, 2)), 44_100)
    broken = np.zeros(44_100, dtype=np.float32)
    broken[30_000] = np.nan
    soundfile.write(tmp_path / "nan.wav", broken, 44_100, subtype="FLOAT")
    for name in ("empty.wav", "text.mp3", "header.wav", "nan.wav", "missing.wav"):
        with pytest.raises(UserError, match=name):
            analyze(tmp_path / name)


def test_excerpts_are_taken_from_what_there_is_of_a_long_file_that_ends_early(tmp_path: Path) -> None:
    file = tmp_path / "cut.flac"
    soundfile.write(file, np.random.default_rng(0).uniform(-0.5, 0.5, 300 * 8000), 8000)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 6])
    heard = hear(file)
    assert 45 < heard.duration_s < 51 and "of its 300.0 s" in heard.notes[0]
    assert sum(len(part) for part in heard.excerpts) / RATE == pytest.approx(heard.duration_s, abs=0.01)


def test_a_file_that_ends_early_is_analysed_as_far_as_it_goes(tmp_path: Path) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(20 * 44_100)
    soundfile.write(tmp_path / "whole.flac", noise, 44_100)
    content = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "half.flac").write_bytes(content[: len(content) // 2])
    found = analyze(tmp_path / "half.flac")
    assert 8 < found.duration_s < 11
    assert found.notes


# Loudness


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (44_100, 2), (48_000, 2), (96_000, 1)])
def test_loudness_block_by_block_equals_that_of_the_whole(rate: int, channels: int) -> None:
    draw = np.random.default_rng(rate)
    envelope = np.repeat(draw.uniform(0.001, 0.5, 12), rate // 2)[:, None]
    samples = (envelope * draw.uniform(-1, 1, (6 * rate, channels))).astype(np.float32)
    meter = LoudnessMeter(rate, channels)
    place = 0
    while place < len(samples):
        step = int(draw.integers(1, 20_000))
        meter.push(samples[place : place + step])
        place += step
    whole = pyloudnorm.Meter(rate, block_size=BLOCK_S).integrated_loudness(samples.astype(np.float64))
    assert meter.integrated() == pytest.approx(whole, abs=0.02)


def test_loudness_of_too_little_or_too_quiet_sound_is_none_at_all() -> None:
    for samples in (np.zeros((48_000, 1)), np.full((1000, 1), 0.5), 1e-5 * np.ones((48_000, 1))):
        meter = LoudnessMeter(48_000, 1)
        meter.push(samples)
        assert meter.integrated() == -math.inf

"""Loudness against reference tones and an implementation of ITU-R BS.1770 written for this test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.loudness import PEAK_CEILING, TARGET_LUFS, integrated_loudness, normalize
from acestep.settings.preprocess import Normalization

MODES: tuple[Normalization, ...] = ("none", "peak", "lufs", "peak_lufs")


def bs1770(samples: np.ndarray) -> float:
    """Integrated loudness of 48 kHz sound [2, N] with the filter coefficients printed in the recommendation."""
    shelf = ([1.53512485958697, -2.69169618940638, 1.19839281085285], [1.0, -1.69065929318241, 0.73248077421585])
    high_pass = ([1.0, -2.0, 1.0], [1.0, -1.99004745483398, 0.99007225036621])
    weighted = lfilter(*high_pass, lfilter(*shelf, samples.astype(np.float64), axis=1), axis=1)
    size, hop = round(0.4 * SAMPLE_RATE), round(0.1 * SAMPLE_RATE)
    starts = range(0, weighted.shape[1] - size + 1, hop)
    power = np.array([np.square(weighted[:, start : start + size]).mean(axis=1).sum() for start in starts])
    level = -0.691 + 10 * np.log10(power + 1e-30)
    loud = power[level > -70]
    relative_gate = -0.691 + 10 * np.log10(loud.mean()) - 10
    return float(-0.691 + 10 * np.log10(power[(level > -70) & (level > relative_gate)].mean()))


def sine(frequency: float, dbfs: float, seconds: float = 5.0) -> np.ndarray:
    wave = 10 ** (dbfs / 20) * np.sin(2 * np.pi * frequency * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE)
    return np.stack([wave, wave]).astype(np.float32)


def music(seed: int, level: float = 0.1, seconds: float = 6.0) -> np.ndarray:
    """Noise bursts of changing level, different left and right."""
    random = np.random.default_rng(seed)
    frames = round(seconds * SAMPLE_RATE)
    swell = np.repeat(random.uniform(0, 1, 12) ** 2, math.ceil(frames / 12))[:frames]
    return (level * swell * random.standard_normal((2, frames))).astype(np.float32)


@pytest.mark.parametrize("dbfs", [-40.0, -20.0, -6.0])
def test_reference_tone(dbfs: float) -> None:
    """A 997 Hz sine of x dBFS in both channels measures x LUFS (-3.01 LUFS for 0 dBFS in one channel)."""
    assert integrated_loudness(sine(997, dbfs)) == pytest.approx(dbfs, abs=0.05)
    left_only = sine(997, dbfs) * np.array([[1], [0]], dtype=np.float32)
    assert integrated_loudness(left_only) == pytest.approx(dbfs - 3.01, abs=0.05)


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_recommendation(seed: int) -> None:
    samples = music(seed)
    assert integrated_loudness(samples) == pytest.approx(bs1770(samples), abs=0.1)


@pytest.mark.parametrize("frequency", [50.0, 200.0, 2000.0, 8000.0])
def test_weighting_over_frequency(frequency: float) -> None:
    samples = sine(frequency, -20)
    assert integrated_loudness(samples) == pytest.approx(bs1770(samples), abs=0.1)


def test_gating_leaves_out_pauses() -> None:
    loud = sine(997, -20, seconds=10)
    with_pause = np.concatenate([loud, np.zeros_like(loud), loud], axis=1)
    assert integrated_loudness(with_pause) == pytest.approx(-20, abs=0.15)
    nearly = np.concatenate([loud, sine(997, -35, seconds=10)], axis=1)  # 15 dB below: under the relative gate
    assert integrated_loudness(nearly) == pytest.approx(-20, abs=0.15)


def test_no_loudness() -> None:
    assert integrated_loudness(np.zeros((2, SAMPLE_RATE), np.float32)) == -math.inf
    assert integrated_loudness(sine(997, -6, seconds=0.3)) == -math.inf
    assert integrated_loudness(sine(997, -80)) == -math.inf
    assert integrated_loudness(np.zeros((2, 0), np.float32)) == -math.inf


def test_peak_reaches_minus_one_dbfs() -> None:
    for level in (0.01, 0.5, 3.0):
        louder = normalize(music(0, level), "peak")
        assert 20 * math.log10(np.abs(louder).max()) == pytest.approx(-1.0, abs=1e-4)


def test_lufs_reaches_the_target_where_it_does_not_clip() -> None:
    for level in (-45.0, -30.0, -16.0, -1.0):
        for mode in ("lufs", "peak_lufs"):
            assert integrated_loudness(normalize(sine(997, level), mode)) == pytest.approx(TARGET_LUFS, abs=0.01)


def test_lufs_holds_the_gain_where_it_would_clip() -> None:
    samples = sine(997, -40)
    samples[:, 1000] = 0.5  # one click takes the headroom
    held = normalize(samples, "lufs")
    assert np.abs(held).max() == pytest.approx(1.0, abs=1e-6)
    assert integrated_loudness(held) < TARGET_LUFS
    lower = normalize(samples, "peak_lufs")
    assert np.abs(lower).max() == pytest.approx(float(PEAK_CEILING), abs=1e-6)


@given(
    seed=st.integers(0, 2**31), level=st.floats(1e-4, 100.0), click=st.floats(0, 50.0), mode=st.sampled_from(MODES[1:])
)
@settings(max_examples=40, deadline=None)
def test_never_past_the_ceiling_and_only_one_gain(seed: int, level: float, click: float, mode: Normalization) -> None:
    samples = music(seed, level, seconds=0.8)
    samples[0, seed % samples.shape[1]] += np.float32(click)
    result = normalize(samples, mode)
    assert result.dtype == np.float32
    assert np.abs(result).max() <= (1.0 if mode == "lufs" else float(PEAK_CEILING))
    loudest = np.unravel_index(np.abs(samples).argmax(), samples.shape)
    gain = result[loudest] / samples[loudest]
    np.testing.assert_allclose(result, samples * gain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_silence_is_left_alone_and_the_input_is_never_changed(mode: Normalization) -> None:
    quiet = np.full((2, SAMPLE_RATE), 5e-7, np.float32)
    np.testing.assert_array_equal(normalize(quiet, mode), quiet)
    original = music(5)
    kept = original.copy()
    result = normalize(original, mode)
    np.testing.assert_array_equal(original, kept)
    assert not np.shares_memory(result, original)


def test_sound_without_a_loudness_is_left_alone_by_the_lufs_modes() -> None:
    short = sine(997, -30, seconds=0.3)
    for mode in ("none", "lufs", "peak_lufs"):
        np.testing.assert_array_equal(normalize(short, mode), short)
    assert np.abs(normalize(short, "peak")).max() == pytest.approx(float(PEAK_CEILING), abs=1e-6)

"""What is measured of the demo's VAE, on sounds that were spoiled on purpose."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from demo_model import evaluate_vae

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.synth import draw_piece, render_piece


@pytest.fixture(scope="module")
def music() -> np.ndarray:
    return render_piece(draw_piece(evaluate_vae.FIRST_SEED, duration_s=3.0))


def test_levels_are_in_db_of_full_scale() -> None:
    assert evaluate_vae.level_db(np.full((2, 100), 0.1, np.float32)) == pytest.approx(-20, abs=0.01)
    assert evaluate_vae.level_db(np.zeros((2, 100), np.float32)) == -150


def test_noise_of_a_known_level_gives_its_snr(music: np.ndarray) -> None:
    noise = np.random.default_rng(0).standard_normal(music.shape).astype(np.float32)
    noise *= 10 ** ((evaluate_vae.level_db(music) - 12 - evaluate_vae.level_db(noise)) / 20)
    assert evaluate_vae.snr_db(music, music + noise) == pytest.approx(12, abs=0.01)


def test_the_same_sound_has_no_distance_and_half_of_it_six_db(music: np.ndarray) -> None:
    assert max(evaluate_vae.stft_distances_db(music, music).values()) == 0
    noise = 0.3 * np.random.default_rng(0).standard_normal((2, SAMPLE_RATE)).astype(np.float32)
    halved = evaluate_vae.stft_distances_db(noise, noise / 2)
    assert all(5 < value < 6.03 for value in halved.values())  # the floor takes a little


def test_a_click_shows(music: np.ndarray) -> None:
    clicking = music.copy()
    clicking[:, SAMPLE_RATE] += 0.8
    assert evaluate_vae.differences(music, clicking)["click_db"] > 6
    assert evaluate_vae.differences(music, music)["click_db"] == 0


def test_the_quietest_second_is_found() -> None:
    sound = np.full((2, 4 * SAMPLE_RATE), 0.5, np.float32)
    sound[:, 2 * SAMPLE_RATE : 3 * SAMPLE_RATE] = 0.01
    assert evaluate_vae.quietest_second(sound) == slice(2 * SAMPLE_RATE, 3 * SAMPLE_RATE)

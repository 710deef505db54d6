"""The measures that the demo's model is judged by, on cases whose answer is plain."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from demo_model import judging
from demo_model.pictures import spectrogram, write_comparison
from demo_model.reports import keep, mean_and_spread, number, table

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.key import NAMES


def sine(frequency_hz: float, duration_s: float = 1.0, level: float = 0.5) -> np.ndarray:
    """Stereo, the same on both sides."""
    time_s = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    return np.tile((level * np.sin(2 * np.pi * frequency_hz * time_s)).astype(np.float32), (2, 1))


@pytest.mark.parametrize(
    ("wanted", "found", "score"),
    [
        ("C major", "C major", 1.0),
        ("C major", "G major", 0.5),
        ("C major", "F major", 0.5),
        ("A minor", "E minor", 0.5),
        ("C major", "A minor", 0.3),
        ("A minor", "C major", 0.3),
        ("C major", "C minor", 0.2),
        ("C major", "D major", 0.0),
        ("C major", "E minor", 0.0),
        ("C major", None, 0.0),
        (None, "C major", 0.0),
    ],
)
def test_keys_near_the_right_one_count_for_something(wanted: str | None, found: str | None, score: float) -> None:
    assert judging.key_score(wanted, found) == score


def test_every_key_has_five_relations_to_all_24() -> None:
    keys = [f"{name} {mode}" for mode in NAMES for name in NAMES[mode]]
    for wanted in keys:
        scores = sorted(judging.key_score(wanted, found) for found in keys)
        assert scores == [0.0] * 19 + [0.2, 0.3, 0.5, 0.5, 1.0]


def test_tempo_within_four_percent() -> None:
    assert judging.tempo_is_right(100, 103.9) and judging.tempo_is_right(100, 96.1)
    assert not judging.tempo_is_right(100, 104.5)
    assert not judging.tempo_is_right(100, None)


def test_octave_errors_are_told_apart_from_wrong_tempi() -> None:
    assert all(judging.tempo_is_octave(90, found) for found in (180, 45, 270, 30, 186))
    assert not any(judging.tempo_is_octave(90, found) for found in (90, 120, 135, None))


def test_share_of_way() -> None:
    assert judging.share_of_way(0.8, 0.2, 0.95) == pytest.approx(0.8)
    assert judging.share_of_way(0.2, 0.2, 0.95) == 0
    assert math.isnan(judging.share_of_way(1.0, 0.5, 0.5))


def test_chance_leaves_each_pieces_own_prompt_out() -> None:
    assert judging.chance_agreement(np.eye(4)) == 0
    pairs = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    assert judging.chance_agreement(pairs) == pytest.approx(1 / 3)


def test_bands_show_where_the_sound_is_whatever_its_level() -> None:
    loud, soft = judging.log_mel(sine(1000)), judging.log_mel(sine(1000, level=0.01))
    assert loud.shape[:2] == (2, judging.BANDS)
    np.testing.assert_allclose(loud, soft, atol=0.1)
    assert np.argmax(loud[0].mean(axis=1)) > np.argmax(judging.log_mel(sine(200))[0].mean(axis=1))
    assert (loud[1] == judging.FLOOR_DB).all()  # nothing at the side


def test_silence_has_features_too() -> None:
    assert np.isfinite(judging.features_of(np.zeros((2, SAMPLE_RATE), np.float32))).all()


def test_statistics_tell_a_steady_from_a_beating_sound() -> None:
    steady = sine(500, 2.0)
    beating = steady * (np.arange(steady.shape[1]) // 4800 % 2)
    assert judging.statistics_of(beating.astype(np.float32))[2].mean() > 3 * judging.statistics_of(steady)[2].mean()


def test_the_listener_tells_classes_apart_that_differ() -> None:
    random = np.random.default_rng(0)
    centres = random.normal(size=(3, 40))
    truths = [("bell", "flute", "saw")[place % 3] for place in range(90)]
    features = np.stack([centres[place % 3] for place in range(90)]) + 0.3 * random.normal(size=(90, 40))
    listener = judging.Listener.trained(features[:60], truths[:60])
    assert listener.names == ("bell", "flute", "saw")
    assert listener.tell(features[60:]) == truths[60:]


# Reports and pictures


def test_a_table_keeps_its_columns() -> None:
    assert table(["", "a"], [["first", "1.0"], ["x", "-10.0"]]).splitlines() == [
        "           a",
        "-----  -----",
        "first    1.0",
        "x      -10.0",
    ]


def test_numbers_as_text() -> None:
    assert number(None) == number(float("nan")) == "-"
    assert number(1.25, "+.1f") == "+1.2"
    assert mean_and_spread([1.0, 3.0]) == "2.00 ± 1.41"
    assert mean_and_spread([2.0], ".0f") == "2"


def test_json_holds_what_is_no_number_as_null(tmp_path: Path) -> None:
    keep(tmp_path / "deep" / "facts.json", {"way": float("nan"), 3: [np.float32(0.5), (1, None)]})
    assert json.loads((tmp_path / "deep" / "facts.json").read_text(encoding="utf-8")) == {
        "way": None,
        "3": [0.5, [1, None]],
    }


def test_spectrograms_show_high_sounds_above_low_ones() -> None:
    rows = [int(spectrogram(sine(frequency)).sum(axis=(1, 2)).argmax()) for frequency in (8000, 1000, 100)]
    assert rows == sorted(rows) and rows[0] < rows[-1]


def test_the_picture_holds_every_pair(tmp_path: Path) -> None:
    from PIL import Image

    pairs = [(str(place), sine(400), sine(800)) for place in range(3)]
    with Image.open(write_comparison(tmp_path / "vae.png", pairs, columns=2)) as picture:
        one_wide, one_high = spectrogram(sine(400)).shape[1::-1]
        assert picture.width >= 2 * one_wide and picture.height >= 4 * one_high

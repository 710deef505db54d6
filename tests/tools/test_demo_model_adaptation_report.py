"""What the table of an adaptation says of given numbers."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from demo_model import evaluate_adaptation
from demo_model.adaptation_bench import CAPTIONS, WITH_TRIGGER, WITHOUT_TRIGGER
from demo_model.evaluate_adaptation import Plan, overfitting, report

from acestep.settings import TrainSettings

REFERENCE = {
    "losses": dict.fromkeys(CAPTIONS, 1.0),
    "base_loss": 0.5,
    "distances": dict.fromkeys(CAPTIONS, 8.0),
    "base pieces": 9.0,
    "other songs of the style": 1.0,
}


def result(loss: float, distance: float, unchanged: bool = True) -> dict:
    return {
        "steps": 200,
        "seconds": 100.0,
        "loss": loss,
        "losses": dict.fromkeys(CAPTIONS, loss + 0.1) | {WITH_TRIGGER: loss},
        "base_loss": 0.6,
        "distances": dict.fromkeys(CAPTIONS, 6.0) | {WITH_TRIGGER: distance},
        "way": 1 - distance / 8,
        "way_along": 0.7,
        "base_unchanged": unchanged,
    }


def line_of(text: str, start: str) -> str:
    return next(" ".join(line.split()) for line in text.splitlines() if line.strip().startswith(start))


def test_means_and_spreads_over_seeds() -> None:
    text = report({"reference": REFERENCE, "results": [result(0.8, 2.0), result(0.6, 4.0, unchanged=False)]})
    assert line_of(text, "loss on held-out songs") == "loss on held-out songs 1.0000 0.7000 ± 0.1414"
    assert line_of(text, "falls by") == "falls by, % 30.00 ± 14.14"
    assert line_of(text, "share of the way") == "share of the way, % 0 62 ± 18"
    assert line_of(text, "without adapter as before") == "without adapter as before, bit for bit 1 of 2"
    assert (
        line_of(text, "The trigger word") == "The trigger word lowers the loss of the trained model by 0.1000 ± 0.0000."
    )
    assert line_of(text, WITHOUT_TRIGGER) == f"{WITHOUT_TRIGGER} 1.0000 0.8000 ± 0.1414 8.00 6.00 ± 0.00"


def test_a_long_run_shows_its_best_step() -> None:
    text = overfitting({"steps": [0, 100, 200, 300], "losses": [1.0, 0.8, 0.9, 1.2]})
    assert line_of(text, "100") == "100 0.8000 best"
    assert text.endswith("The best step is 100; at the end of the long run the held-out loss is 50.0 % above it.")


def test_settings_win_over_the_preset() -> None:
    settings = Plan(preset="demo", settings={"rank": "4"}).train_settings(seed=3)
    assert (settings.rank, settings.batch_size, settings.seed) == (4, 2, 3)


def test_a_long_run_is_judged_at_every_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (10, 20, 100):
        (tmp_path / f"step_{step:06}").mkdir()
        (tmp_path / f"step_{step:06}" / "state.json").write_text("{}", encoding="utf-8")
    asked: list[TrainSettings] = []

    def trained(_bench: object, _store: object, _out: Path, settings: TrainSettings, longest_s: float | None) -> object:
        assert longest_s is None
        asked.append(settings)
        return SimpleNamespace(run=SimpleNamespace(checkpoints=tmp_path))

    monkeypatch.setattr(evaluate_adaptation, "train_at_most", trained)
    monkeypatch.setattr(evaluate_adaptation, "attached", lambda _bench, _adapter: nullcontext())
    losses = iter((1.0, 0.8, 0.7, 0.9))
    bench = SimpleNamespace(style_songs=None, loss=lambda _songs: next(losses))
    curve = evaluate_adaptation.long_run(bench, None, tmp_path, Plan(settings={"max_steps": "20"}), steps=100)
    assert curve == {"steps": [0, 10, 20, 100], "losses": [1.0, 0.8, 0.7, 0.9]}
    assert (asked[0].max_steps, asked[0].save_every_steps, asked[0].keep_last) == (100, 10, 0)

"""What a short training on a style that was kept back does to the model, over several seeds.

Six songs of the style are written, scanned, encoded and trained on by the functions behind `acestep`; judged is on
other songs of the style. Statistics of what is heard are those of demo_model.judging.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acestep.adapters import load_adapter
from acestep.audio.write import write_audio
from acestep.core.jobs import Job
from acestep.dataset.demo import TRIGGER_WORD
from acestep.model.checkpoints import resolve_checkpoint
from acestep.preprocess.store import TensorStore
from acestep.settings import TrainSettings
from acestep.settings.presets import preset_values
from acestep.training.checkpoints import list_checkpoints, step_of
from acestep.training.train import TrainOutcome, train
from demo_model.adaptation_bench import (
    CAPTIONS,
    FIRST_SEEDS,
    WITH_TRIGGER,
    WITHOUT_TRIGGER,
    Bench,
    base_pieces,
    distance_db,
    encode_songs,
    style_pieces,
    way_along,
)
from demo_model.evaluate_generation import Sampling
from demo_model.judging import statistics_of
from demo_model.reports import keep, mean_and_spread, number, table

FIRST_SEED = 9_800_000
SONGS = 6
KEPT_SOUNDS = 3
CURVE_POINTS = 10


@dataclass(frozen=True)
class Plan:
    """What is trained and how it is judged.

    `regularization` songs of the base are trained on beside those of the style; where a `caption` is given, it is said
    of all songs in the place of their own, in training as in judging; `longest_s` ends a training; `played` pieces are
    heard each time; of the style and of the base, `judged` songs (at most 16) have their loss measured.
    """

    style: str = "toybox"
    preset: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    regularization: int = 0
    caption: str = ""
    longest_s: float = 120.0
    seeds: int = 3
    played: int = 12
    judged: int = 16
    overfit_factor: int = 5
    sampling: Sampling = field(default_factory=Sampling)

    def train_settings(self, **others: Any) -> TrainSettings:
        preset = preset_values(self.preset) if self.preset else {}
        return TrainSettings.parse({**preset, **self.settings, **others}, "the evaluation's settings")


@dataclass(frozen=True)
class State:
    """The model with an adapter or without: losses and mean statistics by the form of the prompt."""

    losses: dict[str, float]
    base_loss: float
    statistics: dict[str, np.ndarray]
    sounds: list[np.ndarray]


def evaluate_adaptation(checkpoint: Path, plan: Plan, out: Path, threads: int) -> str:
    """Train with every seed and judge; writes adaptation.json and sounds into `out`, returns the tables."""
    torch.set_num_threads(threads)
    found = resolve_checkpoint(checkpoint)
    with tempfile.TemporaryDirectory(prefix="acestep-adaptation-") as place:
        folder = Path(place)
        bench = Bench(found, plan.style, plan.played, plan.judged, plan.sampling, folder, plan.caption)
        before = judged(bench)
        stores = {}
        results = []
        for seed in range(plan.seeds):
            songs = style_pieces(plan.style, FIRST_SEED + 100 * seed, SONGS)
            kept = base_pieces(FIRST_SEEDS["kept"] + 100 * seed, plan.regularization)
            stores[seed] = encode_songs(folder / f"seed {seed}", songs, found, TRIGGER_WORD, kept, plan.caption)
            settings = plan.train_settings(seed=seed)
            outcome = train_at_most(bench, stores[seed], folder / f"run {seed}", settings, plan.longest_s)
            results.append(result_of(bench, before, outcome, out if seed == 0 else None))
            print(
                f"seed {seed}: held-out loss {before.losses[WITH_TRIGGER]:.4f}, then {results[-1]['loss']:.4f}",
                flush=True,
            )
        facts = {"plan": asdict(plan), "reference": references(bench, before), "results": results}
        if plan.overfit_factor:
            steps = plan.overfit_factor * int(results[0]["steps"])
            facts["long run"] = long_run(bench, stores[0], folder / "long run", plan, steps)
    keep(out / "adaptation.json", facts)
    return report(facts)


def train_at_most(
    bench: Bench, store: TensorStore, out: Path, settings: TrainSettings, longest_s: float | None
) -> TrainOutcome:
    """Train, and stop the run after so many seconds; what it has learned by then is its adapter."""
    job = Job()
    timer = threading.Timer(longest_s, job.request_stop) if longest_s else None
    if timer:
        timer.start()
    try:
        return train(bench.checkpoint, store, out, settings, job)
    finally:
        if timer:
            timer.cancel()


@contextmanager
def attached(bench: Bench, adapter: Path) -> Iterator[None]:
    found = load_adapter(adapter, bench.parts.transformer)
    try:
        yield
    finally:
        found.detach_from_model()


def judged(bench: Bench) -> State:
    """Everything that is measured of the model as it stands."""
    sounds = {form: bench.play(form) for form in CAPTIONS}
    return State(
        losses={form: bench.loss(bench.style_songs, form) for form in CAPTIONS},
        base_loss=bench.loss(bench.base_songs),
        statistics={
            form: np.mean([statistics_of(samples) for samples in played], axis=0) for form, played in sounds.items()
        },
        sounds=sounds[WITH_TRIGGER][:KEPT_SOUNDS],
    )


def result_of(bench: Bench, before: State, outcome: TrainOutcome, out: Path | None) -> dict[str, Any]:
    """One trained adapter beside the model without it; with `out`, some sounds of both."""
    with attached(bench, outcome.adapter):
        after = judged(bench)
    unchanged = np.array_equal(bench.play_one(bench.played[0], WITH_TRIGGER), before.sounds[0])
    if out is not None:
        for piece, one, other in zip(bench.played, before.sounds, after.sounds, strict=False):
            write_audio(out / "sounds" / f"{piece.style} {piece.seed} before.wav", one)
            write_audio(out / "sounds" / f"{piece.style} {piece.seed} after.wav", other)
    start, end = before.statistics[WITH_TRIGGER], after.statistics[WITH_TRIGGER]
    distances = {form: distance_db(values, bench.target) for form, values in after.statistics.items()}
    return {
        "steps": outcome.summary.step,
        "seconds": outcome.seconds,
        "own_validation": [outcome.summary.first_validation, outcome.summary.best_validation],
        "loss": after.losses[WITH_TRIGGER],
        "losses": after.losses,
        "base_loss": after.base_loss,
        "distances": distances,
        "way": 1 - distances[WITH_TRIGGER] / distance_db(start, bench.target),
        "way_along": way_along(start, end, bench.target),
        "base_unchanged": unchanged,
    }


def references(bench: Bench, before: State) -> dict[str, Any]:
    """The model without adapter, and real pieces."""
    return {
        "losses": before.losses,
        "base_loss": before.base_loss,
        "distances": {form: distance_db(values, bench.target) for form, values in before.statistics.items()},
        "base pieces": distance_db(bench.base, bench.target),
        "other songs of the style": distance_db(bench.others, bench.target),
    }


def long_run(bench: Bench, store: TensorStore, out: Path, plan: Plan, steps: int) -> dict[str, list[float]]:
    """The same training for many more steps: held-out loss of its checkpoints, step 0 first."""
    every = max(1, steps // CURVE_POINTS)
    saving = {"max_steps": steps, "save_every_epochs": 0, "save_every_steps": every, "keep_last": 0}
    outcome = train_at_most(bench, store, out, plan.train_settings(seed=0, **saving), None)
    curve: dict[str, list[float]] = {"steps": [0], "losses": [bench.loss(bench.style_songs)]}
    for checkpoint in list_checkpoints(outcome.run.checkpoints):
        with attached(bench, checkpoint):
            curve["steps"].append(step_of(checkpoint))
            curve["losses"].append(bench.loss(bench.style_songs))
    return curve


# The tables


def report(facts: dict[str, Any]) -> str:
    parts = [summary(facts), forms(facts)]
    if curve := facts.get("long run"):
        parts.append(overfitting(curve))
    return "\n\n".join(parts)


def summary(facts: dict[str, Any]) -> str:
    """Before and after, mean ± spread over seeds."""
    results, reference = facts["results"], facts["reference"]

    def over_seeds(values: Iterator[float], form: str) -> str:
        return mean_and_spread(list(values), form)

    loss = reference["losses"][WITH_TRIGGER]
    unchanged = sum(one["base_unchanged"] for one in results)
    rows = [
        ["steps", "", over_seeds((one["steps"] for one in results), ".0f")],
        ["seconds of training", "", over_seeds((one["seconds"] for one in results), ".0f")],
        ["loss on held-out songs", number(loss, ".4f"), over_seeds((one["loss"] for one in results), ".4f")],
        ["  falls by, %", "", over_seeds((100 * (1 - one["loss"] / loss) for one in results), ".2f")],
        [
            "loss on songs of the base",
            number(reference["base_loss"], ".4f"),
            over_seeds((one["base_loss"] for one in results), ".4f"),
        ],
        [
            "distance to the style, dB",
            number(reference["distances"][WITH_TRIGGER], ".2f"),
            over_seeds((one["distances"][WITH_TRIGGER] for one in results), ".2f"),
        ],
        ["  share of the way, %", "0", over_seeds((100 * one["way"] for one in results), ".0f")],
        ["  in its direction, %", "0", over_seeds((100 * one["way_along"] for one in results), ".0f")],
        ["  real pieces of the base, dB", number(reference["base pieces"], ".2f"), ""],
        ["  other real songs of the style, dB", number(reference["other songs of the style"], ".2f"), ""],
        ["without adapter as before, bit for bit", "", f"{unchanged} of {len(results)}"],
    ]
    return table(["", "before", f"after ({len(results)} seeds)"], rows)


def forms(facts: dict[str, Any]) -> str:
    """What the trigger word does: loss and distance by the form of the prompt."""
    results, reference = facts["results"], facts["reference"]
    rows = [
        [
            form,
            number(reference["losses"][form], ".4f"),
            mean_and_spread([one["losses"][form] for one in results], ".4f"),
            number(reference["distances"][form], ".2f"),
            mean_and_spread([one["distances"][form] for one in results], ".2f"),
        ]
        for form in CAPTIONS
    ]
    head = ["prompt", "loss before", "after", "distance before, dB", "after"]
    gained = [one["losses"][WITHOUT_TRIGGER] - one["losses"][WITH_TRIGGER] for one in results]
    word = f"The trigger word lowers the loss of the trained model by {mean_and_spread(gained, '.4f')}."
    return table(head, rows) + "\n" + word


def overfitting(curve: dict[str, list[float]]) -> str:
    """The held-out loss of a long run, and how far it rises again."""
    steps, losses = curve["steps"], curve["losses"]
    best = int(np.argmin(losses))
    rows = [
        [str(step), f"{loss:.4f}", "best" if place == best else ""]
        for place, (step, loss) in enumerate(zip(steps, losses, strict=True))
    ]
    rise = 100 * (losses[-1] / losses[best] - 1)
    sentence = f"The best step is {steps[best]}; at the end of the long run the held-out loss is {rise:.1f} % above it."
    return table(["step of the long run", "held-out loss", ""], rows) + "\n" + sentence

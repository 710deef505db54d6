"""How far adapters learn by optimizer step and by second, with the defaults and with one thing changed.

    python benchmarks/learning.py --out learning                                (the demo model: see below)
    python benchmarks/learning.py --model turbo --tensors tensors/my_songs --steps 1000 --seeds 3 --out learning

Every variant is trained with every seed on the same songs. Afterwards one judge measures all its checkpoints: the same
held-out windows, noise and timesteps for all variants of a seed, so that variants which draw other timesteps in
training are compared on the same ones. Printed and written: means and spreads over seeds, learning.json with every
curve, learning.svg with their means.

The demo model is small and knows only synthesised music, but it was trained as the real ones are and plays. Its songs
are of a style that it does not know.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

import torch

from acestep.adapters import load_adapter
from acestep.core.device import choose_device
from acestep.core.events import read_events
from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint, resolve_checkpoint
from acestep.model.loading import load_null_condition, load_silence_latent, load_transformer
from acestep.preprocess.store import TensorStore
from acestep.settings import TrainSettings
from acestep.training.checkpoints import list_checkpoints
from acestep.training.data import Flow, load_data
from acestep.training.forward import FlowModel
from acestep.training.train import train
from acestep.training.validation import Validation

VARIANTS: dict[str, dict[str, object]] = {
    "defaults (LoRA)": {},
    "single logit-normal": {"timestep_draw": "single"},
    "no condition dropout": {"condition_dropout": 0.0},
    "stratified timesteps": {"stratified_timesteps": True},
    "min_snr": {"loss_weighting": "min_snr"},
    "EMA 0.95": {"ema_decay": 0.95},
    "DoRA": {"dora": True},
    "LoKr": {"adapter": "lokr"},
    "schedule-free": {"optimizer": "schedule_free"},
    "prodigy": {"optimizer": "prodigy"},
}
"""One row, one variant: the settings in which it differs from the defaults."""

COLORS = ("#000", "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000", "#999")


def demo_inputs(folder: Path) -> tuple[Checkpoint, TensorStore]:
    """The demo model and the tensors of its songs."""
    from acestep.dataset.demo import write_demo_songs
    from acestep.dataset.scan import scan_folder
    from acestep.model.demo import write_demo_checkpoint
    from acestep.preprocess.run import preprocess
    from acestep.settings import PreprocessSettings

    write_demo_checkpoint(folder / "model")
    write_demo_songs(folder / "songs")
    checkpoint = resolve_checkpoint(folder / "model")
    preprocess(scan_folder(folder / "songs"), checkpoint, folder / "tensors", PreprocessSettings())
    return checkpoint, TensorStore.open(folder / "tensors")


class Judge:
    """Measures adapters with the validation of the default settings."""

    def __init__(self, checkpoint: Checkpoint, store: TensorStore, settings: TrainSettings) -> None:
        choice = choose_device(settings.device, settings.precision)
        device = choice.torch_device
        transformer = load_transformer(checkpoint, choice.dtype, device)
        self.model = FlowModel(transformer, load_silence_latent(checkpoint), load_null_condition(checkpoint), device)
        mixed = choice.precision != "fp32"
        self.model.autocast = lambda: torch.autocast(device.type, choice.dtype, enabled=mixed)
        flow = Flow(checkpoint.config.timestep_mu, checkpoint.config.timestep_sigma)
        self.validation = Validation(load_data(store, settings).held_out, settings, flow)

    def loss(self, adapter: Path | None = None) -> float:
        """The validation loss with an adapter, or without any."""
        if adapter is None:
            return self.validation.run(self.model).loss
        attached = load_adapter(adapter, self.model.transformer)
        self.model.transformer.eval()
        try:
            return self.validation.run(self.model).loss
        finally:
            attached.detach_from_model()


def curve(run: Path, judge: Judge) -> dict[str, list[float]]:
    """Loss of every checkpoint by step and by seconds of training, without validation and saving."""
    seconds = {event["step"]: event["seconds"] for event in read_events(run / "events.jsonl", "step")}
    found: dict[str, list[float]] = {"steps": [0], "seconds": [0.0], "losses": [judge.loss()]}
    for folder in list_checkpoints(run / "checkpoints"):
        step = int(folder.name.removeprefix("step_"))
        found["steps"].append(step)
        found["seconds"].append(sum(value for at, value in seconds.items() if at <= step))
        found["losses"].append(judge.loss(folder))
    return found


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def table(results: dict[str, list[dict[str, list[float]]]]) -> list[str]:
    """One line a variant: the last loss, what is left of the first, and what a step takes; means and spreads."""
    lines = [f"{'variant':<22} {'last loss':>20} {'of the first':>20} {'ms a step':>20}"]
    for name, curves in results.items():
        columns = [
            ([found["losses"][-1] for found in curves], "{:.5f} ± {:.5f}"),
            ([100 * found["losses"][-1] / found["losses"][0] for found in curves], "{:.2f} % ± {:.2f}"),
            ([1000 * found["seconds"][-1] / found["steps"][-1] for found in curves], "{:.1f} ± {:.1f}"),
        ]
        shown = [text.format(statistics.mean(values), spread(values)) for values, text in columns]
        lines.append(f"{name:<22} " + " ".join(f"{text:>20}" for text in shown))
    return lines


def plot(results: dict[str, list[dict[str, list[float]]]]) -> str:
    """The mean curves as SVG: loss by step on the left, by second on the right."""
    means = {
        name: {key: [statistics.mean(values) for values in zip(*(found[key] for found in curves), strict=True)]
               for key in ("steps", "seconds", "losses")}
        for name, curves in results.items()
    }  # fmt: skip
    losses = [loss for mean in means.values() for loss in mean["losses"]]
    low, high = min(losses), max(losses)
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="1100" height="440" font-family="sans-serif" font-size="12">'
    ]
    for panel, axis in enumerate(("steps", "seconds")):
        left, far = 60 + 430 * panel, max(mean[axis][-1] for mean in means.values())
        parts.append(f'<rect x="{left}" y="20" width="380" height="360" fill="none" stroke="#888"/>')
        parts.append(f'<text x="{left}" y="400">0</text><text x="{left + 300}" y="400">{far:.4g} {axis}</text>')
        for color, mean in zip(COLORS * len(means), means.values(), strict=False):
            points = [
                f"{left + 380 * x / far:.1f},{20 + 360 * (high - y) / ((high - low) or 1):.1f}"
                for x, y in zip(mean[axis], mean["losses"], strict=True)
            ]
            parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}"/>')
    parts.append(f'<text x="5" y="30">{high:.4f}</text><text x="5" y="380">{low:.4f}</text>')
    for number, (color, name) in enumerate(zip(COLORS * len(means), means, strict=False)):
        parts.append(f'<text x="900" y="{30 + 18 * number}" fill="{color}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint; left out: the demo model and its songs")
    parser.add_argument("--tensors", type=Path, help="the tensor folder made with that model")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--judgements", type=int, default=8, help="checkpoints judged in each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--config", type=Path, help="JSON of settings that all variants share")
    parser.add_argument("--out", type=Path, default=Path("learning"))
    options = parser.parse_args()
    if bool(options.model) != bool(options.tensors):
        parser.error("--model and --tensors belong together")
    every = max(1, options.steps // options.judgements)
    shared = {"max_steps": options.steps, "validate_every": options.steps, "save_every_steps": every}
    shared |= {"save_every_epochs": 0, "keep_last": 0, "tensorboard": False, "learning_rate": 1e-3}
    if options.config:
        shared |= json.loads(options.config.read_text(encoding="utf-8"))
    results: dict[str, list[dict[str, list[float]]]] = {name: [] for name in options.variants}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.model:
            checkpoint, store = resolve_checkpoint(options.model), TensorStore.open(options.tensors)
        else:
            checkpoint, store = demo_inputs(folder)
        for seed in range(options.seeds):
            judge = Judge(checkpoint, store, TrainSettings.parse({**shared, "seed": seed}, "benchmark"))
            for number, name in enumerate(options.variants):  # in turns, so that other work hits all alike
                settings = TrainSettings.parse({**shared, "seed": seed, **VARIANTS[name]}, name)
                out = folder / f"run-{seed}-{number}"
                train(checkpoint, store, out, settings, Job())
                results[name].append(curve(out, judge))
                print(f"seed {seed}, {name}: {results[name][-1]['losses'][-1]:.5f}", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    facts = {"model": checkpoint.name, "songs": len(store.songs), "settings": shared, "results": results}
    (options.out / "learning.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    (options.out / "learning.svg").write_text(plot(results), encoding="utf-8")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()

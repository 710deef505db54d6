"""How far adapters learn by optimizer step and by second, with the defaults and with one thing changed.

    python benchmarks/learning.py --out learning                                (the demo's model)
    python benchmarks/learning.py --model turbo --tensors tensors/my_songs --steps 1000 --seeds 3 --out learning

Every variant is trained with every seed on the same songs. Afterwards one judge measures all its checkpoints: the same
held-out windows, noise and timesteps for all variants of a seed, so that variants which draw other timesteps in
training are compared on the same ones. Printed and written: means and spreads over seeds, learning.json with every
curve, learning.svg with their means.

Without a model of yours the demo's own is taken, which really plays, and twelve songs in a style that it has never
heard: six to train on, six to judge with. It is a small model: read differences, not sizes, and repeat with yours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock
from xml.sax.saxutils import escape

import torch

from acestep.adapters import load_adapter
from acestep.audio.format import SAMPLE_RATE
from acestep.audio.synth import draw_piece, render_piece
from acestep.audio.write import write_audio
from acestep.core.device import choose_device
from acestep.core.events import read_events
from acestep.core.jobs import Job
from acestep.core.paths import write_json
from acestep.model import condition
from acestep.model.checkpoints import Checkpoint, resolve_checkpoint
from acestep.model.facts import END_OF_TEXT
from acestep.model.loading import (
    load_audio_token_detokenizer,
    load_audio_tokenizer,
    load_null_condition,
    load_silence_latent,
    load_transformer,
)
from acestep.preprocess.store import TensorStore
from acestep.settings import TrainSettings
from acestep.training.checkpoints import list_checkpoints
from acestep.training.data import Batch, Flow, load_data
from acestep.training.forward import FlowModel
from acestep.training.train import train
from acestep.training.validation import Validation

FOREIGN, CODES = "mismatched conditions", "code context"

VARIANTS: dict[str, dict[str, object]] = {
    "defaults (LoRA)": {},
    "single logit-normal": {"timestep_draw": "single"},
    "stratified timesteps": {"stratified_timesteps": True},
    "no condition dropout": {"condition_dropout": 0.0},
    "min_snr": {"loss_weighting": "min_snr"},
    "rank 8": {"rank": 8, "alpha": 16},
    "alpha = rank": {"alpha": 64},
    "rsLoRA": {"rslora": True},
    "no dropout": {"dropout": 0.0},
    "DoRA": {"dora": True},
    "LoKr factor 8": {"adapter": "lokr"},
    "LoKr factor 4": {"adapter": "lokr", "lokr_factor": 4},
    "rate x 1/3": {"learning_rate": 1 / 3},
    "rate x 3": {"learning_rate": 3.0},
    "windows of 4 s": {"max_latent_length": 100},
    "EMA 0.95": {"ema_decay": 0.95},
    "schedule-free": {"optimizer": "schedule_free"},
    "prodigy": {"optimizer": "prodigy"},
    FOREIGN: {},
    CODES: {},
}
"""One row, one variant: the settings in which it differs from the defaults. A learning rate is a factor on the shared
one. Two variants differ in what the model is shown: the conditions of other trainers, and the song's own codes."""

SONGS, FIRST_SONG, STYLE, TRIGGER_WORD = 12, 9_700_000, "toybox", "demostyle"
TEMPO_WORDS = ("calm", "lively")

COLORS = ("#000", "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000", "#999")
LINES = [(color, dashes) for dashes in ("none", "5 3") for color in COLORS]
"""Colour and dashes of each curve."""


@dataclass(frozen=True)
class Inputs:
    """A model, the tensors that variants train on and are judged with, and tensors with other trainers' conditions."""

    checkpoint: Checkpoint
    store: TensorStore
    foreign: TensorStore | None = None


def demo_inputs(folder: Path) -> Inputs:
    """The demo's model, and twelve songs in a style that it has never heard: half of them are held out."""
    from acestep.dataset.scan import scan_folder
    from acestep.model.demo import write_demo_checkpoint
    from acestep.preprocess.run import preprocess
    from acestep.settings import PreprocessSettings

    checkpoint = resolve_checkpoint(write_demo_checkpoint(folder / "model"))
    (folder / "songs").mkdir()
    for seed in range(SONGS):
        piece = draw_piece(FIRST_SONG + seed, pool="held_out", style=STYLE, duration_s=10.0)
        write_audio(folder / "songs" / f"{seed}.wav", render_piece(piece), SAMPLE_RATE)
        labels = {"caption": f"{TRIGGER_WORD}, {TEMPO_WORDS[piece.bpm > 110]} tune", "lyrics": piece.lyrics}
        labels |= {"bpm": piece.bpm, "keyscale": piece.keyscale, "timesignature": piece.timesignature}
        write_json(folder / "songs" / f"{seed}.json", labels)
    dataset = scan_folder(folder / "songs")
    preprocess(dataset, checkpoint, folder / "tensors", PreprocessSettings())
    with foreign_conditions():
        preprocess(dataset, checkpoint, folder / "foreign", PreprocessSettings())
    return Inputs(checkpoint, TensorStore.open(folder / "tensors"), TensorStore.open(folder / "foreign"))


@contextmanager
def foreign_conditions() -> Iterator[None]:
    """Preprocessing as trainers do it that differ from generation: bare lyrics and one frame of zeros as timbre."""
    embed, head = condition.embed_lyrics, condition.condition_head

    def bare(text_encoder: Any, lyric_text: str) -> torch.Tensor:
        return embed(text_encoder, lyric_text.split("# Lyric\n")[1].removesuffix(END_OF_TEXT))

    def with_zeros(encoder: Any, lyric_states: torch.Tensor) -> torch.Tensor:
        silence = encoder.silence_latent
        encoder.silence_latent = torch.zeros_like(silence[:, :1])
        try:
            return head(encoder, lyric_states)
        finally:
            encoder.silence_latent = silence

    with mock.patch.object(condition, "embed_lyrics", bare), mock.patch.object(condition, "condition_head", with_zeros):
        yield


@contextmanager
def code_context(checkpoint: Checkpoint) -> Iterator[None]:
    """Training with the song's own 5 Hz codes as context, as the model's covers have it, instead of silence."""
    tokenizer = load_audio_tokenizer(checkpoint, torch.float32, "cpu")
    detokenizer = load_audio_token_detokenizer(checkpoint, torch.float32, "cpu")
    plain = FlowModel.item_losses

    def with_codes(self: FlowModel, batch: Batch, condition_dropout: float) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return plain(self, batch, condition_dropout)
        frames = batch.latents.shape[1]
        with torch.no_grad():
            source = detokenizer(tokenizer.tokenize(batch.latents)[0])[:, :frames]
        silence = self._context.pop(frames, None)
        self._context[frames] = torch.cat([source, torch.ones_like(source)], dim=-1).to(self.device)
        try:
            return plain(self, batch, condition_dropout)
        finally:
            del self._context[frames]
            if silence is not None:
                self._context[frames] = silence

    with mock.patch.object(FlowModel, "item_losses", with_codes):
        yield


class Judge:
    """Measures adapters with the validation of the default settings."""

    def __init__(self, inputs: Inputs, settings: TrainSettings) -> None:
        checkpoint = inputs.checkpoint
        choice = choose_device(settings.device, settings.precision)
        device = choice.torch_device
        transformer = load_transformer(checkpoint, choice.dtype, device)
        self.model = FlowModel(transformer, load_silence_latent(checkpoint), load_null_condition(checkpoint), device)
        mixed = choice.precision != "fp32"
        self.model.autocast = lambda: torch.autocast(device.type, choice.dtype, enabled=mixed)
        flow = Flow(checkpoint.config.timestep_mu, checkpoint.config.timestep_sigma)
        self.validation = Validation(load_data(inputs.store, settings).held_out, settings, flow)

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
        '<svg xmlns="http://www.w3.org/2000/svg" width="1120" height="440" font-family="sans-serif" font-size="12">'
    ]
    for panel, axis in enumerate(("steps", "seconds")):
        left, far = 60 + 430 * panel, max(mean[axis][-1] for mean in means.values())
        parts.append(f'<rect x="{left}" y="20" width="380" height="360" fill="none" stroke="#888"/>')
        parts.append(f'<text x="{left}" y="400">0</text><text x="{left + 300}" y="400">{far:.4g} {axis}</text>')
        for (color, dashes), mean in zip(LINES * len(means), means.values(), strict=False):
            points = [
                f"{left + 380 * x / far:.1f},{20 + 360 * (high - y) / ((high - low) or 1):.1f}"
                for x, y in zip(mean[axis], mean["losses"], strict=True)
            ]
            line = f'stroke="{color}" stroke-dasharray="{dashes}"'
            parts.append(f'<polyline points="{" ".join(points)}" fill="none" {line}/>')
    parts.append(f'<text x="5" y="30">{high:.4f}</text><text x="5" y="380">{low:.4f}</text>')
    for number, ((color, dashes), name) in enumerate(zip(LINES * len(means), means, strict=False)):
        y = 30 + 18 * number
        parts.append(f'<path d="M 900 {y - 4} h 25" stroke="{color}" stroke-dasharray="{dashes}"/>')
        parts.append(f'<text x="932" y="{y}" fill="{color}">{escape(name)}</text>')
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
    shared = shared_settings(options)
    results: dict[str, list[dict[str, list[float]]]] = {name: [] for name in options.variants}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.model:
            inputs = Inputs(resolve_checkpoint(options.model), TensorStore.open(options.tensors))
        else:
            inputs = demo_inputs(folder)
        for seed in range(options.seeds):
            judge = Judge(inputs, TrainSettings.parse({**shared, "seed": seed}, "benchmark"))
            for number, name in enumerate(options.variants):  # in turns, so that other work hits all alike
                if name == FOREIGN and inputs.foreign is None:
                    continue
                run = learn(inputs, name, {**shared, "seed": seed}, folder / f"run-{seed}-{number}")
                results[name].append(curve(run, judge))
                print(f"seed {seed}, {name}: {results[name][-1]['losses'][-1]:.5f}", flush=True)
    results = {name: curves for name, curves in results.items() if curves}
    options.out.mkdir(parents=True, exist_ok=True)
    facts = {"model": inputs.checkpoint.name, "songs": len(inputs.store.songs), "settings": shared, "results": results}
    (options.out / "learning.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    (options.out / "learning.svg").write_text(plot(results), encoding="utf-8")
    print("\n".join(table(results)))


def shared_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What all variants have in common."""
    every = max(1, options.steps // options.judgements)
    shared: dict[str, Any] = {
        "max_steps": options.steps,
        "validate_every": options.steps,
        "save_every_steps": every,
        "save_every_epochs": 0,
        "keep_last": 0,
        "tensorboard": False,
        "learning_rate": 1e-3,
        "batch_size": 4,
        "gradient_accumulation": 1,
    }
    if not options.model:
        shared |= {"validation": "songs", "validation_share": 0.5}
    if options.config:
        shared |= json.loads(options.config.read_text(encoding="utf-8"))
    return shared


def learn(inputs: Inputs, name: str, shared: dict[str, Any], out: Path) -> Path:
    """Train one variant into `out`."""
    changed = dict(VARIANTS[name])
    if "learning_rate" in changed:
        changed["learning_rate"] = float(str(changed["learning_rate"])) * shared["learning_rate"]
    store = inputs.foreign if name == FOREIGN else inputs.store
    assert store is not None
    shown = code_context(inputs.checkpoint) if name == CODES else nullcontext()
    with shown:
        train(inputs.checkpoint, store, out, TrainSettings.parse({**shared, **changed}, name), Job())
    return out


if __name__ == "__main__":
    main()

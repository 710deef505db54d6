"""Which modules and layers the user's songs would change most: gradients of the frozen base weights.

Two measures of a module's weight W over single-window batches: the gradient's norm, and the empirical Fisher
information, which is the mean of the squared gradient over the entries of W. Both come from the objective of training
itself, with draws seeded as in a run. A weight's gradient is read and dropped as soon as the backward pass has made
it, so that never more than one exists; nothing is updated.

Ranks from Fisher follow the rule that other ACE-Step trainers use (side-step-interop.md §7), without its factor from
singular values: rank · √(F / median F), in steps of a multiple and within bounds, with alpha twice the rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from torch import nn

from acestep.adapters.targets import find_targets
from acestep.core.device import DeviceChoice
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import write_json
from acestep.core.words import counted
from acestep.model.names import module_to_diffusers, module_to_original
from acestep.settings import AdapterSettings, TrainSettings
from acestep.settings.adapter import HIGHEST_RANK
from acestep.training.data import Batch, Flow, Sample, TrainingData, derived_generator, draw_batch
from acestep.training.forward import FlowModel
from acestep.training.objective import weighted
from acestep.training.processes import FP16_LOSS_SCALE


@dataclass(frozen=True)
class Score:
    """How strongly one module or layer reacts. Means over batches, spreads as standard deviations between them."""

    name: str
    parameters: int
    gradient_norm: float
    gradient_norm_spread: float
    fisher: float
    fisher_spread: float


@dataclass(frozen=True)
class Sensitivity:
    """Scores of all adaptable modules, original names, and of whole layers; both with the highest Fisher first."""

    modules: list[Score]
    layers: list[Score]
    batches: int
    songs: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_sensitivity(
    transformer: nn.Module,
    model: FlowModel,
    data: TrainingData,
    settings: TrainSettings,
    flow: Flow,
    batches: int,
    choice: DeviceChoice,
    job: Job,
) -> Sensitivity:
    """Score every module an adapter could wrap, on `batches` windows of one song each.

    `transformer` carries no adapter and is the one that `model` calls; it is afterwards as it was. Raises UserError
    when a loss or gradient is not a number.
    """
    targets = find_targets(transformer, settings.changed(attention="both", train_mlp=True))
    weights = {name: transformer.get_submodule(name).weight for name in targets}
    scale = FP16_LOSS_SCALE if choice.precision == "fp16" else 1.0
    norms: dict[str, list[float]] = {name: [] for name in targets}
    samples = list(_samples(data, settings, batches))
    with _reading_gradients(transformer, weights, norms), job.stage("sensitivity", batches, "batches") as stage:  # type: ignore[arg-type]  # a linear layer's weight is a parameter
        for epoch, sample in samples:
            job.check_stop()
            loss = _loss(model, draw_batch([sample], epoch, data, settings, flow), settings, choice)
            (loss * scale).backward()
            stage.advance()
    if not all(math.isfinite(value) for values in norms.values() for value in values):
        raise UserError(
            "A gradient of the model on these tensors is not a number.",
            fix="Try precision bf16 or fp32; if it stays, preprocess the songs again.",
        )
    squares = {name: [(value / scale) ** 2 for value in values] for name, values in norms.items()}
    sizes = {name: weight.numel() for name, weight in weights.items()}
    return Sensitivity(
        modules=_ranked(_score(module_to_original(name), squares[name], sizes[name]) for name in targets),  # type: ignore[arg-type]  # as above
        layers=_ranked(_layer_scores(squares, sizes)),  # type: ignore[arg-type]  # as above
        batches=batches,
        songs=len({sample.song.stored.id for _, sample in samples}),
    )


def _samples(data: TrainingData, settings: TrainSettings, batches: int) -> Iterator[tuple[int, Sample]]:
    """(epoch, sample) of each batch: all songs to learn in a seeded order before any comes again."""
    songs = data.songs_to_learn
    for number in range(batches):
        epoch, place = divmod(number, len(songs))
        generator = derived_generator(settings.seed, "sensitivity", epoch)
        order = torch.randperm(len(songs), generator=generator).tolist()
        pieces = data.pieces(songs[order[place]])
        yield epoch, Sample(songs[order[place]], pieces[epoch % len(pieces)], place)


def _loss(model: FlowModel, batch: Batch, settings: TrainSettings, choice: DeviceChoice) -> torch.Tensor:
    with torch.autocast(model.device.type, dtype=choice.dtype, enabled=choice.precision != "fp32"):
        items = model.item_losses(batch, settings.condition_dropout)
    return weighted(items, batch.t, settings).mean()


@contextmanager
def _reading_gradients(
    transformer: nn.Module, weights: dict[str, nn.Parameter], norms: dict[str, list[float]]
) -> Iterator[None]:
    """While the block lasts, the norm of each weight's gradient is added to `norms` and the gradient dropped."""

    def reader(name: str) -> Any:
        def read(weight: nn.Parameter) -> None:
            assert weight.grad is not None
            norms[name].append(float(torch.linalg.vector_norm(weight.grad, dtype=torch.float32)))
            weight.grad = None

        return read

    training = transformer.training
    transformer.eval()
    handles = []
    try:
        for name, weight in weights.items():
            weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(reader(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for weight in weights.values():
            weight.requires_grad_(False)
            weight.grad = None
        transformer.train(training)


def _score(name: str, squares: Sequence[float], size: int) -> Score:
    """From the squared gradient norm of every batch."""
    lengths = [math.sqrt(value) for value in squares]
    fisher = [value / size for value in squares]
    return Score(name, size, mean(lengths), _spread(lengths), mean(fisher), _spread(fisher))


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _layer_scores(squares: dict[str, list[float]], sizes: dict[str, int]) -> list[Score]:
    layers: dict[str, list[str]] = {}
    for name in squares:
        layers.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return [
        _score(layer, [sum(parts) for parts in zip(*(squares[name] for name in names), strict=True)], size)
        for layer, names in layers.items()
        for size in [sum(sizes[name] for name in names)]
    ]


def _ranked(scores: Iterator[Score] | list[Score]) -> list[Score]:
    return sorted(scores, key=lambda score: (-score.fisher, score.name))


# ranks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankBounds:
    """Ranks are multiples of `multiple` from `lowest` to `highest`."""

    multiple: int
    lowest: int
    highest: int

    @classmethod
    def around(cls, rank: int) -> RankBounds:
        """A quarter to twice the rank of the settings, in eights where it is large enough (64: 16 to 128)."""
        multiple = max(1, min(8, rank // 4))
        lowest, highest = max(multiple, rank // 4), min(2 * rank, HIGHEST_RANK)
        return cls(multiple, lowest // multiple * multiple, highest // multiple * multiple)

    def nearest(self, rank: float) -> int:
        """The multiple nearest to a wanted rank, within the bounds."""
        return min(max(round(rank / self.multiple) * self.multiple, self.lowest), self.highest)


def rank_pattern(scores: Sequence[Score], rank: int) -> dict[str, int]:
    """Rank of each module, more where Fisher is high: rank · √(F / median F), rounded and bounded."""
    middle = median(score.fisher for score in scores)
    if not middle:
        raise UserError("Half of the modules have no gradient, so ranks cannot be told.", fix="Use more batches.")
    bounds = RankBounds.around(rank)
    return {score.name: bounds.nearest(rank * math.sqrt(score.fisher / middle)) for score in scores}


def adapted_scores(sensitivity: Sensitivity, transformer: nn.Module, settings: AdapterSettings) -> list[Score]:
    """Scores of the modules that the settings adapt, in the order of the model."""
    by_name = {module_to_diffusers(score.name): score for score in sensitivity.modules}
    return [by_name[name] for name in find_targets(transformer, settings)]


def write_rank_map(path: Path, pattern: dict[str, int], rank: int, sensitivity: Sensitivity) -> None:
    """Write ranks as a settings file for `acestep train --config`. Alpha is twice the rank."""
    write_json(
        path,
        {
            "_description": (
                f"Ranks by sensitivity, measured on {counted(sensitivity.batches, 'windows')} "
                f"of {counted(sensitivity.songs, 'songs')}: "
                f"{rank} in the middle, more where the songs ask for more change. Alpha is twice the rank."
            ),
            "rank": rank,
            "alpha": 2 * rank,
            "rank_pattern": pattern,
        },
    )

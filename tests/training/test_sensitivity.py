"""Gradients of the frozen base, against torch.autograd, and ranks made from them."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from hand_made import MakeStore, short_run
from hypothesis import given
from hypothesis import strategies as st

from acestep.core.device import choose_device
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint
from acestep.model.loading import load_null_condition, load_silence_latent, load_transformer
from acestep.model.names import module_to_diffusers
from acestep.settings import TrainSettings
from acestep.settings.base import read_values
from acestep.training.data import Flow, Sample, TrainingData, derived_generator, draw_batch, load_data
from acestep.training.forward import FlowModel
from acestep.training.sensitivity import (
    RankBounds,
    Score,
    Sensitivity,
    adapted_scores,
    measure_sensitivity,
    rank_pattern,
    write_rank_map,
)

FLOW = Flow(-0.4, 1.0)


class Measured:
    """A model with the data and settings it is measured on."""

    def __init__(self, checkpoint: Checkpoint, make_store: MakeStore, **changes: object) -> None:
        self.settings: TrainSettings = short_run(validation="none", device="cpu", precision="fp32", **changes)
        self.data: TrainingData = load_data(make_store(), self.settings)
        self.transformer = load_transformer(checkpoint, torch.float32, "cpu")
        self.model = FlowModel(
            self.transformer, load_silence_latent(checkpoint), load_null_condition(checkpoint), torch.device("cpu")
        )

    def run(self, batches: int) -> Sensitivity:
        choice = choose_device("cpu", "fp32")
        return measure_sensitivity(self.transformer, self.model, self.data, self.settings, FLOW, batches, choice, Job())


@pytest.mark.parametrize(
    "changes", [{}, {"gradient_checkpointing": True}, {"loss_weighting": "min_snr", "condition_dropout": 1.0}]
)
def test_scores_are_those_of_plain_autograd(checkpoint: Checkpoint, make_store: MakeStore, changes: dict) -> None:
    measured = Measured(checkpoint, make_store, **changes)
    if measured.settings.gradient_checkpointing:
        measured.transformer.enable_gradient_checkpointing()
    songs = len(measured.data.songs)
    found = measured.run(songs)  # every song once, at a place in the order that is found out below
    assert (found.batches, found.songs) == (songs, songs)

    order = torch.randperm(songs, generator=derived_generator(42, "sensitivity", 0)).tolist()
    names = [score.name for score in found.modules]
    assert len(set(names)) == len(measured.transformer.layers) * 11
    weights = [measured.transformer.get_submodule(module_to_diffusers(name)).weight for name in names]
    rows = []
    for place, index in enumerate(order):
        song = measured.data.songs[index]
        (piece,) = measured.data.pieces(song)
        batch = draw_batch([Sample(song, piece, place)], 0, measured.data, measured.settings, FLOW)
        for weight in weights:
            weight.requires_grad_(True)
        loss = measured.model.item_losses(batch, measured.settings.condition_dropout).sum()
        if changes.get("loss_weighting"):
            ratio = ((1 - batch.t) / batch.t) ** 2
            loss = loss * float(torch.minimum(ratio, torch.tensor(5.0)) / ratio)
        rows.append([grad.double() for grad in torch.autograd.grad(loss, weights)])
    for position, score in enumerate(found.modules):
        grads = [row[position] for row in rows]
        norms = [float(grad.norm()) for grad in grads]
        fisher = [float((grad * grad).mean()) for grad in grads]
        assert score.gradient_norm == pytest.approx(statistics.mean(norms), rel=1e-4)
        assert score.gradient_norm_spread == pytest.approx(statistics.stdev(norms), rel=1e-3)
        assert score.fisher == pytest.approx(statistics.mean(fisher), rel=1e-4)
        assert score.fisher_spread == pytest.approx(statistics.stdev(fisher), rel=1e-3)
    assert [score.fisher for score in found.modules] == sorted((s.fisher for s in found.modules), reverse=True)
    for layer in found.layers:
        inside = [position for position, name in enumerate(names) if name.startswith(f"{layer.name}.")]
        whole = [torch.cat([row[position].flatten() for position in inside]) for row in rows]
        assert layer.parameters == whole[0].numel()
        assert layer.fisher == pytest.approx(statistics.mean(float((g * g).mean()) for g in whole), rel=1e-4)
        assert layer.gradient_norm == pytest.approx(statistics.mean(float(g.norm()) for g in whole), rel=1e-4)


def test_measuring_is_repeatable_and_leaves_the_model_frozen_and_unchanged(
    checkpoint: Checkpoint, make_store: MakeStore
) -> None:
    measured = Measured(checkpoint, make_store)
    before = {name: value.clone() for name, value in measured.transformer.state_dict().items()}
    generator = torch.get_rng_state()
    first, second = measured.run(3), measured.run(3)
    assert first == second
    assert first.to_dict()["modules"][0]["name"] == first.modules[0].name
    after = measured.transformer.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in measured.transformer.parameters())
    assert all(parameter.grad is None for parameter in measured.transformer.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert measured.run(1).modules[0].fisher_spread == 0


def test_more_batches_than_songs_go_round_again(checkpoint: Checkpoint, make_store: MakeStore) -> None:
    measured = Measured(checkpoint, make_store)
    assert measured.run(3).songs == 3
    assert measured.run(10).songs == 8


def test_a_gradient_that_is_no_number_is_refused_and_leaves_the_model_frozen(
    checkpoint: Checkpoint, make_store: MakeStore
) -> None:
    measured = Measured(checkpoint, make_store)
    measured.data.songs[0].latents[:] = math.nan
    with pytest.raises(UserError, match="not a number"):
        measured.run(8)
    assert not any(parameter.requires_grad for parameter in measured.transformer.parameters())


def scores_of(values: list[float]) -> list[Score]:
    return [Score(f"layers.{i}.mlp.up_proj", 10, 1.0, 0.0, value, 0.0) for i, value in enumerate(values)]


def test_ranks_follow_the_root_of_fisher_around_the_median() -> None:
    scores = scores_of([1.0, 4.0, 0.25, 100.0, 1e-6])
    pattern = rank_pattern(scores, 64)
    assert list(pattern.values()) == [64, 128, 32, 128, 16]
    assert list(rank_pattern(scores_of([1.0, 1.21, 1.0]), 64).values()) == [64, 72, 64]  # 70.4 in eights
    with pytest.raises(UserError, match="no gradient"):
        rank_pattern(scores_of([0.0, 0.0, 1.0]), 64)


@given(st.lists(st.floats(1e-12, 1e6), min_size=1, max_size=30), st.integers(1, 512))
def test_ranks_are_allowed_ordered_and_in_bounds(values: list[float], rank: int) -> None:
    bounds = RankBounds.around(rank)
    pattern = list(rank_pattern(scores_of(values), rank).values())
    assert all(1 <= bounds.lowest <= given <= bounds.highest <= 512 for given in pattern)
    assert all(given % bounds.multiple == 0 for given in pattern)
    pairs = sorted(zip(values, pattern, strict=True))
    assert all(one[1] <= other[1] for one, other in itertools.pairwise(pairs))


def test_the_rank_map_is_a_settings_file_of_the_adapted_modules(
    checkpoint: Checkpoint, make_store: MakeStore, tmp_path: Path
) -> None:
    measured = Measured(checkpoint, make_store, attention="cross")
    found = measured.run(2)
    adapted = adapted_scores(found, measured.transformer, measured.settings)
    assert len(adapted) == 4 * len(measured.transformer.layers)
    pattern = rank_pattern(adapted, 16)
    write_rank_map(tmp_path / "ranks.json", pattern, 16, found)
    values = read_values(tmp_path / "ranks.json")
    assert values == {"rank": 16, "alpha": 32, "rank_pattern": pattern}
    assert all(name.endswith(("q_proj", "k_proj", "v_proj", "o_proj")) and "cross_attn" in name for name in pattern)
    assert "2 windows of 2 songs" in json.loads((tmp_path / "ranks.json").read_text())["_description"]

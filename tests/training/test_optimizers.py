"""Learning rates at every step against closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.settings import OptimizerSettings
from acestep.training.optimizers import SCHEDULES, learning_rate, make_optimizer, set_learning_rate, warmup_length

RATE = 3e-4


def rates(total: int, **values: object) -> list[float]:
    chosen = OptimizerSettings.parse({"learning_rate": RATE, **values}, "test")
    return [learning_rate(chosen, step, total) for step in range(total)]


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_warmup_rises_linearly_from_a_tenth(schedule: str) -> None:
    found = rates(500, schedule=schedule, warmup_steps=40)
    for step in range(40):
        assert found[step] == pytest.approx(RATE * (0.1 + 0.9 * step / 40))
    assert found[40] == pytest.approx(RATE)


def test_warmup_is_at_most_a_tenth_of_the_run() -> None:
    assert warmup_length(OptimizerSettings(warmup_steps=100), 200) == 20
    assert warmup_length(OptimizerSettings(warmup_steps=100), 5) == 0
    assert rates(5, warmup_steps=100)[0] == pytest.approx(RATE)


def test_cosine_follows_its_formula_and_ends_at_its_floor() -> None:
    found = rates(301, schedule="cosine", warmup_steps=30)
    for step in range(30, 301):
        share = (step - 30) / 270
        assert found[step] == pytest.approx(RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))))
    assert found[-1] == pytest.approx(0.01 * RATE)
    assert all(later <= earlier for earlier, later in itertools.pairwise(found[30:]))


def test_linear_and_constant() -> None:
    linear = rates(101, schedule="linear", warmup_steps=0)
    assert linear[50] == pytest.approx(RATE * 0.505)
    assert linear[-1] == pytest.approx(RATE * 0.01)
    assert set(rates(50, schedule="constant", warmup_steps=0)) == {RATE}


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 400), st.integers(0, 500))
def test_rates_stay_between_floor_and_peak(schedule: str, total: int, warmup: int) -> None:
    found = rates(total, schedule=schedule, warmup_steps=warmup)
    assert all(0.0099 * RATE <= rate <= RATE * 1.0001 for rate in found)


def test_adamw_gets_the_settings() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = make_optimizer([parameter], OptimizerSettings(learning_rate=0.5, weight_decay=0.2))
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.2)
    set_learning_rate(optimizer, 0.25)
    assert group["lr"] == 0.25

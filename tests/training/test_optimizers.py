"""Learning rates at every step against closed forms; optimizers and what they are given."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.core.errors import UserError
from acestep.settings import OptimizerSettings
from acestep.settings.formula import VARIABLES, Formula
from acestep.training.optimizers import make_optimizer, peak_rate, rate_notes, set_learning_rate
from acestep.training.plan import Length
from acestep.training.schedules import SCHEDULES, learning_rate, warmup_length

RATE = 3e-4


def rates(total: int, **values: object) -> list[float]:
    chosen = OptimizerSettings.parse({"learning_rate": RATE, **values}, "test")
    return [learning_rate(chosen, step, Length(total, 10)) for step in range(total)]


@pytest.mark.parametrize("schedule", sorted(SCHEDULES.keys() - {"constant"}))
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


def test_restarts_double_and_end_with_the_run() -> None:
    found = rates(401, schedule="cosine_restarts", warmup_steps=0)
    starts = [step for step in range(1, 401) if found[step] > 1.5 * found[step - 1]]
    assert starts == [100, 300]  # a quarter of the run, then cycles of a half and more
    for step in range(100):
        assert found[step] == pytest.approx(RATE * (0.01 + 0.495 * (1 + math.cos(math.pi * step / 100))))
    assert found[200] == pytest.approx(RATE * (0.01 + 0.495))
    assert found[99] < 0.012 * RATE


def test_constant_with_warmup_warms_up_and_constant_does_not() -> None:
    assert set(rates(300, schedule="constant", warmup_steps=50)) == {RATE}
    warmed = rates(300, schedule="constant_with_warmup", warmup_steps=50)
    assert warmed[0] == pytest.approx(RATE / 10 * (1 + 0)) and set(warmed[30:]) == {RATE}


def test_a_formula_gives_the_rate_after_warm_up() -> None:
    formula = "base_lr * (0.5 if progress > 0.5 else 1) * max(0.1, 1 - epoch / total_epochs)"
    found = rates(101, schedule="formula", schedule_formula=formula, warmup_steps=0)
    for step in (0, 9, 10, 50, 51, 100):
        share = (0.5 if step / 100 > 0.5 else 1) * max(0.1, 1 - (step // 10) / 11)
        assert found[step] == pytest.approx(RATE * share)


@pytest.mark.parametrize(
    "formula", ["clamp(base_lr, 1e-6)", "min(base_lr)", "sin()", "sqrt(1, 2)", "pow(base_lr)", "max()"]
)
def test_a_formula_with_a_wrong_number_of_arguments_is_refused(formula: str) -> None:
    with pytest.raises(UserError, match=r"takes .* numbers"):
        rates(10, schedule="formula", schedule_formula=formula)


def test_where_a_formula_has_no_answer_the_plain_rate_is_used() -> None:
    found = rates(10, schedule="formula", schedule_formula="base_lr * log(progress)", warmup_steps=0)
    assert found[0] == RATE  # the logarithm of 0
    assert found[5] == RATE  # a negative rate


@pytest.mark.parametrize(
    "formula",
    [
        "__import__('os').system('true')",
        "().__class__",
        "[1][0]",
        "lambda: 1",
        "base_lr.real",
        "open('x')",
        "'a' * 9",
        "x",
    ],
)
def test_a_formula_cannot_reach_python(formula: str) -> None:
    with pytest.raises(UserError, match="schedule_formula"):
        OptimizerSettings.parse({"schedule": "formula", "schedule_formula": formula}, "test")


@given(st.text(max_size=60))
def test_any_text_is_a_formula_or_a_sentence(text: str) -> None:
    try:
        value = Formula(text)(dict.fromkeys(VARIABLES, 1.0))
    except ValueError as error:
        assert str(error)
    else:
        assert isinstance(value, float)


def test_huge_powers_do_not_hang() -> None:
    assert math.isnan(Formula("9 ** 9 ** 9 ** 9")(dict.fromkeys(VARIABLES, 1.0)))


@pytest.mark.parametrize(("typed", "used"), [(1e-4, 1.0), (3e-4, 1.0), (1.0, 1.0), (0.5, 0.5), (50.0, 1.0)])
def test_prodigy_learns_whatever_rate_was_typed(typed: float, used: float) -> None:
    chosen = OptimizerSettings(optimizer="prodigy", learning_rate=typed)
    assert peak_rate(chosen) == used
    assert bool(rate_notes(chosen)) == (typed != used)
    parameter = torch.nn.Parameter(torch.full((4,), 2.0))
    optimizer = make_optimizer([parameter], chosen)
    for step in range(1000):
        set_learning_rate(optimizer, learning_rate(chosen, step, Length(1000)))
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    assert parameter.abs().max() < 0.5
    (group,) = optimizer.param_groups
    assert (group["use_bias_correction"], group["safeguard_warmup"]) == (True, True)


def test_adafactor_keeps_to_the_users_rate() -> None:
    (group,) = make_optimizer(
        [torch.nn.Parameter(torch.ones(3, 3))], OptimizerSettings(optimizer="adafactor", learning_rate=0.01)
    ).param_groups
    assert (group["lr"], group["relative_step"], group["scale_parameter"]) == (0.01, False, False)


def test_adamw_gets_the_settings() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = make_optimizer([parameter], OptimizerSettings(learning_rate=0.5, weight_decay=0.2))
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.2)
    set_learning_rate(optimizer, 0.25)
    assert group["lr"] == 0.25


def test_the_8_bit_optimizer_is_refused_where_it_has_no_kernels() -> None:
    parameter = SimpleNamespace(device=torch.device("mps"))
    with pytest.raises(UserError, match=r"adamw8bit does not work on mps.*adafactor"):
        make_optimizer([parameter], OptimizerSettings(optimizer="adamw8bit"))  # type: ignore[list-item]

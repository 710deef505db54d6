"""The flow-matching objective against independent formulas and statistics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from acestep.training.data import derived_generator
from acestep.training.objective import (
    TIMESTEP_DRAWS,
    TURBO_TIMESTEPS,
    drop_conditions,
    flow_target,
    item_losses,
    snr_weights,
    strata_quantiles,
    timestep_quantile,
    validation_timesteps,
)


def test_flow_target_runs_from_data_to_noise_in_a_straight_line() -> None:
    x0, noise = torch.randn(3, 7, 4), torch.randn(3, 7, 4)
    for t in (0.0, 0.25, 1.0):
        noisy, velocity = flow_target(x0, noise, torch.full((3,), t))
        # following the velocity from x_t for the remaining time must arrive at both ends
        torch.testing.assert_close(noisy - t * velocity, x0)
        torch.testing.assert_close(noisy + (1 - t) * velocity, noise)


def test_each_item_has_its_own_timestep() -> None:
    x0, noise = torch.zeros(2, 5, 3), torch.ones(2, 5, 3)
    noisy, _ = flow_target(x0, noise, torch.tensor([0.2, 0.7]))
    assert noisy[0].unique().tolist() == pytest.approx([0.2])
    assert noisy[1].unique().tolist() == pytest.approx([0.7])


def test_every_item_has_its_own_loss() -> None:
    prediction, target = torch.randn(4, 9, 6), torch.randn(4, 9, 6)
    singles = [torch.nn.functional.mse_loss(prediction[i], target[i]).item() for i in range(4)]
    assert item_losses(prediction, target).tolist() == pytest.approx(singles, rel=1e-6)


def test_loss_is_fp32_whatever_the_model_computes_in() -> None:
    prediction = torch.randn(1, 8, 4).bfloat16()
    assert item_losses(prediction, torch.zeros(1, 8, 4)).dtype == torch.float32


def test_dropped_conditions_are_the_null_embedding_everywhere() -> None:
    condition, null = torch.randn(4, 5, 3), torch.randn(1, 1, 3)
    uniform = torch.tensor([0.0, 0.1499, 0.15, 0.9])
    dropped = drop_conditions(condition, null, uniform, 0.15)
    for item in (0, 1):
        assert torch.equal(dropped[item], null[0].expand(5, 3))
    for item in (2, 3):
        assert torch.equal(dropped[item], condition[item])
    assert torch.equal(drop_conditions(condition, null, uniform, 0.0), condition)


def draws(kind: str, count: int = 4000, mu: float = -0.4, sigma: float = 1.0) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    return [TIMESTEP_DRAWS[kind](mu, sigma, generator) for _ in range(count)]


def logit(t: float) -> float:
    return math.log(t / (1 - t))


def test_the_models_draw_is_the_larger_of_two_logit_normals() -> None:
    normal = stats.norm(-0.4, 1.0)
    result = stats.kstest([logit(t) for t in draws("model")], lambda x: normal.cdf(x) ** 2)
    assert result.pvalue > 0.01


def test_the_single_draw_is_logit_normal() -> None:
    assert stats.kstest([logit(t) for t in draws("single")], stats.norm(-0.4, 1.0).cdf).pvalue > 0.01


def test_the_two_draws_are_told_apart() -> None:
    assert sum(draws("model")) / 4000 == pytest.approx(0.535, abs=0.02)
    assert sum(draws("single")) / 4000 == pytest.approx(0.42, abs=0.02)


def test_turbo_steps_are_the_published_table() -> None:
    table = [1, 0.9545455, 0.9, 0.8333333, 0.75, 0.6428571, 0.5, 0.3]
    assert list(TURBO_TIMESTEPS) == pytest.approx(table, abs=1e-6)
    seen = draws("turbo", 800)
    assert set(seen) == set(TURBO_TIMESTEPS)


@given(st.sampled_from(["model", "single"]), st.floats(0.02, 0.98), st.floats(-1, 1), st.floats(0.2, 2))
@settings(max_examples=40, deadline=None)
def test_quantiles_invert_the_distribution_function(kind: str, share: float, mu: float, sigma: float) -> None:
    below = stats.norm(mu, sigma).cdf(logit(timestep_quantile(kind, mu, sigma, share)))
    assert (below**2 if kind == "model" else below) == pytest.approx(share, abs=1e-6)


def test_validation_timesteps_stand_for_equal_shares() -> None:
    fixed = validation_timesteps("model", -0.4, 1.0, 4)
    assert fixed == sorted(fixed)
    sample = sorted(draws("model", 8000))
    for index, t in enumerate(fixed):
        assert sum(value < t for value in sample) / 8000 == pytest.approx((index + 0.5) / 4, abs=0.03)


def test_derived_draws_depend_on_every_part_and_on_nothing_else() -> None:
    first = torch.rand(3, generator=derived_generator(1, "a", 2))
    torch.manual_seed(99)
    assert torch.equal(first, torch.rand(3, generator=derived_generator(1, "a", 2)))
    assert not torch.equal(first, torch.rand(3, generator=derived_generator(1, "a", 3)))
    assert not torch.equal(first, torch.rand(3, generator=derived_generator(12, "a", "")))


def test_min_snr_weights_at_both_ends_and_between() -> None:
    """Weight 1 while the ratio is at most γ = 5, that is for t above 1 / (1 + √5); then γ (t / (1 - t))²."""
    t = torch.tensor([0.0, 0.01, 0.2, 0.309, 0.31, 0.6, 1.0])
    found = snr_weights(t, 5.0).tolist()
    for value, weight in zip(t.tolist(), found, strict=True):
        value = min(max(value, 1e-4), 1 - 1e-4)
        expected = 1.0 if value >= 1 / (1 + math.sqrt(5)) else 5 * (value / (1 - value)) ** 2
        assert weight == pytest.approx(expected, rel=1e-4)


@given(st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_strata_hold_one_share_each(count: int, seed: int) -> None:
    shares = strata_quantiles(count, torch.Generator().manual_seed(seed))
    assert sorted(int(share * count) for share in shares) == list(range(count))


def test_stratified_draws_keep_the_distribution_and_lower_the_variance() -> None:
    generator = torch.Generator().manual_seed(3)
    plain, spread = [], []
    for _ in range(300):
        plain.append(sum(TIMESTEP_DRAWS["model"](-0.4, 1.0, generator) for _ in range(8)) / 8)
        shares = strata_quantiles(8, generator)
        spread.append(sum(timestep_quantile("model", -0.4, 1.0, share) for share in shares) / 8)
    assert sum(spread) / 300 == pytest.approx(sum(plain) / 300, abs=0.015)
    assert torch.tensor(spread).var() < torch.tensor(plain).var() / 10

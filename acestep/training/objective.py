"""The flow-matching objective as short pure functions.

t = 1 is noise and t = 0 is data, as in the model (reference: acestep-model.md §7). The golden vectors of the
reference implementation decide whether this file is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor

from acestep.settings import ObjectiveSettings

TURBO_TIMESTEPS = tuple(3 * u / (1 + 2 * u) for u in (i / 8 for i in range(8, 0, -1)))
"""The eight steps of the turbo sampler at shift 3: 1, 0.9545, 0.9, … 0.3."""


def flow_target(x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents and the velocity to predict.  x0, noise: (B, T, C); t: (B,) in [0, 1]."""
    t = t.view(-1, 1, 1)
    return t * noise + (1 - t) * x0, noise - x0


def drop_conditions(condition: Tensor, null_condition: Tensor, uniform: Tensor, rate: float) -> Tensor:
    """Replace the whole condition of the items where `uniform` < `rate` by the learned null embedding.

    condition: (B, L, E); null_condition: (1, 1, E), broadcast over L; uniform: (B,).
    """
    dropped = (uniform < rate).view(-1, 1, 1)
    return torch.where(dropped, null_condition.to(condition.dtype), condition)


def item_losses(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each item in fp32.  (B, T, C) → (B,)."""
    return (prediction.float() - target.float()).square().mean(dim=(1, 2))


def _model_draw(mu: float, sigma: float, generator: torch.Generator) -> float:
    # The model's sampler draws two values, keeps the larger as t, and then sets r = t.
    draws = torch.randn(2, generator=generator).mul(sigma).add(mu).sigmoid()
    return float(draws.max())


def _single_draw(mu: float, sigma: float, generator: torch.Generator) -> float:
    return float(torch.randn(1, generator=generator).mul(sigma).add(mu).sigmoid())


def _turbo_draw(mu: float, sigma: float, generator: torch.Generator) -> float:
    return TURBO_TIMESTEPS[int(torch.randint(len(TURBO_TIMESTEPS), (1,), generator=generator))]


TIMESTEP_DRAWS: dict[str, Callable[[float, float, torch.Generator], float]] = {
    "model": _model_draw,
    "single": _single_draw,
    "turbo": _turbo_draw,
}
"""How one timestep is drawn from μ, σ and a generator, by the name in the settings."""


def timestep_quantile(draw: str, mu: float, sigma: float, share: float) -> float:
    """The timestep below which `share` of the draws lie, 0 < share < 1.

    The larger of two independent draws has the distribution function F², so its quantile at q is that of
    one draw at √q.
    """
    if draw == "turbo":
        ascending = sorted(TURBO_TIMESTEPS)
        return ascending[min(int(share * len(ascending)), len(ascending) - 1)]
    normal = NormalDist().inv_cdf(math.sqrt(share) if draw == "model" else share)
    return 1 / (1 + math.exp(-(mu + sigma * normal)))


def snr_weights(t: Tensor, gamma: float) -> Tensor:
    """Min-SNR weights min(snr, γ) / snr with snr = ((1 - t) / t)²: 1 where noise prevails, below it where t → 0.

    t: (B,) in [0, 1]. Source: Min-SNR weighting in its noise-prediction form, as other ACE-Step trainers use it
    (side-step-interop.md §5.4).
    """
    t = t.float().clamp(1e-4, 1 - 1e-4)
    snr = ((1 - t) / t).square()
    return snr.clamp(max=gamma) / snr


def weighted(items: Tensor, t: Tensor, settings: ObjectiveSettings) -> Tensor:
    """Item losses with the weights of their timesteps, where the settings ask for any.  items, t: (B,)."""
    if settings.loss_weighting == "none":
        return items
    return items * snr_weights(t.to(items.device), settings.snr_gamma)


def strata_quantiles(count: int, generator: torch.Generator) -> list[float]:
    """`count` shares in (0, 1), one from each of `count` equal bins, in random order."""
    order = torch.randperm(count, generator=generator)
    inside = torch.rand(count, generator=generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    return ((order + inside) / count).tolist()


def validation_timesteps(draw: str, mu: float, sigma: float, count: int) -> list[float]:
    """`count` fixed timesteps that stand for equal shares of the draws: the middles of `count` quantile bins."""
    return [timestep_quantile(draw, mu, sigma, (index + 0.5) / count) for index in range(count)]

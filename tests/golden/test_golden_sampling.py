"""Whole sampling runs: the turbo sampler at shift 3, and the guided sampler of base models."""

from __future__ import annotations

import torch
from golden_model import TOLERANCE, GoldenModel
from torch import Tensor
from torch.testing import assert_close

from acestep.generate import Sampler, sample_latents, timestep_schedule
from acestep.model.loading import load_null_condition

RUN = {"rtol": 0.0, "atol": 1e-4}
"""Tolerance of latents after several steps."""


class Steps:
    """Collects what the sampler tells of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.latents: list[Tensor] = []
        self.velocity: list[Tensor] = []

    def __call__(self, _index: int, time: float, latents: Tensor, velocity: Tensor) -> None:
        self.times.append(time)
        self.latents.append(latents.clone())
        self.velocity.append(velocity.clone())


def context_of(vectors: dict[str, Tensor]) -> Tensor:
    return torch.cat([vectors["src_latents"], vectors["chunk_masks"]], dim=-1)


def test_turbo_run(golden_model: GoldenModel) -> None:
    vectors = golden_model.vectors("turbo_sampling_shift3")
    count = vectors["timesteps"].numel()
    condition, _mask = golden_model.conditions(vectors)
    assert_close(condition, vectors["encoder_hidden_states"], **TOLERANCE)
    assert_close(context_of(vectors), vectors["context_latents"], **TOLERANCE)
    steps = Steps()
    final = sample_latents(
        golden_model.transformer,
        condition,
        load_null_condition(golden_model.checkpoint),
        context_of(vectors),
        vectors["noise"],
        Sampler(steps=count, guidance=1.0, shift=3.0),
        steps,
    )
    assert_close(torch.tensor(steps.times), vectors["timesteps"], rtol=0.0, atol=1e-6)
    assert_close(torch.stack(steps.latents), vectors["step_latents"], **RUN)
    assert_close(torch.stack(steps.velocity), vectors["step_velocity"], **RUN)
    assert_close(final, vectors["final_latents"], **RUN)


def test_guided_run(golden_model: GoldenModel) -> None:
    vectors = golden_model.vectors("base_sampling_apg")
    count = vectors["timesteps"].numel()
    condition, _mask = golden_model.conditions(vectors)
    null_condition = load_null_condition(golden_model.checkpoint)
    context = context_of(vectors)
    steps = Steps()
    final = sample_latents(
        golden_model.transformer,
        condition,
        null_condition,
        context,
        vectors["noise"],
        Sampler(steps=count, guidance=float(vectors["guidance_scale"]), shift=1.0),
        steps,
    )
    assert_close(torch.tensor(steps.times), vectors["timesteps"], rtol=0.0, atol=1e-6)
    assert_close(torch.stack(steps.latents), vectors["step_latents"], **RUN)
    assert_close(final, vectors["final_latents"], **RUN)


def test_both_predictions_of_the_guided_run(golden_model: GoldenModel) -> None:
    vectors = golden_model.vectors("base_sampling_apg")
    condition, _mask = golden_model.conditions(vectors)
    null_condition = load_null_condition(golden_model.checkpoint).expand_as(condition)
    for index, time in enumerate(vectors["timesteps"]):
        latents = vectors["step_latents"][index]
        t = time.expand(latents.shape[0])
        for states, expected in (
            (condition, vectors["step_velocity_cond"][index]),
            (null_condition, vectors["step_velocity_null"][index]),
        ):
            with torch.no_grad():
                velocity = golden_model.transformer(
                    hidden_states=latents,
                    timestep=t,
                    timestep_r=t,
                    encoder_hidden_states=states,
                    context_latents=context_of(vectors),
                ).sample
            assert_close(velocity, expected, **TOLERANCE)


def test_schedule_gives_the_run_times(golden_model: GoldenModel) -> None:
    for name, shift in (("turbo_sampling_shift3", 3.0), ("base_sampling_apg", 1.0)):
        expected = golden_model.vectors(name)["timesteps"]
        assert_close(torch.tensor(timestep_schedule(expected.numel(), shift)), expected, rtol=0.0, atol=1e-6)

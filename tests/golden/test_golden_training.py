"""One training step with every random draw fixed: targets, dropped conditions, loss and gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from golden_model import TOLERANCE, GoldenModel
from torch import Tensor, nn
from torch.testing import assert_close

from acestep.model.loading import load_null_condition, load_transformer
from acestep.model.names import to_diffusers
from acestep.training.objective import drop_conditions, flow_target, item_losses

CONDITION_DROPOUT = 0.15


@pytest.fixture(scope="module")
def trained(golden_model: GoldenModel) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """A transformer and a null condition of their own that take gradients."""
    transformer = load_transformer(golden_model.checkpoint, torch.float32, "cpu").requires_grad_(True)
    yield transformer, nn.Parameter(load_null_condition(golden_model.checkpoint))


def context(golden_model: GoldenModel, vectors: dict[str, Tensor]) -> Tensor:
    """Source latents and mask; the source of covers goes through the 5 Hz tokens first."""
    source = vectors["src_latents"].clone()
    with torch.no_grad():
        tokens, _ = golden_model.tokenizer.tokenize(source, golden_model.silence)
        covers = golden_model.detokenizer(tokens)[:, : source.shape[1]]
    source = torch.where(vectors["is_covers"].view(-1, 1, 1).bool(), covers, source)
    return torch.cat([source, vectors["chunk_masks"]], dim=-1)


def test_training_step(golden_model: GoldenModel, trained: tuple[nn.Module, nn.Parameter]) -> None:
    vectors = golden_model.vectors("training_loss")
    transformer, null_condition = trained
    packed, _mask = golden_model.conditions(vectors)
    condition = drop_conditions(packed, null_condition, vectors["cfg_uniform"], CONDITION_DROPOUT)
    context_latents = context(golden_model, vectors)
    x_t, target = flow_target(vectors["target_latents"], vectors["noise"], vectors["t"])

    assert_close(condition, vectors["encoder_hidden_states_after_drop"], **TOLERANCE)
    assert_close(context_latents, vectors["context_latents"], **TOLERANCE)
    assert_close(x_t, vectors["x_t"], **TOLERANCE)

    velocity = transformer(
        hidden_states=x_t,
        timestep=vectors["t"],
        timestep_r=vectors["t"],
        encoder_hidden_states=condition,
        context_latents=context_latents,
    ).sample
    assert_close(velocity, vectors["velocity"], **TOLERANCE)

    loss = item_losses(velocity, target).mean()
    assert_close(loss.reshape(1), vectors["loss"], **TOLERANCE)

    loss.backward()
    gradients = {name: parameter.grad for name, parameter in transformer.named_parameters()}
    gradients["null_condition_emb"] = null_condition.grad
    norms, whole = expected_gradients(vectors)
    # "Every parameter that gets a gradient": the second time embedder's input is zero, yet its biases learn.
    assert {name for name, value in gradients.items() if value is not None} == set(norms)
    for name, norm in norms.items():
        assert_close(gradients[name].norm(), norm, rtol=1e-4, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")
    for name, value in whole.items():
        assert_close(gradients[name], value, rtol=1e-4, atol=1e-6)


def expected_gradients(vectors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Norms and whole gradients by diffusers names."""

    def named(prefix: str) -> dict[str, Tensor]:
        return {
            to_diffusers(key.removeprefix(prefix))[1]: value for key, value in vectors.items() if key.startswith(prefix)
        }

    norms = {name: value.reshape(()) for name, value in named("grad_norm.").items()}
    whole = named("grad.")
    assert norms and whole
    return norms, whole


def test_drop_mask(golden_model: GoldenModel) -> None:
    vectors = golden_model.vectors("training_loss")
    kept = drop_conditions(torch.ones(3, 2, 4), torch.zeros(1, 1, 4), vectors["cfg_uniform"], CONDITION_DROPOUT)
    assert torch.equal(kept[:, 0, 0], vectors["cfg_keep_mask"].float())

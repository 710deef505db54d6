"""Base weights of 8 and 4 bits: small, close to the whole ones, and good for every adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from acestep.adapters import attach
from acestep.core.errors import UserError
from acestep.model.checkpoints import Checkpoint, resolve_checkpoint
from acestep.model.loading import load_transformer
from acestep.model.quantising import QuantisedLinear, require_quantising
from acestep.settings import AdapterSettings

LARGEST_ERROR = {"int8": 0.01, "nf4": 0.12}
"""Relative to the output of a layer with normal weights; from 1 / 127 and the spacing of the 16 nf4 values."""


@pytest.fixture
def checkpoint(demo_checkpoint: Path) -> Checkpoint:
    return resolve_checkpoint(str(demo_checkpoint / "acestep-v15-demo"))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_close_and_its_gradient_that_of_its_weight(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(96, 64, dtype=dtype)
    layer = QuantisedLinear(weight, kind)
    x = torch.randn(2, 7, 64, dtype=dtype, requires_grad=True)
    y = layer(x)
    whole = F.linear(x, weight)
    assert y.dtype == dtype and (y - whole).norm() < LARGEST_ERROR[kind] * whole.norm()
    gradient = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, x, gradient)
    (expected,) = torch.autograd.grad(F.linear(x, layer.weight), x, gradient)
    torch.testing.assert_close(found, expected)
    assert layer.weight.dtype == dtype and not list(layer.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x.float())
    assert mixed.dtype == torch.bfloat16 and (mixed - whole).norm() < 2 * LARGEST_ERROR[kind] * whole.norm()


def test_a_row_of_zeros_stays_one() -> None:
    weight = torch.randn(4, 64)
    weight[1] = 0
    for kind in ("int8", "nf4"):
        assert torch.equal(QuantisedLinear(weight, kind).weight[1], torch.zeros(64))


@pytest.mark.parametrize(("kind", "most_bytes"), [("int8", 1.2), ("nf4", 0.6)])
def test_every_linear_layer_of_the_blocks_is_small(checkpoint: Checkpoint, kind: str, most_bytes: float) -> None:
    whole = load_transformer(checkpoint, torch.bfloat16, "cpu")
    small = load_transformer(checkpoint, torch.bfloat16, "cpu", kind)
    layers = {name: module for name, module in whole.named_modules() if isinstance(module, torch.nn.Linear)}
    inside = {name for name in layers if name.startswith("layers.")}
    found = {name: module for name, module in small.named_modules() if isinstance(module, QuantisedLinear)}
    assert found.keys() == inside and len(inside) == 4 * 11
    stored = sum(tensor.numel() * tensor.element_size() for layer in found.values() for tensor in layer.buffers())
    assert stored < most_bytes * sum(layers[name].weight.numel() for name in inside)
    for name, value in whole.named_parameters():
        if name.removesuffix(".weight") not in inside:
            assert torch.equal(value, small.get_parameter(name)), name


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("family", ["lora", "dora", "lokr", "loha", "oft"])
def test_an_adapter_on_small_weights_is_that_on_the_same_weights_whole(
    checkpoint: Checkpoint, kind: str, family: str
) -> None:
    """Against a model whose whole weights hold the same values: output and gradients of the adapter."""
    dora = family == "dora"
    settings = AdapterSettings(
        adapter="lora" if dora else family, dora=dora, rank=4, dropout=0, train_mlp=True, oft_block_size=8
    )
    found = []
    for small in (True, False):
        transformer = load_transformer(checkpoint, torch.float32, "cpu", kind)
        if not small:
            for layer in list(transformer.modules()):
                for name, child in list(layer.named_children()):
                    if isinstance(child, QuantisedLinear):
                        whole = torch.nn.Linear(child.in_features, child.out_features, bias=False)
                        whole.weight = torch.nn.Parameter(child.weight, requires_grad=False)
                        setattr(layer, name, whole)
        torch.manual_seed(0)
        adapter = attach(transformer.train(), settings)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        width = transformer.config.audio_acoustic_hidden_dim
        velocity = transformer(
            hidden_states=torch.randn(2, 30, width, generator=generator),
            timestep=torch.tensor([0.3, 0.8]),
            timestep_r=torch.tensor([0.3, 0.8]),
            encoder_hidden_states=torch.randn(2, 9, transformer.config.encoder_hidden_size, generator=generator),
            context_latents=torch.randn(2, 30, 2 * width, generator=generator),
            return_dict=False,
        )[0]
        velocity.square().mean().backward()
        delta = adapter.weight_delta(adapter.module_names[-1])
        found.append([velocity.detach(), delta, *(parameter.grad for parameter in adapter.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_where_it_does_not_work_it_is_refused() -> None:
    with pytest.raises(UserError, match=r'"base_weights": nf4 works on .* not on mps.*Choose int8 or full'):
        require_quantising("nf4", "mps")
    for device in ("cuda", "cpu", "mps", "xpu"):
        require_quantising("int8", device)
    require_quantising("nf4", "cpu")

"""The change of every weight, against the formulas of the papers in plain tensor operations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acestep.adapters.lokr import KroneckerModule
from acestep.model.names import module_to_original


def kron(left: Tensor, right: Tensor) -> Tensor:
    """Every element of `left` times the whole of `right`."""
    a, c = left.shape
    b, d = right.shape
    return torch.einsum("ac,bd->abcd", left, right).reshape(a * b, c * d)


def lokr_delta(tensors: dict[str, Tensor], dim: int, alpha: float) -> Tensor:
    """LyCORIS (Yeh et al. 2024): scale kron(w1, w2), where scale is alpha / dim unless both factors are whole."""
    w1 = tensors["lokr_w1"] if "lokr_w1" in tensors else tensors["lokr_w1_a"] @ tensors["lokr_w1_b"]
    w2 = tensors["lokr_w2"] if "lokr_w2" in tensors else tensors["lokr_w2_a"] @ tensors["lokr_w2_b"]
    whole = "lokr_w1" in tensors and "lokr_w2" in tensors
    return kron(w1, w2) * (1.0 if whole else alpha / dim)


def lora_delta(tensors: dict[str, Tensor], base: Tensor, rank: int, alpha: float, rslora: bool) -> Tensor:
    """B A alpha / rank (Hu et al. 2021), / sqrt(rank) for rsLoRA; DoRA sets each row's length (Liu et al. 2024)."""
    scale = alpha / (math.sqrt(rank) if rslora else rank)
    delta = tensors["lora_B.weight"] @ tensors["lora_A.weight"] * scale
    if "lora_magnitude_vector" not in tensors:
        return delta
    rows = [
        length * row / row.norm() for length, row in zip(tensors["lora_magnitude_vector"], base + delta, strict=True)
    ]
    return torch.stack(rows) - base


def expected_delta(adapter, name: str, base: Tensor) -> Tensor:
    original, settings = module_to_original(name), adapter.settings
    if settings.adapter == "lora":
        prefix = f"base_model.model.{original}."
        own = {key.removeprefix(prefix): t for key, t in adapter.tensors().items() if key.startswith(prefix)}
        return lora_delta(own, base, settings.rank, settings.alpha, settings.rslora)
    prefix = f"lycoris_{original.replace('.', '_')}."
    own = {key.removeprefix(prefix): t for key, t in adapter.tensors().items() if key.startswith(prefix)}
    return lokr_delta(own, settings.lokr_dim, settings.lokr_alpha)


def test_weight_delta_is_the_formula_and_merging_it_is_the_adapter(make_transformer, velocity, attach_random, settings):
    transformer, merged = make_transformer(), make_transformer()
    adapter = attach_random(transformer, settings)
    for name in adapter.module_names:
        layer = merged.get_submodule(name)
        delta = adapter.weight_delta(name)
        torch.testing.assert_close(delta, expected_delta(adapter, name, layer.weight.detach()))
        assert delta.abs().max() > 1e-3
        layer.weight.data += delta
    with torch.no_grad():
        torch.testing.assert_close(velocity(transformer), velocity(merged), rtol=0, atol=2e-5)


sizes = st.sampled_from([1, 2, 6, 7, 12, 16, 32, 48, 64])


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    sizes,
    sizes,
    st.sampled_from([-1, 1, 2, 4, 8, 16]),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.integers(0, 9),
)
def test_factors_on_activations_equal_the_rebuilt_weight(inputs, outputs, factor, dim, both, unbalanced, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs).double().requires_grad_(False)
    module = KroneckerModule(
        "name", layer, lora_dim=dim, alpha=3, factor=factor, decompose_both=both, unbalanced_factorization=unbalanced,
        bypass_mode=True,
    )  # fmt: skip
    module.double()
    module.dropout = 0.0
    module.plan()
    for _, parameter in module.weights():
        parameter.data.normal_()
    x = torch.randn(2, 5, inputs, dtype=torch.float64, requires_grad=True)
    module.apply_to()
    ours = layer(x)
    tensors = {name: parameter.detach() for name, parameter in module.weights()}
    weight = layer.weight + lokr_delta(tensors, dim, 3)
    torch.testing.assert_close(ours, nn.functional.linear(x, weight, layer.bias))

    cotangent = torch.randn_like(ours)
    parameters = [x, *(parameter for _, parameter in module.weights())]
    by_us = torch.autograd.grad((ours * cotangent).sum(), parameters, allow_unused=True)
    rebuilt = nn.functional.linear(x, layer.weight + module.get_weight(module.shape), layer.bias)
    for one, other in zip(by_us, torch.autograd.grad((rebuilt * cotangent).sum(), parameters), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 64), (64, 16), (64, 64)])
def test_the_difference_alone_is_lycoris_own(inputs, outputs):
    torch.manual_seed(0)
    module = KroneckerModule("name", nn.Linear(inputs, outputs), lora_dim=2, alpha=3, factor=4, bypass_mode=True)
    module.plan()
    for _, parameter in module.weights():
        parameter.data.normal_()
    x = torch.randn(3, 7, inputs)
    own = super(KroneckerModule, module).bypass_forward_diff(x, scale=0.7)
    torch.testing.assert_close(module.bypass_forward_diff(x, scale=0.7), own)

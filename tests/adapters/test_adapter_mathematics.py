"""The change of every weight, against the formulas of the papers in plain tensor operations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from acestep.adapters.loha import HadamardModule
from acestep.adapters.lokr import KroneckerModule
from acestep.adapters.lycoris_adapter import trainable_weights
from acestep.model.names import module_to_original
from acestep.settings import AdapterSettings


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


def loha_delta(tensors: dict[str, Tensor], dim: int, alpha: float) -> Tensor:
    """FedPara (Hyeon-Woo et al. 2022) with LoRA's scale: two products of low rank, element by element."""
    first = torch.einsum("ik,kj->ij", tensors["hada_w1_a"], tensors["hada_w1_b"])
    return first * torch.einsum("ik,kj->ij", tensors["hada_w2_a"], tensors["hada_w2_b"]) * alpha / dim


def oft_delta(weights: Tensor, base: Tensor, size: int, eps: float | None) -> Tensor:
    """Each block of inputs turned by I + 2Q + 2Q² + 2Q³ + Q⁴, Q skew; COFT shrinks the Q of a block to eps / √blocks.

    The series is Cayley's (I + Q)(I - Q)⁻¹ cut short (Qiu et al. 2023, and 2025 for the series).
    """
    result = torch.zeros_like(base)
    rows, columns = torch.triu_indices(size, size, 1)
    for block, numbers in enumerate(weights):
        skew = torch.zeros(size, size)
        skew[rows, columns] = numbers
        skew = skew - skew.T
        if eps is not None:
            skew = skew * min(1.0, eps / len(weights) ** 0.5 / skew.norm().item())
        powers = [torch.linalg.matrix_power(skew, power) for power in (1, 2, 3, 4)]
        turn = 2 * powers[0] + 2 * powers[1] + 2 * powers[2] + powers[3]
        part = slice(block * size, (block + 1) * size)
        result[:, part] = base[:, part] @ turn.T
    return result


def expected_delta(adapter, settings: AdapterSettings, name: str, base: Tensor) -> Tensor:
    original = module_to_original(name)
    if settings.adapter == "lora":
        prefix = f"base_model.model.{original}."
        own = {key.removeprefix(prefix): t for key, t in adapter.tensors().items() if key.startswith(prefix)}
        rank = settings.rank_pattern.get(original, settings.rank)
        alpha = settings.alpha_pattern.get(original, settings.alpha * rank / settings.rank)
        return lora_delta(own, base, rank, alpha, settings.rslora)
    if settings.adapter == "oft":
        eps = settings.oft_eps if settings.oft_constrained else None
        weights = adapter.tensors()[f"base_model.model.{original}.oft_R.weight"]
        return oft_delta(weights, base, settings.oft_block_size, eps)
    prefix = f"lycoris_{original.replace('.', '_')}."
    own = {key.removeprefix(prefix): t for key, t in adapter.tensors().items() if key.startswith(prefix)}
    if settings.adapter == "loha":
        return loha_delta(own, settings.loha_dim, settings.loha_alpha)
    return lokr_delta(own, settings.lokr_dim, settings.lokr_alpha)


def test_weight_delta_is_the_formula_and_merging_it_is_the_adapter(make_transformer, velocity, attach_random, settings):
    transformer, merged = make_transformer(), make_transformer()
    adapter = attach_random(transformer, settings)
    for name in adapter.module_names:
        layer = merged.get_submodule(name)
        delta = adapter.weight_delta(name)
        torch.testing.assert_close(delta, expected_delta(adapter, settings, name, layer.weight.detach()))
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
    for _, parameter in trainable_weights(module):
        parameter.data.normal_()
    x = torch.randn(2, 5, inputs, dtype=torch.float64, requires_grad=True)
    module.apply_to()
    ours = layer(x)
    tensors = {name: parameter.detach() for name, parameter in trainable_weights(module)}
    weight = layer.weight + lokr_delta(tensors, dim, 3)
    torch.testing.assert_close(ours, nn.functional.linear(x, weight, layer.bias))

    cotangent = torch.randn_like(ours)
    parameters = [x, *(parameter for _, parameter in trainable_weights(module))]
    by_us = torch.autograd.grad((ours * cotangent).sum(), parameters, allow_unused=True)
    rebuilt = nn.functional.linear(x, layer.weight + module.get_weight(module.shape), layer.bias)
    for one, other in zip(by_us, torch.autograd.grad((rebuilt * cotangent).sum(), parameters), strict=True):
        torch.testing.assert_close(one, other)


@hypothesis_settings(deadline=None, max_examples=30)
@given(sizes, sizes, st.integers(1, 9), st.floats(-2, 2).filter(bool), st.integers(0, 9))
def test_loha_on_activations_equals_the_rebuilt_weight(inputs, outputs, dim, strength, seed):
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs).double().requires_grad_(False)
    module = HadamardModule("name", layer, lora_dim=dim, alpha=3, bypass_mode=True).double()
    module.multiplier = strength
    for _, parameter in trainable_weights(module):
        parameter.data.normal_()
    x = torch.randn(2, 5, inputs, dtype=torch.float64, requires_grad=True)
    module.apply_to()
    ours = layer(x)
    tensors = dict(trainable_weights(module))
    weight = layer.weight + strength * loha_delta(tensors, dim, 3)
    rebuilt = nn.functional.linear(x, weight, layer.bias)
    torch.testing.assert_close(ours, rebuilt)
    cotangent = torch.randn_like(ours)
    parameters = [x, *tensors.values()]
    by_us = torch.autograd.grad((ours * cotangent).sum(), parameters)
    for one, other in zip(by_us, torch.autograd.grad((rebuilt * cotangent).sum(), parameters), strict=True):
        torch.testing.assert_close(one, other)


def test_rotations_keep_lengths_and_constrained_ones_stay_near(make_transformer, attach_random):
    """Small rotations are orthogonal; COFT in training holds the weights themselves within its bound."""
    names = ["layers.0.mlp.down_proj"]
    settings = AdapterSettings(adapter="oft", oft_block_size=8, oft_constrained=True, oft_eps=0.3)
    transformer = make_transformer(num_hidden_layers=1)
    adapter = attach_random(transformer, settings, modules=names)
    layer = transformer.layers[0].mlp.down_proj
    x = torch.randn(4, 144)
    evaluated = layer(x)
    adapter.train()
    torch.testing.assert_close(layer(x), evaluated)
    (weights,) = adapter.parameters()
    lengths = (2 * weights.detach().square().sum(1)).sqrt()  # of the skew matrices: each number stands there twice
    assert weights.shape == (18, 28) and lengths.max() <= 0.3 / 18**0.5 * (1 + 1e-5)
    turn = torch.eye(8) + layer.oft_R["default"].turn().detach()
    torch.testing.assert_close(turn @ turn.mT, torch.eye(8).expand(18, 8, 8), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 64), (64, 16), (64, 64)])
def test_the_difference_alone_is_lycoris_own(inputs, outputs):
    torch.manual_seed(0)
    module = KroneckerModule("name", nn.Linear(inputs, outputs), lora_dim=2, alpha=3, factor=4, bypass_mode=True)
    for _, parameter in trainable_weights(module):
        parameter.data.normal_()
    x = torch.randn(3, 7, inputs)
    own = super(KroneckerModule, module).bypass_forward_diff(x, scale=0.7)
    torch.testing.assert_close(module.bypass_forward_diff(x, scale=0.7), own)

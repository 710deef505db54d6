"""Adapters in place: what they wrap, leave alone, and give back."""

from __future__ import annotations

import pytest
import torch
from diffusers import AceStepTransformer1DModel
from torch import nn

from acestep.adapters import attach, attached_adapter
from acestep.adapters.targets import find_targets
from acestep.core.errors import UserError
from acestep.settings import AdapterSettings


def expected_names(attention: str, mlp: bool, layers: int) -> list[str]:
    names = []
    for layer in range(layers):
        for block in ("self", "cross"):
            if attention in (block, "both"):
                names += [f"layers.{layer}.{block}_attn.{linear}" for linear in ("to_q", "to_k", "to_v", "to_out.0")]
        if mlp:
            names += [f"layers.{layer}.mlp.{linear}_proj" for linear in ("gate", "up", "down")]
    return names


def trainable(transformer: nn.Module) -> set[int]:
    return {id(parameter) for parameter in transformer.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", ["lora", "lokr", "loha", "oft"])
@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("attention", ["both", "self", "cross"])
def test_wraps_exactly_the_chosen_modules(make_transformer, kind, attention, mlp):
    transformer = make_transformer(num_hidden_layers=3)
    linears = {name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    adapter = attach(transformer, AdapterSettings(adapter=kind, attention=attention, train_mlp=mlp, rank=2))
    wanted = expected_names(attention, mlp, 3)
    assert list(adapter.module_names) == wanted
    assert len(wanted) == 3 * ((8 if attention == "both" else 4) + (3 if mlp else 0))
    if kind in ("lora", "oft"):
        wrapped = {name for name, module in transformer.named_modules() if hasattr(module, "base_layer")}
    else:
        wrapped = {name for name in linears if "forward" in vars(transformer.get_submodule(name))}
    assert wrapped == set(wanted)
    modules = {".".join(name.split(".")[:-2]) for name in adapter.tensors() if name.endswith("lora_A.weight")}
    assert kind != "lora" or len(modules) == len(wanted)


@pytest.mark.parametrize("kind", ["lora", "lokr", "loha", "oft"])
def test_projections_and_layers_can_be_chosen(make_transformer, kind):
    settings = AdapterSettings(
        adapter=kind, rank=2, self_modules=("q", "o"), cross_modules=("v",), layers="0,2-3", train_mlp=True
    )
    adapter = attach(make_transformer(num_hidden_layers=5), settings)
    inside = [
        "self_attn.to_q",
        "self_attn.to_out.0",
        "cross_attn.to_v",
        *(f"mlp.{n}_proj" for n in ("gate", "up", "down")),
    ]
    assert list(adapter.module_names) == [f"layers.{layer}.{name}" for layer in (0, 2, 3) for name in inside]


def test_layers_and_ranks_of_modules_that_are_not_there_are_refused(make_transformer):
    with pytest.raises(UserError, match=r"names layer 7; this model has 2, counted from 0\. Choose from 0-1"):
        attach(make_transformer(), AdapterSettings(layers="0,5-7"))
    ranks = {"layers.0.mlp.up_proj": 3}
    with pytest.raises(UserError, match=r'"rank_pattern" names layers\.0\.mlp\.up_proj, which gets no adapter'):
        attach(make_transformer(), AdapterSettings(rank_pattern=ranks))
    adapter = attach(make_transformer(), AdapterSettings(rank=6, alpha=3, rank_pattern=ranks, train_mlp=True))
    assert adapter.tensors()["base_model.model.layers.0.mlp.up_proj.lora_A.weight"].shape[0] == 3
    assert adapter.spec.scale_of("layers.0.mlp.up_proj") == adapter.spec.scale_of("layers.1.mlp.up_proj") == 0.5


def test_block_sizes_that_do_not_divide_are_reported_once(make_transformer, recwarn, caplog):
    adapter = attach(make_transformer(), AdapterSettings(adapter="oft", oft_block_size=20))
    assert len(adapter.notes) == 1 and "does not divide" in adapter.notes[0] and not recwarn.list
    assert [record.getMessage() for record in caplog.records] == list(adapter.notes)


def test_a_model_without_a_wanted_module_is_refused_with_the_count(make_transformer):
    transformer = make_transformer()
    transformer.layers[1].self_attn.to_v = nn.Identity()
    with pytest.raises(UserError, match=r"needs 16 linear modules, this model has 15 .*layers.1.self_attn.to_v"):
        attach(transformer, AdapterSettings())


def test_a_new_adapter_changes_nothing_and_trains_alone(make_transformer, velocity, settings):
    transformer = make_transformer()
    before = velocity(transformer)
    weights = {name: value.clone() for name, value in transformer.state_dict().items()}
    adapter = attach(transformer, settings)
    # DoRA divides by row lengths it has just measured
    torch.testing.assert_close(velocity(transformer), before, rtol=0, atol=1e-6 if settings.dora else 0)
    own = {id(parameter) for parameter in adapter.parameters()}
    assert trainable(transformer) <= own
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in adapter.parameters())
    velocity(transformer).square().mean().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in adapter.parameters())
    adapter.detach_from_model()
    after = transformer.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], value) for name, value in weights.items())


def test_strength_scales_and_zero_is_the_base_exactly(make_transformer, velocity, attach_random, settings):
    transformer = make_transformer()
    with torch.no_grad():
        base = velocity(transformer)
        adapter = attach_random(transformer, settings)
        full = velocity(transformer)
        adapter.set_strength(0)
        assert torch.equal(velocity(transformer), base)
        outputs = []
        for strength in () if settings.adapter == "oft" else (-0.5, 0.5, 1.5, 3.0):
            adapter.set_strength(strength)
            outputs.append(velocity(transformer))
        adapter.set_strength(1)
        assert torch.equal(velocity(transformer), full)
    outputs += [base, full]
    distances = [(one - other).abs().max() for i, one in enumerate(outputs) for other in outputs[:i]]
    assert min(distances) > 1e-3
    assert all(parameter.requires_grad for parameter in adapter.parameters())
    for wrong in (float("nan"), *((0.5, -1.0) if settings.adapter == "oft" else ())):
        with pytest.raises(UserError, match="strength"):
            adapter.set_strength(wrong)


def test_half_strength_is_half_the_delta(make_transformer, velocity, attach_random):
    for kind in ("lora", "lokr", "loha"):
        transformer, plain = make_transformer(), make_transformer()
        adapter = attach_random(transformer, AdapterSettings(adapter=kind, rank=4, dropout=0, lokr_factor=4))
        adapter.set_strength(0.5)
        for name in adapter.module_names:
            plain.get_submodule(name).weight.data += 0.5 * adapter.weight_delta(name)
        torch.testing.assert_close(velocity(transformer), velocity(plain), rtol=0, atol=1e-5)


def test_attach_detach_attach(make_transformer, velocity, attach_random, settings):
    transformer = make_transformer()
    with torch.no_grad():
        base = velocity(transformer)
        first = attach_random(transformer, settings)
        with_adapter = velocity(transformer)
        assert not torch.equal(with_adapter, base)
        with pytest.raises(UserError, match="already carries a"):
            attach(transformer, settings)
        assert torch.equal(velocity(transformer), with_adapter)
        first.detach_from_model()
        assert attached_adapter(transformer) is None
        assert torch.equal(velocity(transformer), base)
        assert all(type(module).__module__.startswith(("torch", "diffusers")) for module in transformer.modules())
        assert not any("forward" in vars(module) for module in transformer.modules())
        second = attach_random(transformer, settings)
        torch.testing.assert_close(velocity(transformer), with_adapter, rtol=0, atol=0)
        first.detach_from_model()  # detached long ago: nothing to do
        assert attached_adapter(transformer) is second


def test_an_adapter_of_another_program_is_noticed(make_transformer):
    from peft import LoraConfig, inject_adapter_in_model

    transformer = inject_adapter_in_model(LoraConfig(target_modules=["to_q"]), make_transformer())
    with pytest.raises(UserError, match="already carries an adapter"):
        attach(transformer, AdapterSettings(adapter="lokr"))


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_dropout_follows_the_mode(make_transformer, velocity, attach_random, kind):
    transformer = make_transformer()
    settings = AdapterSettings(adapter=kind, rank=4, dropout=0.5, lokr_dropout=0.5)
    adapter = attach_random(transformer, settings)
    with torch.no_grad():
        assert torch.equal(velocity(transformer), velocity(transformer))
        for switch in (transformer.train, adapter.train):
            switch()
            assert not torch.equal(velocity(transformer), velocity(transformer))
            switch(False)
            assert torch.equal(velocity(transformer), velocity(transformer))


def test_dropout_keeps_the_mean(make_transformer, velocity, attach_random):
    transformer = make_transformer(num_hidden_layers=1)
    names = ["layers.0.mlp.down_proj"]
    adapter = attach_random(transformer, AdapterSettings(adapter="lokr", lokr_dropout=0.3), modules=names)
    layer = transformer.layers[0].mlp.down_proj
    x = torch.randn(4, 144)
    with torch.no_grad():
        whole = layer(x)
        adapter.train()
        torch.manual_seed(0)
        draws = torch.stack([layer(x) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), whole, rtol=0, atol=0.1 * whole.std().item())


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_nothing_is_printed(make_transformer, capfd, caplog, kind):
    attach(make_transformer(), AdapterSettings(adapter=kind, lokr_dim=100_000, lokr_dropout=0.1, dropout=0.1))
    printed = capfd.readouterr()
    assert "LyCORIS" not in printed.out + printed.err and "WARN" not in printed.out + printed.err
    notes = [record.getMessage() for record in caplog.records]
    assert len(notes) == (1 if kind == "lokr" else 0)


def test_a_dimension_without_effect_is_reported_once(make_transformer, caplog):
    adapter = attach(make_transformer(), AdapterSettings(adapter="lokr", lokr_dim=100_000))
    assert len(adapter.notes) == 1 and "16 of 16 modules" in adapter.notes[0]
    assert [record.getMessage() for record in caplog.records] == list(adapter.notes)
    assert attach(make_transformer(), AdapterSettings(adapter="lokr", lokr_dim=2, lokr_factor=4)).notes == ()


def test_half_precision_base_keeps_fp32_weights(make_transformer, velocity, attach_random, settings):
    transformer = make_transformer().to(torch.bfloat16)
    adapter = attach_random(transformer, settings)
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
    assert transformer.layers[0].self_attn.to_out[0].weight.dtype == torch.bfloat16 or settings.adapter in (
        "lora",
        "oft",
    )
    plain = velocity(transformer)
    assert plain.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        mixed = velocity(transformer)
    assert mixed.dtype == torch.bfloat16
    (plain.float().square().mean() + mixed.float().square().mean()).backward()
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in adapter.parameters()
    )

    exact_model = make_transformer()
    exact = attach_random(exact_model, settings)
    exact.load_tensors(adapter.tensors())
    layer, exact_layer = transformer.layers[1].cross_attn.to_v, exact_model.layers[1].cross_attn.to_v
    x = torch.randn(9, 64)
    with torch.no_grad():
        want = exact_layer(x)
        for got in (layer(x.bfloat16()), _under_autocast(layer, x), _under_autocast(layer, x.bfloat16())):
            assert (got.float() - want).norm() < 0.02 * want.norm()


def _under_autocast(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return layer(x)


@pytest.mark.parametrize("kind", ["lora", "lokr", "loha", "oft"])
def test_gradient_checkpointing_gives_the_same_gradients(make_transformer, velocity, attach_random, kind):
    gradients = []
    for checkpointing in (False, True):
        transformer = make_transformer().train()
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        adapter = attach_random(transformer, AdapterSettings(adapter=kind, rank=4, dropout=0.2, lokr_dropout=0.2))
        torch.manual_seed(5)
        velocity(transformer).square().mean().backward()
        gradients.append([parameter.grad for parameter in adapter.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("kind", ["lora", "lokr", "loha", "oft"])
def test_moving_the_model_keeps_the_adapter_in_place(make_transformer, velocity, attach_random, kind):
    transformer = make_transformer()
    adapter = attach_random(transformer, AdapterSettings(adapter=kind, rank=4, dropout=0))
    with torch.no_grad():
        there = velocity(transformer)
        transformer.to(torch.float64).to("cpu", torch.float32)
        assert torch.equal(velocity(transformer), there)
        adapter.set_strength(0)
        assert not torch.equal(velocity(transformer), there)


@pytest.mark.parametrize("kind", ["lora", "lokr", "loha", "oft"])
def test_a_block_compiles_into_one_graph(make_transformer: type[AceStepTransformer1DModel], attach_random, kind):
    transformer = make_transformer()
    attach_random(transformer, AdapterSettings(adapter=kind, rank=4, dropout=0, train_mlp=True))
    mlp = transformer.layers[0].mlp
    x = torch.randn(3, 64)
    compiled = torch.compile(mlp, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), mlp(x))


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_the_first_weights_follow_the_seed(make_transformer, kind):
    drawn = []
    for seed in (1, 1, 2):
        transformer = make_transformer()
        torch.manual_seed(seed)
        adapter = attach(transformer, AdapterSettings(adapter=kind, rank=4))
        drawn.append(torch.cat([parameter.detach().flatten() for parameter in adapter.parameters()]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("sizes", "options", "count"),
    [
        ({}, {}, 192),
        ({}, {"train_mlp": True}, 264),
        ({}, {"attention": "self"}, 96),
        ({"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 32, "num_attention_heads": 32}, {}, 256),
    ],
)
def test_published_sizes_have_the_published_number_of_modules(sizes, options, count):
    with torch.device("meta"):
        transformer = AceStepTransformer1DModel(**sizes)
    assert len(find_targets(transformer, AdapterSettings(**options))) == count


def test_lokr_of_the_2b_model_has_the_published_number_of_weights():
    """Dimension 64 and factor -1 store every factor whole: about 1.4 million weights with the MLP (24 layers)."""
    with torch.device("meta"):
        transformer = AceStepTransformer1DModel(num_hidden_layers=1)
    adapter = attach(transformer, AdapterSettings(adapter="lokr", lokr_factor=-1, train_mlp=True))
    assert 1.3e6 < 24 * sum(parameter.numel() for parameter in adapter.parameters()) < 1.5e6
    assert "11 of 11 modules" in adapter.notes[0]

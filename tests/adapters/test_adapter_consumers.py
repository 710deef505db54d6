"""Our files in plain PEFT and plain LyCORIS on a model with original names, and theirs in ours."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from lycoris import LycorisNetwork, create_lycoris_from_weights
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from acestep.adapters import TriggerTag, load_adapter, read_adapter_info, save_adapter
from acestep.model.names import module_to_original
from acestep.settings import AdapterSettings

KRONECKER = {"lokr", "lokr-self", "lokr-cross-mlp", "lokr-whole", "lokr-both-split"}


def peft_layers(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def lycoris_network(model: nn.Module, options: dict, preset: dict) -> LycorisNetwork:
    """A LyCORIS network on the model. Presets are kept on its class, which is left as it was."""
    before = {name: getattr(LycorisNetwork, name) for name in vars(LycorisNetwork) if name.isupper()}
    try:
        LycorisNetwork.apply_preset(preset)
        dim, alpha = options["linear_dim"], options["linear_alpha"]
        rest = {name: value for name, value in options.items() if not name.startswith("linear_")}
        network = LycorisNetwork(
            model,
            lora_dim=dim,
            conv_lora_dim=dim,
            alpha=alpha,
            conv_alpha=alpha,
            network_module="lokr",
            **rest,
        )
    finally:
        for name, value in before.items():
            setattr(LycorisNetwork, name, value)
    network.apply_to()
    return network


def test_saved_adapters_play_the_same_in_the_official_libraries(
    make_transformer, make_original, velocity, attach_random, settings, tmp_path
):
    transformer = make_transformer()
    adapter = attach_random(transformer, settings)
    folder = save_adapter(adapter, tmp_path / "adapter", TriggerTag("zork"))
    originals = {module_to_original(name) for name in adapter.module_names}
    other = make_original()
    with torch.no_grad():
        assert torch.equal(velocity(other), velocity(make_transformer()))
        if settings.adapter in ("lora", "oft"):
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=".*missing adapter keys.*")
                wrapped = PeftModel.from_pretrained(other, str(folder))
            assert {name.removeprefix("base_model.model.") for name in peft_layers(wrapped)} == originals
        else:
            network, _ = create_lycoris_from_weights(1.0, str(next(folder.glob("*.safetensors"))), other)
            network.apply_to()
            assert len(network.loras) == len(originals)
        torch.testing.assert_close(velocity(other), velocity(transformer), rtol=0, atol=1e-5)
        assert not torch.equal(velocity(make_transformer()), velocity(transformer))


def test_lycoris_rebuilt_from_our_configuration_loads_every_key(
    make_transformer, make_original, velocity, attach_random, settings, tmp_path
):
    if settings.adapter != "lokr":
        pytest.skip("PEFT's configuration is read by PEFT itself above")
    transformer = make_transformer()
    adapter = attach_random(transformer, settings)
    weights = save_adapter(adapter, tmp_path / "adapter") / "lokr_weights.safetensors"
    with safe_open(weights, "pt") as file:
        config = json.loads(file.metadata()["lokr_config"])
    assert config == config | {"use_scalar": False, "full_matrix": False, "bypass_mode": False, "rs_lora": False}
    ends = [name.replace(".", r"\.") for name in config["target_modules"]]
    original = make_original()
    options = {name: config[name] for name in ("linear_dim", "linear_alpha", "factor", "decompose_both", "use_tucker")}
    preset = {"enable_conv": False, "target_module": [], "target_name": [rf".*\.{end}" for end in ends]}
    network = lycoris_network(original, options, preset)
    report = network.load_state_dict(load_file(weights), strict=True)
    assert not report.missing_keys and not report.unexpected_keys
    with torch.no_grad():
        torch.testing.assert_close(velocity(original), velocity(transformer), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["self_attn.q_proj", "down_proj"], "use_rslora": True},
        {"target_modules": ["layers.1.cross_attn.k_proj", "layers.0.mlp.up_proj"], "use_dora": True},
        {"target_modules": r".*\.cross_attn\.[qk]_proj"},
        {
            "target_modules": ["q_proj", "o_proj", "gate_proj"],
            "rank_pattern": {"layers.0.self_attn.q_proj": 7, "gate_proj": 2},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 3, "cross_attn.o_proj": 40},
        },
    ],
)
def test_what_peft_writes_is_read(make_transformer, make_original, velocity, options, tmp_path):
    torch.manual_seed(4)
    peft_model = get_peft_model(make_original(), LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, **options))
    for name, parameter in peft_model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1.3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no hub configuration of this model
        peft_model.save_pretrained(tmp_path)
    with torch.no_grad():
        want = velocity(peft_model.base_model.model)
        transformer = make_transformer()
        adapter = load_adapter(tmp_path, transformer)
        torch.testing.assert_close(velocity(transformer), want, rtol=0, atol=1e-5)
        layers = {name.removeprefix("base_model.model.") for name in peft_layers(peft_model)}
        assert {module_to_original(name) for name in adapter.module_names} == layers
        # and what we write of it is the same adapter again
        again = make_transformer()
        load_adapter(save_adapter(adapter, tmp_path / "again"), again)
        assert torch.equal(velocity(again), velocity(transformer))
        in_peft = PeftModel.from_pretrained(make_original(), str(tmp_path / "again"))
        torch.testing.assert_close(velocity(in_peft.base_model.model), want, rtol=0, atol=1e-5)


def test_keys_with_the_live_modules_names_are_read(make_transformer, velocity, attach_random, tmp_path):
    transformer = make_transformer()
    adapter = attach_random(transformer, AdapterSettings(rank=4, dropout=0, dora=True))
    folder = save_adapter(adapter, tmp_path / "run" / "adapter")
    file = folder / "adapter_model.safetensors"
    named = {
        key.replace(".weight", ".default.weight").replace("vector", "vector.default.weight"): tensor
        for key, tensor in load_file(file).items()
    }
    save_file(named, file)
    other = make_transformer()
    load_adapter(tmp_path / "run", other)
    assert torch.equal(velocity(other), velocity(transformer))


def lycoris_file(original: nn.Module, folder: Path, options: dict, preset: dict, metadata: dict | None) -> None:
    """A LoKr as LyCORIS itself makes and stores it, with random weights."""
    torch.manual_seed(6)
    network = lycoris_network(original, options, preset)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.3)
    network.eval()
    network.save_weights(str(folder / "lokr_weights.safetensors"), torch.float32, metadata or {})


EVERY_ATTENTION = {"enable_conv": False, "target_module": [], "target_name": [r".*_attn\.[qkvo]_proj"]}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"decompose_both": True, "factor": 8, "linear_dim": 2},
        {"weight_decompose": True},
        {"full_matrix": True},
        {"rs_lora": True},
        {"unbalanced_factorization": True},
    ],
)
def test_what_lycoris_writes_is_read(make_transformer, make_original, velocity, extra, tmp_path):
    options = {"linear_dim": 3, "linear_alpha": 5, "factor": 4} | extra
    original = make_original()
    config = {key: value for key, value in options.items() if key != "weight_decompose"}
    config |= {
        "weight_decompose": "weight_decompose" in extra,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    }
    # Side-Step's and the official app's metadata
    metadata = {"algo": "lokr", "format": "lycoris", "lokr_config": json.dumps(config)}
    lycoris_file(original, tmp_path, options, EVERY_ATTENTION, metadata)
    transformer = make_transformer()
    with torch.no_grad():
        adapter = load_adapter(tmp_path / "lokr_weights.safetensors", transformer)
        assert len(adapter.module_names) == 16
        want = velocity(original)
        torch.testing.assert_close(velocity(transformer), want, rtol=0, atol=2e-5)
        assert (want - velocity(make_original())).abs().max() > 0.1
        again = make_transformer()
        load_adapter(save_adapter(adapter, tmp_path / "again"), again)
        assert torch.equal(velocity(again), velocity(transformer))
        if "weight_decompose" in extra:
            merged = make_transformer()
            for name in adapter.module_names:
                merged.get_submodule(name).weight.data += adapter.weight_delta(name)
            torch.testing.assert_close(velocity(merged), want, rtol=0, atol=2e-5)


def test_a_configuration_beside_the_file_is_enough(make_transformer, make_original, velocity, tmp_path):
    """The original trainer's folder: no lokr_config in the metadata, self-attention only without saying so."""
    original = make_original()
    preset = EVERY_ATTENTION | {"target_name": [r".*self_attn\.[qkvo]_proj"]}
    lycoris_file(original, tmp_path, {"linear_dim": 10000, "linear_alpha": 1, "factor": 8}, preset, None)
    config = {
        "adapter_type": "lokr",
        "algo": "lokr",
        "linear_dim": 10000,
        "linear_alpha": 1,
        "factor": 8,
        "decompose_both": False,
        "use_tucker": False,
        "dropout": 0.0,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "trigger_word": "zork",
        "tag_position": "append",
    }
    (tmp_path / "lokr_config.json").write_text(json.dumps(config))
    transformer = make_transformer()
    with torch.no_grad():
        load_adapter(tmp_path, transformer)
        torch.testing.assert_close(velocity(transformer), velocity(original), rtol=0, atol=1e-5)
    assert read_adapter_info(tmp_path).trigger == TriggerTag("zork", "append")


def test_a_file_that_wraps_every_layer_is_used_whole(make_transformer, make_original, velocity, tmp_path):
    """LyCORIS' default preset, which the official trainer leaves on, adapts every linear and convolution layer."""
    original = make_original()
    original.proj_in = nn.Sequential(nn.Identity(), original.proj_in_conv)
    del original.proj_in_conv
    options = {"linear_dim": 2, "linear_alpha": 2, "factor": 4}
    names = [r"layers\..*_proj", r"proj_in\.1", "condition_embedder", r"time_embed.*"]
    preset = EVERY_ATTENTION | {"enable_conv": True, "target_name": names}
    config = {**options, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    lycoris_file(original, tmp_path, options, preset, {"lokr_config": json.dumps(config)})
    original.proj_in_conv = original.proj_in[1]
    transformer = make_transformer()
    with torch.no_grad():
        adapter = load_adapter(tmp_path, transformer)
        assert {"proj_in_conv", "condition_embedder", "time_embed_r.time_proj"} < set(adapter.module_names)
        torch.testing.assert_close(velocity(transformer), velocity(original), rtol=0, atol=1e-5)

"""Adapter folders: what is written, that it comes back, and every wrong file refused with a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from acestep.adapters import (
    TriggerTag,
    attached_adapter,
    find_adapter,
    load_adapter,
    read_adapter_info,
    read_adapter_tensors,
    save_adapter,
    write_adapter_files,
)
from acestep.adapters.peft_format import lora_config
from acestep.adapters.specs import LoraSpec
from acestep.core.errors import UserError
from acestep.settings import AdapterSettings

LORA = AdapterSettings(rank=4, alpha=8, dropout=0.1)
LOKR = AdapterSettings(adapter="lokr", lokr_factor=4, lokr_dim=3, lokr_alpha=6, lokr_dropout=0.05)


def test_saved_and_loaded_is_the_same_adapter(make_transformer, velocity, attach_random, settings, tmp_path):
    transformer = make_transformer()
    adapter = attach_random(transformer, settings)
    folder = save_adapter(adapter, tmp_path / "adapter", TriggerTag("zörk ♪", "append"))
    other = make_transformer()
    loaded = load_adapter(folder, other)
    with torch.no_grad():
        assert torch.equal(velocity(other), velocity(transformer))
    assert loaded.module_names == adapter.module_names and loaded.kind == adapter.kind == settings.adapter
    assert loaded.spec == adapter.spec
    mine, theirs = adapter.tensors(), loaded.tensors()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    info = read_adapter_info(folder)
    assert info.trigger == TriggerTag("zörk ♪", "append") and info.kind == settings.adapter
    assert info.tensors == len(mine) and "zörk" in info.summary
    # saved again, it is the same files
    again = save_adapter(loaded, tmp_path / "again", TriggerTag("zörk ♪", "append"))
    for file in folder.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_loading_leaves_the_random_generator_alone(make_transformer, attach_random, settings, tmp_path):
    folder = save_adapter(attach_random(make_transformer(), settings), tmp_path / "adapter")
    transformer = make_transformer()
    torch.manual_seed(0)
    load_adapter(folder, transformer)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), drawn)


def test_lora_folder_has_the_published_layout(make_transformer, attach_random, tmp_path):
    adapter = attach_random(make_transformer(), LORA.changed(train_mlp=True))
    folder = save_adapter(adapter, tmp_path / "adapter", TriggerTag("zork", "replace"))
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((folder / "adapter_config.json").read_text()) == {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "bias": "none",
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
        "base_model_name_or_path": None,
        "trigger_word": "zork",
        "tag_position": "replace",
    }
    sizes = {"q": (96, 64), "k": (32, 64), "v": (32, 64), "o": (64, 96)}  # [out, in]
    expected = {}
    for layer in range(2):
        for block in ("self", "cross"):
            for letter, (outputs, inputs) in sizes.items():
                path = f"base_model.model.layers.{layer}.{block}_attn.{letter}_proj"
                expected |= {f"{path}.lora_A.weight": (4, inputs), f"{path}.lora_B.weight": (outputs, 4)}
        for name, (outputs, inputs) in {"gate": (144, 64), "up": (144, 64), "down": (64, 144)}.items():
            path = f"base_model.model.layers.{layer}.mlp.{name}_proj"
            expected |= {f"{path}.lora_A.weight": (4, inputs), f"{path}.lora_B.weight": (outputs, 4)}
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_lokr_folder_has_the_published_layout(make_transformer, attach_random, tmp_path):
    adapter = attach_random(make_transformer(), LOKR)
    folder = save_adapter(adapter, tmp_path / "adapter", TriggerTag("zork"))
    assert {file.name for file in folder.iterdir()} == {"lokr_config.json", "lokr_weights.safetensors"}
    shared = {
        "linear_dim": 3,
        "linear_alpha": 6,
        "factor": 4,
        "decompose_both": False,
        "use_tucker": False,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    }
    config = json.loads((folder / "lokr_config.json").read_text())
    own = {"adapter_type": "lokr", "algo": "lokr", "dropout": 0.05, "trigger_word": "zork", "tag_position": "prepend"}
    assert config == shared | own
    with safe_open(folder / "lokr_weights.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["algo"] == "lokr" and metadata["format"] == "lycoris"
    assert json.loads(metadata["lokr_config"]) == shared | {
        "use_scalar": False,
        "weight_decompose": False,
        "full_matrix": False,
        "bypass_mode": False,
        "rs_lora": False,
        "unbalanced_factorization": False,
        "attention_type": "both",
        "target_mlp": False,
    }
    # 64 = 4 · 16, 96 = 4 · 24, 32 = 4 · 8: w1 [4, 4]; w2 = [b, 3] [3, d] where 3 < max(b, d) / 2
    widths = {"q": (24, 16), "k": (8, 16), "v": (8, 16), "o": (16, 24)}
    expected: dict[str, tuple[int, ...]] = {}
    for layer in range(2):
        for block in ("self", "cross"):
            for letter, (out_width, in_width) in widths.items():
                path = f"lycoris_layers_{layer}_{block}_attn_{letter}_proj"
                expected |= {f"{path}.alpha": (), f"{path}.lokr_w1": (4, 4)}
                expected |= {f"{path}.lokr_w2_a": (out_width, 3), f"{path}.lokr_w2_b": (3, in_width)}
    tensors = load_file(folder / "lokr_weights.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"attention": "self"}, [f"self_attn.{letter}_proj" for letter in "qkvo"]),
        (
            {"attention": "cross", "train_mlp": True},
            ["gate_proj", "up_proj", "down_proj", *(f"cross_attn.{letter}_proj" for letter in "qkvo")],
        ),
    ],
)
def test_part_of_the_attention_is_named_by_its_block(make_transformer, attach_random, tmp_path, options, names):
    for settings in (LORA, LOKR):
        adapter = attach_random(make_transformer(), settings.changed(**options))
        info = read_adapter_info(save_adapter(adapter, tmp_path / settings.adapter))
        assert list(info.target_modules) == names


@hypothesis_settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.sets(st.integers(0, 21), min_size=1))
def test_any_choice_of_modules_comes_back_exactly(make_transformer, attach_random, tmp_path_factory, chosen):
    linears = [
        name
        for name, module in make_transformer().named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("layers.")
    ]
    names = [linears[index] for index in sorted(chosen)]
    for settings in (LORA, LOKR):
        transformer = make_transformer()
        adapter = attach_random(transformer, settings, modules=names)
        folder = save_adapter(adapter, tmp_path_factory.mktemp("any") / "adapter")
        assert load_adapter(folder, make_transformer()).module_names == tuple(names)


def test_bf16_files_are_half_as_large_and_close(make_transformer, velocity, attach_random, settings, tmp_path):
    transformer = make_transformer()
    adapter = attach_random(transformer, settings)
    full = read_adapter_info(save_adapter(adapter, tmp_path / "full"))
    half = read_adapter_info(save_adapter(adapter, tmp_path / "half", dtype="bf16"))
    assert "BF16" in half.dtype and half.parameters == full.parameters
    assert full.parameters == sum(parameter.numel() for parameter in adapter.parameters())
    saved = full.size_bytes - half.size_bytes
    exact = sum(parameter.numel() for name, parameter in adapter.named_parameters() if "magnitude" in name)
    assert abs(saved - 2 * (full.parameters - exact)) < 0.02 * full.size_bytes + 16
    other = make_transformer()
    loaded = load_adapter(tmp_path / "half", other)
    for name, tensor in adapter.tensors().items():
        torch.testing.assert_close(loaded.tensors()[name], tensor, rtol=2**-8, atol=0)
        assert loaded.tensors()[name].dtype == torch.float32


def test_checkpoint_folders_keep_their_other_files(make_transformer, attach_random, tmp_path):
    (tmp_path / "state.json").write_text("{}")
    adapter = attach_random(make_transformer(), LORA)
    write_adapter_files(adapter, tmp_path)
    assert (tmp_path / "state.json").read_text() == "{}"
    assert read_adapter_tensors(tmp_path).keys() == adapter.tensors().keys()
    assert "trigger_word" not in json.loads((tmp_path / "adapter_config.json").read_text())
    with pytest.raises(UserError, match=r"other files \(state.json\)"):
        save_adapter(adapter, tmp_path)
    assert (tmp_path / "state.json").exists()


def test_saving_again_replaces_the_older_adapter(make_transformer, attach_random, tmp_path):
    save_adapter(attach_random(make_transformer(), LORA), tmp_path / "adapter")
    folder = save_adapter(attach_random(make_transformer(), LOKR), tmp_path / "adapter")
    assert read_adapter_info(folder).kind == "lokr"
    assert {file.name for file in folder.iterdir()} == {"lokr_config.json", "lokr_weights.safetensors"}
    with pytest.raises(UserError, match="is a file"):
        save_adapter(attach_random(make_transformer(), LOKR), folder / "lokr_config.json")


def test_an_adapter_of_nan_is_not_saved_over_a_good_one(make_transformer, attach_random, tmp_path):
    adapter = attach_random(make_transformer(), LORA)
    folder = save_adapter(adapter, tmp_path / "adapter")
    good = (folder / "adapter_model.safetensors").read_bytes()
    adapter.parameters()[3].data[1, 1] = float("nan")
    with pytest.raises(UserError, match=r"layers.0.self_attn.k_proj.lora_B.weight .*NaN"):
        save_adapter(adapter, tmp_path / "adapter")
    assert (folder / "adapter_model.safetensors").read_bytes() == good
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


def test_every_way_to_name_an_adapter(make_transformer, attach_random, tmp_path):
    lora = save_adapter(attach_random(make_transformer(), LORA), tmp_path / "run" / "adapter")
    lokr = save_adapter(attach_random(make_transformer(), LOKR), tmp_path / "lokr")
    for path in (tmp_path / "run", lora, lora / "adapter_config.json", lora / "adapter_model.safetensors"):
        assert find_adapter(path).kind == "lora"
    renamed = tmp_path / "my voice.safetensors"
    renamed.write_bytes((lokr / "lokr_weights.safetensors").read_bytes())
    for place in (lokr, lokr / "lokr_weights.safetensors", str(lokr / "lokr_config.json"), renamed):
        assert find_adapter(place).kind == "lokr"
    with pytest.raises(UserError, match=r"no adapter\. .*run/adapter"):
        find_adapter(tmp_path)


def test_describing_an_adapter_needs_no_torch(make_transformer, attach_random, tmp_path):
    for settings in (LORA, LOKR):
        save_adapter(attach_random(make_transformer(), settings), tmp_path / settings.adapter)
    script = (
        "import sys; from acestep.adapters import read_adapter_info;"
        f"print(*(read_adapter_info({str(tmp_path)!r} + '/' + kind).summary for kind in ('lora', 'lokr')), sep='\\n');"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("LoRA, rank 4, alpha 8") and lines[1].startswith("LoKr, factor 4, dimension 3")


# --- faults -------------------------------------------------------------------------------------------------------


def edit_tensors(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = next(folder.glob("*.safetensors"))
        with safe_open(file, "pt") as handle:
            metadata = handle.metadata()
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata)

    return apply


def edit_json(**values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = next(folder.glob("*.json"))
        config = {**json.loads(file.read_text()), **values}
        file.write_text(json.dumps({key: value for key, value in config.items() if value != "<removed>"}))

    return apply


def edit_lokr_config(text: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / "lokr_weights.safetensors"
        save_file(load_file(file), file, {"algo": "lokr", "format": "lycoris", "lokr_config": text})

    return apply


def first(tensors: dict, end: str = "") -> str:
    return next(name for name in sorted(tensors) if name.endswith(end))


def drop(tensors: dict) -> None:
    del tensors[first(tensors, ".alpha" if any(name.endswith(".alpha") for name in tensors) else "lora_A.weight")]


def drop_module(tensors: dict) -> None:
    gone = [name for name in tensors if "1_cross_attn_v_proj" in name or "1.cross_attn.v_proj" in name]
    for name in gone:
        del tensors[name]
    assert gone


def drop_kind(tensors: dict) -> None:
    gone = [name for name in tensors if "cross_attn" in name]
    for name in gone:
        del tensors[name]


def add(tensors: dict) -> None:
    tensors["base_model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 64)


def transpose(tensors: dict) -> None:
    name = first(tensors, "w2_a" if any("lokr" in name for name in tensors) else "lora_B.weight")
    tensors[name] = tensors[name].T.contiguous()


def poison(value: float) -> Callable[[dict], None]:
    def change(tensors: dict) -> None:
        tensors[first(tensors, ("w1" if any("lokr" in name for name in tensors) else "lora_A.weight"))][0, 0] = value

    return change


def make_integers(tensors: dict) -> None:
    tensors[first(tensors)] = tensors[first(tensors)].to(torch.int32)


def wrong_alpha(tensors: dict) -> None:
    tensors[first(tensors, ".alpha")].fill_(12.0)


def truncate(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def cut_header(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:40])


def empty(folder: Path) -> None:
    next(folder.glob("*.safetensors")).write_bytes(b"")


def no_tensors(folder: Path) -> None:
    edit_tensors(dict.clear)(folder)


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def broken_json(folder: Path) -> None:
    next(folder.glob("*.json")).write_text('{"peft_type": ')


def two_adapters(folder: Path) -> None:
    (folder / "lokr_weights.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())


def twice(folder: Path) -> None:
    def change(tensors: dict) -> None:
        name = first(tensors, "lora_A.weight")
        tensors[name.replace("lora_A.weight", "lora_A.default.weight")] = tensors[name].clone()

    edit_tensors(change)(folder)


BOTH_FAULTS = {
    "a tensor missing": (edit_tensors(drop), r"1 of \d+ tensors are missing \(first .*0"),
    "a module missing": (edit_tensors(drop_module), r"tensors are missing \(first .*1.cross_attn.v_proj"),
    "all cross-attention missing": (edit_tensors(drop_kind), r"tensors are missing \(first .*cross_attn"),
    "a tensor too many": (edit_tensors(add), r"1 are unknown here \(first .*layers.9.self_attn.q_proj"),
    "a tensor transposed": (edit_tensors(transpose), r"1 have another shape \(.*is \[\d+, \d+\], this model needs"),
    "NaN": (edit_tensors(poison(float("nan"))), "not numbers"),
    "infinity": (edit_tensors(poison(float("inf"))), "not numbers"),
    "integers": (edit_tensors(make_integers), "not floating-point"),
    "data cut off": (truncate, "damaged or not a safetensors file"),
    "header cut off": (cut_header, "damaged or not a safetensors file"),
    "empty file": (empty, "damaged or not a safetensors file"),
    "no tensors": (no_tensors, "holds no tensors"),
    "broken JSON": (broken_json, "not valid JSON"),
    "trigger word no text": (edit_json(trigger_word=3), '"trigger_word" must be a text'),
    "unknown position": (edit_json(tag_position="middle"), '"tag_position" must be prepend'),
}
LORA_FAULTS = {
    "no peft_type": (edit_json(peft_type="<removed>"), 'has no "peft_type"'),
    "another kind": (edit_json(peft_type="LOHA"), "is a LOHA adapter"),
    "rank as text": (edit_json(r="4"), r'"r": .*valid integer \(got \'4\'\)'),
    "rank of zero": (edit_json(r=0), '"r": .*greater than or equal to 1'),
    "rank missing": (edit_json(r="<removed>"), '"r": Field required'),
    "rank a truth value": (edit_json(r=True), '"r": .*integer'),
    "another rank": (edit_json(r=5), r"is \[4, 64\], this model needs \[5, 64\]"),
    "alpha as list": (edit_json(lora_alpha=[8]), '"lora_alpha": .*number'),
    "flag as text": (edit_json(use_dora="no"), '"use_dora": .*boolean'),
    "targets no list": (edit_json(target_modules={"q_proj": 1}), '"target_modules" must be a list'),
    "targets of numbers": (edit_json(target_modules=[1, 2]), '"target_modules" must be a list'),
    "targets elsewhere": (edit_json(target_modules=["to_q"]), "none of its modules"),
    "fewer targets": (edit_json(target_modules=["q_proj"]), "are unknown here"),
    "DoRA without lengths": (edit_json(use_dora=True), "lora_magnitude_vector"),
    "an expression as pattern": (edit_json(rank_pattern={"(a+)+$": 4}), "not a plain module name"),
    "whole layers": (edit_json(modules_to_save=["norm_out"]), 'option "modules_to_save"'),
    "trained biases": (edit_json(bias="all"), 'option "bias"'),
    "a changed base": (edit_json(init_lora_weights="pissa"), 'option "init_lora_weights"'),
    "pickled weights": (pickled, "pickle file"),
    "no weights": (no_weights, "weights file .* does not exist"),
    "no configuration": (no_config, "no adapter_config.json"),
    "two adapters": (two_adapters, "holds two adapters"),
    "a tensor twice": (twice, "twice"),
}
LOKR_FAULTS = {
    "another alpha": (edit_tensors(wrong_alpha), r"alpha is 12, but 6 follows"),
    "metadata no JSON": (edit_lokr_config("{linear"), "not valid JSON"),
    "metadata no object": (edit_lokr_config("[1]"), "must be a JSON object"),
    "dimension as text": (edit_lokr_config('{"linear_dim": "3", "linear_alpha": 6, "factor": 4}'), '"linear_dim"'),
    "factor of zero": (edit_lokr_config('{"linear_dim": 3, "linear_alpha": 6, "factor": 0}'), "at least 1"),
    "another factor": (edit_lokr_config('{"linear_dim": 3, "linear_alpha": 6, "factor": 8}'), "this model needs"),
    "targets no list": (
        edit_lokr_config('{"linear_dim": 3, "linear_alpha": 6, "target_modules": 3}'),
        "must be a list",
    ),
    "another algorithm": (
        lambda folder: save_file(
            load_file(folder / "lokr_weights.safetensors"), folder / "lokr_weights.safetensors", {"algo": "loha"}
        ),
        "is a loha adapter",
    ),
}
FAULTS = [
    *(("lora", name) for name in BOTH_FAULTS | LORA_FAULTS),
    *(("lokr", name) for name in BOTH_FAULTS | LOKR_FAULTS),
]


@pytest.mark.parametrize(("kind", "fault"), FAULTS, ids=lambda value: value.replace(" ", "-"))
def test_a_wrong_file_is_refused_with_a_sentence(make_transformer, velocity, attach_random, tmp_path, kind, fault):
    spoil, part = (BOTH_FAULTS | (LORA_FAULTS if kind == "lora" else LOKR_FAULTS))[fault]
    folder = save_adapter(attach_random(make_transformer(), LORA if kind == "lora" else LOKR), tmp_path / "adapter")
    spoil(folder)
    transformer = make_transformer()
    before = velocity(transformer)
    with pytest.raises(UserError, match=part) as caught:
        load_adapter(folder, transformer)
    assert str(folder) in str(caught.value) and caught.value.fix
    assert attached_adapter(transformer) is None
    assert torch.equal(velocity(transformer), before)


@pytest.mark.parametrize("kind", ["lora", "lokr"])
@pytest.mark.parametrize(
    ("sizes", "part"),
    [({"hidden_size": 96}, r"have another shape \("), ({"num_hidden_layers": 3}, r"missing \(first .*layers.2")],
)
def test_an_adapter_of_another_model_size_is_refused(make_transformer, attach_random, tmp_path, kind, sizes, part):
    settings = LORA if kind == "lora" else LOKR
    small = save_adapter(attach_random(make_transformer(), settings), tmp_path / "small")
    with pytest.raises(UserError, match=part.replace("layers.2", "layers[._]2")) as caught:
        load_adapter(small, make_transformer(**sizes))
    assert "another size" in str(caught.value)
    large = save_adapter(attach_random(make_transformer(**sizes), settings), tmp_path / "large")
    with pytest.raises(UserError, match=r"another shape|unknown here"):
        load_adapter(large, make_transformer())


def test_loading_onto_an_adapter_is_refused(make_transformer, attach_random, tmp_path):
    transformer = make_transformer()
    folder = save_adapter(attach_random(transformer, LORA), tmp_path / "adapter")
    with pytest.raises(UserError, match="already carries a LoRA adapter"):
        load_adapter(folder, transformer)


def test_a_refused_load_changes_no_weight(make_transformer, attach_random):
    adapter = attach_random(make_transformer(), LORA)
    before = {name: tensor.clone() for name, tensor in adapter.tensors().items()}
    tensors = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    tensors[list(tensors)[-1]][0, 0] = float("nan")
    with pytest.raises(UserError):
        adapter.load_tensors(tensors)
    assert all(torch.equal(adapter.tensors()[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("voice.pt", b"", "pickle"),
        ("voice.txt", b"", "not an adapter file"),
        ("adapter_model.bin", b"", "pickle"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, part):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=part):
        find_adapter(tmp_path / name)


def test_single_files_without_configuration_are_refused(tmp_path):
    save_file(
        {"diffusion_model.decoder.layers.0.mlp.up_proj.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "a.safetensors"
    )
    with pytest.raises(UserError, match="single file without a LoKr or LoHa configuration"):
        find_adapter(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "lokr_weights.safetensors")
    with pytest.raises(UserError, match='no "lokr_config"'):
        find_adapter(tmp_path)


def test_missing_places_and_other_kinds_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        find_adapter(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no adapter"):
        find_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "VERA"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"VERA adapter; this program reads .*OFT"):
        find_adapter(tmp_path)
    (tmp_path / "loha_weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="two adapters"):
        find_adapter(tmp_path)


@given(
    st.builds(
        LoraSpec,
        r=st.integers(1, 512),
        lora_alpha=st.floats(0.01, 4096, allow_nan=False),
        lora_dropout=st.floats(0, 0.99),
        use_rslora=st.booleans(),
        use_dora=st.booleans(),
        rank_pattern=st.dictionaries(st.from_regex(r"\A[a-z_]+(\.[0-9]+\.[a-z_]+)?\Z"), st.integers(1, 64), max_size=3),
    )
)
def test_a_lora_configuration_comes_back(spec):
    config = json.loads(json.dumps(lora_config(spec, ["q_proj"], TriggerTag())))
    assert LoraSpec.read(config, "file") == spec


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"peft_version": "0.17.1"}, "use_cayley_neumann"),
        ({"r": 4}, "one of r and oft_block_size"),
        ({"oft_block_size": 16}, "this model needs"),
        ({"eps": -1.0}, "eps"),
        ({"bias": "oft_only"}, "bias"),
    ],
)
def test_a_wrong_oft_folder_is_refused_with_a_sentence(make_transformer, attach_random, tmp_path, changes, part):
    settings = AdapterSettings(adapter="oft", oft_block_size=8)
    folder = save_adapter(attach_random(make_transformer(), settings), tmp_path / "adapter")
    assert read_adapter_info(folder).summary.startswith("OFT, block size 8, ")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=part):
        load_adapter(folder, make_transformer())


def test_loha_files_have_side_steps_layout(make_transformer, attach_random, tmp_path):
    settings = AdapterSettings(adapter="loha", loha_dim=3, loha_alpha=6)
    folder = save_adapter(attach_random(make_transformer(), settings), tmp_path / "adapter", TriggerTag("zork"))
    file = folder / "loha_weights.safetensors"
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    config = json.loads(metadata["loha_config"])
    assert (metadata["algo"], metadata["format"]) == ("loha", "lycoris")
    assert config.items() >= {"linear_dim": 3, "linear_alpha": 6, "factor": -1, "use_scalar": False}.items()
    stem = "lycoris_layers_0_self_attn_q_proj"
    own = {name.removeprefix(f"{stem}."): tuple(t.shape) for name, t in load_file(file).items() if stem in name}
    assert own == {
        "hada_w1_a": (96, 3), "hada_w1_b": (3, 64), "hada_w2_a": (96, 3), "hada_w2_b": (3, 64), "alpha": ()
    }  # fmt: skip
    assert read_adapter_info(file).summary.startswith("LoHa, dimension 3, alpha 6, ")
    # Side-Step's folder has the tensors and nothing beside them
    (folder / "loha_config.json").unlink()
    assert find_adapter(folder).kind == "loha"
    file.rename(tmp_path / "voice.safetensors")
    assert load_adapter(tmp_path / "voice.safetensors", make_transformer()).kind == "loha"


def test_alphas_and_ranks_by_module():
    spec = LoraSpec(
        r=4, lora_alpha=8, rank_pattern={"layers.1.mlp.up_proj": 2, "q_proj": 16}, alpha_pattern={"^layers.1.x": 3}
    )
    assert [spec.rank_of(name) for name in ("layers.1.mlp.up_proj", "layers.0.self_attn.q_proj", "aq_proj")] == [
        2,
        16,
        4,
    ]
    assert spec.alpha_of("layers.1.x") == 3 and spec.alpha_of("a.layers.1.x") == 8
    assert spec.scale_of("layers.1.mlp.up_proj") == 4

"""Every kind of adapter in every format: read back by the programs' own rules, and by the programs where they are."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AceStepPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from acestep.adapters import (
    Adapter,
    TriggerTag,
    attach,
    attached_adapter,
    load_adapter,
    read_adapter_info,
    save_adapter,
)
from acestep.adapters.attaching import attach_spec
from acestep.adapters.exports.checking import check_adapter, check_file, check_path
from acestep.adapters.exports.formats import DIFFUSERS_FILE, ExportOptions, export_adapter
from acestep.adapters.exports.opened import OpenAdapter
from acestep.adapters.specs import LokrSpec
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint
from acestep.model.config import DitConfig
from acestep.model.names import module_to_diffusers, module_to_original
from acestep.model.variants import VARIANTS
from acestep.settings import AdapterSettings

FP32 = ExportOptions(dtype="fp32")


def refused_by_diffusers(settings: AdapterSettings) -> bool:
    """DoRA, LoHa and OFT; and LoKr where PEFT would split a width otherwise than LyCORIS: 48 by 8 is (8, 6) and (6, 8).

    Without the MLP the small model's widths, 32 to 96, happen to be split by 8 as they are nearest to square.
    """
    return (
        settings.dora
        or settings.adapter in ("loha", "oft")
        or (settings.adapter == "lokr" and settings.lokr_factor == 8 and settings.train_mlp)
    )


@pytest.fixture
def checkpoint(make_transformer: Callable[..., nn.Module], tmp_path: Path) -> Checkpoint:
    """The small transformer's weights on disk in the original layout; nothing else of the model is needed."""
    folder = tmp_path / "model"
    folder.mkdir()
    state = {f"decoder.{module_to_original(name)}": value for name, value in make_transformer().state_dict().items()}
    save_file(state, folder / "model.safetensors")
    config = DitConfig.from_values({}, "test")
    return Checkpoint("small", folder, folder, folder, "original", config, VARIANTS["turbo"])


@pytest.fixture
def saved(make_transformer, attach_random, settings, tmp_path) -> Path:
    adapter = attach_random(make_transformer(), settings)
    return save_adapter(adapter, tmp_path / "adapter", TriggerTag("zörk", "append"))


@pytest.fixture
def attach_spec_random() -> Callable[..., Adapter]:
    """A LoKr as another trainer may have made it, with random weights."""

    def make(transformer: nn.Module, spec: LokrSpec, modules: list[str]) -> Adapter:
        torch.manual_seed(5)
        adapter = attach_spec(transformer, "lokr", spec, modules)
        for name, parameter in adapter.named_parameters():
            parameter.data += (0.05 if "dora" in name else 0.2) * torch.randn(parameter.shape)
        return adapter

    return make


def pipeline_around(transformer: nn.Module) -> AceStepPipeline:
    """diffusers' own pipeline with a transformer and nothing else."""
    return AceStepPipeline(None, None, None, transformer, None, None)


def wanted_output(folder: Path, make_transformer, velocity) -> torch.Tensor:
    transformer = make_transformer()
    load_adapter(folder, transformer)
    with torch.no_grad():
        return velocity(transformer)


def test_every_format_reads_back_as_the_adapter(saved, checkpoint, settings):
    for options in (FP32, ExportOptions()):
        opened = OpenAdapter(saved, checkpoint)
        checks, refused = check_adapter(opened, options, Job())
        assert all(check.good for check in checks), [check.lines for check in checks]
        assert all(check.used == check.keys and check.compared == len(opened.modules) for check in checks)
        own = {"lokr": {"lycoris"}, "loha": set()}.get(settings.adapter, {"peft"})
        expected = {"comfyui", "diffusers", *own} - ({"diffusers"} if refused_by_diffusers(settings) else set())
        assert set(refused) == {"comfyui", "diffusers", "peft", "lycoris"} - expected


def test_sizes_are_known_without_the_model(saved, checkpoint, settings, tmp_path):
    if settings.adapter == "oft":
        with pytest.raises(UserError, match="--model"):
            OpenAdapter(saved)
        return
    if settings.dora:
        pytest.skip("needs the model")
    alone, beside = OpenAdapter(saved), OpenAdapter(saved, checkpoint)
    assert alone.modules == beside.modules and alone.shapes == beside.shapes
    for module in alone.modules:
        assert torch.equal(alone.delta(module), beside.delta(module))
    for number, opened in enumerate((alone, beside)):
        export_adapter(opened, "comfyui", tmp_path / f"{number}.safetensors")
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


def test_diffusers_itself_plays_the_same(saved, settings, make_transformer, velocity, tmp_path, caplog):
    if refused_by_diffusers(settings):
        pytest.skip("refused")
    out = tmp_path / "diffusers"
    export_adapter(OpenAdapter(saved), "diffusers", out, FP32)
    transformer = make_transformer()
    with caplog.at_level(logging.WARNING), torch.no_grad():
        if settings.adapter == "lora":
            pipeline_around(transformer).load_lora_weights(str(out), weight_name=DIFFUSERS_FILE)
        else:
            transformer.load_lora_adapter(str(out), weight_name=DIFFUSERS_FILE)
        torch.testing.assert_close(
            velocity(transformer), wanted_output(saved, make_transformer, velocity), rtol=0, atol=2e-5
        )
        assert (velocity(transformer) - velocity(make_transformer())).abs().max() > 0.01
    assert not [record for record in caplog.records if "unexpected" in record.message or "missing" in record.message]


@pytest.mark.parametrize("modules", [["self_attn.v_proj", "cross_attn.o_proj"], ["mlp.down_proj"]])
def test_diffusers_plays_adapters_its_own_conversion_overlooks(
    make_transformer, attach_random, velocity, modules, tmp_path
):
    names = [module_to_diffusers(f"layers.{layer}.{name}") for layer in (0, 1) for name in modules]
    adapter = attach_random(make_transformer(), AdapterSettings(rank=4, alpha=8, dropout=0), modules=names)
    folder = save_adapter(adapter, tmp_path / "adapter")
    export_adapter(OpenAdapter(folder), "diffusers", tmp_path / "out", FP32)
    transformer = make_transformer()
    pipeline_around(transformer).load_lora_weights(str(tmp_path / "out"), weight_name=DIFFUSERS_FILE)
    with torch.no_grad():
        torch.testing.assert_close(
            velocity(transformer), wanted_output(folder, make_transformer, velocity), rtol=0, atol=2e-5
        )


PATTERNS = {"r": 4, "lora_alpha": 6, "rank_pattern": {"layers.0.self_attn.q_proj": 7, "o_proj": 2},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 3, "cross_attn.o_proj": 40}}  # fmt: skip


@pytest.mark.parametrize("rslora", [False, True])
def test_patterns_of_rank_and_alpha_reach_every_format(
    make_transformer, make_original, velocity, checkpoint, rslora, tmp_path
):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(4)
    targets = ["q_proj", "o_proj", "gate_proj"]
    config = LoraConfig(target_modules=targets, init_lora_weights=False, use_rslora=rslora, **PATTERNS)
    get_peft_model(make_original(), config).save_pretrained(tmp_path / "adapter")
    opened = OpenAdapter(tmp_path / "adapter", checkpoint)
    checks, refused = check_adapter(opened, FP32, Job())
    assert all(check.good for check in checks) and len(checks) == 3 and set(refused) == {"lycoris"}
    comfyui = next(check for check in checks if check.program == "ComfyUI")
    root = (lambda rank: rank**0.5) if rslora else float
    scales = {6 / root(4), 3 / root(7), 6 / root(2), 40 / root(2)}
    assert (comfyui.smallest_scale, comfyui.largest_scale) == pytest.approx((min(scales), max(scales)))
    export_adapter(opened, "diffusers", tmp_path / "out", FP32)
    transformer = make_transformer()
    pipeline_around(transformer).load_lora_weights(str(tmp_path / "out"), weight_name=DIFFUSERS_FILE)
    want = wanted_output(tmp_path / "adapter", make_transformer, velocity)
    with torch.no_grad():
        torch.testing.assert_close(velocity(transformer), want, rtol=0, atol=2e-5)


def test_names_and_scales_for_comfyui(make_transformer, attach_random, tmp_path):
    settings = AdapterSettings(rank=4, alpha=8, dropout=0, rslora=True)
    adapter = attach_random(make_transformer(), settings)
    folder = save_adapter(adapter, tmp_path / "adapter", TriggerTag("zork"))
    report = export_adapter(OpenAdapter(folder), "comfyui", tmp_path / "mine")
    assert report.path == tmp_path / "mine.safetensors" and report.new and report.modules == 16
    tensors = load_file(report.path)
    stem = "diffusion_model.decoder.layers.1.cross_attn.o_proj"
    assert tensors[f"{stem}.alpha"] == 8 * 4**0.5 and tensors[f"{stem}.alpha"].dtype == torch.float32
    assert tensors[f"{stem}.lora_down.weight"].dtype == torch.bfloat16
    assert set(tensors) == {
        f"diffusion_model.decoder.{module_to_original(name)}.{rest}"
        for name in adapter.module_names
        for rest in ("alpha", "lora_down.weight", "lora_up.weight")
    }
    with safe_open(report.path, "pt") as file:
        assert file.metadata()["trigger_word"] == "zork" and file.metadata()["adapter"] == "LoRA"


def test_a_plain_peft_file_would_play_at_another_strength_in_comfyui(make_transformer, attach_random, tmp_path):
    """Why the ComfyUI file exists: without alpha ComfyUI takes scale 1, whatever the adapter was trained with."""
    adapter = attach_random(make_transformer(), AdapterSettings(rank=4, alpha=8, dropout=0))
    folder = save_adapter(adapter, tmp_path / "adapter")
    (tmp_path / "raw.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    check = check_file(tmp_path / "raw.safetensors", OpenAdapter(folder))
    assert check.program == "ComfyUI" and check.largest_scale == 1.0 and not check.good
    assert check.relative_difference == pytest.approx(0.5, abs=1e-6)


def test_dora_for_comfyui_needs_the_model_or_is_refitted(
    make_transformer, attach_random, checkpoint, velocity, tmp_path
):
    dora = AdapterSettings(rank=4, alpha=8, dropout=0, dora=True)
    folder = save_adapter(attach_random(make_transformer(), dora), tmp_path / "adapter")
    with pytest.raises(UserError, match="--model"):
        export_adapter(OpenAdapter(folder), "comfyui", tmp_path / "no.safetensors")
    opened = OpenAdapter(folder, checkpoint)
    report = export_adapter(opened, "comfyui", tmp_path / "diff.safetensors", FP32)
    assert all(name.endswith(".diff") for name in load_file(report.path)) and report.notes
    with pytest.raises(UserError, match="--dora refit"):
        export_adapter(opened, "diffusers", tmp_path / "no")
    errors = []
    for rank in (4, 16, 64):
        options = ExportOptions(dtype="fp32", dora="refit", refit_rank=rank)
        report = export_adapter(opened, "comfyui", tmp_path / f"{rank}.safetensors", options)
        check = check_file(report.path, opened)
        assert check.good and not check.unused
        with safe_open(report.path, "pt") as file:
            assert check.relative_difference == pytest.approx(float(file.metadata()["refit_error"]), abs=2e-4)
        errors.append(check.relative_difference)
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-5  # a whole rank leaves nothing out
    export_adapter(opened, "diffusers", tmp_path / "out", ExportOptions(dtype="fp32", dora="refit", refit_rank=64))
    transformer = make_transformer()
    pipeline_around(transformer).load_lora_weights(str(tmp_path / "out"), weight_name=DIFFUSERS_FILE)
    want = wanted_output(folder, make_transformer, velocity)
    with torch.no_grad():
        torch.testing.assert_close(velocity(transformer), want, rtol=0, atol=1e-4)


def test_a_refit_of_an_adapter_without_rank_has_a_rank(make_transformer, attach_random, checkpoint, tmp_path):
    """Width 64 is the small model's smallest dimension, so the rank taken leaves nothing out of some modules."""
    oft = AdapterSettings(adapter="oft", oft_block_size=8, attention="self")
    folder = save_adapter(attach_random(make_transformer(), oft), tmp_path / "adapter")
    opened = OpenAdapter(folder, checkpoint)
    for name, out in (("comfyui", tmp_path / "one.safetensors"), ("diffusers", tmp_path / "two")):
        report = export_adapter(opened, name, out, ExportOptions(dtype="fp32", dora="refit"))
        check = check_file(report.path, opened)
        assert check.good and not check.left_out and check.relative_difference < 1e-5


def test_refit_is_the_best_of_its_rank():
    from acestep.adapters.exports.refit import refit

    torch.manual_seed(0)
    for size in (60, 700):  # exact decomposition, and by random projections
        matrix = torch.randn(size, 30) @ torch.randn(30, size) / 30 + 0.01 * torch.randn(size, size)
        down, up = refit(matrix, 20)
        values = torch.linalg.svdvals(matrix)
        best = values[20:].square().sum().sqrt()
        assert down.shape == (20, size) and up.shape == (size, 20)
        assert torch.linalg.norm(matrix - up @ down) <= 1.01 * best
        again = refit(matrix, 20)
        assert torch.equal(again[0], down) and torch.equal(again[1], up)


def test_the_official_folders_are_adapters_of_this_program(
    saved, settings, checkpoint, make_transformer, velocity, tmp_path
):
    if settings.adapter == "loha":
        for form in ("peft", "lycoris"):
            with pytest.raises(UserError, match="does not read LoHa"):
                export_adapter(OpenAdapter(saved), form, tmp_path / form)
        return
    to = "lycoris" if settings.adapter == "lokr" else "peft"
    report = export_adapter(OpenAdapter(saved, checkpoint), to, tmp_path / "official", FP32)
    info, own = read_adapter_info(report.path), read_adapter_info(saved)
    assert (info.spec, info.trigger, info.target_modules) == (own.spec, own.trigger, own.target_modules)
    wanted = wanted_output(saved, make_transformer, velocity)
    assert torch.equal(wanted_output(report.path, make_transformer, velocity), wanted)
    if to == "lycoris":
        file = export_adapter(OpenAdapter(saved), to, tmp_path / "one.safetensors", FP32).path
        with safe_open(file, "pt") as opened:
            assert json.loads(opened.metadata()["lokr_config"])["linear_dim"] == own.spec.linear_dim
        assert torch.equal(wanted_output(file, make_transformer, velocity), wanted)


def test_short_names_never_stand_for_more_than_the_file_holds(make_transformer, attach_random, tmp_path):
    names = ["layers.0.self_attn.to_q", "layers.0.cross_attn.to_q"]
    adapter = attach_random(make_transformer(), AdapterSettings(rank=4, alpha=8, dropout=0), modules=names)
    folder = save_adapter(adapter, tmp_path / "adapter")
    export_adapter(OpenAdapter(folder), "peft", tmp_path / "out")
    loaded = load_adapter(tmp_path / "out", make_transformer())
    assert list(loaded.module_names) == names


def test_nothing_is_overwritten_and_the_same_export_again_is_no_error(make_transformer, attach_random, tmp_path):
    adapter = attach_random(make_transformer(), AdapterSettings(rank=4, alpha=8, dropout=0))
    opened = OpenAdapter(save_adapter(adapter, tmp_path / "adapter"))
    targets = {"comfyui": tmp_path / "a.safetensors", "diffusers": tmp_path / "b", "peft": tmp_path / "c"}
    for name, target in targets.items():
        assert export_adapter(opened, name, target).new
        assert not export_adapter(opened, name, target).new
        with pytest.raises(UserError, match="nothing is overwritten"):
            export_adapter(opened, name, target, FP32)
        assert not export_adapter(opened, name, target).new  # still the first one
    with pytest.raises(UserError, match="a folder"):
        export_adapter(opened, "comfyui", targets["diffusers"])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        export_adapter(opened, "peft", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_damaged_exports_are_noticed(make_transformer, attach_random, tmp_path):
    adapter = attach_random(make_transformer(), AdapterSettings(rank=4, alpha=8, dropout=0))
    opened = OpenAdapter(save_adapter(adapter, tmp_path / "adapter"))
    path = export_adapter(opened, "comfyui", tmp_path / "a.safetensors", FP32).path
    tensors = load_file(path)
    stem = "diffusion_model.decoder.layers.0.self_attn.q_proj"

    def check(changed: dict[str, torch.Tensor]):
        save_file({name: tensor.contiguous() for name, tensor in changed.items()}, tmp_path / "damaged.safetensors")
        return check_file(tmp_path / "damaged.safetensors", opened)

    assert check(tensors).good
    without_alpha = {name: tensor for name, tensor in tensors.items() if name != f"{stem}.alpha"}
    assert not check(without_alpha).good
    half = {name: tensor for name, tensor in tensors.items() if name != f"{stem}.lora_up.weight"}
    assert check(half).left_out == ("layers.0.self_attn.q_proj",) and len(check(half).unused) == 2
    misspelt = {name.replace("decoder.layers.1", "decoder.blocks.1"): tensor for name, tensor in tensors.items()}
    assert len(check(misspelt).left_out) == 8 and not check(misspelt).good
    changed = {**tensors, f"{stem}.lora_up.weight": tensors[f"{stem}.lora_up.weight"] + 0.1}
    assert not check(changed).good


@pytest.mark.parametrize("change", [lambda t: t[:1], lambda t: t[..., :1], lambda t: t.reshape(-1), lambda t: t[None]])
def test_tensors_of_another_size_are_told_of(saved, settings, checkpoint, tmp_path, change):
    """As in the export of an adapter of another model, or in a file that somebody has cut."""
    opened = OpenAdapter(saved, checkpoint)
    for name in ("comfyui", "diffusers", "peft", "lycoris"):
        try:
            path = export_adapter(opened, name, tmp_path / name, FP32).path
        except UserError:
            continue  # no such form
        file = path if path.is_file() else next(path.glob("*.safetensors"))
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata()
        tensors = load_file(file)
        last = module_to_original(opened.modules[-1])
        names = (last, opened.modules[-1], last.replace(".", "_"))
        own = [key for key in tensors if any(name in key for name in names)]
        assert own
        for key in own:
            damaged = change(tensors[key]) if tensors[key].ndim else torch.ones(2)
            if damaged.shape == tensors[key].shape:
                continue
            save_file({**tensors, key: damaged.contiguous()}, file, metadata)
            assert not check_file(path, opened).good, key
            check_file(path, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": None}, "r"),
        ({"rank_pattern": {"(a+)+$": 2}}, "not a plain module name"),
        ({"target_modules": 5}, "must be a list of names"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"peft_type": "IA3"}, "is a IA3 adapter"),
    ],
)
def test_an_adapter_that_cannot_be_read_is_no_exported_file(make_transformer, attach_random, tmp_path, changes, words):
    adapter = attach_random(make_transformer(), AdapterSettings(rank=4, alpha=8, dropout=0))
    original = save_adapter(adapter, tmp_path / "original")
    folder = save_adapter(adapter, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    for beside in (None, original):
        with pytest.raises(UserError, match=words):
            check_path(folder, beside)
    with pytest.raises(UserError, match="does not exist"):
        check_path(tmp_path / "nowhere")


def test_a_file_that_does_something_is_no_export_of_an_adapter_that_does_nothing(make_transformer, tmp_path):
    opened = OpenAdapter(save_adapter(attach(make_transformer(), AdapterSettings(rank=4)), tmp_path / "adapter"))
    path = export_adapter(opened, "comfyui", tmp_path / "a.safetensors", FP32).path
    assert check_file(path, opened).good
    tensors = {name: tensor + 0.1 * name.endswith("lora_up.weight") for name, tensor in load_file(path).items()}
    save_file(tensors, tmp_path / "other.safetensors")
    assert not check_file(tmp_path / "other.safetensors", opened).good


def test_files_are_checked_without_anything_beside_them(saved, settings, tmp_path):
    """Names and scales need neither the model nor the adapter a file was made from."""
    if settings.dora or settings.adapter == "oft":
        pytest.skip("full differences, checked above")
    for name in ("comfyui",) if refused_by_diffusers(settings) else ("comfyui", "diffusers"):
        path = export_adapter(OpenAdapter(saved), name, tmp_path / f"{name}.safetensors").path
        check = check_file(path, None)
        assert check.good and check.modules == len(OpenAdapter(saved).modules) and check.relative_difference is None


@pytest.mark.parametrize(
    "extra",
    [
        {"rs_lora": True},
        {"rs_lora": True, "linear_dim": 1000},
        {"full_matrix": True},
        {"unbalanced_factorization": True, "factor": 2},
        {"weight_decompose": True},
    ],
)
def test_lokr_of_other_trainers_is_exported_as_it_plays(
    make_transformer, velocity, checkpoint, attach_spec_random, extra, tmp_path
):
    spec = LokrSpec(**{"linear_dim": 3, "linear_alpha": 5, "factor": 4, **extra})
    modules = [f"layers.{layer}.{block}_attn.{leaf}" for layer in (0, 1) for block in ("self", "cross")
               for leaf in ("to_q", "to_out.0")]  # fmt: skip
    transformer = make_transformer()
    folder = save_adapter(attach_spec_random(transformer, spec, modules), tmp_path / "adapter")
    opened = OpenAdapter(folder, checkpoint)
    checks, _ = check_adapter(opened, FP32, Job())
    assert all(check.good for check in checks) and len(checks) >= 2, [check.lines for check in checks]
    assert all(check.compared for check in checks) != ("weight_decompose" in extra)
    comfyui = next(check for check in checks if check.program == "ComfyUI")
    assert comfyui.compared == len(modules)
    for strength in (1.0, 0.4):
        merged = make_transformer()
        attached_adapter(transformer).set_strength(strength)
        with torch.no_grad():
            for name in modules:
                merged.get_submodule(name).weight += opened.delta(name, strength)
            torch.testing.assert_close(velocity(merged), velocity(transformer), rtol=0, atol=2e-5)


def test_files_that_wrap_every_layer_are_exported_whole(make_transformer, attach_spec_random, checkpoint, tmp_path):
    """Some trainers adapt the first convolution and the embeddings of time as well."""
    modules = ["layers.0.self_attn.to_q", "proj_in_conv", "condition_embedder", "time_embed_r.time_proj"]
    spec = LokrSpec(linear_dim=1000, linear_alpha=1, factor=4)
    folder = save_adapter(attach_spec_random(make_transformer(num_hidden_layers=1), spec, modules), tmp_path / "a")
    opened = OpenAdapter(folder)
    assert set(opened.modules) == set(modules) and opened.shapes["proj_in_conv"] == (64, 192, 2)
    checks, refused = check_adapter(opened, FP32, Job())
    assert {check.program for check in checks} == {"ComfyUI", "ACE-Step app (LyCORIS)"}
    assert all(check.good and check.compared == 4 for check in checks), [check.lines for check in checks]
    assert "proj_in_conv is a convolution" in refused["diffusers"]

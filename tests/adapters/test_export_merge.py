"""Merged models: the same output as the attached adapter, from either layout, complete and never by chance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from acestep.adapters import load_adapter, save_adapter
from acestep.adapters.exports import merging
from acestep.adapters.exports.merging import merge_adapter
from acestep.adapters.exports.opened import OpenAdapter
from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint, resolve_checkpoint
from acestep.model.loading import load_condition_encoder, load_silence_latent, load_transformer
from acestep.settings import AdapterSettings


@pytest.fixture
def demo(demo_checkpoint: Path) -> Checkpoint:
    return resolve_checkpoint("demo", [demo_checkpoint])


@pytest.fixture
def saved(demo: Checkpoint, attach_random, settings: AdapterSettings, tmp_path: Path) -> Path:
    adapter = attach_random(load_transformer(demo, torch.float32, "cpu"), settings)
    return save_adapter(adapter, tmp_path / "adapter")


def output(transformer: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    width, condition = transformer.config.audio_acoustic_hidden_dim, transformer.config.encoder_hidden_size
    inputs = {
        "hidden_states": torch.randn(1, 20, width, generator=generator),
        "timestep": torch.tensor([0.6]),
        "timestep_r": torch.tensor([0.6]),
        "encoder_hidden_states": torch.randn(1, 7, condition, generator=generator),
        "context_latents": torch.randn(1, 20, 2 * width, generator=generator),
    }
    with torch.no_grad():
        return transformer(**inputs, return_dict=False)[0]


def attached_output(checkpoint: Checkpoint, adapter: Path, strength: float) -> torch.Tensor:
    transformer = load_transformer(checkpoint, torch.float32, "cpu")
    load_adapter(adapter, transformer).set_strength(strength)
    return output(transformer)


def in_fp32(demo: Checkpoint, folder: Path, shared: Path) -> Checkpoint:
    """The demo model with every tensor in fp32, whatever it was."""
    target = folder / "model"
    target.mkdir(parents=True)
    for file in demo.dit.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    tensors = {name: tensor.float() for name, tensor in load_file(demo.dit / "model.safetensors").items()}
    save_file(tensors, target / "model.safetensors")
    return resolve_checkpoint(target, [shared])


def test_merged_is_attached(saved, demo, demo_checkpoint, settings, tmp_path):
    strengths = (1.0, 0.5, -0.3)
    if settings.adapter == "oft":
        with pytest.raises(UserError, match="strength 1 or 0"):
            merge_adapter(saved, demo, tmp_path / "half", 0.5)
        strengths = (1.0,)
    base = in_fp32(demo, tmp_path, demo_checkpoint)
    plain = output(load_transformer(base, torch.float32, "cpu"))
    for strength in strengths:
        out = tmp_path / f"merged{strength}"
        report = merge_adapter(saved, base, out, strength)
        assert report.new and report.modules > 0 and report.rounding_share < 1e-4
        merged = resolve_checkpoint(out, [demo_checkpoint])
        want = attached_output(base, saved, strength)
        torch.testing.assert_close(output(load_transformer(merged, torch.float32, "cpu")), want, rtol=0, atol=2e-4)
        assert (want - plain).abs().max() > 0.005


LORA = AdapterSettings(rank=4, alpha=8, dropout=0)


@pytest.fixture
def lora(demo: Checkpoint, attach_random, tmp_path: Path) -> Path:
    return save_adapter(attach_random(load_transformer(demo, torch.float32, "cpu"), LORA), tmp_path / "lora")


def test_everything_but_the_adapted_weights_is_the_same(lora, demo, demo_checkpoint, tmp_path):
    out = tmp_path / "merged"
    report = merge_adapter(lora, demo, out)
    assert {file.name for file in out.iterdir()} == {
        "config.json",
        "merge.json",
        "model.safetensors",
        "silence_latent.pt",
    }
    before, after = load_file(demo.dit / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    opened = OpenAdapter(lora, demo)
    assert len(changed) == report.modules == len(opened.modules)
    assert all(name.startswith("decoder.layers.") and after[name].dtype == before[name].dtype for name in changed)
    merged = resolve_checkpoint(out, [demo_checkpoint])
    assert torch.equal(load_silence_latent(merged), load_silence_latent(demo))
    record = json.loads((out / "merge.json").read_text())
    assert record["strength"] == 1.0 and record["base"]["name"] == demo.name and record["adapter"]["kind"] == "lora"
    assert str(tmp_path) not in (out / "merge.json").read_text()


def test_what_rounding_costs_is_said(lora, demo, demo_checkpoint, tmp_path):
    base = in_fp32(demo, tmp_path, demo_checkpoint)
    tensors = load_file(base.dit / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, base.dit / "model.safetensors")
    report = merge_adapter(lora, base, tmp_path / "merged")
    opened = OpenAdapter(lora, base)
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    lost = added = 0.0
    for module in opened.modules:
        name = next(n for n in stored if n.endswith(f"{merging.to_original('transformer', module)}.weight"))
        delta = opened.delta(module).double()
        lost += float((stored[name].double() - opened.base.weight(module).double() - delta).square().sum())
        added += float(delta.square().sum())
    assert report.rounding_share == pytest.approx((lost / added) ** 0.5, rel=1e-3) and report.rounding_share > 1e-4
    assert any("%" in note for note in report.notes)


def test_strength_zero_is_the_model_itself(lora, demo, tmp_path):
    merge_adapter(lora, demo, tmp_path / "merged", 0.0)
    assert all(
        torch.equal(one, other)
        for one, other in zip(
            load_file(demo.dit / "model.safetensors").values(),
            load_file(tmp_path / "merged" / "model.safetensors").values(),
            strict=True,
        )
    )


def test_large_models_are_spread_over_files(lora, demo, demo_checkpoint, tmp_path, monkeypatch):
    whole = merge_adapter(lora, demo, tmp_path / "whole")
    monkeypatch.setattr(merging, "_LARGEST_FILE_BYTES", whole.size_bytes // 3)
    report = merge_adapter(lora, demo, tmp_path / "parts")
    assert report.files >= 3 and not (tmp_path / "parts" / "model.safetensors").exists()
    one, other = (resolve_checkpoint(tmp_path / name, [demo_checkpoint]) for name in ("whole", "parts"))
    assert torch.equal(*(output(load_transformer(part, torch.float32, "cpu")) for part in (one, other)))


def test_a_diffusers_model_becomes_an_original_one(lora, demo, demo_checkpoint, tmp_path):
    from acestep.model.loading import load_audio_token_detokenizer, load_audio_tokenizer

    folder = tmp_path / "diffusers"
    loaders = {
        "transformer": load_transformer,
        "condition_encoder": load_condition_encoder,
        "audio_tokenizer": load_audio_tokenizer,
        "audio_token_detokenizer": load_audio_token_detokenizer,
    }
    for name, load in loaders.items():
        load(demo, torch.float32, "cpu").save_pretrained(folder / name)
    (folder / "model_index.json").write_text('{"_class_name": "AceStepPipeline"}')
    base = resolve_checkpoint(folder, needs=())
    assert base.layout == "diffusers"
    out = tmp_path / "merged"
    merge_adapter(lora, base, out)
    merged = resolve_checkpoint(out, [demo_checkpoint])
    assert merged.layout == "original"
    assert load_file(out / "model.safetensors").keys() == load_file(demo.dit / "model.safetensors").keys()
    want = attached_output(base, lora, 1.0)
    torch.testing.assert_close(output(load_transformer(merged, torch.float32, "cpu")), want, rtol=0, atol=1e-5)
    assert torch.equal(load_silence_latent(merged), load_silence_latent(base))
    load_condition_encoder(merged, torch.float32, "cpu")


def test_a_merge_is_never_written_over_anything(lora, demo, tmp_path):
    out = tmp_path / "merged"
    assert merge_adapter(lora, demo, out).new
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    assert not merge_adapter(lora, demo, out).new
    with pytest.raises(UserError, match="nothing is overwritten"):
        merge_adapter(lora, demo, out, 0.5)
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    other = tmp_path / "songs"
    other.mkdir()
    (other / "song.wav").write_bytes(b"mine")
    with pytest.raises(UserError, match="nothing is overwritten"):
        merge_adapter(lora, demo, other)
    with pytest.raises(UserError, match="strength"):
        merge_adapter(lora, demo, tmp_path / "new", float("nan"))


def test_a_stop_leaves_nothing_behind(lora, demo, tmp_path):
    job = Job()
    job.request_stop()
    with pytest.raises(Stopped):
        merge_adapter(lora, demo, tmp_path / "merged", job=job)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora"]


def test_an_adapter_of_another_size_is_refused(make_transformer, attach_random, demo, tmp_path):
    folder = save_adapter(attach_random(make_transformer(hidden_size=80), LORA), tmp_path / "adapter")
    with pytest.raises(UserError, match="does not fit"):
        merge_adapter(folder, demo, tmp_path / "merged")

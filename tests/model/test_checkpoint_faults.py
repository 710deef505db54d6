"""Broken checkpoints: each gets a sentence that names the file and what is wrong with it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_folders import DIT, change_json, change_tensors, copy_of, only_dit
from torch import Tensor

from acestep.core.errors import UserError
from acestep.model import loading
from acestep.model.checkpoints import resolve_checkpoint
from acestep.model.weights import read_header

Q = "decoder.layers.0.self_attn.q_proj.weight"
MLP = "decoder.layers.1.mlp.up_proj.weight"
LYRICS = "encoder.lyric_encoder.layers.0.self_attn.o_proj.weight"


@pytest.fixture
def models(demo_checkpoint: Path, tmp_path: Path) -> Path:
    return copy_of(demo_checkpoint, tmp_path / "checkpoints")


@pytest.fixture
def weights(models: Path) -> Path:
    return models / DIT / "model.safetensors"


def loading_fails(models: Path, load: Callable[..., Any] = loading.load_transformer) -> UserError:
    with pytest.raises(UserError) as caught:
        load(resolve_checkpoint(models, needs=()), torch.float32, "cpu")
    return caught.value


def test_missing_and_unexpected_tensors_are_listed_by_their_names_on_disk(models: Path, weights: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        tensors["decoder.layers.0.self_attn.query.weight"] = tensors.pop(Q)

    change_tensors(weights, rename)
    error = loading_fails(models)
    assert str(models / DIT) in error.message
    assert f"1 missing: {Q}" in error.message
    assert "1 unexpected: decoder.layers.0.self_attn.query.weight" in error.message


def test_many_faults_are_counted_and_all_listed_in_the_detail(models: Path, weights: Path) -> None:
    def drop_layer(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("decoder.layers.2.")]:
            del tensors[name]

    change_tensors(weights, drop_layer)
    error = loading_fails(models)
    assert "and" in error.message
    assert "more" in error.message
    assert error.detail.count("layers.2.") >= 15


def test_a_transposed_tensor_is_recognised(models: Path, weights: Path) -> None:
    def transpose(tensors: dict[str, Tensor]) -> None:
        tensors[MLP] = tensors[MLP].T.contiguous()

    change_tensors(weights, transpose)
    error = loading_fails(models)
    assert f"{MLP} is [64, 160] instead of [160, 64] (it looks transposed)" in error.message


def test_a_tensor_of_another_size_is_named_with_both_shapes(models: Path, weights: Path) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        tensors[LYRICS] = torch.zeros(48, 80)

    change_tensors(weights, widen)
    assert f"{LYRICS} is [48, 80] instead of [48, 64]" in loading_fails(models, loading.load_condition_encoder).message
    loading.load_transformer(only_dit(models / DIT), torch.float32, "cpu")  # the fault lies in another part


def test_a_tensor_of_no_part_is_unexpected(models: Path, weights: Path) -> None:
    change_tensors(weights, lambda tensors: tensors.update({"lora.unknown": torch.zeros(1)}))
    assert "unexpected: lora.unknown" in loading_fails(models).message


def test_a_missing_null_condition_is_noticed_by_both_readers(models: Path, weights: Path) -> None:
    change_tensors(weights, lambda tensors: tensors.pop("null_condition_emb"))
    assert "null_condition_emb" in loading_fails(models, loading.load_condition_encoder).message
    with pytest.raises(UserError, match="null_condition_emb"):
        loading.load_null_condition(only_dit(models / DIT))


def test_weights_of_another_size_of_model_are_refused(models: Path) -> None:
    change_json(models / DIT / "config.json", num_hidden_layers=6, layer_types=None)
    assert "missing" in loading_fails(models).message


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_recognised_by_its_size(models: Path, weights: Path, keep: float) -> None:
    data = weights.read_bytes()
    weights.write_bytes(data[: int(len(data) * keep)])
    error = loading_fails(models)
    assert "model.safetensors" in error.message
    assert "cut off" in error.message or "is empty" in error.message


def test_a_file_cut_within_its_header_is_recognised(models: Path, weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:100])
    assert "no safetensors file, or was cut off" in loading_fails(models).message


def test_a_web_page_saved_as_weights_is_recognised(models: Path, weights: Path) -> None:
    weights.write_text("<!DOCTYPE html><html><body>Please log in</body></html>")
    assert "is no safetensors file" in loading_fails(models).message


def test_quantised_weights_are_refused(models: Path, weights: Path) -> None:
    change_tensors(weights, lambda tensors: tensors.update({Q: tensors[Q].to(torch.float8_e4m3fn)}))
    error = loading_fails(models)
    assert Q in error.message
    assert "F8_E4M3" in error.message


def header_file(folder: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "header.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"[]",
        b"\xff\xfe",
        {"a": 1},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
        {"a": {"dtype": "Q4_K", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}},
    ],
    ids=str,
)
def test_damaged_headers_are_refused(tmp_path: Path, header: object) -> None:
    with pytest.raises(UserError, match=r"header\.safetensors"):
        read_header(header_file(tmp_path, header, b"\0" * 4))


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "any.safetensors"
    file.write_bytes(data)
    try:
        read_header(file)
    except UserError as error:
        assert "any.safetensors" in error.message


# The silence latent ---------------------------------------------------------------------------------


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


def silence_fails(models: Path) -> str:
    with pytest.raises(UserError) as caught:
        loading.load_silence_latent(only_dit(models / DIT))
    return str(caught.value)


def test_code_in_the_silence_latent_never_runs(models: Path, tmp_path: Path) -> None:
    torch.save(Trap(str(tmp_path / "ran")), models / DIT / "silence_latent.pt")
    assert "silence_latent.pt" in silence_fails(models)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"no tensor at all", b"\0" * 1000])
def test_a_damaged_silence_latent_is_named(models: Path, data: bytes) -> None:
    (models / DIT / "silence_latent.pt").write_bytes(data)
    assert "silence_latent.pt" in silence_fails(models)


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_silence_latent_with_damaged_bytes_loads_or_gets_a_sentence(
    demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged-silence"
    if not folder.exists():
        copy_of(demo_checkpoint, folder)
    file = folder / DIT / "silence_latent.pt"
    torch.save(torch.zeros(1, 8, 5), file)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        assert loading.load_silence_latent(only_dit(folder / DIT)).shape[2] == 8
    except UserError as error:
        assert "silence_latent.pt" in error.message


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ({"silence": torch.zeros(1, 8, 5)}, "dict"),
        (torch.zeros(8, 5), r"[8, 5]"),
        (torch.zeros(1, 5, 8), "looks transposed"),
        (torch.zeros(1, 7, 5), "[1, 7, 5] instead of [1, 8, frames]"),
        (torch.zeros(2, 8, 5), "[2, 8, 5]"),
        (torch.zeros(1, 8, 0), "[1, 8, 0]"),
        (torch.zeros(1, 8, 5, dtype=torch.long), "int64"),
        (torch.full((1, 8, 5), float("nan")), "no numbers"),
    ],
)
def test_something_else_as_silence_latent_is_described(models: Path, value: object, word: str) -> None:
    torch.save(value, models / DIT / "silence_latent.pt")
    assert word in silence_fails(models)


def test_a_missing_silence_latent_is_named_with_its_source(models: Path) -> None:
    checkpoint = only_dit(models / DIT)
    (models / DIT / "silence_latent.pt").unlink()
    with pytest.raises(UserError, match=r"has no silence_latent\.pt.*ACE-Step/Ace-Step1\.5"):
        loading.load_silence_latent(checkpoint)
    with pytest.raises(UserError, match=r"has no silence_latent\.pt"):
        only_dit(models / DIT)


# VAE, text encoder, tokenizer --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
        ({"downsampling_ratios": [2, 4]}, "differ in length"),
        ({"downsampling_ratios": "2,4,4,6,10"}, "downsampling_ratios"),
        ({"sampling_rate": None}, "sampling_rate"),
        ({"audio_channels": -2}, "audio_channels"),
        ({"decoder_input_channels": 64}, "needs 8"),
        ({"encoder_hidden_size": 128}, "needs 16"),
        ({"decoder_channels": 16}, "wrong shape"),
    ],
)
def test_a_wrong_vae_configuration_is_named(models: Path, change: dict[str, Any], word: str) -> None:
    change_json(models / "vae/config.json", **change)
    error = loading_fails(models, loading.load_vae)
    assert "vae" in error.message
    assert word in error.message


def test_a_truncated_vae_is_named(models: Path) -> None:
    file = models / "vae/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "diffusion_pytorch_model.safetensors is cut off" in loading_fails(models, loading.load_vae).message


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "bert"}, "bert"),
        ({"hidden_size": 1024}, "needs 48"),
        ({"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}, "missing"),
        ({"num_hidden_layers": "three"}, "cannot be built"),
        ({"intermediate_size": -4}, "cannot be built"),
        ({"num_attention_heads": 0}, "cannot be built"),
    ],
)
def test_a_wrong_text_encoder_configuration_is_named(models: Path, change: dict[str, Any], word: str) -> None:
    change_json(models / "Qwen3-Embedding-0.6B/config.json", **change)
    error = loading_fails(models, loading.load_text_encoder)
    assert "Qwen3-Embedding-0.6B" in error.message
    assert word in error.message


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[]"),
        ("tokenizer_config.json", None),
        ("tokenizer_config.json", "{nothing"),
    ],
)
def test_a_missing_or_damaged_tokenizer_is_named(models: Path, file: str, content: str | None) -> None:
    path = models / "Qwen3-Embedding-0.6B" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert "Qwen3-Embedding-0.6B" in loading_fails(models, loading.load_text_encoder).message


def test_a_folder_that_vanishes_is_named(models: Path) -> None:
    import shutil

    checkpoint = resolve_checkpoint(models)
    shutil.rmtree(models / "vae")
    with pytest.raises(UserError, match="VAE folder"):
        loading.load_vae(checkpoint, torch.float32, "cpu")


def test_a_file_that_shrinks_between_two_looks_is_named(models: Path, weights: Path) -> None:
    from acestep.model.streaming import read_tensors

    stored = {"x": read_header(weights)[-1]}
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="ends in the middle"):
        read_tensors(stored, torch.float32, "cpu", "test")


def test_a_file_without_permission_is_named(models: Path, weights: Path) -> None:
    import os

    if os.name != "posix" or os.geteuid() == 0:
        pytest.skip("permissions do not bind this user")
    weights.chmod(0)
    assert "cannot be read" in loading_fails(models).message

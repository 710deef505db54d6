"""Loading: the right values in the right place, only what was asked for, and little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_folders import DIT, copy_of, in_diffusers_layout, only_dit, shard
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from acestep.model import loading
from acestep.model.checkpoints import Checkpoint, resolve_checkpoint
from acestep.model.names import to_original
from acestep.model.streaming import StoredPart, fill, on_meta
from acestep.model.weights import read_weights

LOADERS = {
    "transformer": loading.load_transformer,
    "condition_encoder": loading.load_condition_encoder,
    "audio_tokenizer": loading.load_audio_tokenizer,
    "audio_token_detokenizer": loading.load_audio_token_detokenizer,
}
ALL_LOADERS = {**LOADERS, "vae": loading.load_vae}


@pytest.fixture(scope="module")
def checkpoint(demo_checkpoint: Path) -> Checkpoint:
    return resolve_checkpoint(demo_checkpoint)


@pytest.mark.parametrize("part", LOADERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_has_the_value_on_disk(checkpoint: Checkpoint, part: str, dtype: torch.dtype) -> None:
    module = LOADERS[part](checkpoint, dtype, "cpu")
    disk = load_file(checkpoint.dit / "model.safetensors")
    names = dict(module.named_parameters())
    assert names
    for name, parameter in names.items():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, disk[to_original(part, name)].to(dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ALL_LOADERS)
def test_modules_are_frozen_whole_and_in_eval_mode(checkpoint: Checkpoint, part: str) -> None:
    module = ALL_LOADERS[part](checkpoint, torch.float32, "cpu")
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not any(value.is_meta for value in [*module.parameters(), *module.buffers()])
    assert not any(child.training for child in module.modules())


def test_the_condition_encoder_is_never_in_fp16(checkpoint: Checkpoint) -> None:
    """It takes and gives fp16 beside models that are; its own layers, here loud ones, would give infinite numbers."""
    encoder, exact = (
        loading.load_condition_encoder(checkpoint, dtype, "cpu") for dtype in (torch.float16, torch.float32)
    )
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    for module in (encoder, exact):
        mlp = module.lyric_encoder.layers[0].mlp
        with torch.no_grad():
            mlp.up_proj.weight.mul_(1e5)
            mlp.down_proj.weight.mul_(1e-5)
    torch.manual_seed(0)
    text, lyrics = torch.randn(1, 5, 48).half(), torch.randn(1, 9, 48).half()
    silence = encoder.silence_latent[:, :750].half()
    ones = [torch.ones(states.shape[:2], dtype=torch.bool) for states in (text, lyrics)]
    order = torch.zeros(1, dtype=torch.long)

    def run(module: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
        condition, mask = module(
            text_hidden_states=text.to(dtype),
            text_attention_mask=ones[0],
            lyric_hidden_states=lyrics.to(dtype),
            lyric_attention_mask=ones[1],
            refer_audio_acoustic_hidden_states_packed=silence.to(dtype),
            refer_audio_order_mask=order,
        )
        assert condition.dtype == dtype and mask.all()
        return condition

    expected = run(exact, torch.float32)
    assert expected.isfinite().all()
    torch.testing.assert_close(run(encoder, torch.float16).float(), expected, rtol=1e-2, atol=1e-2)


def test_the_vae_is_never_in_fp16(checkpoint: Checkpoint) -> None:
    """fp16 does not hold its activations."""
    dtypes = {loading.load_vae(checkpoint, dtype, "cpu").dtype for dtype in (torch.float16, torch.bfloat16)}
    assert dtypes == {torch.float32, torch.bfloat16}


def test_the_vae_equals_the_librarys_own_loading(checkpoint: Checkpoint) -> None:
    from diffusers import AutoencoderOobleck

    ours = loading.load_vae(checkpoint, torch.float32, "cpu")
    theirs = AutoencoderOobleck.from_pretrained(checkpoint.vae, torch_dtype=torch.float32)
    assert dict(ours.config)["downsampling_ratios"] == dict(theirs.config)["downsampling_ratios"]
    audio = torch.randn(1, 2, 1920 * 3)
    with torch.no_grad():
        assert torch.equal(ours.encode(audio).latent_dist.mean, theirs.encode(audio).latent_dist.mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_text_encoder_equals_the_librarys_own_loading(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    from transformers import AutoModel, AutoTokenizer

    ours = loading.load_text_encoder(checkpoint, dtype, "cpu")
    theirs = AutoModel.from_pretrained(checkpoint.text_encoder, dtype=dtype)
    text = "# Caption\nfunky house, 120 bpm\n"
    ids = ours.tokenizer(text, return_tensors="pt").input_ids
    assert torch.equal(ids, AutoTokenizer.from_pretrained(checkpoint.text_encoder)(text, return_tensors="pt").input_ids)
    with torch.no_grad():
        assert torch.equal(ours.model(ids).last_hidden_state, theirs(ids).last_hidden_state)


def test_a_text_encoder_saved_with_its_head_loads_too(demo_checkpoint: Path, tmp_path: Path) -> None:
    from model_folders import change_tensors

    models = copy_of(demo_checkpoint, tmp_path / "models")

    def add_head(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[f"model.{name}"] = tensors.pop(name)
        tensors["lm_head.weight"] = torch.zeros(3, 3)

    change_tensors(models / "Qwen3-Embedding-0.6B/model.safetensors", add_head)
    one = loading.load_text_encoder(resolve_checkpoint(demo_checkpoint), torch.float32, "cpu").model
    other = loading.load_text_encoder(resolve_checkpoint(models), torch.float32, "cpu").model
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_quantizers_tables_are_those_of_a_fresh_one(checkpoint: Checkpoint) -> None:
    from diffusers.pipelines.ace_step import AceStepAudioTokenizer

    ours = loading.load_audio_tokenizer(checkpoint, torch.bfloat16, "cpu")
    fresh = AceStepAudioTokenizer(**checkpoint.config.tokenizer_kwargs())
    tables = dict(fresh.named_buffers())
    assert tables
    for name, table in ours.named_buffers():
        assert torch.equal(table, tables[name])
        assert table.dtype == tables[name].dtype


def test_loading_leaves_the_random_state_alone(checkpoint: Checkpoint) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    for load in ALL_LOADERS.values():
        load(checkpoint, torch.float32, "cpu")
    loading.load_text_encoder(checkpoint, torch.float32, "cpu")
    assert torch.equal(torch.rand(3), expected)


def test_silence_and_null_condition_alone(checkpoint: Checkpoint) -> None:
    silence = loading.load_silence_latent(checkpoint)
    stored = torch.load(checkpoint.dit / "silence_latent.pt", weights_only=True)
    assert torch.equal(silence, stored.transpose(1, 2).float())
    assert silence.is_contiguous()
    null = loading.load_null_condition(checkpoint)
    assert null.shape == (1, 1, checkpoint.config.condition_width)
    encoder = loading.load_condition_encoder(checkpoint, torch.float32, "cpu")
    assert torch.equal(encoder.silence_latent, silence)
    assert torch.equal(encoder.null_condition_emb, null)


def test_shards_load_like_one_file(demo_checkpoint: Path, tmp_path: Path) -> None:
    models = copy_of(demo_checkpoint, tmp_path / "models")
    shard(models / DIT, 4)
    for load in LOADERS.values():
        whole = load(resolve_checkpoint(demo_checkpoint), torch.float32, "cpu").state_dict()
        sharded = load(resolve_checkpoint(models), torch.float32, "cpu").state_dict()
        assert whole.keys() == sharded.keys()
        assert all(torch.equal(value, sharded[name]) for name, value in whole.items())


def test_the_diffusers_layout_loads_like_the_original(demo_checkpoint: Path, tmp_path: Path) -> None:
    original = resolve_checkpoint(demo_checkpoint)
    other = resolve_checkpoint(in_diffusers_layout(demo_checkpoint, tmp_path / "pipeline"))
    for load in ALL_LOADERS.values():
        one, two = (load(place, torch.bfloat16, "cpu").state_dict() for place in (original, other))
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert torch.equal(loading.load_null_condition(original), loading.load_null_condition(other))
    # The diffusers layout keeps the silence latent in the weights' precision.
    rounded = loading.load_silence_latent(original).bfloat16().float()
    assert torch.equal(rounded, loading.load_silence_latent(other))


@pytest.mark.skipif(sys.platform != "linux", reason="counts reads as Linux reports them")
def test_only_the_part_asked_for_is_read(tmp_path: Path, demo_checkpoint: Path) -> None:
    """A large tensor of another part costs nothing: bytes read stay near the part's own."""
    from model_folders import change_tensors

    models = copy_of(demo_checkpoint, tmp_path / "models")
    extra = 64 << 20

    def add_large(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.large"] = torch.zeros(extra, dtype=torch.uint8).view(torch.bfloat16)

    change_tensors(models / DIT / "model.safetensors", add_large)
    checkpoint = only_dit(models / DIT)
    loading.load_transformer(checkpoint, torch.float32, "cpu")  # once before, so that imports read nothing below
    before = read_bytes()
    loading.load_transformer(checkpoint, torch.float32, "cpu")
    loading.load_null_condition(checkpoint)
    assert read_bytes() - before < extra // 2


def read_bytes() -> int:
    """Bytes this process has asked the system for so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_python_files_in_the_folders_never_run(demo_checkpoint: Path, tmp_path: Path) -> None:
    from model_folders import change_json

    models = copy_of(demo_checkpoint, tmp_path / "models")
    trap = tmp_path / "ran"
    code = f"open({str(trap)!r}, 'w').write('ran')\n"
    for folder in (models / DIT, models / "Qwen3-Embedding-0.6B", models / "vae"):
        for name in ("modeling_trap.py", "configuration_trap.py", "tokenization_trap.py", "__init__.py"):
            (folder / name).write_text(code)
    auto_map = {"AutoModel": "modeling_trap.Trap", "AutoConfig": "configuration_trap.Trap"}
    change_json(models / DIT / "config.json", auto_map=auto_map)
    change_json(models / "Qwen3-Embedding-0.6B/config.json", auto_map=auto_map)
    change_json(
        models / "Qwen3-Embedding-0.6B/tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_trap.Trap", None]},
    )
    checkpoint = resolve_checkpoint(models)
    for load in (*ALL_LOADERS.values(), loading.load_text_encoder):
        load(checkpoint, torch.float32, "cpu")
    assert not trap.exists()


MEASURE = """
import sys
import torch
from pathlib import Path
from acestep.model.streaming import StoredPart, fill, on_meta
from acestep.model.weights import read_weights

def peak_bytes():
    # unlike ru_maxrss this starts anew with each program
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

folder = Path(sys.argv[1])
module = on_meta(lambda: torch.nn.Sequential(*(torch.nn.Linear(2048, 2048, bias=False) for _ in range(16))))
before = peak_bytes()
fill(module, StoredPart(read_weights(folder, "model"), "test", folder), torch.bfloat16, "cpu")
print(peak_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux reports it")
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_peak_memory_is_that_of_the_model_and_a_small_buffer(tmp_path: Path, stored: torch.dtype) -> None:
    from safetensors.torch import save_file

    save_file({f"{i}.weight": torch.zeros(2048, 2048, dtype=stored) for i in range(16)}, tmp_path / "model.safetensors")
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    model_bytes = 16 * 2048 * 2048 * 2
    assert model_bytes < int(done.stdout) < 1.05 * model_bytes + 24_000_000


def test_a_transformer_of_xl_kind_in_fp32_shards(tmp_path: Path, demo_checkpoint: Path) -> None:
    models = copy_of(demo_checkpoint, tmp_path / "models")
    from model_folders import change_tensors

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name, value in tensors.items():
            tensors[name] = value.float() + 1e-6 * torch.randn(value.shape)

    change_tensors(models / DIT / "model.safetensors", widen)
    shard(models / DIT, 3)
    loaded = loading.load_transformer(only_dit(models / DIT), torch.bfloat16, "cpu")
    stored = read_weights(models / DIT, "model")["decoder.layers.0.self_attn.q_proj.weight"]
    assert stored.dtype == "F32"
    with safe_open(stored.file, "pt") as handle:
        expected = handle.get_tensor(stored.name).bfloat16()
    assert torch.equal(loaded.layers[0].self_attn.to_q.weight, expected)


def test_a_module_with_a_value_nobody_stores_is_a_bug(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))
            self.register_buffer("table", torch.ones(2), persistent=False)

    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="table"):
        fill(on_meta(Table), StoredPart(read_weights(tmp_path, "model"), "test", tmp_path), torch.float32, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_onto_a_gpu_gives_the_same_values(checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    for load in ALL_LOADERS.values():
        here, there = load(checkpoint, dtype, "cpu"), load(checkpoint, dtype, "cuda")
        values = dict(there.named_parameters())
        assert all(value.is_cuda for value in values.values())
        assert all(torch.equal(value, values[name].cpu()) for name, value in here.named_parameters())

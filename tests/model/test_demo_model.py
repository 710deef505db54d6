"""The model that comes with the program: copied whole, and handled right by everything that handles a model.

These checks are made in more kinds on the untrained model, which is quicker; here they show that nothing depends on
its sizes. Only the last two need weights that have learnt something.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from model_folders import in_diffusers_layout
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from acestep.adapters import attach, load_adapter, save_adapter
from acestep.adapters.exports.checking import check_adapter
from acestep.adapters.exports.formats import ExportOptions
from acestep.adapters.exports.merging import merge_adapter
from acestep.adapters.exports.opened import OpenAdapter
from acestep.audio.format import SAMPLE_RATE
from acestep.audio.synth import draw_piece, render_piece
from acestep.audio.write import write_audio
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import write_json
from acestep.dataset.demo import TRIGGER_WORD, write_demo_songs
from acestep.dataset.scan import scan_folder
from acestep.model import demo, loading
from acestep.model.checkpoints import Checkpoint, resolve_checkpoint
from acestep.model.condition import join_condition
from acestep.model.demo import write_demo_checkpoint
from acestep.model.names import to_original
from acestep.model.untrained_dit import build_transformer
from acestep.preprocess.run import preprocess
from acestep.preprocess.store import TensorStore
from acestep.settings import AdapterSettings, DatasetSettings, PreprocessSettings, TrainSettings
from acestep.settings.presets import preset_values
from acestep.training.data import Flow, load_data
from acestep.training.forward import FlowModel
from acestep.training.train import train
from acestep.training.validation import Validation

FP32, CPU = torch.float32, torch.device("cpu")
MOST_BYTES = 24_000_000
SONG_S = 4.0  # of each song; encoding is what takes time
PARTS = {
    "transformer": loading.load_transformer,
    "condition_encoder": loading.load_condition_encoder,
    "audio_tokenizer": loading.load_audio_tokenizer,
    "audio_token_detokenizer": loading.load_audio_token_detokenizer,
}
ADAPTERS = {
    "lora": AdapterSettings(rank=4, alpha=8, dropout=0),
    "dora": AdapterSettings(rank=4, alpha=8, dropout=0, dora=True, train_mlp=True),
    "lokr": AdapterSettings(adapter="lokr", lokr_factor=4, lokr_dim=3, lokr_alpha=6),
    "oft": AdapterSettings(adapter="oft", oft_block_size=8),
}
EXPORTS = {
    "lora": {"comfyui", "diffusers", "peft"},
    "dora": {"comfyui", "peft"},
    "lokr": {"comfyui", "diffusers", "lycoris"},
    "oft": {"comfyui", "peft"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo_checkpoint(tmp_path_factory.mktemp("shipped") / "checkpoints")


@pytest.fixture(scope="module")
def checkpoint(models: Path) -> Checkpoint:
    return resolve_checkpoint(models)


@pytest.fixture(scope="module")
def store(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> TensorStore:
    """The beginnings of the demo's songs as tensors."""
    folder = tmp_path_factory.mktemp("demo")
    dataset = scan_folder(write_demo_songs(folder / "songs"), DatasetSettings(trigger_word=TRIGGER_WORD))
    preprocess(dataset, checkpoint, folder / "tensors", PreprocessSettings(max_duration_s=SONG_S))
    return TensorStore.open(folder / "tensors")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def velocity(checkpoint: Checkpoint, adapter: Path | None = None) -> Tensor:
    """The output for fixed inputs, with an adapter from its folder or without."""
    transformer = loading.load_transformer(checkpoint, FP32, CPU)
    if adapter:
        load_adapter(adapter, transformer)
    return output(transformer)


def output(transformer: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    width, condition = transformer.config.audio_acoustic_hidden_dim, transformer.config.encoder_hidden_size
    x_t, text, context = (
        torch.randn(1, frames, channels, generator=generator)
        for frames, channels in ((21, width), (7, condition), (21, 2 * width))
    )
    t = torch.tensor([0.6])
    with torch.no_grad():
        return transformer(x_t, t, t, text, context, return_dict=False)[0]


def test_it_is_whole_small_and_the_only_model_there(models: Path, checkpoint: Checkpoint) -> None:
    copied, shipped = files_of(models), files_of(demo.SHIPPED)
    assert {name: copied[name] for name in shipped} == shipped and copied.keys() - shipped.keys() == {demo.MARKER}
    assert sum(len(data) for name, data in copied.items() if name.endswith(".safetensors")) <= MOST_BYTES
    assert checkpoint.dit == models / demo.DIT_FOLDER and (models / demo.LANGUAGE_MODEL_FOLDER).is_dir()
    assert "Apache-2.0" in (models / "README.md").read_text(encoding="utf-8")


def test_a_copy_is_kept_and_one_that_changed_is_put_right(tmp_path: Path) -> None:
    folder = write_demo_checkpoint(tmp_path / "model")
    whole, inode = files_of(folder), folder.stat().st_ino
    assert write_demo_checkpoint(folder) == folder and folder.stat().st_ino == inode
    (folder / "vae" / "config.json").write_text("{}")
    (folder / "README.md").unlink()
    assert files_of(write_demo_checkpoint(folder)) == whole


def test_an_older_demo_is_replaced_and_other_folders_are_refused(tmp_path: Path) -> None:
    older, mine = tmp_path / "older", tmp_path / "mine"
    older.mkdir()
    write_json(older / demo.MARKER, {"version": 1})
    (older / "rest of it").touch()
    write_demo_checkpoint(older)
    assert not (older / "rest of it").exists() and (older / demo.DIT_FOLDER).is_dir()
    mine.mkdir()
    (mine / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="was not made by the demo"):
        write_demo_checkpoint(mine)
    assert files_of(mine) == {"mine.txt": b"keep me"}


def test_an_installation_without_the_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SHIPPED", tmp_path / "nowhere")
    with pytest.raises(UserError, match="did not come with this installation"):
        write_demo_checkpoint(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_every_stored_tensor_has_its_place_and_value(checkpoint: Checkpoint) -> None:
    disk = load_file(checkpoint.dit / "model.safetensors")
    placed = set()
    for part, load in PARTS.items():
        for name, parameter in load(checkpoint, torch.bfloat16, CPU).named_parameters():
            original = to_original(part, name)  # type: ignore[arg-type]
            assert torch.equal(parameter, disk[original].bfloat16()), original
            placed.add(original)
    assert placed == disk.keys()


def test_the_diffusers_layout_loads_like_the_original(models: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = resolve_checkpoint(in_diffusers_layout(models, tmp_path / "pipeline"))
    for load in (*PARTS.values(), loading.load_vae):
        one, two = (load(place, torch.bfloat16, CPU).state_dict() for place in (checkpoint, other))
        assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
    rounded = loading.load_silence_latent(checkpoint).bfloat16().float()
    assert torch.equal(rounded, loading.load_silence_latent(other))


@torch.no_grad()
def test_prompts_and_conditions_are_those_of_the_pipeline(checkpoint: Checkpoint, store: TensorStore) -> None:
    from diffusers import AceStepPipeline

    song = next(song for song in store.songs if song.title.startswith("Clockwork Bird"))
    text, lyrics = object.__new__(AceStepPipeline)._format_prompt(
        prompt=f"{TRIGGER_WORD}, Lively tune with bell melody, bright and happy, steady beat",
        lyrics="[Instrumental]",
        vocal_language="unknown",
        audio_duration=SONG_S,
        bpm=126,
        keyscale="C major",
        timesignature="4",
    )
    assert (song.prompts[song.variants["caption.prepend"]], song.lyric_prompt) == (text, lyrics)
    reader = loading.load_text_encoder(checkpoint, FP32, CPU)
    encoder = loading.load_condition_encoder(checkpoint, FP32, CPU)
    lyric_ids, text_ids = (reader.tokenizer(words, return_tensors="pt").input_ids for words in (lyrics, text))
    condition, _ = encoder(
        text_hidden_states=reader.model(input_ids=text_ids).last_hidden_state,
        text_attention_mask=torch.ones(text_ids.shape, dtype=torch.bool),
        lyric_hidden_states=reader.model.get_input_embeddings()(lyric_ids),
        lyric_attention_mask=torch.ones(lyric_ids.shape, dtype=torch.bool),
        refer_audio_acoustic_hidden_states_packed=encoder.silence_latent[:, :750],
        refer_audio_order_mask=torch.zeros(1, dtype=torch.long),
    )
    tensors = store.load(song)
    ours = join_condition(tensors.head[None], tensors.texts["caption.prepend"][None])
    torch.testing.assert_close(ours, condition, rtol=0, atol=1e-5)


def in_fp32(checkpoint: Checkpoint, target: Path, models: Path) -> Checkpoint:
    """The model with every tensor in fp32, so that rounding hides nothing."""
    shutil.copytree(checkpoint.dit, target)
    tensors = load_file(target / "model.safetensors")
    save_file({name: tensor.float() for name, tensor in tensors.items()}, target / "model.safetensors")
    return resolve_checkpoint(target, [models])


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_saved_loaded_exported_and_merged(
    kind: str, checkpoint: Checkpoint, models: Path, tmp_path: Path
) -> None:
    transformer = loading.load_transformer(checkpoint, FP32, CPU)
    plain = output(transformer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        adapter = attach(transformer, ADAPTERS[kind])
        for parameter in adapter.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
    attached = output(transformer.eval())
    effect = float((attached - plain).abs().max())
    saved = save_adapter(adapter, tmp_path / "adapter")
    assert effect > 0 and torch.equal(velocity(checkpoint, saved), attached)

    checks, _ = check_adapter(OpenAdapter(saved, checkpoint), ExportOptions(dtype="fp32"), Job())
    assert all(check.good and check.used == check.keys for check in checks), [check.lines for check in checks]
    assert len(checks) == len(EXPORTS[kind])

    base = in_fp32(checkpoint, tmp_path / "base", models)
    merge_adapter(saved, base, tmp_path / "merged")
    merged = velocity(resolve_checkpoint(tmp_path / "merged", [models]))
    assert float((merged - attached).abs().max()) < 1e-3 * effect
    adapter.detach_from_model()
    assert torch.equal(output(transformer.eval()), plain), "without the adapter the model is itself"


def few_steps(steps: int, **changes: object) -> TrainSettings:
    """The demo's preset with fewer steps."""
    values = {**preset_values("demo"), "max_steps": steps, "validate_every": steps, "warmup_steps": 2}
    return TrainSettings.parse(values | {"save_every_steps": 0, "tensorboard": False} | changes, "test")


def stop_after(steps: int) -> Job:
    """A job that is asked to stop while the given step goes on."""

    def listen(event: str, what: object) -> None:
        if event == "progress" and getattr(what, "name", "") == "train" and what.done == steps:
            job.request_stop()

    job = Job(listen)
    return job


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    checkpoint: Checkpoint, store: TensorStore, tmp_path: Path
) -> None:
    settings = few_steps(4)
    whole = train(checkpoint, store, tmp_path / "whole", settings, Job())
    stopped = train(checkpoint, store, tmp_path / "parts", settings, stop_after(2))
    assert stopped.stopped and stopped.summary.step == 2
    resumed = train(checkpoint, store, tmp_path / "parts", settings, Job(), resume=tmp_path / "parts")
    assert resumed.summary.step == 4 and resumed.summary.best_validation == whole.summary.best_validation
    one, other = (load_file(tmp_path / name / "final" / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_it_knows_more_of_music_than_an_untrained_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Both on pieces that it was not trained on, of styles that it was. The untrained one is the best for noise."""
    (tmp_path / "songs").mkdir()
    for piece in (draw_piece(7_000_000 + number, duration_s=SONG_S) for number in range(3)):
        song = tmp_path / "songs" / f"{piece.seed}.wav"
        write_audio(song, render_piece(piece), SAMPLE_RATE)
        song.with_suffix(".caption.txt").write_text(piece.caption, encoding="utf-8")
    preprocess(scan_folder(tmp_path / "songs"), checkpoint, tmp_path / "tensors", PreprocessSettings())
    store = TensorStore.open(tmp_path / "tensors")
    settings, config = few_steps(1), checkpoint.config
    silence, null = loading.load_silence_latent(checkpoint), loading.load_null_condition(checkpoint)
    validation = Validation(
        load_data(store, settings).held_out, settings, Flow(config.timestep_mu, config.timestep_sigma)
    )
    trained = loading.load_transformer(checkpoint, FP32, CPU)
    untrained = build_transformer(config.transformer_kwargs(), seed=1)
    knows, guesses = (
        validation.run(FlowModel(transformer, silence, null, CPU)).loss for transformer in (trained, untrained)
    )
    assert knows < 0.4 * guesses


def test_training_on_the_demos_songs_lowers_the_loss_of_those_held_out(
    checkpoint: Checkpoint, store: TensorStore, tmp_path: Path
) -> None:
    summary = train(checkpoint, store, tmp_path / "run", few_steps(24), Job()).summary
    assert summary.best_step == 24 and summary.best_validation < summary.first_validation

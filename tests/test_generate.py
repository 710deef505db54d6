"""Text to music: the conditions of training, seeds that repeat, defaults that fit, and errors that speak."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from acestep.adapters import attach, attached_adapter, save_adapter
from acestep.core.device import DeviceChoice
from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job
from acestep.generate import (
    Generated,
    Parts,
    Sampler,
    build_pipeline,
    draw_noise,
    generate,
    labels_of,
    load_parts,
    play_sweep,
    prompt_fields,
    sample_latents,
    sampler_for,
    timestep_schedule,
)
from acestep.model import condition as conditions
from acestep.model.checkpoints import resolve_checkpoint
from acestep.model.facts import LANGUAGES
from acestep.model.loading import load_null_condition
from acestep.model.prompt import lyric_prompt, text_prompt
from acestep.model.vae import decode_latents
from acestep.model.variants import VARIANTS
from acestep.settings import AdapterSettings
from acestep.settings.generate import GenerateSettings, SweepSettings

CPU = DeviceChoice("cpu", "fp32", "test")
SONG = GenerateSettings(
    caption="warm piano, brushed drums",
    lyrics="[Verse]\nla la la",
    language="en",
    bpm=92,
    keyscale="A minor",
    timesignature="3",
    duration_s=2.0,
    seed=5,
)


@pytest.fixture(scope="module")
def parts(demo_checkpoint) -> Parts:
    return load_parts(resolve_checkpoint(demo_checkpoint / "acestep-v15-demo"), CPU)


@pytest.fixture(scope="module")
def guided_parts(parts) -> Parts:
    """The same weights as a base model. Its configuration still says model_version "turbo", as any kind may."""
    return dataclasses.replace(parts, checkpoint=dataclasses.replace(parts.checkpoint, variant=VARIANTS["base"]))


@pytest.fixture
def seen(parts) -> Iterator[list[dict]]:
    """The inputs of every call of the transformer."""
    calls: list[dict] = []
    handle = parts.transformer.register_forward_pre_hook(
        lambda _module, _inputs, named: calls.append(dict(named)), with_kwargs=True
    )
    yield calls
    handle.remove()


def test_generation_is_conditioned_exactly_as_training(parts, seen):
    generate(parts, SONG)
    labels = labels_of(SONG)
    encoder, text = parts.condition_encoder, parts.text_encoder
    head = conditions.condition_head(encoder, conditions.embed_lyrics(text, lyric_prompt(labels)))
    prompt = conditions.condition_text(encoder, conditions.encode_text(text, text_prompt(labels)))
    context = conditions.context_latents(encoder.silence_latent, 50)
    assert len(seen) == 8
    for call in seen:
        assert torch.equal(call["encoder_hidden_states"], conditions.join_condition(head, prompt))
        assert torch.equal(call["context_latents"], context)


requests = st.builds(
    GenerateSettings,
    caption=st.text(max_size=30),
    lyrics=st.text(max_size=30),
    language=st.sampled_from(LANGUAGES),
    bpm=st.none() | st.integers(30, 300),
    keyscale=st.sampled_from(["", "C major", "F# minor"]),
    timesignature=st.sampled_from(["", "2", "3", "4", "6"]),
    duration_s=st.floats(1, 600),
)


@hypothesis_settings(max_examples=100, deadline=None)
@given(request_=requests)
def test_the_pipeline_writes_our_prompts_byte_for_byte(parts, request_):
    labels = labels_of(request_)
    fields = prompt_fields(labels)
    wanted = ("prompt", "lyrics", "vocal_language", "audio_duration", "instruction", "bpm", "keyscale", "timesignature")
    written = build_pipeline(parts)._format_prompt(**{name: fields[name] for name in wanted})
    assert written == (text_prompt(labels), lyric_prompt(labels))


def test_a_seed_repeats_and_another_seed_differs(parts):
    first = generate(parts, SONG)
    torch.manual_seed(1)
    assert np.array_equal(first.samples, generate(parts, SONG).samples)
    assert not np.array_equal(first.samples, generate(parts, SONG.changed(seed=6)).samples)
    assert first.seed == 5


def test_length_rate_and_level(parts):
    piece = generate(parts, SONG.changed(duration_s=2.03))
    assert piece.sample_rate == 48_000
    assert piece.samples.shape == (2, 51 * 1920) and piece.samples.dtype == np.float32  # 50.75 frames, rounded up
    assert piece.duration_s == pytest.approx(2.04)
    assert 20 * np.log10(np.abs(piece.samples).max()) == pytest.approx(-1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("turbo", Sampler(8, 1.0, 3.0)),
        ("xl-turbo", Sampler(8, 1.0, 3.0)),
        ("base", Sampler(50, 7.0, 1.0)),
        ("xl-sft", Sampler(50, 7.0, 1.0)),
    ],
)
def test_each_variant_has_its_own_defaults(variant, expected):
    assert sampler_for(VARIANTS[variant], GenerateSettings()) == expected
    chosen = sampler_for(VARIANTS[variant], GenerateSettings(steps=4, guidance=3.0, shift=2.0))
    assert chosen == Sampler(4, 1.0 if "turbo" in variant else 3.0, 2.0)


def test_the_result_says_which_sampler_values_were_used(parts):
    used = generate(parts, SONG.changed(duration_s=1.0)).settings
    assert (used.steps, used.guidance, used.shift) == (8, 1.0, 3.0)


def test_guidance_for_a_turbo_model_is_ignored_with_a_warning(parts):
    job = Job()
    guided = generate(parts, SONG.changed(guidance=5.0), job)
    assert np.array_equal(guided.samples, generate(parts, SONG).samples)
    assert job.warnings == ["Turbo models take no guidance; guidance 5 is ignored."]


def test_guidance_reaches_a_base_model(guided_parts, seen):
    quick = SONG.changed(steps=3, duration_s=1.0)
    plain = generate(guided_parts, quick.changed(guidance=1.0))
    assert all(call["hidden_states"].shape[0] == 1 for call in seen)
    seen.clear()
    assert not np.array_equal(plain.samples, generate(guided_parts, quick).samples)
    assert len(seen) == 3 and all(call["hidden_states"].shape[0] == 2 for call in seen)
    null = guided_parts.condition_encoder.null_condition_emb
    assert all(
        torch.equal(call["encoder_hidden_states"][1:], null.expand_as(call["encoder_hidden_states"][1:]))
        for call in seen
    )


@pytest.mark.parametrize(
    ("shift", "table"),
    [
        (1.0, [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        (2.0, [1, 0.9333333, 0.8571429, 0.7692308, 0.6666667, 0.5454545, 0.4, 0.2222222]),
        (3.0, [1, 0.9545455, 0.9, 0.8333333, 0.75, 0.6428571, 0.5, 0.3]),
    ],
)
def test_eight_steps_are_the_tables_of_the_turbo_models(parts, shift, table):
    assert timestep_schedule(8, shift) == pytest.approx(table, abs=1e-6)
    assert (
        timestep_schedule(8, shift)
        == build_pipeline(parts)._get_timestep_schedule(8, shift, "cpu", torch.float32).tolist()
    )


@pytest.mark.parametrize("kind", ["turbo", "base"])
def test_sampling_from_stored_conditions_is_the_pipelines_loop(parts, guided_parts, kind, seen):
    used = parts if kind == "turbo" else guided_parts
    request = SONG.changed(steps=5)
    piece = generate(used, request)
    steps = []
    latents = sample_latents(
        used.transformer,
        seen[0]["encoder_hidden_states"][:1],
        load_null_condition(used.checkpoint),
        seen[0]["context_latents"][:1],
        draw_noise(50, 8, request.seed),
        sampler_for(used.checkpoint.variant, request),
        on_step=lambda index, time, entering, velocity: steps.append((index, time, entering.shape, velocity.shape)),
    )
    assert np.array_equal(decode_latents(used.vae, latents[0]), piece.samples)
    assert [step[0] for step in steps] == list(range(5)) and steps[0][1] == 1.0
    assert all(entering == velocity == (1, 50, 8) for _, _, entering, velocity in steps)


def test_steps_are_counted_and_a_stop_is_heard_between_them(parts):
    job = Job()
    generate(parts, SONG.changed(steps=4), job)
    assert [(stage.name, stage.done, stage.total) for stage in job.stages] == [("sample", 4, 4), ("decode", 1, 1)]

    def stop_after_two(kind, what):
        if kind == "progress" and what.done == 2:
            stopping.request_stop()

    stopping = Job(stop_after_two)
    with pytest.raises(Stopped):
        generate(parts, SONG, stopping)
    assert [stage.done for stage in stopping.stages] == [2]


def test_a_caption_that_pushes_the_metas_out_is_told(parts):
    job = Job()
    generate(parts, SONG.changed(caption="word " * 400, lyrics="la " * 2100, steps=1), job)
    assert len(job.warnings) == 2
    assert "caption is too long" in job.warnings[0] and "lyrics are too long" in job.warnings[1]


def test_values_that_are_not_finite_are_an_error_not_noise(parts):
    table = parts.transformer.scale_shift_table
    before = table.clone()
    try:
        table.fill_(float("nan"))
        with pytest.raises(UserError, match="not finite numbers"):
            generate(parts, SONG)
    finally:
        table.copy_(before)


def test_running_out_of_memory_says_what_to_do(parts, monkeypatch):
    def no_memory(_vae, _latents):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr("acestep.generate.decode_latents", no_memory)
    with pytest.raises(UserError, match=r"ran out of memory.*shorter piece"):
        generate(parts, SONG)


def test_an_unknown_language_code_is_told(parts):
    job = Job()
    generate(parts, SONG.changed(language="unknwon", steps=1), job)
    assert job.warnings == ['The model does not know the language code "unknwon". Did you mean "unknown"?']


@pytest.fixture
def with_lora(demo_checkpoint) -> Parts:
    """A bf16 model with an fp32 LoRA in training mode, as in the middle of a run."""
    from peft import LoraConfig

    checkpoint = resolve_checkpoint(demo_checkpoint / "acestep-v15-demo")
    loaded = load_parts(checkpoint, DeviceChoice("cpu", "bf16", "test"))
    torch.manual_seed(0)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    loaded.transformer.add_adapter(LoraConfig(r=4, target_modules=targets, lora_dropout=0.5, init_lora_weights=False))
    for name, parameter in loaded.transformer.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    loaded.transformer.train()
    return loaded


def test_a_preview_in_the_middle_of_training_has_no_dropout(with_lora):
    modes = [module.training for module in with_lora.transformer.modules()]
    first = generate(with_lora, SONG)
    assert np.array_equal(first.samples, generate(with_lora, SONG).samples)
    assert [module.training for module in with_lora.transformer.modules()] == modes
    with_lora.transformer.disable_adapters()
    assert not np.array_equal(first.samples, generate(with_lora, SONG).samples)


def test_half_precision_on_old_cards_keeps_the_vae_in_fp32(demo_checkpoint):
    loaded = load_parts(resolve_checkpoint(demo_checkpoint / "acestep-v15-demo"), DeviceChoice("cpu", "fp16", "test"))
    assert loaded.vae.dtype == torch.float32 and loaded.transformer.dtype == torch.float16


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "opus"])
def test_a_piece_is_written_in_every_format(parts, tmp_path, suffix):
    from acestep.audio.decode import decode
    from acestep.audio.write import write_audio

    piece = generate(parts, SONG.changed(duration_s=1.5))
    path = tmp_path / f"piece.{suffix}"
    write_audio(path, piece.samples, piece.sample_rate)
    heard = decode(path)
    assert heard.duration_s == pytest.approx(piece.duration_s, abs=0.1)
    assert np.abs(heard.samples).max() == pytest.approx(10 ** (-1 / 20), rel=0.25)


def test_a_sweep_leaves_the_model_as_it_was_however_it_ends(parts: Parts, tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    adapter = attach(parts.transformer, AdapterSettings(rank=2, alpha=4, dropout=0))
    for parameter in adapter.parameters():
        parameter.data.add_(0.1)
    save_adapter(adapter, path)
    adapter.detach_from_model()
    before = {name: tensor.clone() for name, tensor in parts.transformer.state_dict().items()}
    quick = SONG.changed(steps=1, duration_s=1.0)
    heard: list[tuple[float | None, int, np.ndarray]] = []

    def keep(piece: Generated, strength: float | None) -> None:
        heard.append((strength, piece.seed, piece.samples))

    play_sweep(parts, quick, SweepSettings(strength=[0, 1, 0], takes=2), path, keep)
    assert [(strength, seed) for strength, seed, _ in heard] == [
        (strength, quick.seed + take) for strength in (0, 1) for take in (0, 1)
    ]
    assert np.array_equal(heard[0][2], generate(parts, quick).samples)

    def fail(piece: Generated, strength: float | None) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        play_sweep(parts, quick, SweepSettings(), path, fail)
    with pytest.raises(UserError, match="strength"):
        play_sweep(parts, quick, SweepSettings(strength=[]), path, fail)
    stopping = Job()
    stopping.request_stop()
    with pytest.raises(Stopped):
        play_sweep(parts, quick, SweepSettings(), path, fail, stopping)
    after = parts.transformer.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert attached_adapter(parts.transformer) is None


def test_fp16_plays_what_fp32_does(demo_checkpoint, parts) -> None:
    """VAE and condition encoder compute in fp32 beside a transformer and a text encoder in fp16."""
    in_half = load_parts(resolve_checkpoint(demo_checkpoint / "acestep-v15-demo"), DeviceChoice("cpu", "fp16", "test"))
    parts_in_half = (in_half.transformer, in_half.text_encoder.model)
    assert {parameter.dtype for part in parts_in_half for parameter in part.parameters()} == {torch.float16}
    settings = SONG.changed(steps=4)
    half, whole = generate(in_half, settings).samples, generate(parts, settings).samples
    assert np.abs(half - whole).max() < 0.05 * np.abs(whole).max()

"""The untrained checkpoint: complete, the same every time, and something an adapter can learn from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderOobleck

from acestep.audio.synth import SongPlan, render
from acestep.core.errors import UserError
from acestep.core.paths import content_hash
from acestep.model.checkpoints import find_checkpoints, resolve_checkpoint
from acestep.model.loading import (
    load_audio_token_detokenizer,
    load_audio_tokenizer,
    load_condition_encoder,
    load_silence_latent,
    load_transformer,
)
from acestep.model.untrained import build_untrained_checkpoint
from acestep.model.untrained_vae import calibration_music
from acestep.model.vae import encode_audio


@pytest.fixture(scope="module")
def checkpoint(demo_checkpoint):
    return resolve_checkpoint(demo_checkpoint / "acestep-v15-demo")


def hashes(folder):
    return {
        str(file.relative_to(folder)): content_hash(file) for file in sorted(folder.rglob("[!.]*")) if file.is_file()
    }


def test_it_is_the_same_every_time(demo_checkpoint, tmp_path):
    torch.manual_seed(1234)
    before = torch.random.get_rng_state()
    again = build_untrained_checkpoint(tmp_path / "again")
    assert hashes(again) == hashes(demo_checkpoint)
    assert torch.equal(before, torch.random.get_rng_state())


def test_it_is_found_like_any_other_model_and_small(demo_checkpoint):
    assert [found.name for found in find_checkpoints([demo_checkpoint])] == ["acestep-v15-demo"]
    assert sum(file.stat().st_size for file in demo_checkpoint.rglob("*") if file.is_file()) < 10e6


def test_an_existing_one_is_kept_and_other_folders_are_refused(demo_checkpoint, tmp_path):
    before = hashes(demo_checkpoint)
    assert build_untrained_checkpoint(demo_checkpoint) == demo_checkpoint and hashes(demo_checkpoint) == before
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="holds no untrained model"):
        build_untrained_checkpoint(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_the_silence_latent_is_what_the_vae_makes_of_silence(checkpoint):
    silence = load_silence_latent(checkpoint)
    vae = AutoencoderOobleck.from_pretrained(checkpoint.vae).eval()
    frames = 100
    with torch.no_grad():
        encoded = vae.encode(torch.zeros(1, 2, frames * 1920)).latent_dist.mean.transpose(1, 2)
    torch.testing.assert_close(silence[:, : frames - 25], encoded[:, :-25], rtol=0, atol=1e-3)
    torch.testing.assert_close(silence[:, -25:], encoded[:, -25:], rtol=0, atol=1e-3)
    stored = torch.load(checkpoint.dit / "silence_latent.pt", weights_only=True)
    assert stored.shape == (1, 8, 1500)  # channels first, as published


def test_latents_are_in_scale_and_tell_sounds_apart(checkpoint):
    vae = AutoencoderOobleck.from_pretrained(checkpoint.vae).eval()
    assert vae.hop_length == 1920 and vae.config.sampling_rate == 48_000
    sounds = {
        "music": calibration_music(),
        "noise": 0.1 * np.random.default_rng(0).standard_normal((2, 96_000)),
        "silence": np.zeros((2, 96_000)),
    }
    means = {}
    for name, samples in sounds.items():
        latents = encode_audio(vae, samples.astype(np.float32), "mean", seed=0)
        assert 0.05 < latents.square().mean() < 5
        means[name] = latents.mean(dim=0)
    for one, other in (("music", "noise"), ("music", "silence"), ("noise", "silence")):
        assert (means[one] - means[other]).norm() > 0.5


@torch.no_grad()
def test_untrained_it_predicts_the_best_for_white_noise(checkpoint):
    """Velocity (2t - 1) / (t² + (1 - t)²) · x_t, the least-squares answer for data of unit power."""
    dit = load_transformer(checkpoint, torch.float32, "cpu")
    generator = torch.Generator().manual_seed(0)
    context = torch.cat([load_silence_latent(checkpoint)[:, :200], torch.ones(1, 200, 8)], dim=-1)
    condition = torch.randn(1, 40, 48, generator=generator)
    for t in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        x_t = (t * t + (1 - t) ** 2) ** 0.5 * torch.randn(1, 200, 8, generator=generator)
        time = torch.tensor([t])
        velocity = dit(
            hidden_states=x_t,
            timestep=time,
            timestep_r=time,
            encoder_hidden_states=condition,
            context_latents=context,
            return_dict=False,
        )[0]
        slope = float((velocity * x_t).mean() / x_t.square().mean())
        assert slope == pytest.approx((2 * t - 1) / (t * t + (1 - t) ** 2), abs=0.25)
        assert velocity.square().mean() < 2


def test_a_short_training_makes_it_better(checkpoint):
    from peft import LoraConfig

    vae = AutoencoderOobleck.from_pretrained(checkpoint.vae).eval()
    latents = encode_audio(vae, render(SongPlan(seconds=12, sections=("chorus",))), "mean", seed=0)[None]
    dit = load_transformer(checkpoint, torch.float32, "cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dit.add_adapter(LoraConfig(r=8, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    trained = [parameter for parameter in dit.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    condition = torch.randn(1, 40, 48, generator=torch.Generator().manual_seed(0))
    silence = load_silence_latent(checkpoint)

    def loss(start, t, generator):
        x0 = latents[:, start : start + 64]
        noise = torch.randn(x0.shape, generator=generator)
        velocity = dit(
            hidden_states=t * noise + (1 - t) * x0,
            timestep=torch.tensor([t]),
            timestep_r=torch.tensor([t]),
            encoder_hidden_states=condition,
            context_latents=torch.cat([silence[:, :64], torch.ones_like(x0)], dim=-1),
            return_dict=False,
        )[0]
        return (velocity - (noise - x0)).square().mean()

    def held_out():  # later music, which training does not see
        with torch.no_grad():
            return sum(float(loss(210, t, torch.Generator().manual_seed(9))) for t in (0.2, 0.4, 0.6, 0.8)) / 4

    before = held_out()
    generator = torch.Generator().manual_seed(1)
    for _ in range(60):
        start = int(torch.randint(140, (1,), generator=generator))
        t = float(torch.randn(2, generator=generator).sub(0.4).sigmoid().max())
        optimizer.zero_grad()
        loss(start, t, generator).backward()
        optimizer.step()
    assert held_out() < 0.85 * before


@torch.no_grad()
def test_all_other_parts_load_and_work(checkpoint):
    encoder = load_condition_encoder(checkpoint, torch.float32, "cpu")
    assert encoder.null_condition_emb.shape == (1, 1, 48)
    tokenizer = load_audio_tokenizer(checkpoint, torch.float32, "cpu")
    detokenizer = load_audio_token_detokenizer(checkpoint, torch.float32, "cpu")
    latents = torch.randn(1, 23, 8, generator=torch.Generator().manual_seed(1))
    quantized, codes = tokenizer.tokenize(latents, encoder.silence_latent)
    assert codes.shape == (1, 5, 1) and codes.min() >= 0 and codes.max() < 64
    assert detokenizer(quantized).shape == (1, 25, 8)


def test_the_tokenizer_reads_any_text_and_marks_the_end(checkpoint):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.text_encoder)
    text = 'a warm piano, "日本語" 🎹\n\ttabs  and  spaces<|im_start|>'
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text + "<|endoftext|>"
    assert tokenizer.padding_side == "right"
    assert len(tokenizer("# Instruction\nFill the audio semantic mask based on the given conditions:").input_ids) < 40


def test_the_language_model_speaks_in_audio_codes(demo_checkpoint):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo_checkpoint / "acestep-5Hz-lm-demo"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    first, last = tokenizer.convert_tokens_to_ids(["<|audio_code_0|>", "<|audio_code_63|>"])
    assert last - first == 63 and tokenizer.convert_ids_to_tokens(last + 1) is None
    assert tokenizer.eos_token == "<|im_end|>"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(chat + "<think><|audio_code_5|></think>", return_tensors="pt")
    assert first + 5 in ids.input_ids[0].tolist()
    assert model.generate(**ids, max_new_tokens=3, do_sample=False).shape[1] > ids.input_ids.shape[1]


def test_the_configuration_has_the_published_fields_and_split_sizes(checkpoint):
    values = json.loads((checkpoint.dit / "config.json").read_text())
    assert values["model_type"] == "acestep" and values["is_turbo"] is True
    assert values["hidden_size"] != values["encoder_hidden_size"]  # mixing the two up must show
    assert "auto_map" not in values

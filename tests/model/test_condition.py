"""Conditions computed in halves against the condition encoder and the pipeline taken as wholes."""

from __future__ import annotations

import pytest
import torch
from diffusers import AceStepPipeline, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.model.checkpoints import resolve_checkpoint
from acestep.model.condition import (
    condition_head,
    condition_text,
    context_latents,
    embed_lyrics,
    encode_text,
    join_condition,
    lyrics_are_cut,
    metas_are_cut,
)
from acestep.model.loading import load_condition_encoder, load_text_encoder, load_transformer, load_vae
from acestep.model.prompt import PromptLabels, lyric_prompt, text_prompt

LABELS = [
    PromptLabels("warm piano ballad", "[Verse 1]\nla la la\n\n[Chorus]\noh", "en", 92, "A minor", "3", 61.4),
    PromptLabels("", duration_s=12.0),
    PromptLabels("dröhnende Gitarren, 激しいドラム 🥁 " * 8, "さくら\n" * 40, "ja", None, "", "", 240.0),
    PromptLabels("word " * 400, "sing " * 3000, "fr", 300, "C major", "4", 5.0),  # both texts are cut
]


@pytest.fixture(scope="module")
def pipeline(demo_checkpoint):
    checkpoint = resolve_checkpoint(demo_checkpoint / "acestep-v15-demo")
    text = load_text_encoder(checkpoint, torch.float32, "cpu")
    return AceStepPipeline(
        vae=load_vae(checkpoint, torch.float32, "cpu"),
        text_encoder=text.model,
        tokenizer=text.tokenizer,
        transformer=load_transformer(checkpoint, torch.float32, "cpu"),
        condition_encoder=load_condition_encoder(checkpoint, torch.float32, "cpu"),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )


@pytest.fixture(scope="module")
def text_encoder(demo_checkpoint):
    return load_text_encoder(resolve_checkpoint(demo_checkpoint / "acestep-v15-demo"), torch.float32, "cpu")


def in_halves(pipeline, text_encoder, labels):
    encoder = pipeline.condition_encoder
    head = condition_head(encoder, embed_lyrics(text_encoder, lyric_prompt(labels)))
    return join_condition(head, condition_text(encoder, encode_text(text_encoder, text_prompt(labels))))


@torch.no_grad()
def as_the_pipeline_does(pipeline, labels):
    text, text_mask, lyrics, lyric_mask = pipeline.encode_prompt(
        prompt=labels.caption,
        lyrics=labels.lyrics,
        device=torch.device("cpu"),
        vocal_language=labels.language,
        audio_duration=labels.duration_s,
        bpm=labels.bpm,
        keyscale=labels.keyscale,
        timesignature=labels.timesignature,
    )
    condition, mask = pipeline.condition_encoder(
        text_hidden_states=text,
        text_attention_mask=text_mask,
        lyric_hidden_states=lyrics,
        lyric_attention_mask=lyric_mask,
        refer_audio_acoustic_hidden_states_packed=pipeline.condition_encoder.silence_latent[:, :750],
        refer_audio_order_mask=torch.zeros(1, dtype=torch.long),
    )
    assert mask.all()
    return condition


@pytest.mark.parametrize("labels", LABELS, ids=["plain", "empty", "unicode", "cut"])
def test_a_training_condition_is_that_of_generation_bit_for_bit(pipeline, text_encoder, labels):
    assert torch.equal(in_halves(pipeline, text_encoder, labels), as_the_pipeline_does(pipeline, labels))


def test_the_timbre_token_stands_between_lyrics_and_text(pipeline, text_encoder):
    encoder = pipeline.condition_encoder
    lyrics = embed_lyrics(text_encoder, lyric_prompt(LABELS[0]))
    head = condition_head(encoder, lyrics)
    assert head.shape == (1, lyrics.shape[1] + 1, 48)
    short = torch.cat([encoder.silence_latent[:, :750]] * 1)
    with torch.no_grad():
        timbre, _ = encoder.timbre_encoder(short, torch.zeros(1, dtype=torch.long))
        one_frame, _ = encoder.timbre_encoder(short[:, :1], torch.zeros(1, dtype=torch.long))
    assert torch.equal(head[:, -1:], timbre)
    assert not torch.allclose(timbre, one_frame, atol=1e-3)  # the length of the silence matters


def test_texts_are_cut_at_256_and_2048_tokens(text_encoder):
    assert encode_text(text_encoder, text_prompt(LABELS[3])).shape[1] == 256
    assert embed_lyrics(text_encoder, lyric_prompt(LABELS[3])).shape[1] == 2048
    assert lyrics_are_cut(text_encoder, lyric_prompt(LABELS[3]))
    assert not lyrics_are_cut(text_encoder, lyric_prompt(LABELS[0]))


def test_cut_metas_are_noticed_exactly_when_the_end_token_is_lost(text_encoder):
    tokenizer = text_encoder.tokenizer
    seen = set()
    for words in range(60, 260):
        prompt = text_prompt(PromptLabels("x " * words))
        kept = tokenizer(prompt, truncation=True, max_length=256, add_special_tokens=False).input_ids
        added = tokenizer.num_special_tokens_to_add()
        end_is_lost = tokenizer.convert_tokens_to_ids("<|endoftext|>") not in kept[: 256 - added]
        assert metas_are_cut(text_encoder, prompt) == end_is_lost
        seen.add(end_is_lost)
    assert seen == {True, False}


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.integers(1, 60), st.integers(1, 6))
def test_context_is_silence_repeated_and_a_mask_of_ones(frames, stored, width):
    silence = torch.arange(stored * width, dtype=torch.float32).view(1, stored, width)
    context = context_latents(silence, frames)
    assert context.shape == (1, frames, 2 * width)
    assert (context[..., width:] == 1).all()
    for frame in {0, frames // 2, frames - 1}:
        assert torch.equal(context[0, frame, :width], silence[0, frame % stored])


def test_context_equals_that_of_the_pipeline(pipeline):
    silence = pipeline.condition_encoder.silence_latent
    for frames in (1, 100, silence.shape[1], silence.shape[1] + 13):
        expected, _ = pipeline.prepare_src_latents(device="cpu", dtype=torch.float32, latent_length=frames)
        assert torch.equal(context_latents(silence, frames)[..., : silence.shape[2]], expected)

"""DiT, condition encoder, tokenizer and detokenizer give what the original implementation gives."""

from __future__ import annotations

import torch
from golden_model import TOLERANCE, GoldenModel
from torch import Tensor, nn
from torch.testing import assert_close

from acestep.model.codes import latent_codes
from acestep.model.loading import load_null_condition


def velocity_of(transformer: nn.Module, case: dict[str, Tensor]) -> Tensor:
    names = ("hidden_states", "timestep", "timestep_r", "encoder_hidden_states", "context_latents")
    with torch.no_grad():
        return transformer(**{name: case[name] for name in names}).sample


def test_transformer(golden_model: GoldenModel) -> None:
    for case in golden_model.cases("dit_decoder"):
        assert_close(velocity_of(golden_model.transformer, case), case["velocity"], **TOLERANCE)


def test_transformer_with_the_frequencies_of_this_machine(golden_model: GoldenModel) -> None:
    for case in golden_model.cases("dit_decoder"):
        velocity = velocity_of(golden_model.transformer_as_loaded, case)
        assert_close(velocity, case["velocity"], rtol=0.0, atol=2e-5)


def test_time_embedder(golden_model: GoldenModel) -> None:
    case = golden_model.cases("dit_decoder")[0]
    with torch.no_grad():
        temb, projection = golden_model.transformer_as_loaded.time_embed(case["timestep"])
    assert_close(temb, case["time_embed.temb"], **TOLERANCE)
    assert_close(projection, case["time_embed.proj"], **TOLERANCE)


def test_condition_encoder(golden_model: GoldenModel) -> None:
    for case in golden_model.cases("condition_encoder"):
        packed, mask = golden_model.conditions(case)
        assert_close(packed, case["encoder_hidden_states"], **TOLERANCE)
        assert torch.equal(mask, case["encoder_attention_mask"].to(mask.dtype))


def test_parts_of_the_condition_encoder(golden_model: GoldenModel) -> None:
    encoder = golden_model.condition_encoder
    for case in golden_model.cases("condition_encoder"):
        with torch.no_grad():
            text = encoder.text_projector(case["text_hidden_states"])
            lyrics = encoder.lyric_encoder(case["lyric_hidden_states"], case["lyric_attention_mask"])
            timbre, mask = encoder.timbre_encoder(case["refer_audio"], case["refer_audio_order_mask"])
        assert_close(text, case["text_projected"], **TOLERANCE)
        assert_close(lyrics, case["lyric_encoded"], **TOLERANCE)
        assert_close(timbre, case["timbre_unpacked"], **TOLERANCE)
        assert torch.equal(mask, case["timbre_mask"])


def test_tokenizer(golden_model: GoldenModel) -> None:
    vectors = golden_model.vectors("tokenizer_detokenizer")
    with torch.no_grad():
        quantized, indices = golden_model.tokenizer.tokenize(vectors["latents"], golden_model.silence)
        from_codes = golden_model.tokenizer.quantizer.get_output_from_indices(vectors["code_indices"])
    assert torch.equal(indices, vectors["indices"])
    assert_close(quantized, vectors["quantized"], **TOLERANCE)
    assert_close(from_codes, vectors["code_embeddings"], **TOLERANCE)


def test_codes_of_a_song(golden_model: GoldenModel) -> None:
    vectors = golden_model.vectors("tokenizer_detokenizer")
    for latents, indices in zip(vectors["latents"], vectors["indices"], strict=True):
        assert latent_codes(golden_model.tokenizer, latents, golden_model.silence) == indices.flatten().tolist()


def test_detokenizer(golden_model: GoldenModel) -> None:
    vectors = golden_model.vectors("tokenizer_detokenizer")
    with torch.no_grad():
        assert_close(golden_model.detokenizer(vectors["quantized"]), vectors["detokenized"], **TOLERANCE)
        assert_close(golden_model.detokenizer(vectors["detok_input"]), vectors["detok_output"], **TOLERANCE)


def test_silence_latent(golden_model: GoldenModel) -> None:
    expected = golden_model.vectors("tokenizer_detokenizer")["silence_latent"]
    assert torch.equal(golden_model.silence, expected)
    assert torch.equal(golden_model.condition_encoder.silence_latent, expected)


def test_null_condition_read_alone(golden_model: GoldenModel) -> None:
    alone = load_null_condition(golden_model.checkpoint)
    assert torch.equal(alone, golden_model.condition_encoder.null_condition_emb)

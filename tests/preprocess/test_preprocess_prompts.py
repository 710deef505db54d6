"""What is stored for a song is what generation would tell the model about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from acestep.model.checkpoints import Checkpoint
from acestep.preprocess.store import TensorStore

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pipeline_prompt():
    """The reference: the prompt that diffusers' pipeline makes."""
    from diffusers import AceStepPipeline

    return object.__new__(AceStepPipeline)._format_prompt


def test_prompts_are_those_of_the_pipeline(encoded_once: Path, pipeline_prompt) -> None:
    songs = {song.title: song for song in TensorStore.open(encoded_once).songs}
    one = songs["one.wav"]
    facts = {"bpm": 90, "keyscale": "A minor", "timesignature": "3", "audio_duration": 1.5, "vocal_language": "fr"}
    captions = {
        "caption.none": "a calm accordion waltz",
        "caption.prepend": "zydeco, a calm accordion waltz",
        "caption.append": "a calm accordion waltz, zydeco",
        "caption.replace": "zydeco",
        "genre.none": "zydeco, folk",
        "genre.prepend": "zydeco, folk",
        "genre.append": "zydeco, folk",
        "genre.replace": "zydeco",
    }
    for variant, caption in captions.items():
        text, lyrics = pipeline_prompt(prompt=caption, lyrics="[Verse]\nbonjour", **facts)
        assert one.prompts[one.variants[variant]] == text
        assert one.lyric_prompt == lyrics
    assert len(one.prompts) == len(set(one.prompts)) == 5


def test_unknown_labels_and_own_tags(encoded_once: Path, pipeline_prompt) -> None:
    songs = {song.title: song for song in TensorStore.open(encoded_once).songs}
    two = songs["sub/two.wav"]
    text, lyrics = pipeline_prompt(
        prompt="fast drums", lyrics="[Instrumental]", bpm=160, audio_duration=2.1, vocal_language="unknown"
    )
    assert two.prompts[two.variants["caption.none"]] == text
    assert two.lyric_prompt == lyrics
    assert not two.has_genre
    for place in ("none", "prepend", "append", "replace"):
        assert two.variants[f"genre.{place}"] == two.variants[f"caption.{place}"], "no genre: the caption stands in"
    three = next(song for title, song in songs.items() if title.startswith("three"))
    assert three.custom_tag == "own tag"
    assert "own tag, a slow bass" in three.prompts[three.variants["caption.prepend"]]
    assert "own tag, dub" in three.prompts[three.variants["genre.prepend"]]


def test_the_joined_condition_is_that_of_the_condition_encoder(encoded_once: Path, checkpoint: Checkpoint) -> None:
    """Tokenizer, text encoder and condition encoder driven by hand, without any of our own condition code."""
    from acestep.model.condition import join_condition
    from acestep.model.loading import load_condition_encoder, load_text_encoder

    text_encoder = load_text_encoder(checkpoint, torch.float32, torch.device("cpu"))
    encoder = load_condition_encoder(checkpoint, torch.float32, torch.device("cpu"))
    store = TensorStore.open(encoded_once)
    with torch.no_grad():
        for song in store.songs:
            tensors = store.load(song)
            lyric_ids = text_encoder.tokenizer(song.lyric_prompt, return_tensors="pt").input_ids
            lyrics = text_encoder.model.get_input_embeddings()(lyric_ids)
            for variant, number in song.variants.items():
                ids = text_encoder.tokenizer(
                    song.prompts[number], truncation=True, max_length=256, return_tensors="pt"
                ).input_ids
                text = text_encoder.model(input_ids=ids).last_hidden_state
                condition, _ = encoder(
                    text_hidden_states=text,
                    text_attention_mask=torch.ones(text.shape[:2], dtype=torch.bool),
                    lyric_hidden_states=lyrics,
                    lyric_attention_mask=torch.ones(lyrics.shape[:2], dtype=torch.bool),
                    refer_audio_acoustic_hidden_states_packed=encoder.silence_latent[:, :750],
                    refer_audio_order_mask=torch.zeros(1, dtype=torch.long),
                )
                ours = join_condition(tensors.head[None], tensors.texts[variant][None])
                assert torch.equal(ours, condition), (song.title, variant)


def test_the_latents_are_those_of_the_vae(encoded_once: Path, checkpoint: Checkpoint, tiny_songs: Path) -> None:
    """A draw has the posterior's spread around the mean that the VAE itself gives."""
    import soundfile

    from acestep.model.loading import load_vae

    vae = load_vae(checkpoint, torch.float32, torch.device("cpu"))
    store = TensorStore.open(encoded_once)
    for song in store.songs:
        samples, _ = soundfile.read(tiny_songs / song.title, dtype="float32")
        with torch.no_grad():
            posterior = vae.encode(torch.from_numpy(samples.T.copy())[None]).latent_dist
        latents = store.load(song).latents
        assert latents.shape == (len(samples) // 1920, store.info.latent_width)
        z = (latents - posterior.mean[0].T) / posterior.std[0].T
        assert abs(float(z.mean())) < 0.25
        assert 0.8 < float(z.std()) < 1.2

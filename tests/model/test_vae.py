"""Latents of audio and audio of latents, against the VAE called in one piece."""

from __future__ import annotations

import platform
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderOobleck
from hypothesis import given
from hypothesis import strategies as st

from acestep.core.errors import UserError
from acestep.model import vae as vae_room
from acestep.model.vae import decode_latents, encode_audio, to_peak

RATE, HOP = 48_000, 1920


@pytest.fixture(scope="module")
def vae(demo_checkpoint):
    return AutoencoderOobleck.from_pretrained(demo_checkpoint / "vae").eval().requires_grad_(False)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.2 * np.random.default_rng(seed).standard_normal((2, samples))).astype(np.float32)


def in_one_piece(vae, samples: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return vae.encoder(torch.from_numpy(samples)[None])[0].T  # (T, 2 C): means, then scales


@pytest.mark.parametrize("samples", [HOP, HOP + 1, 2 * HOP - 1, 25 * HOP + 1000])
def test_a_short_piece_is_encoded_whole(vae, samples):
    audio = noise(samples)
    latents = encode_audio(vae, audio, "mean", seed=0)
    assert latents.shape == (samples // HOP, 8) and latents.dtype == torch.float32
    torch.testing.assert_close(latents, in_one_piece(vae, audio)[:, :8], rtol=0, atol=0)


def test_windows_join_to_what_one_pass_gives(vae, monkeypatch):
    monkeypatch.setattr(vae_room, "ENCODE_WINDOW_S", 6)
    for rest in (0, 1500, 96_000 + 1100):  # 1500: more than half a frame behind the last whole one
        audio = noise(7 * RATE + rest)
        latents = encode_audio(vae, audio, "mean", seed=0)
        assert latents.shape[0] == audio.shape[1] // HOP
        torch.testing.assert_close(latents, in_one_piece(vae, audio)[:, :8], rtol=1e-4, atol=1e-4)


def test_windows_agree_with_those_of_diffusers(vae, monkeypatch):
    monkeypatch.setattr(vae_room, "ENCODE_WINDOW_S", 6)
    audio = noise(8 * RATE)
    tiled = AutoencoderOobleck.from_config(vae.config)
    tiled.load_state_dict(vae.state_dict())
    tiled.enable_tiling()
    tiled.tile_sample_min_length = 6 * RATE
    with torch.no_grad():
        expected = tiled.encode(torch.from_numpy(audio)[None]).latent_dist.mean[0].T
        torch.testing.assert_close(encode_audio(vae, audio, "mean", seed=0), expected, rtol=1e-5, atol=1e-5)


def test_a_draw_is_mean_plus_seeded_noise_times_the_posterior_spread(vae):
    audio = noise(50 * HOP)
    mean, scale = in_one_piece(vae, audio).chunk(2, dim=1)
    expected_noise = torch.randn(50, 8, generator=torch.Generator().manual_seed(7))
    expected = mean + (torch.log1p(scale.exp()) + 1e-4) * expected_noise
    torch.testing.assert_close(encode_audio(vae, audio, "sample", seed=7), expected, rtol=1e-5, atol=1e-6)


def test_draws_depend_on_the_seed_alone(vae):
    audio = noise(20 * HOP)
    first = encode_audio(vae, audio, "sample", seed=1)
    torch.manual_seed(99)
    assert torch.equal(first, encode_audio(vae, audio, "sample", seed=1))
    assert not torch.equal(first, encode_audio(vae, audio, "sample", seed=2))


def test_the_machines_random_state_is_not_touched(vae):
    before = torch.random.get_rng_state()
    encode_audio(vae, noise(5 * HOP), "sample", seed=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_audio_shorter_than_a_frame_is_refused(vae):
    with pytest.raises(UserError, match="shorter than one latent frame"):
        encode_audio(vae, noise(HOP - 1), "mean", seed=0)


def test_latents_that_are_not_finite_are_refused(vae):
    audio = noise(5 * HOP)
    audio[0, 3000] = np.nan
    with pytest.raises(UserError, match="not finite"):
        encode_audio(vae, audio, "mean", seed=0)


@pytest.mark.parametrize("frames", [1, 30, 300])
def test_decoding_in_windows_is_decoding_at_once(vae, frames):
    latents = torch.randn(frames, 8, generator=torch.Generator().manual_seed(3))
    audio = decode_latents(vae, latents)
    assert audio.shape == (2, frames * HOP) and audio.dtype == np.float32
    with torch.no_grad():
        whole = vae.decoder(latents.T[None])[0].numpy()
    np.testing.assert_allclose(audio, whole * (10 ** (-1 / 20) / np.abs(whole).max()), rtol=0, atol=2e-5)


def test_memory_for_windows_does_not_grow_with_the_music(vae):
    longest = []
    handle = vae.decoder.register_forward_pre_hook(lambda _module, inputs: longest.append(inputs[0].shape[-1]))
    try:
        decode_latents(vae, torch.zeros(600, 8))
    finally:
        handle.remove()
    assert max(longest) <= 256 and sum(longest) > 600


@given(st.floats(1e-5, 50))
def test_the_peak_is_one_decibel_below_full_scale(level):
    audio = to_peak(np.float32(level) * np.array([[0.5, -1.0], [0.2, 0.1]], np.float32))
    assert 20 * np.log10(np.abs(audio).max()) == pytest.approx(-1.0, abs=1e-4)


def test_silence_stays_silence():
    assert not to_peak(np.zeros((2, 10), np.float32)).any()
    quiet = np.full((2, 10), 1e-7, np.float32)
    assert np.array_equal(to_peak(quiet), quiet)
    with pytest.raises(UserError, match="finite"):
        to_peak(np.array([[np.inf, 0.0]], np.float32))


@pytest.mark.parametrize(("system", "longest"), [("14.7", 65_536), ("15.0", 65_536), ("15.1", 30 * RATE)])
def test_windows_fit_the_convolutions_of_a_mac(monkeypatch, system: str, longest: int):
    """Before macOS 15.1 torch refuses convolutions there whose output is longer than 65536."""
    monkeypatch.setattr(platform, "mac_ver", lambda: (system, ("", "", ""), "arm64"))
    weight = SimpleNamespace(device=torch.device("mps"))
    on_a_mac = SimpleNamespace(
        parameters=lambda: iter([weight]), config=SimpleNamespace(sampling_rate=RATE), hop_length=HOP
    )
    window, overlap = vae_room._encode_window(on_a_mac)
    lengths = [
        stop - start
        for samples in (RATE, 65_000, 70_000, 181 * RATE + 1919)
        for start, stop, _, _ in vae_room._windows(samples, window, overlap, HOP)
    ]
    assert 0.9 * longest < max(lengths) <= longest
    frames, _ = vae_room._decode_window(torch.device("mps"))
    assert frames * HOP <= 65_536


def test_the_short_windows_of_macs_join_to_what_one_pass_gives(vae, monkeypatch):
    frames = (vae_room.METAL_WINDOW, vae_room.METAL_OVERLAP)
    monkeypatch.setattr(vae_room, "_encode_window", lambda _: tuple(HOP * length for length in frames))
    audio = noise(5 * RATE + 1100)
    latents = encode_audio(vae, audio, "mean", seed=0)
    torch.testing.assert_close(latents, in_one_piece(vae, audio)[:, :8], rtol=1e-4, atol=1e-4)

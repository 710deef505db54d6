"""The VAE on pieces it never saw: what is lost, what is added, and how long it takes."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.synth import Piece, draw_piece, render_piece
from acestep.audio.write import write_audio
from acestep.core.device import choose_device
from acestep.model.checkpoints import Checkpoint
from acestep.model.loading import load_vae
from acestep.model.vae import decode_latents, encode_audio
from demo_model.pictures import write_comparison
from demo_model.reports import keep, number, table
from demo_model.vae import FFT_SIZES, FLOOR, mid_side, spectrum

if TYPE_CHECKING:
    from diffusers import AutoencoderOobleck

FIRST_SEED = 9_500_000
POOLS = ("base", "held_out")
DURATION_S = 10.0
PICTURED, KEPT_SOUNDS = 3, 3
"""Pieces of each pool in the picture, and as sound files."""

_SILENCE_DB = -150.0
_DB_OF_NATURAL_LOG = 20 / np.log(10)

ROWS: tuple[tuple[str, str, str], ...] = (
    ("snr_mid_db", "SNR of the mid, dB", ".1f"),
    ("snr_side_db", "SNR of the side, dB", ".1f"),
    ("stft_db", "spectral distance, all sizes, dB", ".2f"),
    *((f"stft_{size}_db", f"  FFT of {size}, dB", ".2f") for size in FFT_SIZES),
    ("click_db", "sharpest corner beside the original's, dB", "+.1f"),
    ("quietest_original_db", "quietest second, original, dBFS", ".1f"),
    ("quietest_heard_db", "quietest second, heard, dBFS", ".1f"),
    ("quietest_error_db", "quietest second, difference, dBFS", ".1f"),
    ("pause_db", "a pause within the music, dBFS", ".1f"),
    ("encode_factor", "encoding, times real time", ".1f"),
    ("decode_factor", "decoding, times real time", ".1f"),
)
"""Name, words and form of what is measured of each piece."""


def decode_level(vae: AutoencoderOobleck, latents: torch.Tensor) -> np.ndarray:
    """Sound of latents at its own level; `decode_latents` scales it to its peak.  (T, C) → (2, T * hop)."""
    with torch.no_grad():
        return vae.decode(latents.T[None]).sample[0].float().numpy()


def level_db(samples: np.ndarray) -> float:
    """Root mean square in dB of full scale; -150 for digital silence."""
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    return max(_SILENCE_DB, 10 * np.log10(power + 1e-30))


def snr_db(original: np.ndarray, heard: np.ndarray) -> float:
    return level_db(original) - level_db(heard - original)


def sharpest_corner(samples: np.ndarray) -> float:
    """Largest second difference of any channel: a click is a corner in the wave."""
    return float(np.abs(np.diff(samples, n=2, axis=-1)).max())


def quietest_second(samples: np.ndarray) -> slice:
    """The second with the least power, looked for in steps of a tenth.  (2, N)."""
    tenth = SAMPLE_RATE // 10
    tenths = samples.shape[-1] // tenth
    power = np.square(samples[:, : tenths * tenth]).reshape(2, tenths, tenth).sum(axis=(0, 2))
    first = int(np.argmin(np.convolve(power, np.ones(10), mode="valid")))
    return slice(first * tenth, first * tenth + SAMPLE_RATE)


def stft_distances_db(original: np.ndarray, heard: np.ndarray) -> dict[int, float]:
    """Mean difference of the levels of mid and side, by FFT size; what is below -70 dB in both counts as equal."""
    one, other = (mid_side(torch.from_numpy(np.ascontiguousarray(sound))[None]) for sound in (original, heard))
    found = {}
    for size in FFT_SIZES:
        logarithms = [(spectrum(sound, size) + FLOOR).log() for sound in (one, other)]
        found[size] = _DB_OF_NATURAL_LOG * float((logarithms[0] - logarithms[1]).abs().mean())
    return found


def differences(original: np.ndarray, heard: np.ndarray) -> dict[str, float]:
    """All measures that compare two recordings of one length.  (2, N) each."""
    quiet = quietest_second(original)
    by_size = stft_distances_db(original, heard)
    return {
        "snr_mid_db": snr_db(original[0] + original[1], heard[0] + heard[1]),
        "snr_side_db": snr_db(original[0] - original[1], heard[0] - heard[1]),
        "stft_db": statistics.fmean(by_size.values()),
        **{f"stft_{size}_db": value for size, value in by_size.items()},
        "click_db": float(20 * np.log10(sharpest_corner(heard) / sharpest_corner(original))),
        "quietest_original_db": level_db(original[:, quiet]),
        "quietest_heard_db": level_db(heard[:, quiet]),
        "quietest_error_db": level_db((heard - original)[:, quiet]),
    }


@dataclass(frozen=True)
class Heard:
    """One piece before and after, (2, N), and its measures."""

    piece: Piece
    original: np.ndarray
    heard: np.ndarray
    measures: dict[str, float]


def listen(vae: AutoencoderOobleck, piece: Piece) -> Heard:
    original = render_piece(piece)
    began = time.perf_counter()
    latents = encode_audio(vae, original, "mean", seed=0)
    encoded = time.perf_counter()
    decode_latents(vae, latents)
    decoded = time.perf_counter()
    heard = decode_level(vae, latents)
    original = original[:, : heard.shape[1]]
    times = {
        "encode_factor": piece.duration_s / (encoded - began),
        "decode_factor": piece.duration_s / (decoded - encoded),
    }
    return Heard(piece, original, heard, differences(original, heard) | {"pause_db": pause_db(vae, original)} | times)


def pause_db(vae: AutoencoderOobleck, music: np.ndarray) -> float:
    """Level of what is heard in the middle second of three seconds of silence with music before and after."""
    second = SAMPLE_RATE
    pause = np.zeros((2, 3 * second), np.float32)
    whole = np.concatenate([music[:, :second], pause, music[:, :second]], axis=1)
    heard = decode_level(vae, encode_audio(vae, whole, "mean", seed=0))
    return level_db(heard[:, 2 * second : 3 * second])


def silence_db(vae: AutoencoderOobleck, duration_s: float = 5.0) -> float:
    """Level of what is heard of digital silence."""
    silence = np.zeros((2, round(duration_s * SAMPLE_RATE)), np.float32)
    return level_db(decode_level(vae, encode_audio(vae, silence, "mean", seed=0)))


def evaluate_vae(checkpoint: Checkpoint, count: int, out: Path, threads: int) -> str:
    """Measure `count` pieces of each pool; writes vae.json, a picture and sounds into `out`, returns the table."""
    torch.set_num_threads(threads)
    choice = choose_device("cpu")
    vae = load_vae(checkpoint, choice.dtype, choice.torch_device)
    silence = silence_db(vae)  # also the warm-up of the times
    found: dict[str, list[Heard]] = {}
    for pool in POOLS:
        pieces = [draw_piece(FIRST_SEED + place, pool=pool, duration_s=DURATION_S) for place in range(count)]
        found[pool] = [listen(vae, piece) for piece in pieces]
    write_examples(found, out)
    facts: dict[str, Any] = {"silence_db": silence, "threads": threads, "pieces": {}}
    for pool, results in found.items():
        facts["pieces"][pool] = [{"seed": result.piece.seed, **result.measures} for result in results]
    keep(out / "vae.json", facts)
    return report(found, silence)


def report(found: dict[str, list[Heard]], silence: float) -> str:
    """Mean over the pieces of each pool, and the worst of them for what must never be bad."""
    rows = []
    for name, words, form in ROWS:
        values = {pool: [result.measures[name] for result in results] for pool, results in found.items()}
        rows.append([words, *(number(statistics.fmean(column), form) for column in values.values())])
        if name in ("click_db", "pause_db"):
            rows.append(["  the worst piece", *(number(max(column), form) for column in values.values())])
    rows.append(["digital silence, dBFS", *(number(silence) for _ in found)])
    return table(["", *(f"{pool} ({len(results)} pieces)" for pool, results in found.items())], rows)


def write_examples(found: dict[str, list[Heard]], out: Path) -> None:
    """A picture and some sounds of the first pieces of each pool."""
    pictured = [result for results in found.values() for result in results[:PICTURED]]
    pairs = [
        (f"{one.piece.seed} {one.piece.style}, {one.piece.lead_timbre or 'no lead'}", one.original, one.heard)
        for one in pictured
    ]
    write_comparison(out / "vae.png", pairs, columns=2)
    for pool, results in found.items():
        for one in results[:KEPT_SOUNDS]:
            write_audio(out / "sounds" / f"vae {pool} {one.piece.seed} original.wav", one.original)
            write_audio(out / "sounds" / f"vae {pool} {one.piece.seed} heard.wav", one.heard)

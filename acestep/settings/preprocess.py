"""Settings of preprocessing: how songs become tensors."""

from __future__ import annotations

from typing import Literal

from acestep.core.device import DeviceName, PrecisionName
from acestep.settings.base import Settings, knob

Normalization = Literal["none", "peak", "lufs", "peak_lufs"]
LatentDraw = Literal["sample", "mean"]


class PreprocessSettings(Settings):
    """What is encoded and how."""

    normalize: Normalization = knob(
        "none",
        "Loudness: leave it, peak to -1 dBFS, loudness to -14 LUFS, or both (loudness, then held below -1 dBFS).",
        group="audio",
        level="basic",
    )
    max_duration_s: float = knob(
        240.0,
        "Longest part of a song that is encoded, from its start, in seconds; 0 takes whole songs.",
        group="audio",
        ge=0,
        le=3600,
    )
    latents: LatentDraw = knob(
        "sample",
        "Latents drawn once from the VAE's posterior, as the model was trained, or its mean.",
        group="encoding",
        level="expert",
    )
    two_pass: bool = knob(
        False,
        "Hold only VAE and text encoder first, then only the condition encoder: less memory, same result.",
        group="memory",
    )
    lyric_windows_s: float = knob(
        0.0,
        "Longest window with lyrics and duration of its own, in seconds, for songs with timed lyrics; 0 makes none.",
        group="encoding",
        ge=0,
        le=600,
    )
    seed: int = knob(
        42, "Seed of the posterior draws; each song has its own draw.", group="encoding", level="expert", ge=0
    )
    device: DeviceName = knob("auto", "Device to encode on.", group="hardware")
    precision: PrecisionName = knob("auto", "Number format of the frozen models.", group="hardware")
    devices: int = knob(
        1, "Devices to encode on, one process each; the songs are dealt out to them.", group="hardware", ge=1, le=64
    )

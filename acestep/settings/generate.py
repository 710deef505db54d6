"""Settings of generation: what to play and how."""

from __future__ import annotations

from typing import Literal

from acestep.core.device import DeviceName, PrecisionName
from acestep.settings.base import Settings, knob

AudioFormat = Literal["wav", "flac", "mp3", "ogg", "opus"]


class GenerateSettings(Settings):
    """One text-to-music request. Unset sampler values take the defaults of the model variant."""

    caption: str = knob("", "Description of the music.", group="prompt", level="basic")
    lyrics: str = knob("[Instrumental]", "Lyrics with section tags, or [Instrumental].", group="prompt", level="basic")
    language: str = knob("unknown", "Language code of the lyrics.", group="prompt")
    bpm: int | None = knob(None, "Tempo in beats per minute.", group="prompt", level="basic", ge=30, le=300)
    keyscale: str = knob("", "Key and scale, such as A minor.", group="prompt", level="basic")
    timesignature: Literal["", "2", "3", "4", "6"] = knob("", "Beats in a bar.", group="prompt", level="basic")
    duration_s: float = knob(30.0, "Length in seconds.", group="prompt", level="basic", ge=1, le=600)
    seed: int = knob(42, "Seed of the noise; the same seed plays the same piece.", group="sampler", level="basic", ge=0)
    steps: int | None = knob(None, "Sampling steps; unset takes the variant's default.", group="sampler", ge=1, le=200)
    guidance: float | None = knob(
        None, "Guidance scale; unset takes the variant's default, turbo has none.", group="sampler", ge=1, le=30
    )
    shift: float | None = knob(None, "Timestep shift; unset takes the variant's default.", group="sampler", gt=0, le=10)
    format: AudioFormat = knob("wav", "Audio format where the file name does not tell.", group="output")
    device: DeviceName = knob("auto", "Device to generate on.", group="hardware")
    precision: PrecisionName = knob("auto", "Number format of the frozen models.", group="hardware")


class SweepSettings(Settings):
    """How often one request is played: at which strengths of an adapter, and with how many seeds."""

    strength: list[float] = knob(
        [1.0], "Adapter strengths, each played on the same noise; 0 is the model without it.", group="sweep"
    )
    takes: int = knob(1, "Pieces a strength, each with the next seed.", group="sweep", ge=1, le=16)

"""Settings of previews: the music a run plays while it trains."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from acestep.settings.base import Settings, knob
from acestep.settings.generate import AudioFormat


class PreviewSettings(Settings):
    """When the run plays what it has learnt, and what. All of it may change when a run is resumed."""

    preview_every_epochs: int = knob(0, "Epochs between previews; 0 is off.", group="preview", level="basic", ge=0)
    preview_every_steps: int = knob(
        0, "Optimizer steps between previews, beside the epochs; 0 is off.", group="preview", ge=0
    )
    preview_captions: list[str] = knob(
        [],
        "Captions to play; none takes the caption and labels of the first training song.",
        group="preview",
        level="basic",
    )
    preview_lyrics: str = knob(
        "", "Lyrics of all previews; empty takes the song's, or none with captions of your own.", group="preview"
    )
    preview_language: str = knob(
        "",
        "Language code of the lyrics; empty takes the song's, or unknown with captions of your own.",
        group="preview",
    )
    preview_bpm: int | None = knob(
        None, "Tempo in beats per minute; unset takes the song's, or leaves it open.", group="preview", ge=30, le=300
    )
    preview_keyscale: str = knob(
        "", "Key and scale, such as A minor; empty takes the song's, or leaves it open.", group="preview"
    )
    preview_timesignature: Literal["", "2", "3", "4", "6"] = knob(
        "", "Beats in a bar; empty takes the song's, or leaves it open.", group="preview"
    )
    preview_duration_s: float = knob(20.0, "Length of a preview in seconds.", group="preview", ge=1, le=600)
    preview_seeds: list[int] = knob([42], "Seeds of the noise; each plays every caption.", group="preview")
    preview_strengths: list[float] = knob([1.0], "Adapter strengths; each plays every seed.", group="preview")
    preview_base: bool = knob(
        True, "Also play the model without the adapter, from the same noise.", group="preview", level="basic"
    )
    preview_steps: int | None = knob(
        None, "Sampling steps; unset takes the variant's default.", group="preview", ge=1, le=200
    )
    preview_guidance: float | None = knob(
        None, "Guidance scale; unset takes the variant's default, turbo has none.", group="preview", ge=1, le=30
    )
    preview_shift: float | None = knob(
        None, "Timestep shift; unset takes the variant's default.", group="preview", gt=0, le=10
    )
    preview_format: AudioFormat = knob("wav", "Audio format of previews.", group="preview", level="expert")

    @field_validator("preview_captions")
    @classmethod
    def _check_captions(cls, captions: list[str]) -> list[str]:
        if not all(caption.strip() for caption in captions):
            raise ValueError("a caption is empty")
        return [caption.strip() for caption in captions]

    @field_validator("preview_seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int]) -> list[int]:
        if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 1 << 63 for seed in seeds):
            raise ValueError("needs one or more different whole numbers of at least 0")
        return seeds

    @field_validator("preview_strengths")
    @classmethod
    def _check_strengths(cls, strengths: list[float]) -> list[float]:
        names = {f"{strength:.2f}" for strength in strengths}  # two digits are what file names show
        if not strengths or len(names) < len(strengths) or not all(abs(strength) <= 10 for strength in strengths):
            raise ValueError("needs one or more numbers from -10 to 10 that differ in their first two decimals")
        return strengths

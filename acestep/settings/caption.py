"""Settings of labelling: who says what about the songs, and what may be replaced."""

from __future__ import annotations

from typing import Literal

from acestep.core.device import DeviceName, PrecisionName
from acestep.settings.base import Settings, knob

Fill = Literal["missing", "machine", "all"]


class CaptionSettings(Settings):
    """How a folder of songs is labelled. Keys of services are never settings."""

    caption_by: str = knob(
        "ace-captioner", "Backend for captions and genre; empty leaves them alone.", group="who", level="basic"
    )
    lyrics_by: str = knob(
        "ace-transcriber", "Backend for lyrics and language; empty leaves them alone.", group="who", level="basic"
    )
    metadata_by: str = knob(
        "analysis", "Backend for tempo, key and metre; empty leaves them alone.", group="who", level="basic"
    )
    fill: Fill = knob(
        "missing",
        "What may be written: missing fields, also those a machine wrote, or all; hand-made ones only with all.",
        group="who",
        level="basic",
    )
    language: str = knob("", "Language code of all lyrics; empty lets the backend tell.", group="who")
    instrumental: Literal["ask", "yes"] = knob(
        "ask", "Whether the songs have voices: the lyrics backend tells, or all are instrumental.", group="who"
    )
    caption_model: str = knob(
        "", "Model for captions: Hub name or folder; empty takes the backend's own.", group="models"
    )
    lyrics_model: str = knob("", "Model for lyrics: Hub name or folder; empty takes the backend's own.", group="models")
    tags_file: str = knob(
        "", "Tags that clap-tags chooses from, a JSON file; empty takes the built-in list.", group="models"
    )
    codes_model: str = knob(
        "",
        "ACE-Step model that turns audio into codes for five-hz-lm: name or folder; empty takes the first found.",
        group="models",
    )
    codes_s: float = knob(
        240.0, "Seconds of a song that five-hz-lm hears at most, from its start.", group="models", ge=10, le=600
    )
    max_tokens: int = knob(600, "Longest caption in tokens; lyrics get more with their length.", group="models", ge=32)
    temperature: float = knob(
        0.0, "Randomness of written captions; 0 always takes the likeliest word.", group="models", ge=0, le=2
    )
    seed: int = knob(42, "Seed where the temperature is above 0.", group="models", level="expert", ge=0)
    window_s: float = knob(
        60.0,
        "Seconds a local model hears at a time for lyrics, and of each excerpt where a song is too long for a caption.",
        group="models",
        ge=10,
        le=600,
    )
    quantize: Literal["auto", "none", "int8", "nf4"] = knob(
        "auto", "Smaller weights of local models; auto does so where the memory asks for it.", group="models"
    )
    device: DeviceName = knob("auto", "Device of local models.", group="hardware")
    precision: PrecisionName = knob("auto", "Number format of local models.", group="hardware")
    base_url: str = knob("", "Address of an OpenAI-compatible server, or of a stand-in for a service.", group="service")
    parallel_requests: int = knob(4, "Songs under way at a service at once.", group="service", ge=1, le=64)
    requests_per_minute: int = knob(0, "Most requests a minute; 0 sets no limit.", group="service", ge=0)
    retries: int = knob(4, "Tries after a failure that may pass.", group="service", ge=0, le=20)
    timeout_s: float = knob(300.0, "Seconds a request may take.", group="service", gt=0, le=3600)

"""The backends there are, by name. The command line, both apps and the tests know them only from here."""

from __future__ import annotations

import importlib

from acestep.captioning.contract import Backend, BackendFacts
from acestep.core.errors import UserError, did_you_mean
from acestep.settings.caption import CaptionSettings

BACKENDS: dict[str, str] = {
    "analysis": "acestep.captioning.analysis:make",
    "ace-captioner": "acestep.captioning.omni:captioner",
    "ace-transcriber": "acestep.captioning.omni:transcriber",
    "whisper": "acestep.captioning.whisper_local:whisper",
    "music-flamingo": "acestep.captioning.flamingo:music_flamingo",
    "clap-tags": "acestep.captioning.clap_tags:clap_tags",
    "five-hz-lm": "acestep.captioning.five_hz:five_hz_lm",
    "openai-whisper": "acestep.captioning.openai_whisper:backend",
    "elevenlabs-scribe": "acestep.captioning.elevenlabs_scribe:backend",
    "gemini": "acestep.captioning.gemini:backend",
    "openai-compatible": "acestep.captioning.openai_compatible:backend",
}
"""Name → "module:function without arguments" of each backend; imported when first asked for."""


def backend(name: str) -> Backend:
    """The backend of a name. Raises UserError for an unknown one."""
    if name not in BACKENDS:
        raise UserError(
            f'There is no labelling backend "{name}".{did_you_mean(name, BACKENDS)}',
            fix=f"Choose one of: {', '.join(BACKENDS)}.",
        )
    module, _, make = BACKENDS[name].partition(":")
    made: Backend = getattr(importlib.import_module(module), make)()
    return made


def model_name(facts: BackendFacts, settings: CaptionSettings) -> str:
    """The model the user chose for a backend, else its own.

    The model for captions is that of the caption backend, or where there is none of the one for tempo, key and metre.
    """
    if settings.caption_model and facts.name == (settings.caption_by or settings.metadata_by):
        return settings.caption_model
    if settings.lyrics_model and facts.name == settings.lyrics_by:
        return settings.lyrics_model
    return facts.model

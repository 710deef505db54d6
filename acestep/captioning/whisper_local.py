"""Whisper of any size on this machine: lyrics with a time for each line, and their language.

Whisper was trained on speech: it hears words in songs well where the voice is clear, knows no sections, and can
hallucinate in long instrumental parts. Its own checks against that (silence, repetition, unlikely text) are on.
"""

from __future__ import annotations

import contextlib
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from acestep.captioning.contract import Answer, BackendFacts, Field, Guess, Hearing, OpenBackend, SongToLabel
from acestep.captioning.lines import Word, language_code, lrc_text, lyric_lines, lyrics_text
from acestep.captioning.local import (
    SAMPLE_RATE,
    load_errors,
    load_model,
    model_folder,
    model_size,
    mono,
    place,
    quiet_library,
    weights_device,
)
from acestep.captioning.registry import model_name
from acestep.core.device import free_memory, memory_told
from acestep.core.jobs import Job
from acestep.model.facts import INSTRUMENTAL
from acestep.settings.caption import CaptionSettings

_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Tried in this order until a passage is neither repetition nor unlikely (Radford et al. 2022, section 4.5)."""

_LANGUAGE_PROBES = 5  # places of a song at which its language is heard


@dataclass(frozen=True)
class WhisperBackend:
    """Whisper through transformers."""

    facts: BackendFacts

    @contextlib.contextmanager
    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Iterator[OpenBackend]:
        opened = _Whisper(model_folder(model_name(self.facts, settings), job), settings, job)
        try:
            yield opened
        finally:
            opened.close()


def whisper() -> WhisperBackend:
    """Words, their times and their language."""
    return WhisperBackend(
        BackendFacts(
            name="whisper",
            title="Whisper (on this machine)",
            origin="model",
            gives=frozenset({"lyrics", "language"}),
            hears=Hearing(SAMPLE_RATE, 1),
            model="openai/whisper-large-v3-turbo",
            memory_gib=3.0,
            packages=("transformers",),
        )
    )


class _Whisper:
    def __init__(self, folder: Path, settings: CaptionSettings, job: Job) -> None:
        placement = place(model_size(folder), settings)
        job.say(f"Loading {folder.name} on {placement}.")
        with load_errors(folder):
            from transformers import WhisperForConditionalGeneration, WhisperProcessor, pipeline

            model = load_model(WhisperForConditionalGeneration, folder, placement)
            processor = WhisperProcessor.from_pretrained(folder, local_files_only=True)
            if getattr(model.generation_config, "alignment_heads", None) is None:
                raise ValueError("generation_config.json names no alignment_heads, which word times need")
            self._hear: Any = pipeline(
                "automatic-speech-recognition",
                model=model,
                tokenizer=processor.tokenizer,
                feature_extractor=processor.feature_extractor,
            )
        self._settings = settings
        self._job = job

    def close(self) -> None:
        self._hear = None
        free_memory()

    def label(self, song: SongToLabel) -> Answer:
        import torch

        signal = mono(cast(np.ndarray, song.samples))
        no_room = memory_told(
            f"The memory does not hold {song.path.name} beside the model.",
            fix="Choose a smaller Whisper, or close other programs that use the card.",
        )
        with no_room, quiet_library(), torch.inference_mode(), torch.random.fork_rng():
            # Only passages that failed at temperature 0 draw; they draw the same whatever came before.
            torch.manual_seed(self._settings.seed ^ zlib.crc32(signal.tobytes()))
            language, confidence, runner_up = self._language(signal, song.language)
            words = self._words(signal, language)
        lines = lyric_lines(words, language)
        values: dict[Field, Guess] = {}
        if "lyrics" in song.wanted:
            values["lyrics"] = Guess(lyrics_text(lines) if lines else INSTRUMENTAL)
        code = language_code(language)
        if "language" in song.wanted and code and lines:
            values["language"] = Guess(code, confidence, runner_up)
        usage = {"audio_s": len(signal) / SAMPLE_RATE}
        return Answer(values, timed_lyrics=lrc_text(lines) if "lyrics" in song.wanted else "", usage=usage)

    def _language(self, signal: np.ndarray, told: str) -> tuple[str, float | None, str | None]:
        """The language as Whisper names it, how many probes agree, and the runner-up.

        Songs begin with instruments, so it is heard at several places and not in the first half minute only.
        """
        config = self._hear.model.generation_config
        if not getattr(config, "is_multilingual", True):
            return "en", None, None
        names = {number: token.strip("<|>") for token, number in config.lang_to_id.items()}
        if told in names.values():
            return told, 1.0, None
        length = int(self._hear.feature_extractor.n_samples)
        starts = np.linspace(0, max(0, len(signal) - length), _LANGUAGE_PROBES).round().astype(int)
        found: Counter[str] = Counter()
        for start in dict.fromkeys(starts.tolist()):
            self._job.check_stop()
            features = self._hear.feature_extractor(
                signal[start : start + length], sampling_rate=SAMPLE_RATE, return_tensors="pt"
            ).input_features
            features = features.to(weights_device(self._hear.model), self._hear.model.dtype)
            number = int(self._hear.model.detect_language(features, num_segment_frames=features.shape[-1])[0])
            found[names[number]] += 1
        ranks = found.most_common(2)
        return ranks[0][0], ranks[0][1] / found.total(), ranks[1][0] if len(ranks) > 1 else None

    def _words(self, signal: np.ndarray, language: str) -> list[Word]:
        import torch
        from transformers import StoppingCriteriaList

        def asked_to_stop(ids: torch.Tensor, _scores: Any, **_rest: Any) -> torch.Tensor:
            return torch.full((len(ids),), self._job.stop_requested, device=ids.device)

        options: dict[str, Any] = {
            "condition_on_prev_tokens": False,  # or one passage that hangs takes the rest with it
            "temperature": _TEMPERATURES,
            "compression_ratio_threshold": 1.35,
            "logprob_threshold": -1.0,
            "no_speech_threshold": 0.6,
            "stopping_criteria": StoppingCriteriaList([asked_to_stop]),
        }
        if getattr(self._hear.model.generation_config, "is_multilingual", True):
            options |= {"language": language, "task": "transcribe"}
        heard = self._hear(
            {"raw": signal, "sampling_rate": SAMPLE_RATE}, return_timestamps="word", generate_kwargs=options
        )
        self._job.check_stop()
        return [Word(chunk["text"], *chunk["timestamp"]) for chunk in heard.get("chunks", ())]

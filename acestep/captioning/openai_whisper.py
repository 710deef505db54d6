"""Lyrics and their language by OpenAI's Whisper, with the time of every word.

Sent is the sound alone, mono at 16 kHz, which is what the model hears: no name, no tags. Long songs go in pieces
below the service's limit of 25 MB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import BaseModel

from acestep.captioning.contract import Answer, BackendFacts, Guess, Hearing, SongToLabel
from acestep.captioning.lines import Word
from acestep.captioning.openai_client import ask_openai, openai_client
from acestep.captioning.registry import model_name
from acestep.captioning.services import Service, encoded, pieces, service_of, usage_of
from acestep.captioning.transcripts import join_pieces, language_hint, transcript_answer
from acestep.core.jobs import Job
from acestep.settings.caption import CaptionSettings

if TYPE_CHECKING:
    import openai

PIECE_S = 720.0
"""Even as noise this is 23 MB of FLAC."""

OVERLAP_S = 20.0

# beyond these Whisper itself takes a stretch for silence or for a loop (openai/whisper, transcribe.py)
_NO_SPEECH = 0.6
_UNSURE_LOGPROB = -1.0
_LOOPING_RATIO = 2.4

HEARS = Hearing(16_000, 1)

FACTS = BackendFacts(
    name="openai-whisper",
    title="OpenAI Whisper",
    origin="service",
    gives=frozenset({"lyrics", "language"}),
    hears=HEARS,
    model="whisper-1",
    key_variable="OPENAI_API_KEY",
    network=True,
    parallel=True,
    packages=("openai",),
)


class _Word(BaseModel):
    word: str
    start: float
    end: float


class _Segment(BaseModel):
    start: float
    end: float
    avg_logprob: float = 0.0
    no_speech_prob: float = 0.0
    compression_ratio: float = 0.0


class _Transcription(BaseModel):
    text: str
    language: str = ""
    words: list[_Word] | None = None
    segments: list[_Segment] | None = None


class OpenAIWhisper:
    """OpenAI's transcription service."""

    facts = FACTS

    @contextmanager
    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Iterator[OpenWhisper]:
        """The client. Raises UserError when the key is missing."""
        service = service_of(FACTS, settings, keys, job)
        with openai_client(service, settings) as client:
            yield OpenWhisper(client, service, model_name(FACTS, settings))


class OpenWhisper:
    """A client that is ready to transcribe."""

    def __init__(self, client: openai.OpenAI, service: Service, model: str) -> None:
        self._client, self._service, self._model = client, service, model

    def label(self, song: SongToLabel) -> Answer:
        """Lyrics and language of a song."""
        assert song.samples is not None, "the batch decodes songs for this backend"
        rate = HEARS.sample_rate
        parts = pieces(song.samples, rate, PIECE_S, OVERLAP_S)
        heard = [(start_s, self._transcribe(encoded(part, rate, "flac"), song)) for start_s, part in parts]
        answers = [answer for _, answer in heard]
        notes: list[str] = []
        words = join_pieces([(start_s, _sung_words(answer, notes)) for start_s, answer in heard], OVERLAP_S)
        # where times were given but all words fell to silence, the text holds the same inventions
        text = "" if any(answer.words for answer in answers) else "\n".join(answer.text for answer in answers)
        language = next((answer.language for answer in answers if answer.text.strip()), "")
        return transcript_answer(
            song,
            words,
            text,
            Guess(language),
            confidence=_confidence([segment for answer in answers for segment in answer.segments or []]),
            notes=list(dict.fromkeys(notes)),
            usage=usage_of(self._service, FACTS, self._model, song.duration_s),
        )

    def _transcribe(self, sound: bytes, song: SongToLabel) -> _Transcription:
        import openai

        hint = language_hint(song)
        answer = ask_openai(
            self._service,
            lambda: self._client.audio.transcriptions.create(
                file=("song.flac", sound, "audio/flac"),
                model=self._model,
                language=("zh" if hint == "yue" else hint) or openai.omit,  # whisper-1 knows no Cantonese
                response_format="verbose_json",
                timestamp_granularities=["word", "segment"],
                temperature=0,
            ),
        )
        return self._service.fitting(_Transcription, answer)


def _sung_words(answer: _Transcription, notes: list[str]) -> list[Word]:
    """The words outside of stretches where the model heard no voice or hung in a loop."""
    doubtful = []
    for segment in answer.segments or []:
        if segment.no_speech_prob > _NO_SPEECH and segment.avg_logprob < _UNSURE_LOGPROB:
            doubtful.append(segment)
        elif segment.compression_ratio > _LOOPING_RATIO:
            notes.append("Whisper repeated itself in places; check the lyrics.")
    if doubtful:
        notes.append("Whisper wrote words where it heard no voice; they are left out.")
    return [
        Word(word.word, word.start, word.end)
        for word in answer.words or []
        if not any(segment.start <= (word.start + word.end) / 2 < segment.end for segment in doubtful)
    ]


def _confidence(segments: Sequence[_Segment]) -> float | None:
    """Mean probability of a token, over the seconds of all segments."""
    lengths = [max(segment.end - segment.start, 0.0) for segment in segments]
    if not sum(lengths):
        return None
    mean = sum(segment.avg_logprob * length for segment, length in zip(segments, lengths, strict=True)) / sum(lengths)
    return math.exp(min(mean, 0.0))


def backend() -> OpenAIWhisper:
    """The backend, for the registry."""
    return OpenAIWhisper()

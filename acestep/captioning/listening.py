"""A model that hears a song and answers in words: one question, one answer. Used by omni.py and flamingo.py."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from acestep.captioning.contract import Answer, Field
from acestep.captioning.local import SAMPLE_RATE, excerpts, quiet_library, weights_device
from acestep.captioning.tasks import caption_answer
from acestep.core.device import free_memory, lacks_memory
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.settings.caption import CaptionSettings

_LOOP_PENALTY = 1.15
"""Repetition penalty of a second try after an answer without end."""

_HALF_CHARACTER = "\ufffd"
_MOST_BROKEN = 0.02
"""Share of characters that are no characters, above which an answer is no text."""


@dataclass(frozen=True)
class Reply:
    """What a model wrote, whether it came to an end by itself, its tokens, and the seconds of audio it heard."""

    text: str
    is_whole: bool
    tokens: int
    heard_s: float
    excerpts: int = 1

    def caption_answer(self, wanted: frozenset[Field]) -> Answer:
        """The wanted fields of a description, and what it cost."""
        answer = caption_answer(self.text, wanted, is_whole=self.is_whole, excerpts=self.excerpts, heard_s=self.heard_s)
        return replace(answer, usage={"audio_s": self.heard_s, "tokens": self.tokens})


class Listener:
    """A loaded model and its processor, which hear `longest_s` seconds at once. `close` lets go of both."""

    def __init__(self, model: Any, processor: Any, longest_s: float, settings: CaptionSettings, job: Job) -> None:
        self._model = model
        self._processor = processor
        self.longest_s = longest_s
        self._settings = settings
        self._job = job

    def close(self) -> None:
        self._model = self._processor = None
        free_memory()

    def ask(self, conversation: list[dict[str, Any]], signal: np.ndarray, most_tokens: int) -> Reply:
        """One inference over as much of a signal [N] at 16 kHz as the model takes and the memory holds.

        Where the memory does not hold it, the model hears half as much, in excerpts from start to end, until no more
        than a window is left. Raises Stopped when the job is stopped, and UserError when even that does not fit.
        """
        shortest_s = min(self._settings.window_s, self.longest_s)
        while True:
            heard = excerpts(signal, self.longest_s, self._settings.window_s)
            try:
                return self._answer(conversation, np.concatenate(heard), most_tokens, len(heard))
            except (RuntimeError, MemoryError) as error:
                if not lacks_memory(error):
                    raise
                if self.longest_s <= shortest_s or len(signal) <= shortest_s * SAMPLE_RATE:
                    raise UserError(
                        f"The memory does not hold {shortest_s:.0f} s of a song beside the model.",
                        fix="Choose quantize nf4, a smaller window_s, or close other programs that use the card.",
                    ) from error
            # Outside the handler: the error holds the tensors of the failed try.
            free_memory()
            self.longest_s = max(shortest_s, min(self.longest_s, len(signal) / SAMPLE_RATE) / 2)
            self._job.warn(f"Memory ran short: {self.longest_s:.0f} s of a song are heard at once from here on.")

    def _answer(self, conversation: list[dict[str, Any]], heard: np.ndarray, most_tokens: int, parts: int) -> Reply:
        text = self._processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        inputs = self._processor(text=[text], audio=[heard], sampling_rate=SAMPLE_RATE, return_tensors="pt")
        inputs = inputs.to(weights_device(self._model), dtype=self._model.dtype)
        written, is_whole = self._write(inputs, most_tokens, heard, penalty=1.0)
        if not is_whole and _is_loop(written):
            written, is_whole = self._write(inputs, most_tokens, heard, penalty=_LOOP_PENALTY)
        said = self._processor.tokenizer.decode(written, skip_special_tokens=True)
        said = said.rstrip(_HALF_CHARACTER)  # of an answer that was cut off within one
        if said.count(_HALF_CHARACTER) > _MOST_BROKEN * len(said):
            said = ""  # no text at all; parsing says that there is none
        return Reply(said, is_whole, len(written), len(heard) / SAMPLE_RATE, parts)

    def _write(self, inputs: Any, most_tokens: int, heard: np.ndarray, penalty: float) -> tuple[list[int], bool]:
        """The tokens of an answer, and whether the model ended it; the same for the same song, whatever came before."""
        import torch
        from transformers import StoppingCriteriaList

        temperature = self._settings.temperature
        sampling = {"temperature": temperature} if temperature > 0 else {"temperature": None}

        def asked_to_stop(ids: torch.Tensor, _scores: Any, **_rest: Any) -> torch.Tensor:
            return torch.full((len(ids),), self._job.stop_requested, device=ids.device)

        ends = self._model.generation_config.eos_token_id
        with quiet_library(), torch.inference_mode(), torch.random.fork_rng(enabled=temperature > 0):
            if temperature > 0:
                torch.manual_seed(self._settings.seed ^ zlib.crc32(heard.tobytes()))
            answer = self._model.generate(
                **inputs,
                **sampling,
                do_sample=temperature > 0,
                top_p=None,
                top_k=None,
                repetition_penalty=penalty,
                max_new_tokens=most_tokens,
                stopping_criteria=StoppingCriteriaList([asked_to_stop]),
            )
        self._job.check_stop()
        written = answer[0, inputs["input_ids"].shape[1] :].tolist()
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        return written, bool(written) and written[-1] in ends


def _is_loop(tokens: list[int]) -> bool:
    """Do the last tokens only repeat themselves: the second half of the answer in cycles of one sequence?"""
    tail = tokens[len(tokens) // 2 :]
    return len(tail) >= 16 and any(tail[cycle:] == tail[:-cycle] for cycle in range(1, len(tail) // 3))

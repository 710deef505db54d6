"""ACE-Step's own 5 Hz language model: it reads a song as the codes it would itself write, and tells all its labels.

An ACE-Step checkpoint gives VAE and audio tokenizer for the codes; its transformer is never loaded. Tempo and key are
guesses here: analysis measures them. Reference: acestep-inference-and-data.md §4.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from acestep.captioning.contract import (
    FIELDS,
    Answer,
    BackendFacts,
    BackendUnusable,
    Field,
    Guess,
    Hearing,
    OpenBackend,
    SongToLabel,
)
from acestep.captioning.local import load_errors, load_model, model_folder, model_size, place, quiet_library
from acestep.captioning.parsing import parse_think
from acestep.core.device import choose_device, free_memory, lacks_memory
from acestep.core.errors import UserError
from acestep.core.jobs import Job, state_folder
from acestep.core.paths import read_json, value_hash, write_json
from acestep.dataset.text import one_line
from acestep.model.checkpoints import (
    DEFAULT_FOLDER,
    WEIGHTS_STEM,
    Checkpoint,
    SharedPart,
    find_checkpoints,
    resolve_checkpoint,
)
from acestep.model.download import DownloadPlan, fetch, plan_repository
from acestep.model.facts import DURATION_RANGE_S
from acestep.model.variants import MAIN_REPOSITORY
from acestep.model.weights import weight_files
from acestep.settings.caption import CaptionSettings

NAME = "five-hz-lm"
SAMPLE_RATE = 48_000

INSTRUCTION = "Understand the given musical conditions and describe the audio semantics accordingly:"

_CONTEXT = 4096
"""Tokens of prompt and answer together that the models were trained with."""

LEAST_ANSWER = 768
"""Tokens that stay for the answer, whatever the song's length."""

_MOST_CAPTION = 512  # tokens of a caption, as in training
_LINE_OF: dict[Field, str] = {
    "bpm": "bpm",
    "caption": "caption",
    "genre": "genres",
    "keyscale": "keyscale",
    "timesignature": "timesignature",
}
"""The lines of the model's notes by field."""

_SHORT_NAME = re.compile(r"(?:acestep-5hz-lm-)?(0\.6|1\.7|4)b", re.IGNORECASE)


@dataclass(frozen=True)
class FiveHzBackend:
    """The 5 Hz language model through transformers."""

    facts: BackendFacts

    @contextlib.contextmanager
    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Iterator[OpenBackend]:
        checkpoint = codes_checkpoint(settings.codes_model)
        opened = _Reader(checkpoint, language_model_folder(_wanted_model(settings), checkpoint, job), settings, job)
        try:
            yield opened
        finally:
            opened.close()


def five_hz_lm() -> FiveHzBackend:
    """Every label in one answer."""
    return FiveHzBackend(
        BackendFacts(
            name=NAME,
            title="ACE-Step 5 Hz language model",
            origin="model",
            gives=frozenset(FIELDS),
            hears=Hearing(SAMPLE_RATE, 2),
            model="acestep-5Hz-lm-1.7B",
            memory_gib=5.0,
            packages=("transformers", "diffusers"),
        )
    )


def codes_checkpoint(name: str, folder: Path = DEFAULT_FOLDER) -> Checkpoint:
    """The ACE-Step model whose tokenizer makes the codes: that of the name, or the first in `folder` that can.

    Raises UserError when there is none.
    """
    needed: tuple[SharedPart, ...] = ("vae",)
    if name:
        return resolve_checkpoint(name, needs=needed)
    for checkpoint in find_checkpoints([folder]):
        if "vae" not in checkpoint.missing_parts():
            return checkpoint
    raise UserError(
        f"{NAME} needs an ACE-Step model to turn audio into codes, and {folder} holds none.",
        fix="`acestep download turbo` fetches one; or name its folder in codes_model.",
    )


def language_model_folder(name: str, checkpoint: Checkpoint, job: Job) -> Path:
    """The folder of a language model: one of the sizes 0.6B, 1.7B and 4B, a folder or a Hub name; empty is 1.7B.

    A published size is looked for in `checkpoints/` and beside the checkpoint, and else fetched to its side.
    """
    if not (folder_name := published_name(name)):
        return model_folder(name, job)
    if (present := present_language_model(folder_name, checkpoint)) is not None:
        return present
    plan = plan_language_model(folder_name, checkpoint)
    job.say(plan.summary())
    return fetch(plan, job)


def published_name(name: str) -> str:
    """The folder name of a published size; empty for another model."""
    match = _SHORT_NAME.fullmatch((name or "1.7B").strip())
    return f"acestep-5Hz-lm-{match[1]}B" if match else ""


def present_language_model(folder_name: str, checkpoint: Checkpoint) -> Path | None:
    """The folder of a published size that is on this machine; None for one that is still to be fetched."""
    for place_ in (DEFAULT_FOLDER, checkpoint.dit.parent):
        folder = place_ / folder_name
        with contextlib.suppress(UserError):  # what is not whole is fetched to its end
            if (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file():
                weight_files(folder, WEIGHTS_STEM)
                return folder.resolve()
    return None


def plan_language_model(folder_name: str, checkpoint: Checkpoint) -> DownloadPlan:
    """Ask the Hub what fetching a published size takes, to the side of the checkpoint."""
    in_main = folder_name.endswith("-1.7B")  # the middle size has no repository of its own
    repo, subfolder = (MAIN_REPOSITORY, folder_name) if in_main else (f"ACE-Step/{folder_name}", "")
    return plan_repository(repo, checkpoint.dit.parent, folder_name, subfolder=subfolder)


def _wanted_model(settings: CaptionSettings) -> str:
    """The setting that names the model: that of the labels this backend was chosen for."""
    if settings.caption_by != NAME and settings.lyrics_by == NAME:
        return settings.lyrics_model
    return settings.caption_model if settings.caption_by == NAME else ""


class _Reader:
    """Loaded coder and language model."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, settings: CaptionSettings, job: Job) -> None:
        from acestep.captioning.think import Words
        from acestep.model.codes import AudioCoder
        from acestep.model.identity import codes_fingerprint

        self._settings = settings
        self._job = job
        choice = choose_device(settings.device, settings.precision)
        # Before the language model, which is then placed in what memory is left.
        self._coder = AudioCoder(checkpoint, choice.dtype, choice.device)
        self._coder_identity = f"{codes_fingerprint(checkpoint)} {choice.device} {choice.precision}"
        placement = place(model_size(folder), settings)
        job.say(f"Loading {folder.name} on {placement}; codes by {checkpoint.name}.")
        with load_errors(folder):
            from transformers import AutoModelForCausalLM, AutoTokenizer

            self._model = load_model(AutoModelForCausalLM, folder, placement)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            size = int(self._model.get_output_embeddings().weight.shape[0])
            self._words = Words.of(self._tokenizer, size, self._model.device)
            if not self._words.codes:
                raise ValueError("its tokenizer has no tokens for audio codes")
            if self._tokenizer.chat_template is None:
                raise ValueError("its tokenizer has no chat template")

    def close(self) -> None:
        self._coder = self._model = self._tokenizer = self._words = cast(Any, None)
        free_memory()

    def label(self, song: SongToLabel) -> Answer:
        try:
            return self._label(song)
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            free_memory()
            raise UserError(
                f"The memory does not hold {song.path.name} beside the models.",
                fix="Choose quantize nf4, a smaller language model, or a smaller codes_s.",
            ) from error

    def _label(self, song: SongToLabel) -> Answer:
        from acestep.captioning.think import ThinkForm

        prompt, heard_s = self._prompt(song)
        room = self._context - len(prompt)
        with_lyrics = "lyrics" in song.wanted
        caption_tokens = min(self._settings.max_tokens, _MOST_CAPTION, room // 2)
        form = ThinkForm(self._words, len(prompt), _told(song), caption_tokens, with_lyrics)
        written = self._write(prompt, room, form)
        is_whole = bool(written) and written[-1] == self._tokenizer.eos_token_id
        parsed = parse_think(self._tokenizer.decode(written, skip_special_tokens=False))
        notes = list(parsed.notes)
        if not is_whole:
            notes.append("The answer was cut off at the end of the model's context; the lyrics may lack their end.")
        if heard_s < song.duration_s - 1:
            notes.append(f"Only the first {heard_s:.0f} s were heard; raise codes_s for more.")
        values: dict[Field, Guess] = {
            name: Guess(value, form.chances.get(name)) for name, value in parsed.values.items() if name in song.wanted
        }
        return Answer(values, notes=tuple(notes), usage={"audio_s": heard_s, "tokens": len(written)})

    @property
    def _context(self) -> int:
        return min(_CONTEXT, int(getattr(self._model.config, "max_position_embeddings", _CONTEXT)))

    def _prompt(self, song: SongToLabel) -> tuple[list[int], float]:
        """The tokens that ask about a song, and the seconds of it that they hold."""
        from acestep.model.codes import CODE_RATE

        frame = self._prompt_tokens("")
        fits_s = (self._context - LEAST_ANSWER - len(frame)) / CODE_RATE
        longest = round(min(self._settings.codes_s, fits_s) * SAMPLE_RATE)
        samples = np.clip(cast(np.ndarray, song.samples)[:, :longest], -1, 1)
        if not samples.any():
            raise UserError(f"{song.path.name} is silent where it is heard.", fix="Remove it or cut its start.")
        self._job.check_stop()
        codes = self._codes(samples)
        unknown = next((code for code in codes if code not in self._words.codes), None)
        if unknown is not None:
            raise BackendUnusable(
                f"The language model has no word for audio code {unknown}.",
                fix="Choose a codes_model that it was trained with.",
            )
        prompt = self._prompt_tokens("".join(f"<|audio_code_{code}|>" for code in codes))
        return prompt, samples.shape[1] / SAMPLE_RATE

    def _codes(self, samples: np.ndarray) -> list[int]:
        """The codes of a song; those made before, for the same sound by the same model, are remembered on disk."""
        sound = hashlib.sha256(samples.astype(np.float32).tobytes()).hexdigest()
        file = state_folder() / "audio-codes" / f"{value_hash([self._coder_identity, sound, self._settings.seed])}.json"
        with contextlib.suppress(UserError):  # not there, or damaged
            known = read_json(file, "the remembered codes").get("codes")
            if isinstance(known, list) and known and all(type(code) is int for code in known):
                return known
        codes = self._coder.codes(samples, self._settings.seed)
        free_memory()  # what the VAE worked in, before the language model needs the room
        with contextlib.suppress(UserError):  # a full disk only costs time
            write_json(file, {"codes": codes})
        return codes

    def _prompt_tokens(self, codes: str) -> list[int]:
        messages = [
            {"role": "system", "content": f"# Instruction\n{INSTRUCTION}\n\n"},
            {"role": "user", "content": codes},
        ]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return cast(list[int], self._tokenizer.encode(text, add_special_tokens=False))

    def _write(self, prompt: list[int], room: int, form: Any) -> list[int]:
        """The tokens of an answer; the same for the same song, whatever came before."""
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        temperature = self._settings.temperature
        asked = torch.tensor([prompt], device=self._model.device)

        def asked_to_stop(ids: torch.Tensor, _scores: Any, **_rest: Any) -> torch.Tensor:
            return torch.full((len(ids),), self._job.stop_requested, device=ids.device)

        with quiet_library(), torch.inference_mode(), torch.random.fork_rng(enabled=temperature > 0):
            if temperature > 0:
                torch.manual_seed(self._settings.seed ^ zlib.crc32(str(prompt).encode()))
            answer = self._model.generate(
                input_ids=asked,
                attention_mask=torch.ones_like(asked),
                do_sample=temperature > 0,
                temperature=temperature or None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                max_new_tokens=room,
                eos_token_id=self._tokenizer.eos_token_id,
                pad_token_id=self._tokenizer.pad_token_id,
                logits_processor=LogitsProcessorList([form]),
                stopping_criteria=StoppingCriteriaList([asked_to_stop]),
            )
        self._job.check_stop()
        return cast(list[int], answer[0, len(prompt) :].tolist())


def _told(song: SongToLabel) -> dict[str, str]:
    """What is known before the model is asked, by the names it has for it; the rest is then true to that."""
    shortest, longest = DURATION_RANGE_S
    told = {"duration": str(int(min(max(song.duration_s, shortest), longest)))}
    told |= {line: one_line(str(song.known[field])) for field, line in _LINE_OF.items() if field in song.known}
    return told | ({"language": song.language} if song.language else {})

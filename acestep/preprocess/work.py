"""The encoding itself, in one pass or two.

For each song: audio to latents, texts to states, states to its condition. With two passes the text encoder's states
wait on disk until VAE and text encoder have left the memory; both ways run the same functions on the same bits.
Every finished file is kept under its key at once, so whatever ends the program, the next run goes on there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.core.device import DeviceChoice, choose_device, memory_told
from acestep.core.errors import Problem, UserError
from acestep.core.jobs import Job
from acestep.preprocess.plan import (
    Plan,
    PlannedCondition,
    PlannedSong,
    condition_facts,
    draw_seed,
    find_condition,
    find_latents,
    look_up,
)
from acestep.preprocess.readahead import ReadAhead
from acestep.preprocess.store import (
    INDEX_NAME,
    DamagedFile,
    condition_file,
    latents_file,
    read_header,
    read_tensors,
    write_index,
    write_tensors,
)

if TYPE_CHECKING:
    from acestep.model.checkpoints import Checkpoint
    from acestep.preprocess.encoders import Encoders, TextStates
    from acestep.settings.preprocess import PreprocessSettings

PASS_FOLDER = ".pass1"
"""Where text states wait for the second pass."""

INDEX_EVERY_S = 15.0
"""Seconds between writes of the index during the work."""


@dataclass
class Work:
    """One run: the plan, and what has happened so far."""

    plan: Plan
    checkpoint: Checkpoint
    settings: PreprocessSettings
    job: Job
    problems: list[Problem] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    device: str = ""
    latents_encoded: int = 0
    conditions_encoded: int = 0
    encoded_samples: int = 0
    index_written: float = 0.0

    def encode(self) -> None:
        """Encode what the plan lacks."""
        songs = self.plan.to_encode
        if not songs:
            return

        from acestep.preprocess.encoders import Encoders

        choice = self._choose_device()
        self.device = str(choice)
        self.job.say(f"Encoding on {choice}.")
        encoders = Encoders(self.checkpoint, choice, self.seconds)
        self.index_written = self.job.clock()
        no_room = memory_told(
            f"The device ran out of memory ({choice.device}); finished songs are kept.",
            fix="Use two passes, a smaller longest duration, or another device.",
        )
        try:
            with no_room:
                if self.settings.two_pass:
                    self._walk("pass 1: audio and text", songs, encoders, self._keep_states)
                    encoders.let_go()
                    self._second_pass([planned for planned in songs if not planned.failed], encoders)
                else:
                    self._walk("encode songs", songs, encoders, self._condition_at_once)
        finally:
            encoders.let_go()

    def _choose_device(self) -> DeviceChoice:
        info = self.plan.info
        try:
            choice = choose_device(self.settings.device)
            return choice if choice.precision == info.precision else choose_device(self.settings.device, info.precision)
        except UserError as error:
            if self.settings.precision != "auto" or self.settings.device != "auto":
                raise
            raise UserError(
                f"The tensors in {self.plan.folder} were made in {info.precision}, which this device cannot compute.",
                fix="Choose a precision to encode all songs again, or another folder.",
            ) from error

    def _walk(
        self, name: str, songs: list[PlannedSong], encoders: Encoders, then: Callable[[PlannedSong, Encoders], None]
    ) -> None:
        """Latents for the songs that lack them, the next one being decoded meanwhile; then the text part."""
        without_latents = {planned.latents_key: planned for planned in reversed(songs) if planned.frames is None}
        order = [planned for planned in songs if without_latents.get(planned.latents_key) is planned]
        audio = [planned.song for planned in order]
        ahead = ReadAhead(audio, self.settings.max_duration_s, self.settings.normalize)
        with self.job.stage(name, len(songs), "songs") as stage, ahead:
            for planned in songs:
                self.job.check_stop()
                if without_latents.get(planned.latents_key) is planned:
                    self._encode_latents(planned, ahead, encoders)
                elif planned.frames is None:
                    find_latents(planned, self.plan)  # made for another song with the same audio
                    if planned.frames is None:
                        self._fail(
                            planned, f"has the audio of {without_latents[planned.latents_key].title}, which failed."
                        )
                if not planned.failed and self._find_condition(planned):
                    then(planned, encoders)
                stage.advance(note=planned.title)
                self._save_index_now_and_then()

    def _encode_latents(self, planned: PlannedSong, ahead: ReadAhead, encoders: Encoders) -> None:
        _ = encoders.vae  # what is wrong with the model ends the run; what is wrong with a song does not
        waiting = time.perf_counter()
        seed = draw_seed(self.settings.seed, planned.song.id)
        try:
            ready = ahead.take(planned.song)
            self._add_seconds("wait for audio", time.perf_counter() - waiting)
            latents = encoders.latents(ready.samples, self.settings.latents, seed)
        except UserError as error:
            self._fail(planned, str(error))
            return
        self._add_seconds("decode", ready.seconds)
        self.problems += [Problem(planned.title, text, "warning") for text in ready.warnings]
        samples = ready.samples.shape[1]
        self._write(latents_file(self.plan.folder, planned.latents_key), {"latents": latents}, {"samples": samples})
        planned.frames, planned.samples, planned.encoded = latents.shape[0], samples, True
        self.latents_encoded += 1
        self.encoded_samples += samples

    def _find_condition(self, planned: PlannedSong) -> bool:
        """Make the prompts; True when a condition is still to be encoded."""
        try:
            find_condition(planned, self.plan)
        except UserError as error:
            self._fail(planned, str(error))
            return False
        return bool(planned.missing)

    def _condition_at_once(self, planned: PlannedSong, encoders: Encoders) -> None:
        for condition in planned.missing:
            look_up(condition, self.plan)  # windows without words say the same
            if condition.facts is None and not planned.failed:
                self._encode_condition(planned, condition, encoders.text_states(condition.prompts), encoders)

    def _keep_states(self, planned: PlannedSong, encoders: Encoders) -> None:
        for condition in planned.missing:
            path = self._states_file(condition)
            with contextlib.suppress(FileNotFoundError, DamagedFile):  # then they are made, for the first time or again
                read_header(path)
                continue  # from a run that was stopped, or of a window that says the same
            states = encoders.text_states(condition.prompts)
            self._write(path, states.tensors(), states.facts)

    def _second_pass(self, songs: list[PlannedSong], encoders: Encoders) -> None:
        songs = [planned for planned in songs if planned.missing]
        with self.job.stage("pass 2: conditions", len(songs), "songs") as stage:
            for planned in songs:
                self.job.check_stop()
                if self._find_condition(planned):
                    for condition in planned.missing:
                        self._condition_of_states(planned, condition, encoders)
                stage.advance(note=planned.title)
                self._save_index_now_and_then()

    def _condition_of_states(self, planned: PlannedSong, condition: PlannedCondition, encoders: Encoders) -> None:
        from acestep.preprocess.encoders import TextStates

        look_up(condition, self.plan)
        if condition.facts is not None or planned.failed:
            return
        path = self._states_file(condition)
        try:
            states = TextStates.of(*read_tensors(path))
        except (OSError, DamagedFile, KeyError):
            path.unlink(missing_ok=True)
            self._fail(planned, f"its temporary file {path} cannot be read. Run preprocess again.")
        else:
            self._encode_condition(planned, condition, states, encoders)

    def _encode_condition(
        self, planned: PlannedSong, condition: PlannedCondition, states: TextStates, encoders: Encoders
    ) -> None:
        tensors = encoders.condition(states)
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            self._fail(planned, "the condition encoder gave values that are not numbers. Choose precision fp32.")
            return
        path = condition_file(self.plan.folder, condition.key)
        self._write(path, tensors, states.facts)
        condition.facts = condition_facts(read_header(path), len(states.texts))
        planned.encoded = True
        self.conditions_encoded += 1

    def _states_file(self, condition: PlannedCondition) -> Path:
        return self.plan.folder / PASS_FOLDER / f"{condition.key}.safetensors"

    def _write(self, path: Path, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
        started = time.perf_counter()
        write_tensors(path, tensors, facts)
        self._add_seconds("write", time.perf_counter() - started)

    def _fail(self, planned: PlannedSong, message: str) -> None:
        planned.failed = True
        self.problems.append(Problem(planned.title, message))
        self.job.warn(f"{planned.title}: {message}")

    def _add_seconds(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def _save_index_now_and_then(self) -> None:
        if self.job.clock() - self.index_written >= INDEX_EVERY_S:
            self.save_index_so_far()
            self.index_written = self.job.clock()

    def save_index_so_far(self) -> None:
        """Write the index during the work. Until a song is finished an older index is still the best there is."""
        if self.conditions_encoded or not (self.plan.folder / INDEX_NAME).exists():
            self.save_index()

    def save_index(self) -> None:
        """Write the index of the songs that are whole on disk."""
        info = replace(self.plan.info, unfinished=len(self.plan.to_encode))
        write_index(self.plan.folder, info, self.plan.entries())

"""What a run will cost, by measuring instead of formulas: seconds, peak memory and disk, before it begins.

A few steps of the real loop are made and taken back: one with the largest micro-batch of the dataset, which decides
the peak memory, then some of the run's own, which are timed. A checkpoint is written to a temporary folder to weigh
it. Adapter, optimizer and random state are afterwards what they were.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from acestep.core.device import free_memory, lacks_memory
from acestep.core.jobs import Job
from acestep.core.paths import TEMPORARY_PREFIX, nearest_existing
from acestep.model.facts import LATENT_RATE
from acestep.model.quantising import why_not
from acestep.settings import TrainSettings
from acestep.settings.train import BaseWeights
from acestep.training.averaging import Averaging
from acestep.training.checkpoints import save_checkpoint
from acestep.training.data import Sample, TrainingData
from acestep.training.loop import Session, optimizer_step, set_training
from acestep.training.step_down import LEAST_WINDOW
from acestep.training.validation import Validation

TIMED_STEPS = 3
FITS_BELOW = 0.80
"""Up to this share of the free memory there is room for what varies between steps."""
TIGHT_BELOW = 0.95
_GIB = 1 << 30
_SAMPLE_MEMORY_EVERY_S = 0.02

Verdict = Literal["fits", "tight", "does not fit"]


@dataclass(frozen=True)
class Memory:
    """Bytes: the most a step took, what was free for this program, and what the peak is made of."""

    peak: int | None  # None where it ran out
    available: int
    model: int
    adapter: int
    optimizer: int

    @property
    def activations(self) -> int:
        """What is neither weights nor state: activations, gradients and work space."""
        return max(0, (self.peak or self.available) - self.model - self.adapter - self.optimizer)

    @property
    def verdict(self) -> Verdict:
        if self.peak is None or self.peak >= TIGHT_BELOW * self.available:
            return "does not fit"
        return "fits" if self.peak < FITS_BELOW * self.available else "tight"


@dataclass(frozen=True)
class Forecast:
    """What a run with these settings will take. Times are None where the first step ran out of memory."""

    device: str
    steps: int
    step_s: float | None
    validations: int
    validation_s: float | None
    memory: Memory
    remedies: tuple[str, ...]
    checkpoint_bytes: int | None
    checkpoints_kept: int
    disk_bytes: int | None
    disk_free_bytes: int
    adapts: bool = False
    """Whether the run makes do with less memory by itself where a step does not fit."""

    @property
    def seconds(self) -> float | None:
        """Length of the whole run."""
        if self.step_s is None or self.validation_s is None:
            return None
        return self.steps * self.step_s + self.validations * self.validation_s

    @property
    def fits(self) -> bool:
        """Whether the run can begin without a question: memory and disk suffice, as far as can be told."""
        return self.disk_fits and (self.adapts or self.memory.verdict != "does not fit")

    @property
    def disk_fits(self) -> bool:
        return self.disk_bytes is None or self.disk_bytes < self.disk_free_bytes

    def to_dict(self) -> dict[str, Any]:
        memory = {**asdict(self.memory), "activations": self.memory.activations, "verdict": self.memory.verdict}
        return {**asdict(self), "memory": memory, "seconds": self.seconds, "disk_fits": self.disk_fits}


def expected_of_run(session: Session, already: int, job: Job) -> Forecast:
    """What a run is about to take, from `already` steps on. One step is timed, so the time is rough.

    Every process measures for itself; memory fits only where it fits for all.
    """
    together = session.processes
    session.processes = together.alone()
    try:
        found = forecast(session, session.run.path, job, timed_steps=1)
    finally:
        session.processes = together
    if together.any(found.memory.peak is None):
        found = replace(found, memory=replace(found.memory, peak=None))
    written = sum(file.stat().st_size for file in session.run.checkpoints.rglob("*") if file.is_file())
    return replace(
        found,
        steps=found.steps - already,
        validations=session.plan.validations(already) if session.validation else 0,
        step_s=None if found.step_s is None else found.step_s / together.count,
        disk_bytes=None if found.disk_bytes is None else max(0, found.disk_bytes - written),
    )


def forecast(session: Session, out: Path, job: Job, timed_steps: int = TIMED_STEPS) -> Forecast:
    """Predict a run from a session that has not begun; `out` is where its folder will be."""
    device = session.model.device
    available = available_memory(device)
    step_s = validation_s = checkpoint = None
    peak: int | None = None
    optimizer_bytes = adapter_file = 0
    with left_untouched(session):
        try:
            with job.stage("measure steps", timed_steps + 1, "steps") as stage, PeakMemory(device) as memory:
                set_training(session, True)
                epoch_steps = session.order.steps(0)
                largest = largest_micro_batch(session.data, session.settings)
                optimizer_step(session, 0, _twice_where_accumulating(largest, epoch_steps))
                stage.advance(note="the largest windows")
                times = []
                for index in _spread_over(len(epoch_steps), timed_steps):
                    job.check_stop()
                    times.append(optimizer_step(session, 0, epoch_steps[index]).seconds)
                    stage.advance()
            peak, step_s = memory.peak, sum(times) / len(times)
            optimizer_bytes = _bytes_in(session.optimizer.state_dict()["state"])
            validation_s = _time_validation(session)
            checkpoint, adapter_file = _weigh_checkpoint(session)
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            peak = None  # also where it was not a step that ran out
            session.optimizer.zero_grad(set_to_none=True)
    free_memory()
    plan = session.plan
    kept = plan.checkpoints_kept(session.settings.keep_last)
    found = Memory(
        peak=peak,
        available=available,
        model=_model_bytes(session),
        adapter=_bytes_of(session.adapter.parameters()),
        optimizer=optimizer_bytes,
    )
    return Forecast(
        device=str(device),
        steps=plan.total_steps,
        step_s=step_s,
        validations=plan.validations() if session.validation else 0,
        validation_s=validation_s,
        memory=found,
        remedies=() if found.verdict == "fits" else remedies(found, session.settings, session.model.device.type),
        checkpoint_bytes=checkpoint,
        checkpoints_kept=kept,
        # one more while the next is written, and the adapters in best/ and final/
        disk_bytes=None if checkpoint is None else (kept + 1) * checkpoint + 2 * adapter_file,
        disk_free_bytes=shutil.disk_usage(nearest_existing(out)).free,
        adapts=session.settings.on_out_of_memory == "adapt",
    )


# the steps --------------------------------------------------------------------------------------------------------


@contextmanager
def left_untouched(session: Session) -> Iterator[None]:
    """Steps made while the block lasts leave no trace in adapter, averages, optimizer, scaler and random state."""
    weights = [parameter.detach().cpu().clone() for parameter in session.adapter.parameters()]
    optimizer = copy.deepcopy(session.optimizer.state_dict())
    scaler = session.processes.scaler
    scaling = scaler.state_dict() if scaler is not None else None
    generator = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    training, averaging, state = session.model.transformer.training, session.averaging, copy.deepcopy(session.state)
    session.averaging = Averaging()  # the session's own is not to hear of these steps
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(session.adapter.parameters(), weights, strict=True):
                parameter.copy_(value)
                parameter.grad = None
        session.optimizer.load_state_dict(optimizer)
        if scaler is not None:
            scaler.load_state_dict(scaling)
        torch.set_rng_state(generator)
        if on_device:
            torch.cuda.set_rng_state_all(on_device)
        session.averaging, session.state = averaging, state
        set_training(session, training)


def largest_micro_batch(data: TrainingData, settings: TrainSettings) -> list[Sample]:
    """The samples that one forward pass of the run can hold at most: longest windows, then longest conditions.

    Only windows of one length share a pass, so a long song on its own can be smaller than many short ones.
    """
    groups: dict[int, list[Sample]] = {}
    for song in data.songs:
        for piece in data.pieces(song):
            groups.setdefault(piece.length, []).extend(Sample(song, piece, 0) for _ in range(song.stored.repeat))
    batches: list[list[Sample]] = []
    for samples in groups.values():
        samples.sort(key=lambda sample: -sample.song.condition.shape[0])
        batches.append(samples[: settings.batch_size])

    def tokens(batch: list[Sample]) -> int:
        # conditions are padded to the longest, which stands first; two latent frames make one token
        return len(batch) * (batch[0].piece.length // 2 + batch[0].song.condition.shape[0])

    largest: list[Sample] = max(batches, key=tokens)
    return [replace(sample, position=place) for place, sample in enumerate(largest)]


def _twice_where_accumulating(batch: list[Sample], steps: list[list[list[Sample]]]) -> list[list[Sample]]:
    """Two passes where the run has more than one in a step: in the second, gradients are there beside activations."""
    if max(len(step) for step in steps) < 2:
        return [batch]
    return [batch, [replace(sample, position=sample.position + len(batch)) for sample in batch]]


def _spread_over(steps: int, count: int) -> list[int]:
    """`count` places evenly over an epoch; short epochs are gone through again."""
    return [index * steps // count if steps >= count else index % steps for index in range(count)]


def _time_validation(session: Session) -> float:
    """Seconds of one validation: one held-out window measured, times the windows."""
    if not session.validation:
        return 0.0
    windows = session.validation.windows
    longest = max(windows, key=lambda window: window.length)
    set_training(session, False)
    started = time.perf_counter()
    Validation([longest], session.settings, session.flow).run(session.model)
    return (time.perf_counter() - started) * len(windows)


def _weigh_checkpoint(session: Session) -> tuple[int, int]:
    """Bytes of a checkpoint, and of the adapter in it."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=session.run.path) as folder:
        path = save_checkpoint(
            Path(folder), session.adapter, session.tag, session.optimizer, session.averaging, session.state
        )
        sizes = {file.name: file.stat().st_size for file in path.rglob("*") if file.is_file()}
    weights = _bytes_of(session.adapter.parameters())
    two_weights = session.settings.ema_decay > 0 or session.settings.optimizer == "schedule_free"
    adapter = sum(size for name, size in sizes.items() if name not in ("optimizer.safetensors", "state.json"))
    return sum(sizes.values()) + (weights if two_weights else 0), adapter


# memory -----------------------------------------------------------------------------------------------------------


def available_memory(device: torch.device) -> int:
    """Bytes this program may use on the device: what is free, and what it holds already."""
    import psutil

    counters = _counters(device)
    if counters is not None:
        free, _ = counters.mem_get_info()
        return int(free + counters.memory_reserved())
    free = psutil.virtual_memory().available
    if device.type == "mps":  # Metal's share of the machine's memory, which the system does not count as this program's
        return int(min(torch.mps.recommended_max_memory(), free + torch.mps.driver_allocated_memory()))
    return free + psutil.Process().memory_info().rss


def _counters(device: torch.device) -> Any:
    """The module of torch that remembers the peak of the device's memory; None where it must be watched."""
    return getattr(torch, device.type) if device.type in ("cuda", "xpu") else None


class PeakMemory:
    """The most memory used while a `with` block lasts: of tensors on a card, else the program's resident size."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counters = _counters(device)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self.peak = 0

    def __enter__(self) -> PeakMemory:
        if self._counters is not None:
            self._counters.reset_peak_memory_stats()
        else:
            self._look()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._counters is not None:
            self.peak = int(self._counters.max_memory_allocated())
        else:
            self._ended.set()
            self._thread.join()
            self._look()

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_MEMORY_EVERY_S):
            self._look()

    def _look(self) -> None:
        import psutil

        on_a_mac = self._device.type == "mps"
        used = torch.mps.current_allocated_memory() if on_a_mac else psutil.Process().memory_info().rss
        self.peak = max(self.peak, used)


def remedies(memory: Memory, settings: TrainSettings, device: str) -> tuple[str, ...]:
    """What lowers the peak, the largest part of it first; within a part what costs least comes first."""
    if settings.window == "whole":
        smaller = settings.max_latent_length or 1500
        shorten = f"--window random --max-latent-length {smaller}"
    else:
        smaller = settings.max_latent_length // 2 if settings.max_latent_length else 1500
        shorten = f"--max-latent-length {smaller}"
    activations = [
        *(["--gradient-checkpointing 1 (a third more time)"] if settings.gradient_checkpointing < 1 else []),
        *(
            [f"--batch-size 1 --gradient-accumulation {settings.batch_size * settings.gradient_accumulation}"]
            if settings.batch_size > 1
            else []
        ),
        *([f"{shorten} ({smaller / LATENT_RATE:.0f} s windows)"] if smaller >= LEAST_WINDOW else []),
    ]
    state = [
        *(
            ["--optimizer adamw8bit"]
            if settings.optimizer in ("adamw", "prodigy", "schedule_free") and device == "cuda"
            else []
        ),
        *(["--no-train-mlp"] if settings.train_mlp else []),
        *([f"--rank {settings.rank // 2}"] if settings.adapter == "lora" and settings.rank > 8 else []),
    ]
    smaller_base: dict[str, BaseWeights] = {"full": "int8", "int8": "nf4"}
    base = smaller_base.get(settings.base_weights)
    weights = [
        *(["--precision bf16 or fp16"] if settings.precision == "fp32" and device != "cpu" else []),
        *([f"--base-weights {base}"] if base and not why_not(base, device) else []),
    ]
    parts = [
        (memory.activations, activations),
        (memory.adapter + memory.optimizer, state),
        (memory.model, weights),
    ]
    ranked = sorted(parts, key=lambda part: -part[0])
    return tuple(advice for _, advices in ranked for advice in advices)


def _model_bytes(session: Session) -> int:
    """Bytes of the transformer without the adapter, which some kinds keep inside it and some outside."""
    transformer, adapter = session.model.transformer, {id(part) for part in session.adapter.parameters()}
    tensors = [*transformer.parameters(), *transformer.buffers()]  # quantised weights are buffers
    return _bytes_of(tensor for tensor in tensors if id(tensor) not in adapter)


def _bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _bytes_in(value: Any) -> int:
    """Bytes of all tensors in nested dictionaries."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_bytes_in(item) for item in value.values())
    return 0

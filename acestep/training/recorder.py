"""Where the loop's numbers go: the event log, always, and TensorBoard, if wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from acestep.core.events import EventLog
from acestep.core.jobs import Job
from acestep.core.words import counted
from acestep.training.validation import ValidationResult

if TYPE_CHECKING:
    from acestep.training.loop import StepStats


class MetricSink(Protocol):
    """Anything that takes named numbers for a step. Fabric's loggers are such sinks."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None: ...

    def finalize(self, status: str) -> None: ...


class SilentRecorder:
    """Stands in for the recorder in every process but the first."""

    def event(self, kind: str, **fields: Any) -> None:
        """Nothing is written."""

    def step(self, step: int, stats: StepStats) -> None:
        """Nothing is written."""

    def validation(self, step: int, result: ValidationResult) -> None:
        """Nothing is written."""

    def warn(self, step: int, text: str) -> None:
        """Nothing is written."""

    def close(self, status: str) -> None:
        """Nothing is open."""


class Recorder(SilentRecorder):
    """Writes events and metrics, and says the important ones to whoever watches the job."""

    def __init__(self, log: EventLog, sinks: list[MetricSink], job: Job, say_every: int) -> None:
        self._log = log
        self._sinks = sinks
        self._job = job
        self._say_every = say_every

    def event(self, kind: str, **fields: Any) -> None:
        self._log.emit(kind, **fields)

    def step(self, step: int, stats: StepStats) -> None:
        self._log.emit(
            "step",
            step=step,
            epoch=stats.epoch + 1,
            loss=stats.loss,
            learning_rate=stats.learning_rate,
            grad_norm=stats.grad_norm,
            samples=stats.samples,
            seconds=round(stats.seconds, 4),
            data_seconds=round(stats.data_seconds, 5),
        )
        self._metrics(
            {
                "train/loss": stats.loss,
                "train/learning_rate": stats.learning_rate,
                "train/grad_norm": stats.grad_norm,
            },
            step,
        )
        if step % self._say_every == 0:
            self._job.say(
                f"step {step}, epoch {stats.epoch + 1}: loss {stats.loss:.4f}, rate {stats.learning_rate:.2e}, "
                f"gradient {stats.grad_norm:.3f}, {stats.seconds:.2f} s"
            )

    def validation(self, step: int, result: ValidationResult) -> None:
        self._log.emit("validation", step=step, **result.to_dict())
        self._metrics({"validation/loss": result.loss}, step)
        self._job.say(f"step {step}: validation loss {result.loss:.5f} over {counted(result.windows, 'windows')}")

    def warn(self, step: int, text: str) -> None:
        self._log.emit("warning", step=step, text=text)
        self._job.warn(text)

    def close(self, status: str) -> None:
        for sink in self._sinks:
            sink.finalize(status)

    def _metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for sink in self._sinks:
            sink.log_metrics(metrics, step)

"""`acestep estimate`: what a run would cost, and where the songs would change the model most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from acestep.cli.arguments import WithPreset, settings_in
from acestep.cli.command import MODEL_HELP, Command, Output
from acestep.core.errors import UserError
from acestep.core.jobs import Job, heavy_job
from acestep.core.words import counted
from acestep.settings import TrainSettings, knob

if TYPE_CHECKING:
    from acestep.core.gpu import GpuReading
    from acestep.training.forecast import Forecast
    from acestep.training.sensitivity import Score

_GIB = 1 << 30


class EstimateOptions(TrainSettings, WithPreset):
    model: str = knob(..., MODEL_HELP, group="command")
    tensors: Path = knob(..., "Folder written by preprocess.", group="command")
    out: Path = knob(Path("lora_output"), "Where the run would be written, to look at the disk.", group="command")
    batches: int = knob(8, "Windows the sensitivity is measured on.", group="command", ge=1, le=10_000)
    by: Literal["layer", "module"] = knob("layer", "What the table lists.", group="command")
    top: int = knob(20, "Rows of the table; 0 shows all.", group="command", ge=0)
    save: Path | None = knob(None, "Write ranks by sensitivity here, as a settings file.", group="command")


def estimate(options: EstimateOptions, job: Job) -> Output:
    """Predict time, memory and disk of a run, and rank modules and layers by their sensitivity."""
    from acestep.core.gpu import describe_gpu, read_gpu
    from acestep.model.checkpoints import resolve_checkpoint
    from acestep.preprocess.store import TensorStore

    settings = settings_in(options, TrainSettings)
    if options.save and settings.adapter != "lora":
        raise UserError(f"Ranks are for LoRA, and the adapter is {settings.adapter}.", fix="Leave --save away.")
    checkpoint, store = resolve_checkpoint(options.model), TensorStore.open(options.tensors)
    with heavy_job(f"estimate {options.tensors}"):
        from acestep.training.estimate import estimate as measure  # torch comes in here
        from acestep.training.sensitivity import rank_pattern, write_rank_map

        gpu = read_gpu()
        found = measure(checkpoint, store, options.out, settings, options.batches, job)
    data: dict[str, Any] = {
        "gpu": gpu.to_dict() if gpu else None,
        "forecast": found.forecast.to_dict(),
        "sensitivity": found.sensitivity.to_dict(),
    }
    scores = found.sensitivity.layers if options.by == "layer" else found.sensitivity.modules
    windows, songs = counted(found.sensitivity.batches, "windows"), counted(found.sensitivity.songs, "songs")
    lines = [
        f"Sensitivity on {windows} of {songs}, highest first:",
        *table(scores[: options.top or None], options.by),
        "",
        *forecast_lines(found.forecast, gpu),
    ]
    if found.forecast.device.startswith("cuda"):
        lines.append(describe_gpu(gpu))
    if options.save:
        pattern = rank_pattern(found.adapted, settings.rank)
        write_rank_map(options.save, pattern, settings.rank, found.sensitivity)
        data["rank_pattern"] = pattern
        lines.append(f"Ranks {min(pattern.values())} to {max(pattern.values())} are in {options.save}.")
    return Output(data, lines)


def table(scores: list[Score], by: str) -> list[str]:
    """Scores as aligned columns; the share is that of the highest Fisher value."""
    width = max(len(by), *(len(score.name) for score in scores))
    highest = max(score.fisher for score in scores) or 1.0
    head = f"{by:<{width}}  {'Fisher':>10} {'spread':>9}  {'gradient':>10} {'spread':>9}  share"
    rows = [
        f"{score.name:<{width}}  {score.fisher:>10.3e} {score.fisher_spread:>9.1e}  "
        f"{score.gradient_norm:>10.3e} {score.gradient_norm_spread:>9.1e}  {100 * score.fisher / highest:>4.0f}%"
        for score in scores
    ]
    return [head, *rows]


def forecast_lines(forecast: Forecast, gpu: GpuReading | None) -> list[str]:
    """Time, memory and disk in words."""
    memory = forecast.memory
    lines = []
    if forecast.seconds is not None and forecast.step_s is not None:
        lines.append(
            f"Time: {counted(forecast.steps, 'steps')} of {forecast.step_s:.2f} s"
            + (f" and {counted(forecast.validations, 'validations')}" if forecast.validations else "")
            + f", about {duration(forecast.seconds)}."
        )
    if memory.peak is None:
        lines.append(f"Memory: does not fit: a step needs more than the {memory.available / _GIB:.1f} GiB free.")
    else:
        lines.append(
            f"Memory: {memory.verdict}: at most {memory.peak / _GIB:.2f} of {memory.available / _GIB:.1f} GiB free "
            f"(model {memory.model / _GIB:.2f}, adapter and optimizer "
            f"{(memory.adapter + memory.optimizer) / _GIB:.2f}, the rest {memory.activations / _GIB:.2f})."
        )
    if memory.verdict == "does not fit" and forecast.adapts:
        lines.append(
            "The run will make do with less where it must: smaller passes, recomputed layers, shorter windows."
        )
    if forecast.remedies:
        lines.append("What helps, most first:")
        lines += [f"  {remedy}" for remedy in forecast.remedies]
        if gpu is not None and gpu.processes:
            lines.append(f"  ending {', '.join(str(process) for process in gpu.processes)}")
    if forecast.disk_bytes is not None and forecast.checkpoint_bytes is not None:
        verdict = "" if forecast.disk_fits else " That does not fit: lower --keep-last or free some space."
        lines.append(
            f"Disk: {forecast.disk_bytes / 1e9:.2f} GB with {counted(forecast.checkpoints_kept, 'checkpoints')} of "
            f"{forecast.checkpoint_bytes / 1e6:.1f} MB, {forecast.disk_free_bytes / 1e9:.1f} GB free.{verdict}"
        )
    return lines


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


ESTIMATE_COMMAND = Command(
    "estimate", "predict time, memory and disk of a run, rank modules by sensitivity", EstimateOptions, estimate
)

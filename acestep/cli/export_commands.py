"""The commands that bring an adapter elsewhere: export, merge, check."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from acestep.cli.arguments import POSITIONAL, CommandOptions
from acestep.cli.command import EXIT_FAILED, MODEL_HELP, Command, Output
from acestep.cli.terminal import confirm
from acestep.core.device import DeviceName, PrecisionName
from acestep.core.errors import UserError
from acestep.core.jobs import Job, heavy_job
from acestep.core.words import counted
from acestep.settings import knob
from acestep.settings.export import ExportFormat, ExportSettings

_TO_HELP, REFIT_RANK_HELP = (ExportSettings.model_fields[name].description or "" for name in ("to", "refit_rank"))


class ExportCommandOptions(ExportSettings, CommandOptions):
    adapter: Path = knob(..., "Adapter folder or file, such as a run's best/.", group=POSITIONAL)
    to: ExportFormat = knob(..., _TO_HELP, group="command")
    out: Path = knob(..., "What to write: a .safetensors file for comfyui, else a folder.", group="command")
    model: str | None = knob(None, f"{MODEL_HELP} DoRA and OFT need it; a run knows its own.", group="command")
    replace: bool = knob(False, "Replace an earlier export of that name.", group="command")
    push: str | None = knob(
        None, "Hub repository (user/name) to upload the folder to; token from HF_TOKEN.", group="command"
    )
    public: bool = knob(False, "Make a new Hub repository public.", group="command")
    yes: bool = knob(False, "Upload without asking.", group="command")


def export(options: ExportCommandOptions, job: Job) -> Output:
    """Write an adapter the way another program loads it."""
    if options.push:
        from acestep.adapters.exports.hub import hub_token

        hub_token()  # before anything is written
    from acestep.model.checkpoints import resolve_checkpoint
    from acestep.training.origin import export_with_card

    checkpoint = resolve_checkpoint(options.model, needs=()) if options.model else None
    report, card = export_with_card(options.adapter, options, options.out, checkpoint, job, options.replace)
    lines = [
        f"{report.path}: {counted(report.modules, 'modules')}, {counted(report.tensors, 'tensors')}, "
        f"{report.size_bytes / 1e6:.1f} MB."
        + ("" if report.new else " It was there already and is the same; nothing was written."),
        *report.notes,
        *([f"Card: {card}."] if card else []),
    ]
    data = report.to_dict()
    if options.push:
        data["pushed"] = _push(report.path, options, job)
        lines.append(f"Uploaded to {data['pushed']}.")
    else:
        lines.append(f"Proof that it loads: acestep check {report.path} --original {options.adapter}")
    return Output(data, lines)


def _push(folder: Path, options: ExportCommandOptions, job: Job) -> str:
    from acestep.adapters.exports.hub import hub_token, plan_push, push

    assert options.push is not None
    plan = plan_push(folder, options.push, options.public)
    job.say(plan.summary)
    if not options.yes and not confirm("Upload?"):
        raise UserError("Nothing was uploaded; the export is there.", fix="Run it again with --yes to go ahead.")
    return push(plan, hub_token())


class MergeCommandOptions(CommandOptions):
    adapter: Path = knob(..., "Adapter folder or file.", group=POSITIONAL)
    model: str = knob(..., MODEL_HELP, group="command")
    out: Path = knob(..., "Folder of the merged model; must not exist.", group="command")
    strength: float = knob(1.0, "How strongly the adapter counts; 1 is as trained.", group="command")


def merge(options: MergeCommandOptions, job: Job) -> Output:
    """Write a whole model with an adapter added to its weights."""
    from acestep.model.checkpoints import resolve_checkpoint
    from acestep.training.origin import run_of_adapter, warn_of_other_model

    checkpoint = resolve_checkpoint(options.model, needs=())
    warn_of_other_model(run_of_adapter(options.adapter), checkpoint, job)
    with heavy_job(f"merge {options.out}"):
        from acestep.adapters.exports.merging import merge_adapter  # torch comes in here

        report = merge_adapter(options.adapter, checkpoint, options.out, options.strength, job)
    lines = [
        f"{report.path}: {counted(report.modules, 'weights')} changed, {counted(report.files, 'files')}, "
        f"{report.size_bytes / 1e9:.2f} GB."
        + ("" if report.new else " It was there already and is the same; nothing was written."),
        *report.notes,
        f"Hear it with: acestep generate --model {report.path} --caption … --out merged.wav",
    ]
    return Output(report.to_dict(), lines)


class CheckCommandOptions(CommandOptions):
    path: Path = knob(..., "Adapter, or a file or folder made by export.", group=POSITIONAL)
    original: Path | None = knob(None, "Adapter that an exported file was made from, to compare with.", group="command")
    model: str | None = knob(None, f"{MODEL_HELP} With it outputs are compared too.", group="command")
    dtype: Literal["bf16", "fp32"] = knob("bf16", "Number format of the exports that are tried.", group="command")
    dora: Literal["diff", "refit"] = knob("diff", "How DoRA is exported for the trial.", group="command")
    refit_rank: int = knob(0, REFIT_RANK_HELP, group="command", ge=0, le=4096)
    device: DeviceName = knob("auto", "Device for comparing outputs.", group="command")
    precision: PrecisionName = knob("auto", "Number format of the model when outputs are compared.", group="command")


def check(options: CheckCommandOptions, job: Job) -> Output:
    """Read a file back by the rules of the program it is for; an adapter is tried in every format."""
    from acestep.adapters.exports.checking import check_path
    from acestep.adapters.exports.formats import ExportOptions
    from acestep.core.device import choose_device
    from acestep.model.checkpoints import resolve_checkpoint

    checkpoint = resolve_checkpoint(options.model, needs=()) if options.model else None
    choice = choose_device(options.device, options.precision) if checkpoint else None
    chosen = ExportOptions(options.dtype, options.dora, options.refit_rank)
    found = check_path(options.path, options.original, checkpoint, choice, chosen, job)
    lines = [line for check in found.checks for line in check.lines]
    lines += [f"{name}: not written. {why}" for name, why in found.not_written.items()]
    lines += [found.hint] if found.hint else []
    data = {"checks": [check.to_dict() for check in found.checks], "not_written": dict(found.not_written)}
    return Output(data, lines, 0 if found.good else EXIT_FAILED)


EXPORT_COMMANDS = (
    Command("export", "write an adapter for ComfyUI, diffusers or the ACE-Step app", ExportCommandOptions, export),
    Command("merge", "write a whole model with an adapter added to its weights", MergeCommandOptions, merge),
    Command("check", "prove that an adapter or exported file loads as it should", CheckCommandOptions, check),
)

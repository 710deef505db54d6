"""The commands that bring an adapter elsewhere: export, merge, check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from acestep.cli.arguments import POSITIONAL, CommandOptions
from acestep.cli.command import MODEL_HELP, Command, Output
from acestep.cli.terminal import confirm
from acestep.core.device import DeviceName, PrecisionName
from acestep.core.errors import UserError
from acestep.core.jobs import Job, heavy_job
from acestep.core.paths import read_json
from acestep.settings import knob

if TYPE_CHECKING:
    from acestep.adapters.card import CardFacts
    from acestep.model.checkpoints import Checkpoint
    from acestep.training.runs import RunFolder

REFIT_RANK_HELP = "Rank of a re-fitted LoRA; 0 takes twice the adapter's, 64 for OFT."


class ExportCommandOptions(CommandOptions):
    adapter: Path = knob(..., "Adapter folder or file, such as a run's best/.", group=POSITIONAL)
    to: Literal["comfyui", "peft", "diffusers", "lycoris"] = knob(
        ...,
        "Program: comfyui, diffusers, or the ACE-Step app (peft for LoRA, DoRA and OFT, lycoris for LoKr).",
        group="command",
    )
    out: Path = knob(..., "What to write: a .safetensors file for comfyui, else a folder.", group="command")
    dtype: Literal["bf16", "fp32"] = knob("bf16", "Number format of the weights in the file.", group="command")
    dora: Literal["diff", "refit"] = knob(
        "diff",
        "DoRA and OFT for comfyui as full differences, or (also for diffusers) as a re-fitted LoRA.",
        group="command",
    )
    refit_rank: int = knob(0, REFIT_RANK_HELP, group="command", ge=0, le=4096)
    model: str | None = knob(None, f"{MODEL_HELP} DoRA and OFT need it; a run knows its own.", group="command")
    card: bool = knob(False, "Write a card (README.md) too; peft folders always get one.", group="command")
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
    from acestep.adapters.card import card_text, write_card
    from acestep.adapters.exports.formats import ExportOptions, export_adapter
    from acestep.adapters.exports.opened import OpenAdapter
    from acestep.adapters.exports.placing import place_file

    run = _run_of(options.adapter)
    checkpoint = _model_for(options.adapter, options.model, run)
    adapter = OpenAdapter(options.adapter, checkpoint)
    facts = card_facts(options.adapter, run, checkpoint)
    chosen = ExportOptions(options.dtype, options.dora, options.refit_rank, facts.variant)

    def finish(folder: Path) -> None:
        write_card(folder, facts, adapter.source.path)

    wants_card = options.card or options.to == "peft"
    report = export_adapter(adapter, options.to, options.out, chosen, job, finish if wants_card else None)
    lines = [
        f"{report.path}: {report.modules} modules, {report.tensors} tensors, {report.size_bytes / 1e6:.1f} MB."
        + ("" if report.new else " It was there already and is the same; nothing was written."),
        *report.notes,
    ]
    if options.card and report.path.is_file():
        card = report.path.with_suffix(".md")
        text = card_text(adapter.source.path, facts)
        place_file(card, lambda path: _write(path, text))
        lines.append(f"Card: {card}.")
    data = report.to_dict()
    if options.push:
        data["pushed"] = _push(report.path, options, job)
        lines.append(f"Uploaded to {data['pushed']}.")
    else:
        lines.append(f"Proof that it loads: acestep check {report.path} --original {options.adapter}")
    return Output(data, lines)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


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

    checkpoint = resolve_checkpoint(options.model, needs=())
    _say_if_other_model(_run_of(options.adapter), checkpoint, job)
    with heavy_job(f"merge {options.out}"):
        from acestep.adapters.exports.merging import merge_adapter  # torch comes in here

        report = merge_adapter(options.adapter, checkpoint, options.out, options.strength, job)
    lines = [
        f"{report.path}: {report.modules} weights changed, {report.files} file(s), {report.size_bytes / 1e9:.2f} GB."
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
    from acestep.adapters.exports.checking import OutputComparison, check_adapter, check_file, is_adapter
    from acestep.adapters.exports.formats import ExportOptions
    from acestep.adapters.exports.opened import OpenAdapter
    from acestep.core.device import choose_device
    from acestep.model.checkpoints import resolve_checkpoint

    checkpoint = resolve_checkpoint(options.model, needs=()) if options.model else None
    source = options.original or (options.path if is_adapter(options.path) else None)
    original = OpenAdapter(source, checkpoint) if source else None
    outputs = None
    if original and checkpoint:
        outputs = OutputComparison(checkpoint, original, choose_device(options.device, options.precision))
    refused: dict[str, str] = {}
    if original and options.original is None:
        chosen = ExportOptions(options.dtype, options.dora, options.refit_rank)
        checks, refused = check_adapter(original, chosen, job, outputs)
    else:
        checks = [check_file(options.path, original)]
        if outputs:
            checks = [outputs.added_to(checks[0], options.path)]
    lines = [line for found in checks for line in found.lines]
    lines += [f"{name}: not written. {why}" for name, why in refused.items()]
    if original is None:
        lines.append("Only names and scales were checked. Name the adapter it was made from with --original.")
    elif any(found.compared < found.modules for found in checks):
        lines.append("Some differences depend on the model's weights and were not compared. Name it with --model.")
    data = {"checks": [found.to_dict() for found in checks], "not_written": refused}
    return Output(data, lines, 0 if checks and all(found.good for found in checks) else 1)


# what is known about an adapter -----------------------------------------------------------------------------------


def _run_of(adapter: Path) -> RunFolder | None:
    """The run an adapter lies in, if it does."""
    from acestep.training.runs import RunFolder

    place = adapter.expanduser().resolve()
    found = next((folder for folder in (place, *list(place.parents)[:4]) if (folder / "run.json").is_file()), None)
    return RunFolder.open(found) if found else None


def _model_for(adapter: Path, named: str | None, run: RunFolder | None) -> Checkpoint | None:
    """The model whose weights an export needs: the named one, or that of the run, where it still is."""
    from acestep.adapters import read_adapter_info
    from acestep.model.checkpoints import resolve_checkpoint

    if named:
        return resolve_checkpoint(named, needs=())
    path = run.record.get("model", {}).get("path") if run and read_adapter_info(adapter).spec.needs_base else None
    return resolve_checkpoint(path, needs=()) if path and Path(path).is_dir() else None


def _say_if_other_model(run: RunFolder | None, checkpoint: Checkpoint, job: Job) -> None:
    from acestep.model.identity import transformer_fingerprint

    trained_on = run.record.get("model", {}) if run else {}
    if trained_on.get("fingerprint") and trained_on["fingerprint"] != transformer_fingerprint(checkpoint):
        job.warn(f"The adapter was trained on {trained_on.get('name')}, and this is another model.")


def card_facts(adapter: Path, run: RunFolder | None, checkpoint: Checkpoint | None) -> CardFacts:
    """What a run's files and the model tell for the card."""
    from acestep.adapters.card import CardFacts
    from acestep.training.card import card_facts as facts_of_run

    variant = checkpoint.variant.name if checkpoint else ""
    if run is None:
        return CardFacts(title=adapter.expanduser().resolve().name, variant=variant)
    note_file = adapter.expanduser() / "training.json"
    note = read_json(note_file, "the note on the training") if note_file.is_file() else {}
    curve = {event["step"]: event["loss"] for event in run.events("validation") if event.get("loss") is not None}
    return facts_of_run(run, note, curve.items(), variant=variant)


EXPORT_COMMANDS = (
    Command("export", "write an adapter for ComfyUI, diffusers or the ACE-Step app", ExportCommandOptions, export),
    Command("merge", "write a whole model with an adapter added to its weights", MergeCommandOptions, merge),
    Command("check", "prove that an adapter or exported file loads as it should", CheckCommandOptions, check),
)

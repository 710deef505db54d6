"""Where an adapter comes from: the adapters of a run, the run and model of an adapter, and its export with a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.adapters.card import CardFacts, card_text, write_card
from acestep.adapters.files import read_adapter_info
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import read_json, write_text
from acestep.settings.export import ExportSettings
from acestep.training.card import card_facts
from acestep.training.runs import RunFolder

if TYPE_CHECKING:
    from acestep.adapters.exports.formats import ExportReport
    from acestep.model.checkpoints import Checkpoint


@dataclass(frozen=True)
class RunAdapter:
    """An adapter that a run has left, such as "best, step 120"."""

    label: str
    path: Path


def run_adapters(run: Path) -> list[RunAdapter]:
    """The adapters of a run, the one to take first: final, best, then its checkpoints from the newest on."""
    found = [
        RunAdapter(f"{name}{_step_words(run / name)}", run / name)
        for name in ("final", "best")
        if (run / name).is_dir()
    ]
    steps = [(int(path.name[5:]), path) for path in run.glob("checkpoints/step_*") if _is_checkpoint(path)]
    return found + [RunAdapter(f"step {step}", path) for step, path in sorted(steps, reverse=True)]


def _is_checkpoint(path: Path) -> bool:
    # by its name and not by its training state: a copy for others may hold the adapter alone
    return path.name.removeprefix("step_").isdecimal() and path.is_dir()


def _step_words(adapter: Path) -> str:
    try:
        step = training_note(adapter).get("step")
    except UserError:  # choosing the adapter says what is wrong with it
        step = None
    return f", step {step}" if step is not None else ""


def training_note(adapter: Path) -> dict[str, Any]:
    """What training wrote beside an adapter: which step it is, and why it was kept. Empty for one from elsewhere."""
    note = adapter.expanduser() / "training.json"
    return read_json(note, "the note on the training") if note.is_file() else {}


def run_of_adapter(adapter: Path) -> RunFolder | None:
    """The run an adapter lies in, if it does."""
    place = adapter.expanduser().resolve()
    found = next((folder for folder in (place, *list(place.parents)[:4]) if (folder / "run.json").is_file()), None)
    return RunFolder.open(found) if found else None


def model_of_adapter(adapter: Path, run: RunFolder | None) -> Checkpoint | None:
    """The model whose weights an export of the adapter needs, where its run knows it and it is still there."""
    from acestep.model.checkpoints import resolve_checkpoint

    path = run.record.get("model", {}).get("path") if run and read_adapter_info(adapter).spec.needs_base else None
    return resolve_checkpoint(path, needs=()) if path and Path(path).is_dir() else None


def warn_of_other_model(run: RunFolder | None, checkpoint: Checkpoint, job: Job) -> None:
    """Warn where the adapter's run was made on another model."""
    from acestep.model.identity import transformer_fingerprint

    trained_on: Mapping[str, Any] = run.record.get("model", {}) if run else {}
    if trained_on.get("fingerprint") and trained_on["fingerprint"] != transformer_fingerprint(checkpoint):
        job.warn(f"The adapter was trained on {trained_on.get('name')}, and this is another model.")


def facts_of_adapter(adapter: Path, checkpoint: Checkpoint | None = None) -> CardFacts:
    """What the files of its run, and the model, tell for an adapter's card."""
    run = run_of_adapter(adapter)
    variant = checkpoint.variant.name if checkpoint else ""
    if run is None:
        return CardFacts(title=adapter.expanduser().resolve().name, variant=variant)
    return card_facts(run, training_note(adapter), run.story().validations, variant=variant)


def export_with_card(
    adapter: Path,
    settings: ExportSettings,
    out: Path,
    checkpoint: Checkpoint | None = None,
    job: Job | None = None,
    replace: bool = False,
) -> tuple[ExportReport, Path | None]:
    """Write an adapter for another program, with its card where wanted; returns the report and a card beside a file.

    `checkpoint` is the model it was trained on; without it that of its run is taken where it is needed. Errors are
    those of `export_adapter`; `replace` lets an older export give way.
    """
    from acestep.adapters.exports.formats import ExportOptions, export_adapter
    from acestep.adapters.exports.opened import OpenAdapter

    checkpoint = checkpoint or model_of_adapter(adapter, run_of_adapter(adapter))
    opened = OpenAdapter(adapter, checkpoint)
    facts = facts_of_adapter(adapter, checkpoint)
    options = ExportOptions(settings.dtype, settings.dora, settings.refit_rank, facts.variant)

    def finish(folder: Path) -> None:
        write_card(folder, facts, opened.source.path)

    wants_card = settings.card or settings.to == "peft"
    report = export_adapter(opened, settings.to, out, options, job, finish if wants_card else None, replace)
    if not (settings.card and report.path.is_file()):
        return report, None
    from acestep.adapters.exports.placing import place_file

    card = report.path.with_suffix(".md")
    text = card_text(opened.source.path, facts)
    place_file(card, lambda path: write_text(path, text), replace)
    return report, card

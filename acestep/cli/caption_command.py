"""`acestep caption`: let analysis, local models and services label a folder of songs."""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.cli.arguments import POSITIONAL, CommandOptions, settings_in
from acestep.cli.command import EXIT_PARTLY, EXIT_STOPPED, Command, Output, problem_lines
from acestep.cli.terminal import confirm
from acestep.core.errors import UserError
from acestep.core.jobs import Job, heavy_job
from acestep.core.words import counted
from acestep.settings import CaptionSettings, knob

if TYPE_CHECKING:
    from acestep.captioning.batch import LabelReport


class CaptionOptions(CaptionSettings, CommandOptions):
    dataset: Path = knob(..., "Folder of songs, or a dataset file.", group=POSITIONAL)
    backend: str = knob("", "One backend for everything that it gives; the three --…-by are not used.", group="command")
    songs: str = knob("*", "Label only songs whose path fits this, such as 'live/*'.", group="command")
    save: Path | None = knob(
        None, "Keep the labels in this dataset file instead of song.json beside each song.", group="command"
    )
    csv: Path | None = knob(None, "Write the labels as a CSV table here.", group="command")
    estimate: bool = knob(False, "Only show who would be asked about how many songs.", group="command")
    yes: bool = knob(False, "Begin without a question.", group="command")
    config: Path | None = knob(None, "Settings file (JSON).", group="command")


def caption(options: CaptionOptions, job: Job) -> Output:
    """Label songs; what is written and what stays is the settings' choice."""
    from acestep.captioning.batch import label_dataset
    from acestep.captioning.outlook import look_ahead
    from acestep.captioning.plan import check_keys, plan_steps
    from acestep.dataset.store import load_dataset, save_dataset

    settings = _settings(options)
    file = options.save or (options.dataset if options.dataset.is_file() else None)
    found = load_dataset(options.dataset, job=job, edits=options.save)
    songs = [song for song in found.songs if fnmatch(song.relative, options.songs)]
    if not songs:
        raise UserError(f"No song fits {options.songs}.", fix="Correct --songs.")
    steps = plan_steps(songs, settings)
    outlook = look_ahead(steps, settings)
    data: dict[str, Any] = {"songs": len(songs), "steps": [step.to_dict() for step in outlook]}
    plan = [line for step in outlook for line in step.sentences()] or ["Nothing is left to label."]
    if options.estimate:
        return Output(data, plan)
    for line in plan:
        job.say(line)
    check_keys(steps, os.environ)
    if any(step.needs_consent for step in outlook) and not options.yes and not confirm("Go ahead?"):
        raise UserError("Nothing was labelled.", fix="Run it again with --yes to go ahead without a question.")
    job.kept.append(file or found.root)
    with heavy_job(f"caption {options.dataset}"):
        report = label_dataset(found, settings, os.environ, job, [song.id for song in songs], file=file)
    lines = _report_lines(report)
    if options.save:
        lines.append(f"Saved to {save_dataset(found, options.save)}.")
    if options.csv:
        from acestep.dataset.table import write_csv

        data["csv"] = str(write_csv(found, options.csv))
        lines.append(f"Table written to {options.csv}.")
    data |= report.to_dict()
    code = EXIT_STOPPED if report.stopped else EXIT_PARTLY if report.failed else 0
    return Output(data, lines, code)


def _settings(options: CaptionOptions) -> CaptionSettings:
    """The settings, `--backend` spread over the fields that it gives."""
    from acestep.captioning.plan import ROLES
    from acestep.captioning.registry import backend

    settings = settings_in(options, CaptionSettings)
    if not options.backend:
        return settings
    gives = backend(options.backend).facts.gives
    return settings.changed(
        **{role: "" if gives.isdisjoint(fields) else options.backend for role, fields in ROLES.items()}
    )


def _report_lines(report: LabelReport) -> list[str]:
    from acestep.captioning.outlook import money

    head = "Stopped: " if report.stopped else ""
    lines = [
        f"{head}{report.labelled} of {counted(report.songs, 'songs')} labelled, {report.failed} failed, "
        f"{counted(len(report.told), 'values')} written in {report.seconds:.0f} s.",
        *problem_lines(report.problems),
    ]
    used = {name: amount for name, amount in sorted(report.usage.items()) if name != "estimated_usd"}
    if used:
        lines.append("Used: " + ", ".join(f"{name} {amount:g}" for name, amount in used.items()) + ".")
    if "estimated_usd" in report.usage:
        lines.append(f"By public prices that cost {money(report.usage['estimated_usd'])}.")
    if report.stopped:
        lines.append("Run the same command again to go on with the rest.")
    return lines


CAPTION_COMMAND = Command("caption", "label songs by analysis, local models or services", CaptionOptions, caption)

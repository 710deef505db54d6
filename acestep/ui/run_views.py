"""Pictures and tables of runs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from acestep.settings import TrainSettings
from acestep.training.runs import RunFolder, RunSummary, compare
from acestep.ui.charts import Curve, chart, smoothed
from acestep.ui.controls import title_of

STYLES = ("smooth", "other0", "other1", "other2", "other3")
"""The line of the run looked at, then those compared with it."""


def runs_table(summaries: Sequence[RunSummary], looked_at: str, opened: str) -> str:
    """All runs, one a row, the newest first."""
    if not summaries:
        return "<p>No runs yet. Start one in Train.</p>"
    rows = "".join(_row(summary, summary.path == looked_at, summary.path == opened) for summary in summaries)
    names = ("Run", "State", "Step", "Adapter", "Loss", "Validation: first, best", "Begun")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f'<div class="runs" tabindex="0"><table class="runs-table"><tr>{head}</tr>{rows}</table></div>'


def _row(summary: RunSummary, chosen: bool, opened: bool) -> str:
    validation = "none"
    if summary.first_validation is not None and summary.best_validation is not None:
        validation = f"{summary.first_validation:.4f}, {summary.best_validation:.4f} at step {summary.best_step}"
    state = f'<span class="state {escape(summary.state)}">{escape(summary.state)}</span>'
    cells = [
        f"<b>{escape(summary.name)}</b>{' (open)' if opened else ''}",
        state,
        f"{summary.step} of {summary.total_steps}",
        escape(_adapter(summary)),
        "" if summary.loss is None else f"{summary.loss:.4f}",
        validation,
        escape(begun(summary)),
    ]
    mark = ' class="chosen" aria-current="true"' if chosen else ""
    return f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _adapter(summary: RunSummary) -> str:
    rank = summary.settings.get("rank")
    return f"{summary.adapter}, rank {rank}" if rank is not None else summary.adapter


def begun(summary: RunSummary) -> str:
    """When the run was begun, to the minute."""
    return summary.created[:16].replace("T", " ")


def settings_html(run: RunFolder) -> str:
    """What a run was made from and its settings; those that differ from the defaults come first."""
    record = run.record
    model, tensors = record.get("model", {}), record.get("tensors", {})
    facts = {
        "Model": model.get("name", ""),
        "Songs": f"{tensors.get('songs', '?')} of {tensors.get('dataset', '')}, {tensors.get('path', '')}",
        "Trigger word": tensors.get("trigger_word", "") or "none",
        "Device": record.get("device", ""),
        "Folder": run.path,
    }
    defaults = TrainSettings().model_dump(mode="json")
    settings = record.get("settings", {})
    changed = {name: value for name, value in settings.items() if defaults.get(name) != value}
    same = {name: value for name, value in settings.items() if name not in changed}
    ours = {
        title_of(name): f"{spoken(value)} (default {spoken(defaults.get(name))})" for name, value in changed.items()
    }
    rest = _facts({title_of(name): spoken(value) for name, value in same.items()})
    return (
        f"{_facts(facts)}<h4>Settings that differ from the defaults</h4>{_facts(ours, 'changed') or '<p>None.</p>'}"
        f"<details><summary>The other {len(same)} settings, at their defaults</summary>{rest}</details>"
    )


def differences_html(summaries: Sequence[RunSummary]) -> str:
    """The settings in which runs differ from the first, a column a run, and how well each did."""
    if len(summaries) < 2:
        return "<p>Choose runs to compare with, above.</p>"
    first, others = summaries[0], summaries[1:]
    names = dict.fromkeys(name for other in others for name in compare(first, other))
    rows = [("Best validation loss", [_number(summary.best_validation) for summary in summaries])]
    rows += [("Steps", [str(summary.step) for summary in summaries])]
    rows += [(title_of(name), [spoken(summary.settings.get(name)) for summary in summaries]) for name in names]
    head = "".join(f'<th scope="col">{escape(summary.name)}</th>' for summary in summaries)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, cells in rows
    )
    table = f'<div class="runs" tabindex="0"><table class="runs-table"><tr><td></td>{head}</tr>{body}</table></div>'
    return table if names else f"{table}<p>All settings are the same.</p>"


def charts_html(runs: Sequence[RunFolder], smoothing: float, logarithmic: bool) -> str:
    """Validation and training losses of the runs over each other."""
    stories = [run.story() for run in runs]
    named = list(zip(runs, stories, STYLES, strict=False))
    validation = [Curve(run.path.name, story.validations, style) for run, story, style in named]
    training = [Curve(run.path.name, smoothed(story.training, smoothing), style) for run, story, style in named]
    return chart("Validation loss", validation, logarithmic=logarithmic) + chart(
        "Training loss, smoothed" if smoothing else "Training loss", training, logarithmic=logarithmic
    )


def spoken(value: Any) -> str:
    """A setting's value in words."""
    if value is None or value == "":
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.5f}"


def _facts(rows: dict[str, Any], mark: str = "") -> str:
    cells = "".join(
        f'<tr class="{mark}"><th>{escape(name)}</th><td>{escape(str(text))}</td></tr>' for name, text in rows.items()
    )
    return f'<table class="facts">{cells}</table>' if cells else ""

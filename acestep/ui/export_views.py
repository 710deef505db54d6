"""What the Export tab shows of its results."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from acestep.core.words import counted
from acestep.ui.app import App
from acestep.ui.downloads import download_link
from acestep.ui.machine import size_words

if TYPE_CHECKING:
    from acestep.adapters.exports.checking import FileCheck, Findings
    from acestep.adapters.exports.formats import ExportReport
    from acestep.adapters.exports.merging import MergeReport

_IN_WORDS = {
    "Name the adapter it was made from with --original.": "Choose the adapter it was made from.",
    "Name it with --model.": "Compare the model's output too.",
    "Name its model with --model.": "Choose its model in Service.",
    " with --to ": " as ",
    "with --dora refit": "with DoRA set to refit",
    "--dora refit": "DoRA set to refit",
    "A higher --refit-rank": "A higher refit rank",
    "acestep merge": "Merge",
}
_HEADER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def export_html(app: App, report: ExportReport, card: Path | None) -> str:
    """What was written, where, and a link to take it along."""
    facts = (
        f"{counted(report.modules, 'modules')}, {counted(report.tensors, 'tensors')}, {size_words(report.size_bytes)}."
    )
    same = "" if report.new else " It was there already and is the same; nothing was written."
    notes = "".join(f"<p>{escape(_without_options(note))}</p>" for note in report.notes)
    links = "".join(download_link(app, path) for path in (report.path, card) if path and path.exists())
    return f'<div role="status"><p><b>{escape(report.path.name)}</b>: {facts}{same}</p>{notes}{links}</div>'


def merge_html(result: tuple[MergeReport, tuple[str, ...]]) -> str:
    """The merged model in words."""
    report, warnings = result
    changed, files = counted(report.modules, "weights"), counted(report.files, "files")
    size = f"{changed} changed, {files}, {size_words(report.size_bytes)}."
    notes = "".join(f"<p>{escape(note)}</p>" for note in (*warnings, *report.notes))
    return f'<div role="status"><p><b>{escape(str(report.path))}</b>: {size}</p>{notes}</div>'


def findings_html(found: Findings) -> str:
    """The checks as a table: a row a program."""
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("Program", "Verdict", "Keys used", "Modules", "Scale", "Largest difference", "Relative")
    )
    rows = "".join(_check_row(check) for check in found.checks)
    rows += "".join(
        f'<tr><td><b>{escape(name)}</b></td><td colspan="6">not written: {escape(_without_options(why))}</td></tr>'
        for name, why in found.not_written.items()
    )
    lines = [(check.program, line.strip()) for check in found.checks for line in check.lines[1:]]
    items = "".join(f"<li>{escape(program)}: {escape(line)}</li>" for program, line in lines)
    details = f'<ul class="problems">{items}</ul>' if items else ""
    hint = f'<p class="quiet">{escape(_without_options(found.hint))}</p>' if found.hint else ""
    verdict = "Every file loads as it should." if found.good else "Not every file loads as it should."
    return (
        f'<p role="status"><b>{verdict}</b></p><div class="runs" tabindex="0"><table class="runs-table checks">'
        f"<tr>{head}</tr>{rows}</table></div>{details}{hint}"
    )


def _check_row(check: FileCheck) -> str:
    scale = f"{check.smallest_scale:.4g}"
    if check.largest_scale - check.smallest_scale > 1e-6 * abs(check.largest_scale):
        scale += f" to {check.largest_scale:.4g}"
    output = f"; output {check.output_difference:.2g}" if check.output_difference is not None else ""
    cells = [
        f"<b>{escape(check.program)}</b>",
        '<span class="state good">good</span>' if check.good else '<span class="state failed">not good</span>',
        f"{check.used} of {check.keys}",
        str(check.modules),
        scale,
        "not compared" if check.largest_difference is None else f"{check.largest_difference:.2g}",
        ("" if check.relative_difference is None else f"{check.relative_difference:.2g}") + output,
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _without_options(text: str) -> str:
    """A sentence of the command line in the words of the page."""
    for option, words in _IN_WORDS.items():
        text = text.replace(option, words)
    return text


def publish_html(address: str) -> str:
    link = escape(address)
    return f'<p role="status">Uploaded: <a href="{link}" target="_blank" rel="noopener noreferrer">{link}</a></p>'


def card_markdown(text: str) -> str:
    """A card as Markdown for the page: without the Hub's header, and with nothing in it that would fetch or run."""
    body = _HEADER.sub("", text.replace("\r\n", "\n"))
    return body.replace("<", "&lt;").replace("![", "[")

"""Splitting long recordings in the Dataset tab: into a new folder of labelled pieces, which can be opened then."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from acestep.core.jobs import Job
from acestep.core.paths import safe_name
from acestep.core.words import counted
from acestep.ui.app import App
from acestep.ui.dataset_source import open_place
from acestep.ui.folders import folder_field
from acestep.ui.page import Page
from acestep.ui.wiring import Wires

INPUTS = ["split_length", "split_overlap", "split_silence", "split_folder"]
SPLITTING = '<p role="status">Splitting; the line above the tabs shows how far it is.</p>'


def build_split(page: Page, wires: Wires) -> None:
    """Draw the section and wire it."""
    app = page.app
    gr.Markdown("For recordings of concerts or sets. The songs stay as they are; the pieces keep their labels.")
    with gr.Row():
        length = gr.Number(120, label="Length (s)", info="Of each piece.", minimum=1, maximum=3600, min_width=140)
        overlap = gr.Number(0, label="Overlap (s)", info="By which pieces begin earlier.", minimum=0, min_width=140)
        silence = gr.Checkbox(True, label="Cut at quiet places", info="Near the wished length.", min_width=140)
    wires.add(split_length=length, split_overlap=overlap, split_silence=silence)
    folder_field(app, wires, "split_folder", "Folder for the pieces", info="Made when it does not exist.")
    with gr.Row():
        start = gr.Button("Split all songs", scale=0, min_width=190)
        opened = gr.Button("Open the pieces", variant="primary", visible=False, scale=0, min_width=190)
    report = gr.HTML(padding=False)
    wires.add(split_open=opened, split_report=report)
    wires.on(start.click, "split", partial(start_split, app), INPUTS, ["split_report"])
    wires.on(opened.click, "split_open", partial(open_pieces, app), outputs=["split_open"])
    page.follow_text(wires, "split_place", "split_folder", lambda: pieces_folder(app))
    page.watch(wires, "split_done", partial(split_sign, app), partial(show_split, app), ["split_open", "split_report"])


def pieces_folder(app: App) -> str:
    if app.dataset is None:
        return ""
    return str(app.datasets / f"{safe_name(app.dataset.settings.name, 'songs')}_pieces")


def start_split(
    app: App, split_length: float, split_overlap: float, split_silence: bool, split_folder: str
) -> dict[str, Any]:
    dataset = app.labels.history.dataset
    folder = app.roots.resolve(split_folder, "Folder for the pieces")

    def split(job: Job) -> Any:
        from acestep.dataset.splitting import split_dataset

        return split_dataset(
            dataset, folder, split_length or 0, overlap_s=split_overlap or 0, at_silence=split_silence, job=job
        )

    app.start_work("split", f"Splitting {dataset.settings.name}", split, folder, keep_model=True)
    return {"split_report": SPLITTING}


def split_sign(app: App) -> Hashable:
    work = app.background.current
    return work and work.kind == "split" and (work.started, work.state)


def show_split(app: App) -> dict[str, Any]:
    """What the last splitting did."""
    work = app.background.current
    if work is None or work.kind != "split":
        return {"split_open": gr.update(visible=False)}  # what was said of the last splitting stays
    if work.running or work.result is None:  # how it ended without a result stands above the tabs
        return {"split_open": gr.update(visible=False), "split_report": SPLITTING if work.running else ""}
    result = work.result
    items = "".join(f"<li>{escape(str(problem))}</li>" for problem in result.problems)
    text = f"<p>{counted(len(result.pieces), 'pieces')} in {escape(str(result.folder))}.</p>"
    return {
        "split_open": gr.update(visible=bool(result.pieces)),
        "split_report": text + (f'<ul class="problems">{items}</ul>' if items else ""),
    }


def open_pieces(app: App) -> dict[str, Any]:
    work = app.background.current
    if work is not None and work.kind == "split" and work.result is not None:
        open_place(app, str(work.result.folder))
    return {"split_open": gr.update(visible=False)}

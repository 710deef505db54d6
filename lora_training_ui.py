"""The trainer app: from a folder of songs to an adapter in the browser. start.sh starts it; this lines its tabs up."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from acestep.core.paths import output_folder
from acestep.ui.app import App
from acestep.ui.dataset_tab import build_dataset
from acestep.ui.demo import start_demo
from acestep.ui.export_tab import build_export
from acestep.ui.header import build_header
from acestep.ui.listen_tab import build_listen
from acestep.ui.page import Page
from acestep.ui.preprocess_tab import build_preprocess
from acestep.ui.runs_tab import build_runs
from acestep.ui.service_tab import build_service
from acestep.ui.serving import ServeOptions, serve
from acestep.ui.train_tab import build_train

TITLE = "ACE-Step LoRA Trainer"


def build(app: App) -> tuple[gr.Blocks, Page]:
    """The whole page, not yet served."""
    page = Page(app)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as blocks:
        build_header(page, TITLE)
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
            build_service(page)
            build_dataset(page)
            build_preprocess(page)
            build_train(page)
            build_listen(page)
            build_export(page)
            build_runs(page)
        page.start_clock(blocks)
    return blocks, page


def run(
    options: ServeOptions, roots: tuple[Path, ...] = (), demo: bool = False, project: Path = Path(__file__).parent
) -> None:
    """Serve the app for a project folder until the user ends it. `demo` prepares and opens the demo's songs and model.

    Raises UserError when the folder cannot be written, or the demo cannot be prepared because another job holds the
    machine.
    """
    app = App(output_folder(project, "the project folder"), roots)
    blocks, _ = build(app)
    if demo:
        start_demo(app)
    else:
        app.reopen_songs()
    serve(blocks, app, options, print)

"""The captioner app: from bare songs to labels in the browser. start.sh starts it; this lines its tabs up."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from acestep.core.paths import output_folder
from acestep.ui.app import App
from acestep.ui.captioner_tab import build_captioner, build_computer
from acestep.ui.header import build_header
from acestep.ui.page import Page
from acestep.ui.serving import ServeOptions, serve

TITLE = "ACE-Step Captioner"
MEMORY = "captioner_config.json"
"""What was chosen, in the project's folder. Keys of services are never in it."""


def build(app: App) -> tuple[gr.Blocks, Page]:
    """The whole page, not yet served."""
    page = Page(app)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as blocks:
        build_header(page, TITLE, shows_way=False)
        with gr.Tabs(elem_id="tabs"):
            build_captioner(page)
            build_computer(page)
        page.start_clock(blocks)
    return blocks, page


def run(options: ServeOptions, roots: tuple[Path, ...] = (), project: Path = Path(__file__).parent) -> None:
    """Serve the app for a project folder until the user ends it. Raises UserError when it cannot be written."""
    app = App(output_folder(project, "the project folder"), roots, MEMORY)
    blocks, _ = build(app)
    app.reopen_songs()
    serve(blocks, app, options, print)

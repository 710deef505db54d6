"""Which tab of an open page follows the app: the one that was chosen last, however late the server answers."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from playwright.sync_api import Page as BrowserPage
from playwright.sync_api import expect

from acestep.core.jobs import Job
from acestep.dataset.editing import set_labels
from acestep.ui.app import App
from lora_training_ui import build

PATIENCE_S = 60.0


def test_an_opened_page_follows_the_tab_that_was_chosen_at_once(
    app: App, demo_songs: Path, open_page: Callable[..., BrowserPage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page chooses its first tab when it is opened; here the server is slow over that, and a click overtakes it."""
    expect.set_options(timeout=PATIENCE_S * 1000)
    app.open_songs(shutil.copytree(demo_songs, app.project / "my songs"), Job())
    timer, answered, overtaken = gr.Timer, threading.Event(), threading.Event()
    begun = threading.Lock()

    def slow(*values: Any, active: bool = True, **named: Any) -> gr.Timer:
        if active and begun.acquire(blocking=False):
            if overtaken.wait(2):
                time.sleep(1)  # the answer to the click is on its way first
            answered.set()
        elif active:
            overtaken.set()
        return timer(*values, active=active, **named)

    def built(app: App) -> tuple[gr.Blocks, Any]:
        found = build(app)
        monkeypatch.setattr(gr, "Timer", slow)
        return found

    page = open_page(app, build=built)
    page.get_by_role("tab", name="Dataset").click()
    assert answered.wait(PATIENCE_S)
    expect(page.locator("#songs")).to_be_visible()
    assert app.dataset is not None
    app.labels.apply(set_labels(app.dataset.songs[:1], caption="Written by another window"))
    expect(page.locator("#songs").get_by_text("Written by another window")).to_be_visible()

"""The Train tab in a real browser: start, watch, stop, and a wrong value at its field.

`test_whole_way.py` loads the page anew in the middle of a run.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page as BrowserPage
from playwright.sync_api import expect
from train_page import app_with_tensors

from acestep.ui.app import App


def test_a_run_is_watched_and_stopped(
    tmp_path: Path, demo_checkpoint: Path, demo_tensors: Path, open_page: Callable[[App], BrowserPage]
) -> None:
    app = app_with_tensors(tmp_path / "project", demo_checkpoint, demo_tensors)
    page = open_page(app)
    expect.set_options(timeout=30_000)
    page.get_by_role("tab", name="Train", exact=True).click()
    preset = page.get_by_label("Preset", exact=True)
    preset.click()
    page.get_by_role("option", name="demo", exact=True).click()
    expect(page.locator("#train-plan")).to_contain_text("120, 4 an epoch")

    page.get_by_label("Rank", exact=True).fill("0")
    expect(page.locator("#setting-rank")).to_contain_text("greater than or equal to 1")
    page.get_by_label("Rank", exact=True).fill("4")
    page.get_by_label("Max steps", exact=True).fill("50000")
    expect(page.locator("#train-command textarea")).to_have_value(re.compile(r"--rank 4 --max-steps 50000$"))
    page.get_by_role("button", name="Start training").click()

    expect(page.locator("#train-loss svg polyline").first).to_be_visible()
    expect(page.locator("#train-status")).to_contain_text("of 50000")
    page.locator("#stop-work").click()
    expect(page.locator("#train-status")).to_contain_text("stopped")
    expect(page.locator("#train-resume")).to_be_visible()
    page.get_by_role("tab", name="Set up").click()
    expect(page.get_by_label("Rank", exact=True)).to_have_value("4")
    assert app.workspace.train.max_steps == 50_000

"""Pages in a real browser: an app in a folder of its own, served on a free port, seen by headless Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import pytest
from pages import free_port
from playwright.sync_api import Browser, Page, expect, sync_playwright
from shared_folders import filled_once
from train_page import write_tensors

from acestep.ui.app import App
from acestep.ui.serving import ServeOptions, open_server
from lora_training_ui import build

Build = Callable[[App], tuple[gr.Blocks, object]]
CHROMIUM = "/usr/bin/chromium"
expect.set_options(timeout=60_000)  # a machine may be busy with other tests


@pytest.fixture
def app(tmp_path: Path) -> App:
    """An app whose project folder is empty and whose allowed folders are that folder and the user's home."""
    project = tmp_path / "project"
    project.mkdir()
    return App(project)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[[App], Page]]:
    """Serves an app and opens its page; both end with the test. A script error on the page fails the test."""
    ends: list[Callable[[], object]] = []
    errors: list[str] = []

    def open_it(app: App, width: int = 1280, height: int = 800, build: Build = build) -> Page:
        blocks, _ = build(app)
        address = open_server(blocks, app, ServeOptions(port=free_port()))
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("pageerror", lambda error: errors.append(str(error)))
        ends.extend([page.close, blocks.close])
        page.goto(address)
        page.get_by_role("tab").first.wait_for()
        return page

    yield open_it
    for end in ends:
        end()
    assert not errors, errors


@pytest.fixture(scope="session")
def demo_tensors(demo_checkpoint: Path, demo_songs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's songs as tensors. Tests must not write into them."""
    return filled_once(
        tmp_path_factory, "demo-tensors", lambda folder: write_tensors(demo_checkpoint, demo_songs, folder)
    )

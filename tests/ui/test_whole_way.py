"""From an empty folder to an adapter that is heard and exported, by clicks alone; with pictures of every tab if wanted.

In the middle of training the server is killed, and everything goes on where it was.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
from playwright.sync_api import Browser, Page, expect
from safetensors.torch import load_file
from served import Server

SONG = "Clockwork Bird.wav"
CAPTION = "A bird of brass, winding itself up"
LEFT_OUT = ("Marble Run", "Paper Boats", "Tin March")
"""Songs that are taken away again, for the sake of the time; `tests/test_end_to_end.py` encodes them all."""
LONG_ENOUGH = 50_000
PICTURES = os.environ.get("ACESTEP_SCREENSHOTS")
"""A folder to leave pictures of every tab in."""
LARGE, PHONE = (1280, 800), (390, 844)
LOOKS = {"light": {"large": LARGE, "phone": PHONE}, "dark": {"dark": LARGE}}
"""The last size of a theme is the one in which the page is opened and its tabs are chosen."""
SEEN = {
    "Service": "#machine .meter",
    "Dataset": "#songs table",
    "Preprocess": "#preprocess-tensors textarea",
    "Train": "#train-plan table",
    "Watch": "#train-loss svg polyline",
    "Listen": "#listen-played audio",
    "Export": "#export-result a",
    "Runs": "#run-charts svg",
}
"""What a tab shows at the end of the way; Watch is a part of Train."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "project")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def page(server: Server, browser: Browser) -> Iterator[Page]:
    expect.set_options(timeout=120_000)
    errors: list[str] = []
    page = browser.new_page(viewport={"width": LARGE[0], "height": LARGE[1]})
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(120_000)
    page.goto(server.address)
    yield page
    page.close()
    assert not errors, errors


def test_the_whole_way_in_the_browser(server: Server, page: Page) -> None:
    project = server.project
    prepare_the_demo(page)
    songs = project / "lora_output" / "demo" / "songs"
    for file in [file for name in LEFT_OUT for file in songs.glob(f"{name}.*")]:
        file.unlink()
    edit_a_caption(page)
    note = songs / "Clockwork Bird.json"
    assert json.loads(note.read_text(encoding="utf-8"))["caption"] == CAPTION

    encode(page)
    tensors = project / "lora_output" / "demo" / "tensors"
    assert len(list((tensors / "latents").iterdir())) == 3

    train_with_a_reload_in_the_middle(page)
    run = Path(json.loads((project / "trainer_config.json").read_text())["run"])
    kill_and_start_again(page, server)
    step = max(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*"))
    resume_for_a_few_steps(page, step)
    assert (run / "final" / "adapter_model.safetensors").is_file()
    ends = [line for line in (run / "events.jsonl").read_text().splitlines() if '"kind": "end"' in line]
    assert [json.loads(line)["state"] for line in ends] == ["finished"]

    listen(page)
    pieces = sorted((project / "lora_output" / "listen").rglob("*.wav"))
    assert len(pieces) == 2 and all(soundfile.info(piece).duration == pytest.approx(2, abs=0.1) for piece in pieces)
    export(page)
    (exported,) = (project / "lora_output" / "exports").glob("*.safetensors")
    learned = sum(name.endswith(".lora_A.weight") for name in load_file(run / "final" / "adapter_model.safetensors"))
    assert sum(name.endswith(".lora_down.weight") for name in load_file(exported)) == learned > 0

    look_at_every_tab(page, server)


def choose_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def work_is_finished(page: Page, title: str) -> None:
    expect(page.locator("#work-line")).to_contain_text(re.compile(f"{title}.* is finished"))


def prepare_the_demo(page: Page) -> None:
    page.get_by_role("button", name="Prepare the demo").click()
    work_is_finished(page, "Preparing the demo")
    expect(page.locator("#way li.done")).to_have_count(3)


def edit_a_caption(page: Page) -> None:
    choose_tab(page, "Dataset")
    expect(page.locator("#songs table")).to_be_visible()  # what was opened is drawn, and the ways to open fold away
    page.get_by_role("button", name="Open songs").click()
    page.get_by_role("button", name="Read again").click()
    work_is_finished(page, "Reading")
    expect(page.locator("#dataset-facts")).to_contain_text("3 songs")
    page.get_by_role("button", name=SONG).click()
    caption = page.locator("#label-caption textarea")
    expect(caption).to_have_value(re.compile("Lively tune"))
    caption.fill(CAPTION)
    caption.blur()
    expect(page.locator("#song-saved")).to_contain_text("Saved ")


def encode(page: Page) -> None:
    choose_tab(page, "Preprocess")
    expect(page.locator("#preprocess-tensors").get_by_role("textbox")).to_have_value(re.compile("demo/tensors$"))
    page.get_by_role("button", name="Encode the songs").click()
    expect(page.locator("#preprocess-report")).to_contain_text("3 encoded", timeout=300_000)


def train_with_a_reload_in_the_middle(page: Page) -> None:
    choose_tab(page, "Train")
    for preset, steps in (("quick_test", "0"), ("demo", "120")):  # the demo has chosen its own already
        page.get_by_label("Preset", exact=True).click()
        page.get_by_role("option", name=preset, exact=True).click()
        expect(page.get_by_label("Max steps", exact=True)).to_have_value(steps)
    page.get_by_label("Max steps", exact=True).fill(str(LONG_ENOUGH))
    expect(page.locator("#train-command textarea")).to_have_value(re.compile(f"--max-steps {LONG_ENOUGH}$"))
    page.get_by_role("button", name="Start training").click()
    curve = page.locator("#train-loss svg polyline").first
    expect(curve).to_be_visible()
    page.reload()
    expect(page.locator("#stop-work")).to_be_visible()
    choose_tab(page, "Train")
    expect(curve).to_be_visible()
    expect(curve).not_to_have_attribute("points", curve.get_attribute("points") or "")  # it moves
    expect(page.locator("#train-log textarea")).to_have_value(re.compile("Step 40: saved"))


def kill_and_start_again(page: Page, server: Server) -> None:
    """The run is told to be cut off, in the list and where it is watched."""
    page.goto("about:blank")
    server.kill()
    server.start()
    page.goto(server.address)
    choose_tab(page, "Runs")
    expect(page.locator(".state.interrupted")).to_be_visible()
    choose_tab(page, "Train")
    page.get_by_role("tab", name="Watch").click()
    expect(page.locator("#train-status")).to_contain_text("The run was cut off")


def resume_for_a_few_steps(page: Page, step: int) -> None:
    page.get_by_role("tab", name="Set up").click()
    page.get_by_label("Max steps", exact=True).fill(str(step + 10))
    expect(page.locator("#train-command textarea")).to_have_value(re.compile(f"--max-steps {step + 10}$"))
    page.get_by_role("tab", name="Watch").click()
    page.get_by_label("Resume with the form's length").check()
    page.locator("#train-resume").click()
    expect(page.locator("#train-status")).to_contain_text("finished")
    expect(page.locator("#train-status")).to_contain_text(f"{step + 10} of {step + 10}")


def listen(page: Page) -> None:
    choose_tab(page, "Listen")
    expect(page.locator("#listen-played")).to_contain_text("Nothing was played yet")  # drawn, and the form with it
    for name, value in {"caption": CAPTION, "duration_s": "2", "strength": "0, 1"}.items():
        page.locator(f"#setting-{name}").locator("input, textarea").fill(value)
    page.locator("#listen-play").click()
    expect(page.locator("#listen-played audio")).to_have_count(2)
    work_is_finished(page, "Playing")


def export(page: Page) -> None:
    choose_tab(page, "Export")
    page.locator("#setting-to input").click()
    page.get_by_role("option", name="comfyui", exact=True).click()
    expect(page.locator("#export-target input, #export-target textarea")).to_have_attribute(
        "placeholder", re.compile(r"comfyui\.safetensors$")
    )
    page.locator("#export-write").click()
    expect(page.locator("#export-result")).to_contain_text("Download the file")


def look_at_every_tab(page: Page, server: Server) -> None:
    """Every tab as it stands at the end fits a large window and a phone; with pictures, in the dark too, if wanted."""
    for theme, looks in LOOKS.items():
        if theme == "dark" and not PICTURES:
            continue
        resize(page, [*looks.values()][-1])
        page.goto(f"{server.address}?__theme={theme}")
        for number, (name, shown) in enumerate(SEEN.items(), 1):
            choose_tab(page, name)
            for look, size in looks.items():
                resize(page, size)
                expect(page.locator(shown).first).to_be_visible()
                assert page.evaluate("document.documentElement.scrollWidth") <= size[0], f"{name} is wider than {look}"
                if PICTURES:
                    page.screenshot(path=Path(PICTURES) / f"{look}_{number}_{name.lower()}.png", full_page=True)


def resize(page: Page, size: tuple[int, int]) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})

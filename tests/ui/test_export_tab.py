"""The Export tab: each format, merge, check, card and Hub by the page's own handlers, with the files looked at."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from adapter_pages import DORA, LORA, app_with_runs, finish
from playwright.sync_api import Page as BrowserPage
from playwright.sync_api import expect
from safetensors import safe_open

from acestep.adapters.exports.hub import PushPlan
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.model.checkpoints import resolve_checkpoint
from acestep.settings.export import ExportSettings
from acestep.ui.app import App
from acestep.ui.export_views import card_markdown
from acestep.ui.page import Page
from lora_training_ui import build


@pytest.fixture
def app(tmp_path: Path, demo_checkpoint: Path) -> App:
    return app_with_runs(tmp_path / "project", demo_checkpoint, ("run_a", LORA))


@pytest.fixture
def page(app: App) -> Page:
    return build(app)[1]


def shown(target: str = "", doomed: str = "", **settings: Any) -> dict[str, Any]:
    """The form as the page's controls hold it."""
    chosen = ExportSettings(**settings)
    return {"target": target, "doomed": doomed, **chosen.model_dump()}


def write(page: Page, **form: Any) -> str:
    """Export by the page's own handler; returns what it shows of the result."""
    page.handler("export.write")(**shown(**form))
    finish(page.app)
    return page.handler("export.export_result")()["export_result"]


def linked(html: str) -> Path:
    """The file a download link leads to."""
    return Path(unquote(re.findall(r'href="gradio_api/file=([^"]+)"', html)[0]))


def test_an_adapter_is_written_for_each_program(page: Page) -> None:
    exports = page.app.output / "exports"
    html = write(page, to="comfyui", dtype="fp32", card=True)
    file = exports / "run_a_final_comfyui.safetensors"
    assert linked(html) == file and file.with_suffix(".md").is_file()
    with safe_open(file, framework="np") as opened:
        assert {opened.get_slice(name).get_dtype() for name in opened.keys()} == {"F32"}  # noqa: SIM118
    assert page.app.workspace.export == ExportSettings(dtype="fp32", card=True)
    page.handler("export.choose_step")(adapter_step=str(page.app.output / "run_a" / "checkpoints" / "step_000010"))
    html = write(page, to="peft")
    folder = exports / "run_a_step_000010_peft"
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    with zipfile.ZipFile(linked(html)) as bundle:
        assert bundle.testzip() is None
        assert f"{folder.name}/adapter_model.safetensors" in bundle.namelist()
    assert "14,336" not in html and (write(page, to="diffusers", target="mine/of this").count("ZIP")) == 1
    assert (exports / "mine" / "of this" / "pytorch_lora_weights.safetensors").is_file()


def test_a_click_before_the_form_is_drawn_exports_what_the_form_is_to_show(page: Page) -> None:
    page.app.choose(export=ExportSettings(to="peft", card=True))
    page.handler("export.write")(**shown(), form_drawn=False)
    finish(page.app)
    assert (page.app.output / "exports" / "run_a_final_peft" / "README.md").is_file()
    assert page.app.workspace.export == ExportSettings(to="peft", card=True)


def test_nothing_is_overwritten_unasked(page: Page) -> None:
    app, exports = page.app, page.app.output / "exports"
    write(page, target="mine.safetensors")
    before = (exports / "mine.safetensors").read_bytes()
    page.handler("export.choose_step")(adapter_step=str(app.output / "run_a" / "checkpoints" / "step_000010"))
    asked = page.handler("export.write")(**shown("mine.safetensors"))
    assert "Replace it?" in asked["question"] and not app.background.busy
    assert (exports / "mine.safetensors").read_bytes() == before
    # another name typed after the question is asked about anew
    (exports / "other.safetensors").write_bytes(before)
    again = page.handler("export.replace")(**shown("other.safetensors", asked["doomed"]))
    assert "other" in again["question"]
    page.handler("export.replace")(**shown("mine.safetensors", asked["doomed"]))
    finish(app)
    assert (exports / "mine.safetensors").read_bytes() != before

    # nor is anything given up that no export wrote, whatever the user answers
    for doomed, to in ((app.output / "run_a", "peft"), (app.output / "run_a" / "best", "peft")):
        page.handler("export.write")(**shown(str(doomed), to=to))
        page.handler("export.replace")(**shown(str(doomed), str(doomed), to=to))
        app.background.wait(60)
        assert app.background.current and "not replaced" in app.background.current.problem
        assert doomed.is_dir() and any(doomed.iterdir())
    with pytest.raises(UserError, match="outside the folders"):
        page.handler("export.write")(**shown("/etc/a.safetensors"))
    with pytest.raises(UserError, match="outside the folders"):
        page.handler("export.write")(**shown("../../../../../a.safetensors"))


def test_an_adapter_is_merged_once(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    app = page.app
    assert "the disk has room" in page.handler("export.plan_merge")(merge_target="")["merge_plan"]["value"]
    page.handler("export.merge")(strength=0.5, merge_target="whole")
    finish(app)
    merged = app.output / "exports" / "whole"
    assert (merged / "model.safetensors").is_file() and resolve_checkpoint(str(merged), needs=())
    assert "weights changed" in page.handler("export.merge_result")()["merge_result"]
    with pytest.raises(UserError, match="overwrites nothing"):
        page.handler("export.merge")(strength=1.0, merge_target="whole")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="free"):
        page.handler("export.merge")(strength=1.0, merge_target="another")


def test_checks_are_shown_in_words(tmp_path: Path, demo_checkpoint: Path) -> None:
    app = app_with_runs(tmp_path / "project", demo_checkpoint, ("run_d", DORA))
    page = build(app)[1]
    page.handler("export.check")(check_path="", outputs=True)
    finish(app)
    html = page.handler("export.check_result")()["check_result"]
    assert html.count(">good<") == 2 and "not written" in html and "output" in html and "--" not in html
    write(page, to="comfyui", target="mine")
    page.handler("export.check")(check_path="mine.safetensors", outputs=False)
    finish(app)
    assert "Every file loads" in page.handler("export.check_result")()["check_result"]
    with pytest.raises(UserError, match="does not exist"):
        page.handler("export.check")(check_path="nowhere", outputs=False)


def test_an_export_is_of_the_adapter_that_was_chosen_when_it_began(
    tmp_path: Path, demo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_with_runs(tmp_path / "project", demo_checkpoint, ("run_d", DORA))
    page, begun = build(app)[1], []
    monkeypatch.setattr(app, "start_work", lambda kind, title, function, *rest, **options: begun.append(function))
    page.handler("export.write")(**shown(to="comfyui"))
    page.handler("export.choose_run")(adapter_run="")
    begun[0](Job())
    assert (app.output / "exports" / "run_d_final_comfyui.safetensors").is_file()


def test_the_card_is_shown_and_does_nothing(page: Page) -> None:
    text = page.handler("export.card_text")()["card_text"]
    assert text.lstrip().startswith("# blues") and "zork" in text and "tags:" not in text
    card = page.app.output / "run_a" / "final" / "README.md"
    card.write_text("---\ntags: [a]\n---\n# Mine\n<img src=x onerror=alert(1)> ![](http://example.org/a.png)")
    shown_card = page.handler("export.card_text")()["card_text"]
    assert "# Mine" in shown_card and "<img" not in shown_card and "![" not in shown_card
    assert card_markdown("plain") == "plain"


def test_publishing_asks_and_keeps_no_token(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    app, sent = page.app, []

    def push(plan: PushPlan, token: str) -> str:
        sent.append((plan, token))
        return f"https://huggingface.co/{plan.repository}"

    monkeypatch.setattr("acestep.adapters.exports.hub.push", push)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    form = {"hub_folder": "", "repository": "me/blues", "private": True}
    asked = page.handler("export.plan_push")(**form)
    assert "private" in asked["hub_plan"] and "adapter_model.safetensors" in asked["hub_plan"] and not sent
    with pytest.raises(UserError, match="user/name"):
        page.handler("export.plan_push")(**{**form, "repository": "a b"})
    with pytest.raises(UserError, match="token"):
        page.handler("export.push")(**form, token="", hub_asked=asked["hub_asked"])
    for other in ({"repository": "me/jazz"}, {"private": False}, {"hub_folder": str(app.output / "run_a" / "best")}):
        again = page.handler("export.push")(**{**form, **other}, token="hf_secret", hub_asked=asked["hub_asked"])
        assert again["hub_confirm"]["visible"] and again["hub_asked"] != asked["hub_asked"] and not app.background.busy
    cleared = page.handler("export.push")(**form, token="hf_secret", hub_asked=asked["hub_asked"])
    finish(app)
    assert cleared["token"] == "" and sent[0][1] == "hf_secret" and sent[0][0].private
    assert "huggingface.co/me/blues" in page.handler("export.publish_result")()["publish_result"]
    written = [path for path in app.project.rglob("*") if path.is_file() and path.stat().st_size < 1_000_000]
    assert not any(b"hf_secret" in path.read_bytes() for path in written)
    work = app.background.current
    assert work is not None and "hf_secret" not in repr(work)


def test_without_an_adapter_each_part_says_so(page: Page) -> None:
    page.handler("export.choose_run")(adapter_run="")
    assert page.handler("export.card_text")()["card_text"] == "No adapter is chosen."
    for name, form in (
        ("write", shown()),
        ("merge", {"strength": 1.0, "merge_target": ""}),
        ("check", {"check_path": "", "outputs": False}),
        ("plan_push", {"hub_folder": "", "repository": "me/blues", "private": True}),
    ):
        with pytest.raises(UserError, match="No adapter is chosen"):
            page.handler(f"export.{name}")(**form)


def test_exporting_in_the_browser_down_to_a_phone(app: App, open_page: Callable[[App], BrowserPage]) -> None:
    page = open_page(app)
    expect.set_options(timeout=30_000)
    page.get_by_role("tab", name="Export", exact=True).click()
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("#export-write").click()
    expect(page.locator("#export-result")).to_contain_text("modules")
    with page.expect_download() as download:
        page.locator("#export-result a.download").click()
    assert download.value.suggested_filename == "run_a_final_comfyui.safetensors"
    made = app.output / "exports" / download.value.suggested_filename
    assert Path(download.value.path()).read_bytes() == made.read_bytes()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#export-write").click()
    expect(page.get_by_role("button", name="Keep it")).to_be_visible()

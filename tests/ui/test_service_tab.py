"""The Service tab: finding and choosing a model, the demo, memory, meters; and the page in a browser."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from acestep.core.errors import UserError
from acestep.core.gpu import GpuProcess, GpuReading
from acestep.core.health import Check
from acestep.core.jobs import Job, Stage
from acestep.dataset.demo import DEMO_SONGS
from acestep.ui.app import App
from acestep.ui.header import stage_words
from acestep.ui.machine import Machine, machine_html
from acestep.ui.page import Page
from lora_training_ui import build

PATIENCE_S = 120.0
GIB = 1 << 30


@pytest.fixture
def models_app(tmp_path: Path, demo_checkpoint: Path) -> App:
    """An app that may open the folder of the demo model."""
    project = tmp_path / "project"
    project.mkdir()
    return App(project, (demo_checkpoint,))


@pytest.fixture
def page(models_app: App) -> Page:
    return build(models_app)[1]


def finish(app: App) -> Any:
    """Wait for the work under way, which must not fail."""
    assert app.background.wait(PATIENCE_S)
    work = app.background.current
    assert work is not None and work.state == "finished", work
    return work.result


def test_models_of_a_folder_are_listed_and_one_is_chosen(page: Page, demo_checkpoint: Path) -> None:
    empty = page.handler("service.models")()
    assert "no model" in empty["trouble"]["value"] and not empty["models"]["visible"]
    shown = page.handler("service.look")(checkpoints=str(demo_checkpoint))
    names = [label for label, _ in shown["models"]["choices"]]
    model = next(path for label, path in shown["models"]["choices"] if label.startswith("acestep-v15-demo:"))
    assert any("original layout" in name and "MB" in name for name in names)
    page.handler("service.choose")(models=model)
    again = App(page.app.project, (demo_checkpoint,))  # remembered
    assert again.workspace.model == model == str((demo_checkpoint / "acestep-v15-demo").resolve())
    assert again.workspace.checkpoints == str(demo_checkpoint.resolve())


def test_a_broken_model_is_a_problem_and_not_a_choice(page: Page, tmp_path: Path) -> None:
    broken = page.app.checkpoints / "acestep-v15-broken"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{")
    shown = page.handler("service.models")()
    assert shown["models"]["choices"] == [] and "acestep-v15-broken" in shown["trouble"]["value"]
    with pytest.raises(UserError):
        page.handler("service.choose")(models=str(broken))


def test_a_model_that_was_refused_is_not_shown_as_chosen(models_app: App) -> None:
    blocks, page = build(models_app)
    models_app.choose(model="/models/before")
    choose, wires = next(fn for fn in blocks.fns.values() if fn.api_name == "service_choose"), page.tabs["service"]
    answer = choose.fn(str(models_app.project / "gone"))
    assert "gone" in answer[wires.problem]["value"] and answer[wires.parts["models"]] == "/models/before"


def test_folders_outside_the_allowed_ones_are_refused(page: Page) -> None:
    with pytest.raises(UserError, match="outside the folders"):
        page.handler("service.look")(checkpoints="/etc")
    with pytest.raises(UserError, match="outside the folders"):
        page.handler("service.choose")(models="/etc")
    with pytest.raises(UserError, match="does not exist"):
        page.handler("service.look")(checkpoints=str(page.app.project / "nowhere"))


def test_the_demo_is_prepared_once_and_keeps_what_was_edited(page: Page) -> None:
    app = page.app
    page.handler("service.demo")()
    finish(app)
    assert app.dataset is not None and len(app.dataset.songs) == len(DEMO_SONGS)
    assert app.dataset.settings.trigger_word == "demostyle"
    chosen = app.workspace
    assert (chosen.preset, chosen.train.max_steps) == ("demo", 120)
    assert Path(chosen.model, "config.json").is_file() and Path(chosen.songs).is_dir()
    label = next(Path(chosen.songs).glob("*.json"))
    label.write_text(label.read_text(encoding="utf-8").replace('"caption": "', '"caption": "Mine, '), encoding="utf-8")
    page.handler("service.demo")()
    finish(app)
    assert any(song.caption.startswith("Mine, ") for song in app.dataset.songs)


def test_a_loaded_model_is_kept_and_makes_room_for_heavier_work(page: Page, demo_checkpoint: Path) -> None:
    from acestep.core.device import choose_device
    from acestep.model.checkpoints import resolve_checkpoint

    app = page.app
    with pytest.raises(UserError, match="No model is chosen"):
        page.handler("service.load")()
    app.choose(model=str((demo_checkpoint / "acestep-v15-demo").resolve()))
    page.handler("service.load")()
    finish(app)
    kept = app.loaded.parts
    assert kept is not None
    assert app.loaded.get(resolve_checkpoint(app.workspace.model), choose_device()) is kept
    memory = page.handler("service.memory")()
    assert "Loaded acestep-v15-demo" in memory["memory"] and "GB before" in memory["memory"]
    app.start_work("light", "Light work", lambda job: app.loaded.parts is kept, keep_model=True)
    assert finish(app) is True
    app.start_work("heavy", "Heavy work", lambda job: app.loaded.parts)
    assert finish(app) is None
    assert "Unloaded" in page.handler("service.memory")()["memory"]
    with pytest.raises(UserError, match="No model is loaded"):
        page.handler("service.unload")()


def test_a_download_names_its_variant_and_failures_are_told(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="No variant"):
        page.handler("service.plan_download")(variant=None)

    def unreachable(name: str, folder: Path, job: Job) -> Path:
        raise UserError("The hub cannot be reached.", fix="Check the connection.")

    monkeypatch.setattr("acestep.model.download.download", unreachable)
    page.handler("service.download")(variant="turbo")
    assert page.app.background.wait(PATIENCE_S)
    work = page.app.background.current
    assert work is not None and (work.kind, work.state) == ("download", "failed")
    assert "cannot be reached" in work.problem and not page.app.workspace.model


def test_a_download_is_counted_in_gigabytes() -> None:
    assert stage_words(Stage("download", 4_800_000_000, "bytes", 0.0, done=1_200_000_000), 0.0).startswith(
        "download: 1.20 of 4.80 GB"
    )


def test_checks_put_what_is_wrong_first(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [Check("torch", "ok", "2.13"), Check("disk", "warning", "1 GiB free.", "Free some space.")]
    monkeypatch.setattr("acestep.core.health.all_checks", lambda folder: checks)
    html = page.handler("service.check")()["checks"]
    assert "1 of 2 checks" in html and html.index("Free some space.") < html.index("2.13")


def test_meters_tell_in_words_and_are_read_seldom(tmp_path: Path) -> None:
    now, used, looks = [0.0], [2 * GIB], []

    def read() -> GpuReading:
        looks.append(now[0])
        return GpuReading("RTX <4090>", used[0], 24 * GIB, 30, 61, (GpuProcess(7, "game", 900),))

    machine = Machine(tmp_path / "not" / "made", read, lambda: now[0])
    first = machine_html(machine.look())
    assert "RTX &lt;4090&gt;" in first and "2.0 of 24.0 GiB used, 22.0 free" in first and "61 °C" in first
    assert "game (process 7, 900 MB)" in first and 'class="meter full"' not in first.split("Memory")[0]
    used[0], before = 23 * GIB, machine.sign()
    assert len(looks) == 1
    now[0] = 5.0
    assert machine.sign() != before and len(looks) == 2
    assert 'class="meter full"' in machine_html(machine.look()).split("Memory")[0]
    assert "No graphics card" in machine_html(Machine(tmp_path, lambda: None).look())


def test_an_idle_app_with_its_meters_drawn_has_loaded_no_model_library(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lora_training_ui import build; from acestep.ui.app import App\n"
        "page = build(App(Path(sys.argv[1])))[1]\n"
        "for watcher in page.watchers: watcher.look(None)\n"
        "assert not {'torch', 'transformers', 'diffusers', 'librosa'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_shows_the_model_it_was_told_to_take(models_app: App, open_page, demo_checkpoint: Path) -> None:
    page = open_page(models_app)
    page.get_by_role("tab", name="Service").click()
    page.locator("#service-checkpoints textarea").fill(str(demo_checkpoint))
    page.get_by_role("button", name="Look for models").click()
    page.get_by_role("radio", name="acestep-v15-demo:").check()
    page.locator("ol.way li.done", has_text="acestep-v15-demo").wait_for()
    page.get_by_role("meter").first.wait_for()
    page.reload()
    page.get_by_role("radio", name="acestep-v15-demo:").and_(page.locator(":checked")).wait_for()

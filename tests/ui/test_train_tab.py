"""The Train tab by its handlers: what stands in the form is what is trained, and a run can be steered and taken up."""

from __future__ import annotations

import json
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from train_page import QUICK, app_with_tensors, finish, page_of, settings_away, shown, start

from acestep.cli.arguments import parse_options
from acestep.cli.commands import TrainOptions
from acestep.core.errors import UserError
from acestep.settings import TrainSettings, presets
from acestep.settings.base import SettingsError
from acestep.settings.presets import preset_values
from acestep.ui.app import App
from acestep.ui.page import Page
from acestep.ui.tensorboard import TensorBoards
from acestep.ui.train_form import FAMILIES


@pytest.fixture
def page(tmp_path: Path, demo_checkpoint: Path, demo_tensors: Path) -> Page:
    return page_of(app_with_tensors(tmp_path / "project", demo_checkpoint, demo_tensors))


def record_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def command_settings(text: str) -> TrainSettings:
    options = parse_options(TrainOptions, shlex.split(text)[2:], "acestep train", "train")
    return TrainSettings(**{name: getattr(options, name) for name in TrainSettings.model_fields})


@pytest.mark.parametrize("adapter", FAMILIES)
def test_every_setting_on_the_page_reaches_the_run(page: Page, adapter: str) -> None:
    wanted = settings_away(adapter)
    if adapter != "lora":  # previews are the same for every kind, and take the longest
        wanted = wanted.changed(preview_every_steps=0, preview_every_epochs=0)
    run = start(page, wanted, "away")
    finish(page)
    assert TrainSettings(**record_of(run)["settings"]) == wanted
    assert run.parent == page.app.output
    assert run.name.endswith("_away")
    assert (run / "final" / "training.json").is_file()


def test_the_plan_is_what_the_run_then_is(page: Page) -> None:
    for values in ({"validation": "songs"}, {"validation": "windows", "batch_size": 3}, {"max_steps": 2}):
        settings = TrainSettings(**{**QUICK, "max_steps": 0, "epochs": 1, **values})
        plan = page.handler("train.change")(**shown(settings))["plan"]
        run = start(page, settings)
        finish(page)
        recorded = record_of(run)["plan"]
        assert f"<td>{recorded['total_steps']}, {recorded['steps_per_epoch']} an epoch</td>" in plan


def test_typing_changes_plan_and_command_but_no_field(page: Page) -> None:
    settings = TrainSettings(rank=32, alpha=16, dora=True, preview_captions=["it's -- fine", "-x"])
    sign = next(watcher for watcher in page.watchers if (watcher.wires.tab, watcher.name) == ("train", "form")).sign
    before = sign()
    updates = page.handler("train.change")(**shown(settings))
    assert set(updates) == {"plan", "advice", "command"}
    assert sign() == before
    assert page.app.workspace.train == settings  # a reload shows it again
    assert command_settings(updates["command"]) == settings
    assert page.handler("train.form")()["rank"] == 32


def test_a_preset_fills_the_form_and_follows_the_kind_of_adapter(page: Page) -> None:
    updates = page.handler("train.preset")(preset="tier_16gb_lora")
    tier = preset_values("tier_16gb_lora")
    assert updates["rank"] == tier["rank"]
    assert command_settings(updates["command"]) == TrainSettings(**tier)
    assert "--rank" not in updates["command"]

    changed = page.app.workspace.train.changed(seed=7)
    updates = page.handler("train.adapter")(**shown(changed) | {"adapter": "lokr"})
    tier = preset_values("tier_16gb_lokr")
    assert page.app.workspace.preset == "tier_16gb_lokr"
    assert page.app.workspace.train == TrainSettings(**tier, seed=7)
    assert updates["family_lokr"]["visible"]
    assert not updates["family_lora"]["visible"]

    updates = page.handler("train.preset")(preset="auto")
    assert page.app.workspace.preset.endswith("_lokr")
    updates = page.handler("train.reset")()
    assert page.app.workspace.train == TrainSettings()
    assert updates["preset"]["value"] == ""


def test_ranks_of_single_modules_leave_with_lora(page: Page) -> None:
    settings = TrainSettings(rank_pattern={"layers.0.self_attn.q_proj": 2})
    page.handler("train.adapter")(**shown(settings) | {"adapter": "oft"})
    assert page.app.workspace.train == TrainSettings(adapter="oft")


def test_a_click_before_the_form_is_drawn_starts_what_the_form_is_to_show(page: Page) -> None:
    page.app.choose(train=TrainSettings(**QUICK))
    served = shown(TrainSettings(rank=3)) | {"drawn": None, "tensors": "", "run_name": ""}  # as the app began
    page.handler("train.start")(**served)
    finish(page)
    assert TrainSettings(**record_of(Path(page.app.workspace.run))["settings"]) == TrainSettings(**QUICK)


def test_wrong_values_are_named_and_nothing_starts(page: Page) -> None:
    for values, field in (
        ({"rank": 0}, "rank"),
        ({"learning_rate": None}, "learning_rate"),
        ({"layers": "x"}, "layers"),
    ):
        with pytest.raises(SettingsError) as caught:
            page.handler("train.start")(
                drawn=0, tensors=page.app.workspace.tensors, run_name="", **shown(TrainSettings()) | values
            )
        assert field in caught.value.fields
    assert page.app.background.current is None
    with pytest.raises(UserError, match="outside the folders"):
        page.handler("train.start")(drawn=0, tensors="/etc", run_name="", **shown(TrainSettings()))
    page.app.choose(model="")
    with pytest.raises(UserError, match="No model is chosen"):
        start(page, TrainSettings())


def test_the_advised_length_is_taken_over(page: Page) -> None:
    updates = page.handler("train.advice")(**shown(TrainSettings(max_steps=9)))
    assert updates["max_steps"] == 0
    assert f"--epochs {updates['epochs']}" in page.handler("train.change")(**shown(TrainSettings()))["advice"]


# presets, profiles and other programs -----------------------------------------------------------------------------


def test_profiles_and_presets_come_back_whole(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presets, "PRESETS_FOLDER", tmp_path / "presets")
    settings = settings_away("lora")
    saved = page.handler("train.save_profile")(name="my own", **shown(settings))
    assert page.app.output in Path(saved["download"]["value"]).parents
    page.handler("train.save_preset")(name="mine", **shown(settings))
    for elsewhere in (str(tmp_path / "evil.json"), "../evil", "a/b", "mine.json.json", ""):
        with pytest.raises(UserError, match="cannot be the name"):
            page.handler("train.save_preset")(name=elsewhere, **shown(settings))
    page.handler("train.save_preset")(name="warm.json", **shown(settings))
    assert {path.name for path in tmp_path.rglob("*.json")} >= {"mine.json", "warm.json"}
    assert not list(tmp_path.rglob("*evil*")) and not Path("warm.json").exists()
    with pytest.raises(UserError, match="not replaced"):
        page.handler("train.save_profile")(name="my own", **shown(settings))

    page.handler("train.reset")()
    page.handler("train.load_profile")(profile=saved["profile"]["value"])
    assert page.app.workspace.train == settings
    page.handler("train.reset")()
    page.handler("train.preset")(preset="mine")
    assert page.app.workspace.train == settings
    with pytest.raises(UserError, match="No profile"):
        page.handler("train.load_profile")(profile="../../trainer_config")


def test_side_step_files_go_out_and_come_in(page: Page) -> None:
    settings = TrainSettings(rank=48, alpha=24, learning_rate=3e-4, epochs=77)
    written = page.handler("train.side_step")(name="there", **shown(settings))["download"]["value"]
    page.handler("train.reset")()
    updates = page.handler("train.load_file")(upload=written)
    loaded = page.app.workspace.train
    assert (loaded.rank, loaded.alpha, loaded.learning_rate, loaded.epochs) == (48, 24, 3e-4, 77)
    assert updates["epochs"] == 77


def test_a_file_that_is_no_settings_file_changes_nothing(page: Page, tmp_path: Path) -> None:
    before = page.app.workspace
    for text in ("", "{", "[]", '{"rank": 3}', '{"kind": "profile", "sections": {"train": {"rank": "x"}}}'):
        path = tmp_path / "file.json"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError):
            page.handler("train.load_file")(upload=str(path))
    assert page.app.workspace == before


# steering ---------------------------------------------------------------------------------------------------------


def test_a_stopped_run_is_listed_first_and_goes_on(page: Page) -> None:
    finished = start(page, TrainSettings(**QUICK), "whole")
    finish(page)
    run = start(page, TrainSettings(**QUICK, preview_steps=1, preview_duration_s=1).changed(max_steps=5000), "stopped")
    wait_for_step(page, run, 2)
    page.handler("train.save")()
    wait_for(page, lambda: (run / "checkpoints").is_dir())
    page.handler("train.preview_now")()
    wait_for(page, lambda: any(run.glob("samples/*/*.wav")))
    page.handler("frame.stop_work")()
    finish(page)
    assert page.app.background.current.state == "stopped"  # type: ignore[union-attr]

    listed = page.handler("train.runs")()
    assert [path for _, path in listed["run"]["choices"]] == [str(run), str(finished)]
    assert listed["resume"]["visible"]
    players = page.handler("train.previews")()["previews"]
    assert players.count("<audio") == 2
    assert "strength 1, seed 42" in players

    events = (run / "events.jsonl").read_text(encoding="utf-8")
    step = json.loads(next(line for line in reversed(events.splitlines()) if '"step"' in line))["step"]
    page.app.choose(train=page.app.workspace.train.changed(max_steps=step + 2))
    page.handler("train.resume")(longer=True)
    finish(page)
    status = page.handler("train.live")()["status"]
    assert "finished" in status
    assert f"{step + 2} of {step + 2}" in status
    assert "Resumed at step" in page.handler("train.live")()["log"]


def wait_for(page: Page, there: Any) -> None:
    work = page.app.background.current
    while work is not None and work.running and not there():
        page.app.background.wait(0.05)
    assert there(), work and (work.problem, work.trace)


def wait_for_step(page: Page, run: Path, step: int) -> None:
    wait_for(
        page,
        lambda: (run / "events.jsonl").is_file() and f'"step": {step}, "epoch"' in (run / "events.jsonl").read_text(),
    )


def test_a_run_that_fails_says_why(page: Page) -> None:
    latents = next((Path(page.app.workspace.tensors) / "latents").iterdir())
    latents.write_bytes(latents.read_bytes()[:100])
    start(page, TrainSettings(**QUICK))
    page.app.background.wait(60)
    work = page.app.background.current
    assert work is not None and work.state == "failed"
    assert work.problem in page.handler("train.live")()["status"].replace("&#x27;", "'")


def test_several_devices_train_in_a_process_of_their_own_which_can_be_stopped(page: Page) -> None:
    settings = TrainSettings(**QUICK, devices=2, device="cpu", gradient_accumulation=2, compile="off")
    settings = settings.changed(max_steps=50_000)
    run = start(page, settings, "pair")
    wait_for_step(page, run, 2)
    page.handler("frame.stop_work")()
    finish(page)
    assert TrainSettings(**record_of(run)["settings"]) == settings
    work = page.app.background.current
    assert work is not None and work.state == "stopped"
    assert work.stage is not None and 2 <= work.stage.done < work.stage.total == 50_000
    assert any("50000 steps" in line for line in work.lines)
    assert (run / "final" / "training.json").is_file()


def test_a_process_of_its_own_that_fails_gives_its_reason(page: Page) -> None:
    shutil.rmtree(Path(page.app.workspace.tensors) / "conditions")
    start(page, TrainSettings(**QUICK, devices=2, device="cpu", compile="off"))
    page.app.background.wait(120)
    work = page.app.background.current
    assert work is not None and work.state == "failed"
    assert "conditions" in work.problem


def test_a_measurement_stands_in_the_plan_until_a_step_costs_something_else(page: Page) -> None:
    settings = TrainSettings(**QUICK)
    page.handler("train.measure")(**shown(settings))
    finish(page)
    plan = page.handler("train.change")(**shown(settings.changed(max_steps=500, save_every_steps=5, keep_last=0)))[
        "plan"
    ]
    assert "about" in plan and "GiB free" in plan and "GB free" in plan
    assert "changed since" in page.handler("train.change")(**shown(settings.changed(rank=8)))["plan"]
    assert not list(page.app.output.glob("*"))
    with pytest.raises(UserError, match="on one device"):
        page.handler("train.measure")(**shown(settings.changed(devices=2)))


# TensorBoard ------------------------------------------------------------------------------------------------------


def test_tensorboard_is_for_this_computer_alone(tmp_path: Path) -> None:
    import urllib.request

    (tmp_path / "run" / "tensorboard").mkdir(parents=True)
    app = App(tmp_path)
    boards = TensorBoards(app)
    with pytest.raises(UserError, match="no TensorBoard files"):
        boards.show(tmp_path)
    try:
        with ThreadPoolExecutor() as pages:
            address, other = pages.map(boards.show, [tmp_path / "run"] * 2)
        assert address == other, "two pages that ask at once are shown the same one"
        assert address.startswith("http://127.0.0.1:")
        assert b"TensorBoard" in urllib.request.urlopen(address).read()
        app.public = True
        with pytest.raises(UserError, match="no password"):
            boards.show(tmp_path / "run")
    finally:
        boards.close()
    with pytest.raises(OSError):
        urllib.request.urlopen(address, timeout=5)

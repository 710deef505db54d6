"""The Preprocess tab: songs become tensors."""

from __future__ import annotations

from collections.abc import Hashable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import safe_name
from acestep.core.words import counted
from acestep.settings import PreprocessSettings
from acestep.ui.app import App
from acestep.ui.controls import Controls, by_group
from acestep.ui.folders import folder_field
from acestep.ui.page import Page, drawn, meant

ENCODING = "Encoding; the line above the tabs shows how far it is. You may close this page."


def build_preprocess(page: Page) -> None:
    """Draw the tab and wire it."""
    app = page.app
    with page.tab("preprocess", "Preprocess") as wires:
        gr.Markdown("Encode the labelled songs once; training then reads the tensors. Unchanged songs are not redone.")
        folder_field(app, wires, "tensors", "Tensor folder", info="Made when it does not exist.")
        controls = Controls(PreprocessSettings)
        basic = [name for names in by_group(PreprocessSettings, "basic").values() for name in names]
        with gr.Row():
            controls.draw([*basic, "max_duration_s", "two_pass"], app.workspace.preprocess.model_dump())
        with gr.Accordion("More settings", open=False), gr.Row():
            rest = [name for name in PreprocessSettings.model_fields if name not in controls.knobs]
            controls.draw(rest, app.workspace.preprocess.model_dump())
        wires.add_controls(controls)
        with gr.Row():
            look = gr.Button("What is there to do?")
            start = gr.Button("Encode the songs", variant="primary")
        plan = gr.Markdown(elem_id="preprocess-plan")
        report = gr.HTML(elem_id="preprocess-report")
        wires.add(start=start, plan=plan, report=report)

        settings = list(controls.knobs)
        page.watch_form(
            wires,
            "form",
            lambda: app.filled["preprocess"],
            lambda: controls.updates(app.workspace.preprocess.model_dump()),
            settings,
        )
        inputs = ["tensors", *settings, drawn("form")]
        wires.on(look.click, "plan", lambda **shown: show_plan(app, controls, shown), inputs, ["plan"])
        wires.on(start.click, "start", lambda **shown: start_encoding(app, controls, shown), inputs, ["plan"])
        page.follow_text(wires, "folder", "tensors", lambda: tensor_folder(app))
        page.watch(wires, "report", lambda: report_sign(app), lambda: show_report(app), ["report", "plan"])


def tensor_folder(app: App) -> str:
    """The chosen tensor folder, or a proposal named after the dataset."""
    name = f"{safe_name(app.dataset.settings.name, 'songs')}_tensors" if app.dataset else "tensors"
    return app.workspace.tensors or str(app.datasets / name)


def remembered_form(app: App, controls: Controls) -> dict[str, Any]:
    return {**controls.updates(app.workspace.preprocess.model_dump()), "tensors": tensor_folder(app)}


def prepare(app: App, controls: Controls, shown: dict[str, Any]) -> tuple[PreprocessSettings, Path]:
    """The settings on the page and the folder, checked and remembered."""
    shown = meant("form", shown, lambda: remembered_form(app, controls))
    settings = PreprocessSettings.parse(controls.values(shown), "Preprocess")
    folder = app.roots.resolve(shown["tensors"], "Tensor folder")
    if app.dataset is None:
        raise UserError("No songs are open.", fix="Choose a folder of songs in Dataset first.")
    if not app.workspace.model:
        raise UserError("No model is chosen.", fix="Choose one in Service first.")
    app.choose(preprocess=settings, tensors=str(folder))
    return settings, folder


def show_plan(app: App, controls: Controls, shown: dict[str, Any]) -> dict[str, Any]:
    """Say what would be encoded and what is there already, without encoding."""
    from acestep.model.checkpoints import resolve_checkpoint
    from acestep.preprocess.run import plan_preprocessing

    settings, folder = prepare(app, controls, shown)
    assert app.dataset is not None
    plan = plan_preprocessing(app.dataset, resolve_checkpoint(app.workspace.model), folder, settings)
    todo = plan.to_encode
    seconds = sum(planned.song.duration_s for planned in todo)
    text = (
        f"{counted(len(plan.songs) - len(todo), 'songs')} encoded already, {len(todo)} to do ({seconds / 60:.1f} min)."
    )
    return {"plan": text}


def start_encoding(app: App, controls: Controls, shown: dict[str, Any]) -> dict[str, Any]:
    from acestep.model.checkpoints import resolve_checkpoint
    from acestep.preprocess.run import preprocess

    settings, folder = prepare(app, controls, shown)
    dataset, checkpoint = app.dataset, resolve_checkpoint(app.workspace.model)
    assert dataset is not None

    def encode(job: Job) -> Any:
        return preprocess(dataset, checkpoint, folder, settings, job)

    app.start_work("preprocess", f"Encoding {dataset.settings.name}", encode, folder)
    return {"plan": ENCODING}


def report_sign(app: App) -> Hashable:
    work = app.background.current
    return work and work.kind == "preprocess" and (work.started, work.state)


def show_report(app: App) -> dict[str, Any]:
    """While songs are encoded, that they are; then the report in the place of the plan, which holds no more."""
    work = app.background.current
    running = work is not None and work.kind == "preprocess" and work.running
    return {"report": report_html(app), "plan": ENCODING if running else ""}


def report_html(app: App) -> str:
    """What the last encoding did, and the trouble with single songs."""
    work = app.background.current
    if work is None or work.kind != "preprocess" or work.running or work.result is None:
        return ""
    report = work.result
    rows = {
        "Songs": f"{report.encoded} encoded, {report.reused} unchanged, {report.failed} failed",
        "Audio": f"{report.audio_s / 60:.1f} min",
        "Size": f"{report.size_bytes / 1e6:.1f} MB in {report.folder}",
    }
    rows |= {problem.subject: f"{problem.severity}: {problem.message}" for problem in report.problems}
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
    return f'<table class="facts">{cells}</table>'

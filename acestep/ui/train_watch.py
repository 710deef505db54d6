"""The second half of the Train tab: any run as it goes, or as it went, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import gradio as gr

from acestep.core.errors import UserError
from acestep.training.runs import RunFolder, summarise
from acestep.ui.page import Page
from acestep.ui.tensorboard import TensorBoards
from acestep.ui.train_form import Form, Updates
from acestep.ui.train_live import (
    Live,
    log_text,
    loss_html,
    preview_choices,
    previews_html,
    side_charts_html,
    status_html,
)
from acestep.ui.training_work import KIND, ask_run, resume_run
from acestep.ui.wiring import Wires

ORDER = ("running", "interrupted", "stopped", "failed", "finished")
"""In this order runs stand in the list; within a state the newest first."""


def draw_watch(wires: Wires) -> None:
    """The parts of the page that show a run."""
    with gr.Row(elem_classes=["bar"]):
        run = gr.Dropdown(label="Run", choices=[], value=None, scale=4, elem_id="train-run")
        resume = gr.Button("Resume", visible=False, min_width=110, scale=0, elem_id="train-resume")
        save = gr.Button("Save now", min_width=110, scale=0)
        preview = gr.Button("Preview now", min_width=120, scale=0)
        board = gr.Button("TensorBoard", min_width=120, scale=0)
    longer = gr.Checkbox(
        label="Resume with the form's length, saving, previews and devices",
        info="To train a finished run for longer, raise the epochs in the form first.",
        value=False,
        visible=False,
        elem_id="train-longer",
    )
    wires.add(run=run, resume=resume, save=save, preview=preview, board=board, longer=longer)
    wires.add(asked=gr.HTML(elem_id="train-asked", padding=False))
    wires.add(status=gr.HTML(elem_id="train-status", padding=False))
    loss = gr.HTML(elem_id="train-loss", padding=False)
    with gr.Row(elem_classes=["bar"]):
        smoothing = gr.Slider(
            0, 0.99, 0.9, step=0.01, label="Smoothing", scale=3, min_width=220, elem_id="train-smoothing"
        )
        logarithmic = gr.Checkbox(label="Logarithmic scale", scale=1, min_width=220, elem_id="train-logarithmic")
    charts = gr.HTML(elem_id="train-charts", padding=False)
    gr.HTML("<h3>Previews</h3>", padding=False)
    preview_step = gr.Dropdown(label="Previews of", choices=[("newest", 0)], value=0, elem_id="train-preview-step")
    previews = gr.HTML(elem_id="train-previews", padding=False)
    log = gr.Textbox(
        label="Log",
        lines=10,
        max_lines=10,
        interactive=False,
        buttons=["copy"],
        elem_id="train-log",
        elem_classes=["log"],
    )
    wires.add(loss=loss, smoothing=smoothing, logarithmic=logarithmic, charts=charts)
    wires.add(preview_step=preview_step, previews=previews, log=log)


def wire_watch(page: Page, wires: Wires, live: Live, form: Form) -> None:
    """What the parts follow and what the buttons do."""
    boards = TensorBoards(page.app)
    parts: dict[str, Any] = dict(wires.parts)
    page.watch(wires, "live", live.sign, lambda: show_live(live), ["status", "loss", "charts", "log"])
    page.watch(
        wires, "previews", lambda: previews_sign(live), lambda: show_previews(live), ["preview_step", "previews"]
    )
    page.watch(
        wires, "runs", lambda: runs_sign(live), lambda: show_runs(live), ["run", "resume", "longer", "save", "preview"]
    )
    page.watch(wires, "look", lambda: 0, lambda: show_look(live), ["smoothing", "logarithmic"])
    page.watch(
        wires,
        "part",
        lambda: begun(page),
        lambda: {"parts": gr.Tabs(selected="watch")} if begun(page) else {},
        ["parts"],
    )

    wires.on(parts["run"].input, "choose_run", lambda run: choose_run(live, run), ["run"], ["asked"])
    wires.on(parts["resume"].click, "resume", lambda longer: resume(live, form, longer), ["longer"], ["asked"])
    wires.on(parts["save"].click, "save", lambda: ask(live, "save", "A checkpoint"), [], ["asked"])
    wires.on(parts["preview"].click, "preview_now", lambda: ask(live, "preview", "A preview"), [], ["asked"])
    wires.on(parts["board"].click, "tensorboard", lambda: show_board(live, boards), [], ["asked"])
    wires.on(
        parts["smoothing"].release,
        "smoothing",
        lambda smoothing: look(live, smoothing=smoothing),
        ["smoothing"],
        ["loss"],
    )
    wires.on(
        parts["logarithmic"].input,
        "logarithmic",
        lambda logarithmic: look(live, logarithmic=logarithmic),
        ["logarithmic"],
        ["loss"],
    )
    wires.on(
        parts["preview_step"].input,
        "preview_step",
        lambda preview_step: choose_previews(live, preview_step),
        ["preview_step"],
        ["previews"],
    )


def begun(page: Page) -> Hashable:
    """Which run this app is training; a new one brings every page to its curves."""
    work = page.app.background.current
    return work.started if work and work.running and work.kind == KIND else None


def show_live(live: Live) -> Updates:
    return {
        "status": status_html(live),
        "loss": loss_html(live),
        "charts": side_charts_html(live),
        "log": log_text(live),
    }


def previews_sign(live: Live) -> Hashable:
    view = live.view()
    return (
        live.app.workspace.run,
        live.app.workspace.preview_step,
        view and tuple(piece.path for piece in view.story.previews),
    )


def show_previews(live: Live) -> Updates:
    choices, wanted = preview_choices(live), live.app.workspace.preview_step
    value = wanted if wanted in [step for _, step in choices] else 0
    return {"preview_step": gr.update(choices=choices, value=value), "previews": previews_html(live)}


def choose_previews(live: Live, step: int) -> Updates:
    live.app.choose(preview_step=step)
    return {"previews": previews_html(live)}


def show_look(live: Live) -> Updates:
    return {"smoothing": live.app.workspace.smoothing, "logarithmic": live.app.workspace.logarithmic}


def look(live: Live, **chosen: Any) -> Updates:
    live.app.choose(**chosen)
    return {"loss": loss_html(live)}


# runs -------------------------------------------------------------------------------------------------------------


def runs_sign(live: Live) -> Hashable:
    """Changes with runs that come, go, begin or end, and with the chosen one."""
    view, work = live.view(), live.app.background.current
    states = live.app.history.sign(live.app.output)
    return states, live.app.workspace.run, view and live.state_words(view), work and (work.started, work.state)


def show_runs(live: Live) -> Updates:
    """The list of runs, and the buttons that fit the chosen one."""
    chosen, view = live.app.workspace.run, live.view()
    state = live.state_words(view) if view else ""
    goes_on = state.startswith(("running", "getting"))
    can_resume = bool(view) and not goes_on and (Path(chosen) / "checkpoints").is_dir()
    choices = run_choices(live)
    return {
        "run": gr.update(choices=choices, value=chosen if chosen in [path for _, path in choices] else None),
        "resume": gr.update(visible=can_resume),
        "longer": gr.update(visible=can_resume),
        "save": gr.update(interactive=goes_on),
        "preview": gr.update(interactive=goes_on),
    }


def run_choices(live: Live) -> list[tuple[str, str]]:
    """Runs of the output folder, and the chosen one wherever it is: those that can be taken up first."""
    app = live.app
    summaries, _ = app.history.read(app.output)
    chosen = Path(app.workspace.run)
    if app.workspace.run and chosen.parent != app.output and (chosen / "run.json").is_file():
        summaries = [summarise(RunFolder.open(chosen)), *summaries]
    ranked = sorted(summaries, key=lambda summary: ORDER.index(summary.state) if summary.state in ORDER else len(ORDER))
    return [(f"{summary.name} ({summary.state})", summary.path) for summary in ranked]


def choose_run(live: Live, folder: str | None) -> Updates:
    if not folder:
        raise UserError("No run is chosen.", fix="Choose one from the list.")
    path = live.app.roots.resolve(folder, "Run")
    live.app.choose(run=str(path), preview_step=0)
    return {"asked": ""}


def resume(live: Live, form: Form, longer: bool) -> Updates:
    """Go on with the chosen run, as it was set up or with what of it may change taken from the form."""
    changes: dict[str, Any] = {}
    if longer:
        from acestep.training.train import CHANGEABLE_ON_RESUME

        settings = form.app.workspace.train.model_dump()
        changes = {name: settings[name] for name in CHANGEABLE_ON_RESUME}
    run = resume_run(live.app, chosen_run(live), changes)
    return {"asked": f'<p class="good">{run.name} goes on.</p>'}


def ask(live: Live, what: Any, words: str) -> Updates:
    ask_run(live.app, chosen_run(live), what)
    return {"asked": f'<p class="good">{words} follows after the present step.</p>'}


def show_board(live: Live, boards: TensorBoards) -> Updates:
    address = boards.show(chosen_run(live))
    return {"asked": f'<p class="good"><a href="{address}" target="_blank" rel="noopener">Open TensorBoard</a></p>'}


def chosen_run(live: Live) -> Path:
    if not live.app.workspace.run:
        raise UserError("No run is chosen.", fix="Start one, or choose one from the list.")
    return live.app.roots.resolve(live.app.workspace.run, "Run")

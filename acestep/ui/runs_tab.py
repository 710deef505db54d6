"""The Runs tab: the history of training, curves over each other, and what to do with a run."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import gradio as gr

from acestep.core.errors import UserError
from acestep.training.history import delete_run, run_paths, run_sign
from acestep.training.runs import RunFolder, summarise
from acestep.ui import training_work
from acestep.ui.app import App
from acestep.ui.page import Page
from acestep.ui.run_views import STYLES, charts_html, differences_html, runs_table, settings_html
from acestep.ui.service_tab import problems_html
from acestep.ui.wiring import Wires

TAKEN_UP = ("interrupted", "stopped", "failed")
"""States of runs that have not come to their end; a finished one can only be made longer, in Train."""


def build_runs(page: Page) -> None:
    """Draw the tab and wire it."""
    app = page.app
    with page.tab("runs", "Runs") as wires:
        table, trouble = gr.HTML(elem_id="runs-table", padding=False), gr.HTML(padding=False)
        wires.add(table=table, trouble=trouble)
        with gr.Column(visible=False) as details:
            with gr.Row(equal_height=True):
                run = gr.Dropdown(
                    label="Run", info="What is shown below, and what the buttons are about.", min_width=300
                )
                compared = gr.Dropdown(
                    label="Compare with",
                    multiselect=True,
                    max_choices=len(STYLES) - 1,
                    info="Up to four other runs.",
                    min_width=300,
                )
            wires.add(run=run, compared=compared)
            _build_actions(app, wires)
            with gr.Row():
                with gr.Column(scale=3, min_width=340):
                    _build_curves(page, wires)
                with gr.Column(scale=2, min_width=320):
                    gr.Markdown("### Settings of the run")
                    settings = gr.HTML(elem_id="run-settings", padding=False)
            gr.Markdown("### Differences")
            differences = gr.HTML(elem_id="run-differences", padding=False)
            wires.add(settings=settings, differences=differences)
        wires.add(details=details)

        wires.on(
            [run.input, compared.input],
            "choose",
            lambda run, compared: choose_runs(app, run, compared),
            ["run", "compared"],
        )
        page.watch(wires, "table", lambda: table_sign(app), lambda: show_table(app), ["table", "trouble"])
        page.watch(
            wires, "choices", lambda: choices_sign(app), lambda: show_choices(app), ["run", "compared", "details"]
        )
        shown = ["settings", "differences", "charts", "resume"]
        page.watch(wires, "details", lambda: details_sign(app), lambda: show_details(app), shown)


def _build_actions(app: App, wires: Wires) -> None:
    with gr.Row():
        opened = gr.Button("Open", scale=0, min_width=130, elem_id="run-open")
        resume = gr.Button("Resume", scale=0, min_width=130, elem_id="run-resume")
        delete = gr.Button("Delete", scale=0, min_width=130, elem_id="run-delete")
    done = gr.Markdown(visible=False, elem_classes=["good"])
    doomed = gr.State("")
    with gr.Column(visible=False) as confirm:
        question = gr.Markdown()
        with gr.Row():
            sure = gr.Button("Delete it", variant="stop", scale=0, min_width=130)
            keep = gr.Button("Keep it", scale=0, min_width=130)
    wires.add(resume=resume, done=done, doomed=doomed, confirm=confirm, question=question)
    hide = {"confirm": gr.update(visible=False)}
    wires.on(opened.click, "open", lambda run: open_run(app, run), ["run"], ["done"])
    wires.on(resume.click, "resume", lambda run: resume_run(app, run), ["run"], ["done"])
    wires.on(delete.click, "ask_delete", lambda run: ask_delete(app, run), ["run"], ["question", "confirm", "doomed"])
    wires.on(
        sure.click, "delete", lambda doomed: {**delete_chosen(app, doomed), **hide}, ["doomed"], ["done", "confirm"]
    )
    wires.on(keep.click, "keep", lambda: hide, outputs=["confirm"])


def _build_curves(page: Page, wires: Wires) -> None:
    app = page.app
    with gr.Row(equal_height=True):
        smoothing = gr.Slider(
            0, 0.99, app.workspace.runs_smoothing, step=0.01, label="Smoothing of the training loss", min_width=260
        )
        logarithmic = gr.Checkbox(app.workspace.runs_logarithmic, label="Logarithmic axis", min_width=180)
    wires.add(smoothing=smoothing, logarithmic=logarithmic, charts=gr.HTML(elem_id="run-charts", padding=False))
    wires.on(
        [smoothing.release, logarithmic.input],
        "draw",
        lambda smoothing, logarithmic: choose_drawing(app, smoothing, logarithmic),
        ["smoothing", "logarithmic"],
        ["charts"],
    )
    page.watch(
        wires,
        "drawing",
        lambda: (app.workspace.runs_smoothing, app.workspace.runs_logarithmic),
        lambda: {"smoothing": app.workspace.runs_smoothing, "logarithmic": app.workspace.runs_logarithmic},
        ["smoothing", "logarithmic"],
    )


# what is shown ----------------------------------------------------------------------------------------------------


def table_sign(app: App) -> Hashable:
    """Changes with every run that comes, goes or moves on."""
    return app.history.sign(app.output), app.workspace.looked_at, app.workspace.run


def show_table(app: App) -> dict[str, Any]:
    """All runs in the output folder, and those that cannot be read."""
    summaries, problems = app.history.read(app.output)
    chosen = app.workspace
    table = runs_table(summaries, chosen.looked_at or chosen.run, chosen.run)
    return {"table": table, "trouble": gr.update(value=problems_html(problems), visible=bool(problems))}


def choices_sign(app: App) -> Hashable:
    chosen = app.workspace
    return tuple(map(str, run_paths(app.output))), chosen.run, chosen.looked_at, tuple(chosen.compared)


def show_choices(app: App) -> dict[str, Any]:
    """The runs to choose from, and those chosen."""
    summaries, _ = app.history.read(app.output)
    choices = [(summary.name, summary.path) for summary in summaries]
    runs = chosen_runs(app)
    looked_at = str(runs[0].path) if runs else None
    return {
        "details": gr.update(visible=bool(choices)),
        "run": gr.update(choices=choices, value=looked_at),
        "compared": gr.update(
            choices=[choice for choice in choices if choice[1] != looked_at],
            value=[str(run.path) for run in runs[1:]],
        ),
    }


def details_sign(app: App) -> Hashable:
    """Changes with the chosen runs and with what happens in them."""
    paths = _chosen_paths(app)
    drawing = (app.workspace.runs_smoothing, app.workspace.runs_logarithmic)
    return tuple((str(path), run_sign(path)) for path in paths), drawing


def show_details(app: App) -> dict[str, Any]:
    """Settings, differences and curves of the chosen runs, and whether the first can go on."""
    runs = chosen_runs(app)
    if not runs:
        return {"settings": "", "differences": "", "charts": ""}
    summaries = [summarise(run) for run in runs]
    goes_on = summaries[0].state in TAKEN_UP and runs[0].checkpoints.is_dir()
    return {
        "settings": settings_html(runs[0]),
        "differences": differences_html(summaries),
        "resume": gr.update(visible=goes_on),
        **show_charts(app),
    }


def show_charts(app: App) -> dict[str, Any]:
    return {"charts": charts_html(chosen_runs(app), app.workspace.runs_smoothing, app.workspace.runs_logarithmic)}


def chosen_runs(app: App) -> list[RunFolder]:
    """The run looked at and those compared with it, as far as they are still there and readable."""
    return [RunFolder.open(path) for path in _chosen_paths(app)]


def _chosen_paths(app: App) -> list[Path]:
    """The run chosen here, else the open one, else the newest; then those compared with it."""
    there = {str(path) for path in run_paths(app.output)}
    summaries = app.history.summaries or app.history.read(app.output)[0]
    readable = [summary.path for summary in summaries if summary.path in there]
    wanted = [path for path in (app.workspace.looked_at, app.workspace.run) if path in readable]
    first = next(iter([*wanted, *readable]), None)
    if first is None:
        return []
    others = [path for path in app.workspace.compared if path in readable and path != first]
    return [Path(path) for path in [first, *others]]


def choose_runs(app: App, run: str | None, compared: list[str] | None) -> dict[str, Any]:
    """Look at another run, or compare it with others."""
    paths = [str(run_path(app, path)) for path in (run, *(compared or []))]
    app.choose(looked_at=paths[0], compared=paths[1 : len(STYLES)])
    return {}


def choose_drawing(app: App, smoothing: float, logarithmic: bool) -> dict[str, Any]:
    app.choose(runs_smoothing=smoothing, runs_logarithmic=logarithmic)
    return show_charts(app)


# what is done -----------------------------------------------------------------------------------------------------


def run_path(app: App, shown: str | None) -> Path:
    """The run that the page names; only those in the output folder are taken."""
    if not shown:
        raise UserError("No run is chosen.", fix="Choose one in the list Run.")
    path = app.roots.resolve(shown, "Run")
    if not path.is_relative_to(app.output):
        raise UserError(f"{path} is not in {app.output}.", fix="Choose one in the list Run.")
    return path


def open_run(app: App, run: str | None) -> dict[str, Any]:
    """Make a run the one that Train, Listen and Export are about."""
    folder = RunFolder.open(run_path(app, run))
    app.choose(run=str(folder.path))
    return said(f"{folder.path.name} is open; Train, Listen and Export are about it.")


def resume_run(app: App, run: str | None) -> dict[str, Any]:
    """Go on with a run that has not come to its end."""
    path = run_path(app, run)
    training_work.resume_run(app, path)
    return said(f"{path.name} goes on; the line above the tabs shows how far it is. You may close this page.")


def ask_delete(app: App, run: str | None) -> dict[str, Any]:
    """Ask before anything is deleted."""
    path = run_path(app, run)
    text = f"Delete **{path.name}** with its adapters, checkpoints and previews? This cannot be undone."
    return {"question": text, "confirm": gr.update(visible=True), "doomed": str(path)}


def delete_chosen(app: App, doomed: str) -> dict[str, Any]:
    """Delete the run that was asked about."""
    path = run_path(app, doomed)
    delete_run(path, app.output)
    left = {name: "" for name in ("run", "looked_at") if getattr(app.workspace, name) == str(path)}
    app.choose(**left, compared=[other for other in app.workspace.compared if other != str(path)])
    return said(f"{path.name} is deleted.")


def said(text: str) -> dict[str, Any]:
    """An update that says what was done."""
    return {"done": gr.update(value=text, visible=True)}

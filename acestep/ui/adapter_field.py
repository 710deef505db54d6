"""Choosing an adapter: of any run, at any of its steps, or any folder or file. Listen and Export share the choice."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from acestep.adapters import AdapterInfo, read_adapter_info
from acestep.core.errors import UserError
from acestep.training.history import run_paths
from acestep.training.origin import run_adapters, run_of_adapter
from acestep.ui.app import App
from acestep.ui.folders import folder_field
from acestep.ui.page import Page, add_drawn, drawn, followed
from acestep.ui.wiring import Wires

NO_RUN = "no adapter, or one from elsewhere"


def adapter_field(page: Page, wires: Wires) -> None:
    """Draw the chooser and keep it in step with what is chosen."""
    app = page.app
    with gr.Row(equal_height=True):
        run = gr.Dropdown(label="Run", min_width=260, elem_id=f"{wires.tab}-adapter-run", info="Any run, newest first.")
        step = gr.Dropdown(
            label="Its adapters", min_width=200, elem_id=f"{wires.tab}-adapter-step", info="Final, best, or of a step."
        )
    about = gr.Markdown(elem_classes=["quiet"], elem_id=f"{wires.tab}-adapter-about", render=False)
    wires.add(adapter_run=run, adapter_step=step, adapter_about=about)
    add_drawn(wires, "adapter")
    lists = ["adapter_run", "adapter_step", "adapter_about"]

    def take(adapter: str) -> dict[str, Any]:
        return choose(app, adapter, still_typing=True)

    info = "Also one that was not trained here."
    changes = [*lists, drawn("adapter")]
    path = folder_field(app, wires, "adapter", "Adapter folder or file", info=info, take=take, changes=changes)
    about.render()
    shown, refused = ["adapter", *changes], partial(show_choice, app)
    by_run, by_step = partial(choose_run, app), lambda adapter_step: choose(app, adapter_step)
    wires.on(run.input, "choose_run", by_run, ["adapter_run"], shown, refused=refused)
    wires.on(step.input, "choose_step", by_step, ["adapter_step"], shown, refused=refused)
    wires.on([path.blur, path.submit], "choose_adapter", take, ["adapter"], shown)
    page.follow_text(wires, "adapter_path", "adapter", lambda: str(chosen_adapter(app) or ""))
    held = ["adapter", drawn("adapter")]
    page.watch(wires, "adapter", lambda **_: choice_sign(app), lambda **shown: follow_choice(app, shown), shown, held)


def chosen_adapter(app: App) -> Path | None:
    """The adapter chosen here, or the first of the open run when that was opened later; None for no adapter."""
    chosen = app.workspace
    if chosen.adapter_beside == chosen.run:
        return Path(chosen.adapter) if chosen.adapter else None
    found = run_adapters(Path(chosen.run)) if chosen.run else []
    return found[0].path if found else None


def adapter_info(app: App) -> AdapterInfo:
    """What is known of the chosen adapter. Raises UserError where there is none, or it cannot be read."""
    path = chosen_adapter(app)
    if path is None:
        raise UserError("No adapter is chosen.", fix="Choose a run, or an adapter folder or file.")
    return read_adapter_info(app.roots.resolve(path, "Adapter folder or file"))


def choice_sign(app: App) -> Hashable:
    """Changes with the choice, and as runs and their adapters come and go."""
    chosen, path = app.workspace, chosen_adapter(app)
    run = _run_folder(path)
    places = [run, run / "checkpoints"] if run else []
    times = tuple(place.stat().st_mtime_ns for place in places if place.exists())
    return chosen.adapter, chosen.adapter_beside, chosen.run, path, tuple(map(str, run_paths(app.output))), times


def show_choice(app: App) -> dict[str, Any]:
    """The runs, the adapters of the chosen one, and what the chosen adapter is."""
    path = chosen_adapter(app)
    run = _run_folder(path)
    runs = sorted(run_paths(app.output), key=lambda folder: folder.name, reverse=True)
    choices = [(NO_RUN, ""), *((folder.name, str(folder)) for folder in runs)]
    if run and run not in runs:
        choices.append((f"{run.name}, in {run.parent}", str(run)))
    steps = [(item.label, str(item.path)) for item in run_adapters(run)] if run else []
    known = path is not None and str(path) in [value for _, value in steps]
    return {
        "adapter_run": gr.update(choices=choices, value=str(run) if run else ""),
        "adapter_step": gr.update(choices=steps, value=str(path) if known else None, visible=bool(steps)),
        "adapter": str(path or ""),
        drawn("adapter"): str(path or ""),
        "adapter_about": about(app),
    }


def follow_choice(app: App, shown: dict[str, Any]) -> dict[str, Any]:
    """The choice as it is by now; a path that somebody is typing stays, while runs and checkpoints come and go."""
    updates = show_choice(app)
    return updates | {"adapter": gr.skip()} | followed("adapter", updates["adapter"], shown)


def about(app: App) -> str:
    """The chosen adapter in a line, or what is wrong with it."""
    if chosen_adapter(app) is None:
        return "No adapter: the model plays alone."
    try:
        return adapter_info(app).summary.replace("<", "&lt;")
    except UserError as error:
        return f"**{str(error).replace('<', '&lt;')}**"


def choose_run(app: App, adapter_run: str | None) -> dict[str, Any]:
    """Take the first adapter of a run."""
    if not adapter_run:
        return choose(app, "")
    run = app.roots.resolve(adapter_run, "Run")
    found = run_adapters(run)
    if not found:
        raise UserError(f"{run.name} has left no adapter yet.", fix="Wait for its first checkpoint, or save it now.")
    return choose(app, str(found[0].path))


def choose(app: App, adapter: str | None, still_typing: bool = False) -> dict[str, Any]:
    """Take the adapter at a path, or none. A folder on the way to one is no choice while the user looks around."""
    text = (adapter or "").strip()
    if still_typing and text == str(chosen_adapter(app) or ""):
        return {"adapter_about": about(app)}  # leaving the field is no choice
    if text:
        path = app.roots.resolve(text, "Adapter folder or file")
        try:
            read_adapter_info(path)
        except UserError:
            if still_typing and path.is_dir():
                return {"adapter_about": f"{path} is no adapter yet; go on to its folder."}
            raise
        text = str(path)
    app.choose(adapter=text, adapter_beside=app.workspace.run)
    return show_choice(app)


def _run_folder(adapter: Path | None) -> Path | None:
    run = run_of_adapter(adapter) if adapter else None
    return run.path if run else None

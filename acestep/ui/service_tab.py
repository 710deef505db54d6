"""The Service tab: which model, what is in memory, and what this computer has left."""

from __future__ import annotations

from collections.abc import Hashable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from acestep.core.errors import Problem, UserError
from acestep.core.health import Check
from acestep.core.jobs import Job
from acestep.model.variants import VARIANTS
from acestep.ui.app import App
from acestep.ui.demo import start_demo
from acestep.ui.folders import folder_field
from acestep.ui.machine import Machine, machine_html, size_words
from acestep.ui.page import Page
from acestep.ui.wiring import Wires

FOLDER_LABEL = "Folder of models"


def build_service(page: Page) -> None:
    """Draw the tab and wire it."""
    app = page.app
    with page.tab("service", "Service") as wires, gr.Row():
        with gr.Column(scale=3, min_width=340):
            _build_models(page, wires)
            with gr.Accordion("Download a model", open=False):
                _build_download(app, wires)
            gr.Markdown("**The demo** makes some songs and puts a small model beside them, to try everything with.")
            with gr.Row():
                demo = gr.Button("Prepare the demo", scale=0, min_width=200)
            done = gr.Markdown(visible=False, elem_classes=["good"])
            wires.add(done=done)
        with gr.Column(scale=2, min_width=320):
            build_machine(page, wires)
            _build_memory(page, wires)
        wires.on(demo.click, "demo", lambda: begin_demo(app), outputs=["done"])


def _build_models(page: Page, wires: Wires) -> None:
    app = page.app
    folder_field(app, wires, "checkpoints", FOLDER_LABEL, info="Also a model's own folder. It is remembered.")
    with gr.Row():
        look = gr.Button("Look for models", scale=0, min_width=180)
    models = gr.Radio(label="Model", choices=[], elem_id="service-models")
    trouble = gr.HTML(padding=False)
    wires.add(models=models, trouble=trouble)
    wires.on(
        look.click,
        "look",
        lambda checkpoints: look_for_models(app, checkpoints),
        ["checkpoints"],
        ["models", "trouble"],
    )
    wires.on(
        models.input,
        "choose",
        lambda models: choose_model(app, models),
        ["models"],
        ["models"],
        refused=lambda: {"models": app.workspace.model or None},
    )
    page.follow_text(wires, "folder", "checkpoints", lambda: str(app.models_folder))
    page.watch(wires, "models", lambda: models_sign(app), lambda: show_models(app), ["models", "trouble"])


def _build_download(app: App, wires: Wires) -> None:
    choices = [(f"{row.name} ({row.size_bytes / 1e9:.1f} GB)", row.name) for row in VARIANTS.values()]
    variant = gr.Dropdown(
        choices, label="Variant", info="The parts that all models share come along once, about 1.5 GB."
    )
    with gr.Row():
        ask = gr.Button("Show what would be downloaded", scale=0, min_width=260)
    with gr.Column(visible=False) as confirm:
        plan = gr.Markdown()
        with gr.Row():
            fetch = gr.Button("Download", variant="primary", scale=0, min_width=130)
            leave = gr.Button("Leave it", scale=0, min_width=130)
    wires.add(variant=variant, plan=plan, confirm=confirm)
    wires.on(
        ask.click,
        "plan_download",
        lambda variant: show_download(app, variant),
        ["variant"],
        ["plan", "confirm"],
        show_progress="minimal",
    )
    wires.on(fetch.click, "download", lambda variant: begin_download(app, variant), ["variant"], ["confirm"])
    others = [leave.click, variant.input]  # consent is for the variant that was shown
    wires.on(others, "leave_download", lambda: {"confirm": gr.update(visible=False)}, outputs=["confirm"])


def build_machine(page: Page, wires: Wires) -> None:
    """Draw the meters, and the checks of the whole installation."""
    machine = Machine(page.app.output)
    meters = gr.HTML(elem_id="machine", padding=False)
    with gr.Accordion("Check this computer", open=False):
        check = gr.Button("Check installation, device, memory and disk")
        checks = gr.HTML(padding=False, elem_id="service-checks")
    wires.add(meters=meters, checks=checks)
    page.watch(wires, "machine", machine.sign, lambda: {"meters": machine_html(machine.look())}, ["meters"])
    wires.on(check.click, "check", lambda: show_checks(page.app), outputs=["checks"], show_progress="minimal")


def _build_memory(page: Page, wires: Wires) -> None:
    app = page.app
    memory = gr.HTML(padding=False, elem_id="service-memory")
    with gr.Row():
        load = gr.Button("Load the model")
        unload = gr.Button("Unload")
    wires.add(memory=memory, load=load, unload=unload)
    wires.on(load.click, "load", lambda: load_model(app))
    wires.on(unload.click, "unload", lambda: unload_model(app))
    page.watch(wires, "memory", lambda: memory_sign(app), lambda: show_memory(app), ["memory", "unload"])


# models -----------------------------------------------------------------------------------------------------------


def models_sign(app: App) -> Hashable:
    """Changes with what is chosen and with each work that brings models."""
    work = app.background.current
    brings = work and work.kind in ("download", "demo") and (work.started, work.state)
    return app.workspace.checkpoints, app.workspace.model, brings


def look_for_models(app: App, checkpoints: str) -> dict[str, Any]:
    """Take another folder of models, or look again at the same."""
    folder = app.roots.resolve(checkpoints, FOLDER_LABEL)
    if not folder.is_dir():
        raise UserError(f"{FOLDER_LABEL}: {folder} does not exist.", fix="Choose another folder.")
    app.choose(checkpoints=str(folder))
    return show_models(app)


def show_models(app: App) -> dict[str, Any]:
    """The models of the folder to choose from, and what is wrong with others."""
    from acestep.model.checkpoints import survey_checkpoints

    folder = app.models_folder
    found, problems = survey_checkpoints([folder])
    found = [model for model in found if app.roots.allows(model.dit)]
    choices = [
        (f"{model.name}: {model.variant.name}, {size_words(model.size_bytes)}, {model.layout} layout", str(model.dit))
        for model in found
    ]
    chosen = app.workspace.model
    if chosen and chosen not in [path for _, path in choices]:
        choices.append((f"{Path(chosen).name}: chosen before, in {Path(chosen).parent}", chosen))
    empty = f"<p>There is no model in {escape(str(folder))}. Download one, or take the small one of the demo.</p>"
    trouble = problems_html(problems) if found or problems else empty
    return {
        # without a model chosen, the value is left alone: somebody may just be choosing one
        "models": gr.update(choices=choices, visible=bool(choices), **({"value": chosen} if chosen else {})),
        "trouble": gr.update(value=trouble, visible=bool(trouble)),
    }


def problems_html(problems: list[Problem]) -> str:
    """A list of problems, or nothing."""
    items = "".join(f"<li><b>{escape(item.severity)}</b> {escape(str(item))}</li>" for item in problems)
    return f'<ul class="problems">{items}</ul>' if items else ""


def choose_model(app: App, models: str) -> dict[str, Any]:
    """Take a model that has all its parts."""
    from acestep.model.checkpoints import resolve_checkpoint

    checkpoint = resolve_checkpoint(app.roots.resolve(models, "Model"))
    app.choose(model=str(checkpoint.dit))
    return {}


def show_download(app: App, variant: str | None) -> dict[str, Any]:
    """Ask the hub what a variant takes, and the user whether to go on."""
    from acestep.model.download import plan_download

    if not variant:
        raise UserError("No variant is chosen.", fix="Choose one.")
    plan = plan_download(variant, app.models_folder)
    return {"plan": plan.summary(), "confirm": gr.update(visible=bool(plan.remaining_bytes))}


def begin_download(app: App, variant: str) -> dict[str, Any]:
    """Fetch in the background; the model is chosen when none is."""
    from acestep.model.download import download

    folder = app.models_folder

    def fetch(job: Job) -> Path:
        model = download(variant, folder, job)
        if not app.workspace.model:
            app.choose(model=str(model))
        return model

    app.start_work("download", f"Downloading {variant}", fetch, folder, keep_model=True)
    return {"confirm": gr.update(visible=False)}


def begin_demo(app: App) -> dict[str, Any]:
    start_demo(app)
    text = "The demo's songs and model are put down and opened; the line above the tabs shows when they are ready."
    return {"done": gr.update(value=text, visible=True)}


# memory and machine -----------------------------------------------------------------------------------------------


def memory_sign(app: App) -> Hashable:
    return str(app.loaded.change), app.loaded.parts is not None


def show_memory(app: App) -> dict[str, Any]:
    """What is in memory, and what the last loading or unloading did."""
    parts, change = app.loaded.parts, app.loaded.change
    if parts is None:
        text = "No model. Each job loads what it needs, and gives it back."
    else:
        text = f"{parts.checkpoint.name} on {app.loaded.choice}. Encoding and training unload it first."
    rows = {"In memory": text, **({"Last change": str(change)} if change else {})}
    return {"memory": facts_html(rows), "unload": gr.update(interactive=parts is not None)}


def facts_html(rows: dict[str, str]) -> str:
    """Names and what is to be said about them, as a table."""
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
    return f'<table class="facts">{cells}</table>'


def load_model(app: App) -> dict[str, Any]:
    """Load the chosen model in the background, to be ready for listening."""
    from acestep.model.checkpoints import resolve_checkpoint

    if not app.workspace.model:
        raise UserError("No model is chosen.", fix="Choose one above first.")
    checkpoint = resolve_checkpoint(app.workspace.model)

    def load(job: Job) -> None:
        from acestep.core.device import choose_device

        app.loaded.get(checkpoint, choose_device())

    app.start_work("load", f"Loading {checkpoint.name}", load, checkpoint.dit, keep_model=True)
    return {}


def unload_model(app: App) -> dict[str, Any]:
    if app.background.busy and app.background.current:
        raise UserError(f"{app.background.current.title} is running.", fix="Wait for it or stop it first.")
    if app.loaded.unload() is None:
        raise UserError("No model is loaded.")
    return {}


def show_checks(app: App) -> dict[str, Any]:
    """What `acestep doctor` looks at: what is to be put right, then the machine; packages that are fine are folded."""
    from acestep.core.health import all_checks, pinned_versions

    checks = all_checks(app.output)
    wrong = [check for check in checks if check.status != "ok"]
    packages = [check for check in checks if check.status == "ok" and check.name in pinned_versions()]
    others = [check for check in checks if check.status == "ok" and check not in packages]
    summary = (
        f"{len(wrong)} of {len(checks)} checks found something." if wrong else f"All {len(checks)} checks are good."
    )
    return {
        "checks": f'<p role="status">{summary}</p>{checks_html([*wrong, *others])}'
        f"<details><summary>{len(packages)} packages in the tested versions</summary>{checks_html(packages)}</details>"
    }


def checks_html(checks: list[Check]) -> str:
    """Checks as a table."""
    rows = ""
    for check in checks:
        severity = "" if check.status == "ok" else f"{check.status}: "
        words = f"{severity}{check.found} {check.fix}".strip()
        rows += f'<tr class="{check.status}"><th>{escape(check.name)}</th><td>{escape(words)}</td></tr>'
    return f'<table class="facts">{rows}</table>'

"""The Export tab: an adapter for other programs, merged into a model, checked, with its card, or on the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from acestep.adapters.card import CARD_FILE, card_text
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.settings.export import ExportSettings
from acestep.training.origin import facts_of_adapter, run_of_adapter
from acestep.ui.adapter_field import adapter_field, adapter_info, choice_sign, chosen_adapter
from acestep.ui.app import App
from acestep.ui.controls import Controls
from acestep.ui.export_views import card_markdown, export_html, findings_html, merge_html, publish_html
from acestep.ui.machine import size_words
from acestep.ui.page import Page, drawn, meant
from acestep.ui.wiring import Wires

BELOW = "A name below lora_output/exports, or a path; empty takes the proposal."


def build_export(page: Page) -> None:
    """Draw the tab and wire it."""
    with page.tab("export", "Export") as wires:
        adapter_field(page, wires)
        with gr.Tabs(elem_id="export-parts", overflow_behavior="wrap"):
            with gr.Tab("Write"):
                _build_format(page, wires)
            with gr.Tab("Merge"):
                _build_merge(page, wires)
            with gr.Tab("Check"):
                _build_check(page, wires)
            with gr.Tab("Card"):
                wires.add(card_text=gr.Markdown(elem_id="export-card", sanitize_html=True))
                page.watch(
                    wires, "card_text", lambda: choice_sign(page.app), lambda: show_card(page.app), ["card_text"]
                )
            with gr.Tab("Publish"):
                _build_publish(page, wires)


def _build_format(page: Page, wires: Wires) -> None:
    app = page.app
    controls = Controls(ExportSettings)
    with gr.Row(elem_classes=["settings"]):
        controls.draw(["to", "dtype"], app.workspace.export.model_dump())
        target = gr.Textbox(label="Write to", info=BELOW, max_lines=1, elem_id="export-target")
    with gr.Accordion("More settings", open=False), gr.Row(elem_classes=["settings"]):
        controls.draw(["dora", "refit_rank", "card"], app.workspace.export.model_dump())
    wires.add_controls(controls)
    write = gr.Button("Export", variant="primary", scale=0, min_width=180, elem_id="export-write")
    with gr.Column(visible=False) as confirm:
        question = gr.Markdown()
        with gr.Row():
            replace = gr.Button("Replace it", variant="stop", scale=0, min_width=130)
            keep = gr.Button("Keep it", scale=0, min_width=130)
    wires.add(target=target, confirm=confirm, question=question, doomed=gr.State(""))
    page.watch_form(wires, "form", lambda: app.filled["export"], lambda: show_form(app, controls), controls.knobs)
    settings = ["target", "doomed", *controls.knobs, drawn("form")]
    answer = ["confirm", "question", "doomed"]
    wires.on(write.click, "write", lambda **s: start_export(app, controls, {**s, "doomed": ""}), settings, answer)
    wires.on(replace.click, "replace", lambda **shown: start_export(app, controls, shown), settings, answer)
    wires.on(keep.click, "keep", lambda: {"confirm": gr.update(visible=False)}, outputs=["confirm"])
    page.watch(
        wires,
        "proposal",
        lambda: (chosen_adapter(app), app.workspace.export.to),
        lambda: {
            "target": gr.update(placeholder=proposal(app, app.workspace.export.to)),
            "merge_target": gr.update(placeholder=proposal(app, "merged")),
        },
        ["target", "merge_target"],
    )
    wires.on(controls.components["to"].input, "to", lambda to: choose_format(app, to), ["to"])  # type: ignore[attr-defined]
    _result(page, wires, "export", lambda result: export_html(app, *result))


def _build_merge(page: Page, wires: Wires) -> None:
    app = page.app
    gr.Markdown("A whole model with the adapter added to its weights, for programs that load no adapters.")
    with gr.Row(elem_classes=["settings"]):
        strength = gr.Number(1.0, label="Strength", info="1 is as trained.", elem_id="merge-strength")
        target = gr.Textbox(label="Write the model to", info=BELOW, max_lines=1, elem_id="merge-target")
    with gr.Row():
        plan = gr.Button("How large would it be?", scale=0, min_width=220)
        merge = gr.Button("Merge", variant="primary", scale=0, min_width=180, elem_id="merge-start")
    size = gr.Markdown(visible=False, elem_classes=["good"])
    wires.add(strength=strength, merge_target=target, merge_plan=size)
    wires.on(
        plan.click, "plan_merge", lambda merge_target: plan_merge(app, merge_target), ["merge_target"], ["merge_plan"]
    )
    wires.on(
        merge.click,
        "merge",
        lambda strength, merge_target: start_merge(app, strength, merge_target),
        ["strength", "merge_target"],
        ["merge_plan"],
    )
    _result(page, wires, "merge", merge_html)


def _build_check(page: Page, wires: Wires) -> None:
    app = page.app
    gr.Markdown(
        "Reads files back by the rules of the program they are for, and compares them with the adapter chosen above."
    )
    with gr.Row(elem_classes=["settings"]):
        path = gr.Textbox(
            label="Exported file or folder",
            info="Empty tries the adapter in every format, in a temporary folder.",
            elem_id="check-path",
        )
        outputs = gr.Checkbox(False, label="Compare the model's output too", info="Loads the model chosen in Service.")
    check = gr.Button("Check", variant="primary", scale=0, min_width=180, elem_id="check-start")
    wires.add(check_path=path, outputs=outputs)
    wires.on(
        check.click,
        "check",
        lambda check_path, outputs: start_check(app, check_path, outputs),
        ["check_path", "outputs"],
    )
    _result(page, wires, "check", findings_html)


def _build_publish(page: Page, wires: Wires) -> None:
    app = page.app
    gr.Markdown("Uploads weights, configuration and card of a folder to the Hugging Face Hub, and nothing else.")
    with gr.Row(elem_classes=["settings"]):
        folder = gr.Textbox(
            label="Folder to publish", info="Empty takes the adapter chosen above.", elem_id="hub-folder"
        )
        name = gr.Textbox(label="Repository", info="user/name", elem_id="hub-repository")
        token = gr.Textbox(
            label="Token",
            type="password",
            info="With write access. Never kept; empty takes HF_TOKEN from the environment.",
            elem_id="hub-token",
        )
        private = gr.Checkbox(True, label="Private", info="A new repository is seen by you only.")
    look = gr.Button("Show what would be uploaded", scale=0, min_width=260)
    with gr.Column(visible=False) as confirm:
        plan = gr.Markdown()
        with gr.Row():
            upload = gr.Button("Upload", variant="primary", scale=0, min_width=130)
            leave = gr.Button("Leave it", scale=0, min_width=130)
    wires.add(hub_folder=folder, repository=name, token=token, private=private, hub_plan=plan, hub_confirm=confirm)
    wires.add(hub_asked=gr.State(""))
    where, answer = ["hub_folder", "repository", "private"], ["hub_plan", "hub_confirm", "hub_asked"]
    wires.on(look.click, "plan_push", lambda **shown: show_push(app, **shown), where, answer)
    given = [*where, "token", "hub_asked"]
    wires.on(upload.click, "push", lambda **shown: start_push(app, **shown), given, ["token", *answer])
    wires.on(leave.click, "leave", lambda: {"hub_confirm": gr.update(visible=False)}, outputs=["hub_confirm"])
    _result(page, wires, "publish", publish_html)


def _result(page: Page, wires: Wires, kind: str, draw: Callable[[Any], str]) -> None:
    """What the last work of a kind came to, below its buttons."""
    part = f"{kind}_result"
    wires.add(**{part: gr.HTML(elem_id=f"{kind}-result", padding=False)})

    def sign() -> Any:
        work = page.app.background.current
        return work and work.kind == kind and (work.started, work.state)

    def show() -> dict[str, Any]:
        work = page.app.background.current
        if work is None or work.kind != kind:
            return {}  # the result of before stays
        return {part: "" if work.running or work.result is None else draw(work.result)}

    page.watch(wires, part, sign, show, [part])


# for a program ----------------------------------------------------------------------------------------------------


def exports_folder(app: App) -> Path:
    return app.output / "exports"


def proposal(app: App, to: str) -> str:
    """A name for an export of the chosen adapter: run, step and format."""
    path = chosen_adapter(app)
    if path is None:
        return ""
    run = run_of_adapter(path)
    parts = path.relative_to(run.path).parts if run else ()
    which = [part for part in parts if part not in ("checkpoints", "adapter")]
    stem = "_".join([run.path.name if run else path.stem, *which, to])
    return f"{stem}.safetensors" if to == "comfyui" else stem


def target_path(app: App, typed: str, proposed: str, label: str) -> Path:
    """Where to write: a name stands below the folder of exports, a path anywhere in the allowed folders."""
    text = (typed or "").strip() or proposed
    if not text:
        raise UserError(f"{label} is empty.", fix="Type a name.")
    return app.roots.resolve(text if text.startswith("~") else exports_folder(app) / text, label)


def choose_format(app: App, to: str) -> dict[str, Any]:
    """Remember the format, so that the proposal names it."""
    app.choose(export=app.workspace.export.changed(to=to))
    return {}


def show_form(app: App, controls: Controls) -> dict[str, Any]:
    """The settings as they were used last."""
    return controls.updates(app.workspace.export.model_dump())


def start_export(app: App, controls: Controls, shown: dict[str, Any]) -> dict[str, Any]:
    """Write the chosen adapter in the background; asks first where something is there already.

    `doomed` is the path that the user was asked about and gives up.
    """
    shown = meant("form", shown, lambda: show_form(app, controls))
    settings = ExportSettings.parse(controls.values(shown), "Export")
    app.choose(export=settings)
    adapter = adapter_info(app)
    out = target_path(app, shown["target"], proposal(app, settings.to), "Write to")
    if settings.to == "comfyui" and out.suffix != ".safetensors":
        out = out.with_name(f"{out.name}.safetensors")
    taken = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    replace = taken and shown["doomed"] == str(out)
    if taken and not replace:
        return {"question": f"**{out}** exists. Replace it?", "confirm": gr.update(visible=True), "doomed": str(out)}

    def write(job: Job) -> Any:
        from acestep.training.origin import export_with_card

        checkpoint = _model_where_needed(app, adapter.path) if adapter.spec.needs_base else None
        return export_with_card(adapter.path, settings, out, checkpoint, job, replace)

    app.start_work("export", f"Exporting {out.name}", write, out, keep_model=True)
    return {"confirm": gr.update(visible=False), "doomed": ""}


def _model_where_needed(app: App, path: Path) -> Any:
    """The chosen model for adapters from elsewhere; a run knows its own."""
    from acestep.model.checkpoints import resolve_checkpoint
    from acestep.training.origin import model_of_adapter

    if (own := model_of_adapter(path, run_of_adapter(path))) is not None:
        return own
    return resolve_checkpoint(app.workspace.model, needs=()) if app.workspace.model else None


# merge ------------------------------------------------------------------------------------------------------------


def _merge_target(app: App, typed: str) -> Path:
    return target_path(app, typed, proposal(app, "merged"), "Write the model to")


def _chosen_model(app: App) -> Any:
    from acestep.model.checkpoints import resolve_checkpoint

    if not app.workspace.model:
        raise UserError("No model is chosen.", fix="Choose one in Service first.")
    return resolve_checkpoint(app.workspace.model, needs=())


def plan_merge(app: App, typed: str) -> dict[str, Any]:
    """Say how large the merged model is, and whether the disk has room for it."""
    from acestep.adapters.exports.merging import merged_bytes, require_room

    adapter_info(app)
    out, size = _merge_target(app, typed), merged_bytes(_chosen_model(app))
    require_room(out, size)
    return {"merge_plan": gr.update(value=f"{size_words(size)} in {out}; the disk has room.", visible=True)}


def start_merge(app: App, strength: float | None, typed: str) -> dict[str, Any]:
    """Merge in the background. Nothing is overwritten."""
    if strength is None:
        raise UserError("Strength is empty.", fix="1 is as trained.")
    said = plan_merge(app, typed)
    adapter, checkpoint, out = adapter_info(app).path, _chosen_model(app), _merge_target(app, typed)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists; a merge overwrites nothing.", fix="Choose another name.")

    def merge(job: Job) -> Any:
        from acestep.adapters.exports.merging import merge_adapter
        from acestep.training.origin import warn_of_other_model

        warn_of_other_model(run_of_adapter(adapter), checkpoint, job)
        return merge_adapter(adapter, checkpoint, out, strength, job), tuple(job.warnings)

    app.start_work("merge", f"Merging {out.name}", merge, out)
    return said


# check ------------------------------------------------------------------------------------------------------------


def start_check(app: App, typed: str, outputs: bool) -> dict[str, Any]:
    """Check in the background: the adapter in every format, or an exported file against it."""
    adapter = adapter_info(app)
    path = target_path(app, typed, "", "Exported file or folder") if (typed or "").strip() else None
    if path and not path.exists():
        raise UserError(f"{path} does not exist.", fix="Check the name.")
    checkpoint = _chosen_model(app) if outputs else None
    settings = app.workspace.export

    def check(job: Job) -> Any:
        from acestep.adapters.exports.checking import check_path
        from acestep.adapters.exports.formats import ExportOptions
        from acestep.core.device import choose_device

        model = checkpoint or (_model_where_needed(app, adapter.path) if adapter.spec.needs_base else None)
        choice = choose_device() if checkpoint else None
        options = ExportOptions(settings.dtype, settings.dora, settings.refit_rank)
        return check_path(path or adapter.path, adapter.path if path else None, model, choice, options, job)

    app.start_work("check", f"Checking {(path or adapter.path).name}", check, path or adapter.path)
    return {}


# card and Hub -----------------------------------------------------------------------------------------------------


def show_card(app: App) -> dict[str, Any]:
    """The card beside the adapter, or the one that an export of it would get."""
    if chosen_adapter(app) is None:
        return {"card_text": "No adapter is chosen."}
    path = adapter_info(app).path
    beside = (path if path.is_dir() else path.parent) / CARD_FILE
    text = beside.read_text(encoding="utf-8", errors="replace") if beside.is_file() else ""
    return {"card_text": card_markdown(text or card_text(path, facts_of_adapter(path)))}


def show_push(app: App, hub_folder: str, repository: str, private: bool) -> dict[str, Any]:
    """Say what an upload would take where, and ask."""
    plan = _push_plan(app, hub_folder, repository, private)
    text = f"{plan.summary}: {', '.join(plan.files)}. Upload?"
    return {"hub_plan": text, "hub_confirm": gr.update(visible=True), "hub_asked": repr(plan)}


def start_push(app: App, hub_folder: str, repository: str, private: bool, token: str, hub_asked: str) -> dict[str, Any]:
    """Upload in the background what the user was asked about; where the fields say something else by now, ask again.

    The token lives as long as the upload and is written nowhere.
    """
    from acestep.adapters.exports.hub import hub_token, push

    plan = _push_plan(app, hub_folder, repository, private)
    if repr(plan) != hub_asked:
        return show_push(app, hub_folder, repository, private)
    secret = (token or "").strip() or hub_token()
    app.start_work("publish", f"Uploading to {plan.repository}", lambda job: push(plan, secret), plan.folder, True)
    return {"token": "", "hub_confirm": gr.update(visible=False)}


def _push_plan(app: App, hub_folder: str, repository: str, private: bool) -> Any:
    from acestep.adapters.exports.hub import plan_push

    if (hub_folder or "").strip():
        folder = target_path(app, hub_folder, "", "Folder to publish")
    else:
        path = adapter_info(app).path
        folder = path if path.is_dir() else path.parent
    return plan_push(folder, (repository or "").strip(), public=not private)

"""The Train tab: a form made from the settings, the plan beside it, and the run as it goes."""

from __future__ import annotations

from typing import Any

import gradio as gr

from acestep.settings import TrainSettings
from acestep.ui import train_form as forms
from acestep.ui import train_watch as watching
from acestep.ui.controls import Controls, by_group, title_of
from acestep.ui.folders import folder_field
from acestep.ui.page import Page
from acestep.ui.train_form import FAMILIES, Form
from acestep.ui.train_live import Live
from acestep.ui.wiring import Wires

PLAN = ["plan", "advice", "command"]


def build_train(page: Page) -> None:
    """Draw the tab and wire it."""
    app = page.app
    with page.tab("train", "Train") as wires:
        form, live = Form(app, Controls(TrainSettings)), Live(app)
        with gr.Tabs(elem_id="train-parts") as parts:
            with gr.Tab("Set up", id="form"), gr.Row(elem_classes=["setup"]):
                with gr.Column(scale=7, min_width=320):
                    folder_field(app, wires, "tensors", "Tensor folder")
                    wires.add(facts=gr.HTML(elem_id="train-facts", padding=False))
                    _draw_presets(wires)
                    _draw_settings(form, wires)
                    _draw_files(app.output.name, wires)
                with gr.Column(scale=4, min_width=320, elem_classes=["beside"]):
                    _draw_plan(wires)
            with gr.Tab("Watch", id="watch"):
                watching.draw_watch(wires)
        wires.add(parts=parts, drawn=gr.State(None))
        wires.add_controls(form.controls)
        _wire_form(page, wires, form)
        watching.wire_watch(page, wires, live, form)


def _draw_presets(wires: Wires) -> None:
    with gr.Row(elem_classes=["bar"]):
        preset = gr.Dropdown(
            label="Preset",
            info="Fills the whole form. The tiers follow the graphics card and the kind of adapter.",
            choices=forms.preset_choices(),
            value="",
            scale=5,
            elem_id="train-preset",
        )
        reset = gr.Button("Reset to defaults", scale=0, min_width=160)
    wires.add(preset=preset, reset=reset, preset_note=gr.Markdown(elem_id="train-preset-note"))


def _draw_settings(form: Form, wires: Wires) -> None:
    """What matters first stands open, group by group; the rest waits in folds of the same names."""
    values = form.app.workspace.train.model_dump()
    groups, first = by_group(TrainSettings), first_settings()
    with gr.Column(elem_classes=["groups"]):
        for group, names in first.items():
            wide = f"wide{len(names)}"
            with gr.Column(visible=_seen(group, values), min_width=0, elem_classes=["group", wide]) as column:
                gr.HTML(f"<h3>{title_of(group)}</h3>", padding=False)
                with gr.Row(elem_classes=["settings"]):
                    form.controls.draw(names, values)
            if group in FAMILIES:
                wires.add(**{f"family_{group}": column})
    for group, names in groups.items():
        rest = [name for name in names if name not in first.get(group, [])]
        with gr.Accordion(f"More: {title_of(group)}", open=False, visible=_seen(group, values)) as fold:
            with gr.Row(elem_classes=["settings"]):
                form.controls.draw(rest, values)
            if not rest:
                gr.HTML('<p class="quiet">Everything of this group stands above.</p>', padding=False)
        if group in FAMILIES:
            wires.add(**{f"more_{group}": fold})


def first_settings() -> dict[str, list[str]]:
    """By group, the settings that stand open: the basic ones; for a kind of adapter without such, the advanced."""
    basic = by_group(TrainSettings, "basic")
    advanced = by_group(TrainSettings, "advanced")
    first = {
        group: basic.get(group) or (advanced.get(group, []) if group in FAMILIES else [])
        for group in by_group(TrainSettings)
    }
    return {group: names for group, names in first.items() if names}


def _seen(group: str, values: dict[str, Any]) -> bool:
    return group not in FAMILIES or group == values["adapter"]


def _draw_plan(wires: Wires) -> None:
    gr.HTML("<h3>The plan</h3>", padding=False)
    wires.add(plan=gr.HTML(elem_id="train-plan", padding=False))
    measure = gr.Button("Measure time and memory", size="sm")
    with gr.Accordion("How long to train", open=False):
        wires.add(advice=gr.HTML(elem_id="train-advice", padding=False))
        advise = gr.Button("Apply the advised length", size="sm")
    command = gr.Textbox(
        label="The same on the command line",
        lines=3,
        max_lines=8,
        interactive=False,
        buttons=["copy"],
        elem_id="train-command",
        elem_classes=["log"],
    )
    name = gr.Textbox(label="Name of the run", placeholder="as the dataset", max_length=60, elem_id="train-name")
    start = gr.Button("Start training", variant="primary", size="lg", elem_id="train-start")
    wires.add(measure=measure, take_advice=advise, command=command, run_name=name, start=start)


def _draw_files(output: str, wires: Wires) -> None:
    with gr.Accordion("Presets, profiles and files of other programs", open=False):
        gr.HTML(
            '<p class="quiet">A preset keeps this form; a profile keeps the settings of all tabs. Both are plain '
            f"files, profiles in {output}/profiles. Files of Side-Step and ace-lora-trainer can be loaded as well.</p>",
            padding=False,
        )
        with gr.Row(elem_classes=["bar"]):
            name = gr.Textbox(label="Name", max_length=60, scale=3, elem_id="train-file-name")
            keep_preset = gr.Button("Save as preset", min_width=140)
            keep_profile = gr.Button("Save as profile", min_width=140)
            side_step = gr.Button("Write for Side-Step", min_width=140)
        with gr.Row(elem_classes=["bar"]):
            profile = gr.Dropdown(label="Saved profiles", choices=[], value=None, scale=3, elem_id="train-profile")
            load = gr.Button("Load profile", min_width=140)
            upload = gr.UploadButton("Load a file…", file_types=[".json"], min_width=140)
        note = gr.Markdown(elem_id="train-files-note")
        download = gr.File(label="Download", visible=False, interactive=False, elem_id="train-download")
    wires.add(name=name, keep_preset=keep_preset, keep_profile=keep_profile, side_step=side_step)
    wires.add(profile=profile, load_profile=load, upload=upload, files_note=note, download=download)


def _wire_form(page: Page, wires: Wires, form: Form) -> None:
    settings = list(form.controls.knobs)
    components: dict[str, Any] = dict(form.controls.components)
    parts: dict[str, Any] = dict(wires.parts)
    families = [f"{part}_{kind}" for kind in FAMILIES for part in ("family", "more")]
    filled = [*families, "preset", "preset_note", "drawn", *PLAN]
    everything = [*settings, *filled]
    files = [*everything, "files_note", "profile", "download"]

    typed = [components[name].input for name in settings if name != "adapter"]
    wires.on(typed, "change", lambda **s: forms.form_changed(form, s), settings, PLAN, trigger_mode="always_last")
    wires.on(components["adapter"].input, "adapter", lambda **s: forms.change_adapter(form, s), settings, everything)
    wires.on(
        parts["tensors"].change,
        "tensors",
        lambda tensors: forms.use_tensors(form, tensors),
        ["tensors"],
        ["facts", *PLAN],
        trigger_mode="always_last",
    )
    wires.on(parts["preset"].input, "preset", lambda preset: forms.apply_preset(form, preset), ["preset"], everything)
    wires.on(parts["reset"].click, "reset", lambda: forms.apply_preset(form, ""), [], everything)
    wires.on(parts["take_advice"].click, "advice", lambda **s: forms.take_advice(form, s), settings, everything)
    wires.on(parts["measure"].click, "measure", lambda **s: forms.measure(form, s), settings)
    wires.on(
        parts["start"].click,
        "start",
        lambda **s: forms.start(form, s),
        ["drawn", "tensors", "run_name", *settings],
        ["run_name"],
    )

    named = ["name", *settings]
    wires.on(parts["keep_preset"].click, "save_preset", lambda **s: forms.keep_preset(form, s), named, files)
    wires.on(parts["keep_profile"].click, "save_profile", lambda **s: forms.keep_profile(form, s), named, files)
    wires.on(parts["side_step"].click, "side_step", lambda **s: forms.to_side_step(form, s), named, files)
    wires.on(
        parts["load_profile"].click, "load_profile", lambda profile: forms.load_saved(form, profile), ["profile"], files
    )
    wires.on(parts["upload"].upload, "load_file", lambda upload: forms.load_file(form, upload), ["upload"], files)

    app = page.app
    shown = [*settings, *families, "preset", "drawn", *PLAN]
    page.watch(wires, "form", form.sign, form.follow, shown, ["drawn"])
    page.follow_text(wires, "place", "tensors", lambda: app.workspace.tensors)
    page.watch(
        wires,
        "folder",
        lambda: (app.workspace.tensors, app.workspace.model, work_ended(page)),
        lambda: show_folder(form),
        ["facts", "profile", *PLAN],
    )


def work_ended(page: Page) -> Any:
    """Changes when work ends: new tensors, or a new measurement."""
    work = page.app.background.current
    return work and (work.started, work.running)


def show_folder(form: Form) -> dict[str, Any]:
    """What is in the tensor folder, and the plan that follows."""
    chosen = form.app.workspace
    return {
        "facts": forms.tensor_facts(chosen.tensors),
        "profile": gr.update(choices=forms.profile_files(form.app)),
        **forms.show_plan(form, chosen.train),
    }

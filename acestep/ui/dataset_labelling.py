"""Labels by machine in the Dataset tab: measured, heard by models, or asked of services."""

from __future__ import annotations

import os
from collections.abc import Hashable
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from acestep.captioning.contract import BackendFacts
from acestep.captioning.registry import BACKENDS, backend
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.settings import CaptionSettings
from acestep.ui.app import App
from acestep.ui.controls import Controls, title_of
from acestep.ui.dataset_bulk import chosen_songs
from acestep.ui.dataset_table import VIEW
from acestep.ui.page import Page
from acestep.ui.wiring import Wires

WHO = {
    "caption_by": frozenset({"caption", "genre"}),
    "lyrics_by": frozenset({"lyrics", "language"}),
    "metadata_by": frozenset({"bpm", "keyscale", "timesignature"}),
}
"""The settings that name a backend, each with the labels it is for."""

SONGS = [("all songs", "all"), ("the songs in the table", "shown"), ("the selected song", "one")]


def build_labelling(page: Page, wires: Wires) -> None:
    """Draw the section and wire it."""
    app = page.app
    known = [backend(name).facts for name in BACKENDS]
    if not known:
        gr.Markdown("No labelling backend is installed, so labels are written by hand, or come from files.")
        return
    before = app.workspace.caption
    controls = Controls(CaptionSettings)
    with gr.Row():
        who = {name: _who(name, known, getattr(before, name)) for name in WHO}
    wires.add(**who)
    with gr.Row():
        controls.draw(["fill"], before.model_dump())
        songs = gr.Radio(SONGS, value="all", label="Label")
    with gr.Accordion("More settings for labelling", open=False), gr.Row():
        rest = [name for name in CaptionSettings.model_fields if name not in WHO and name != "fill"]
        controls.draw(rest, before.model_dump())
    wires.add_controls(controls)
    keys = {variable: _key(variable) for variable in dict.fromkeys(facts.key_variable for facts in known) if variable}
    wires.add(label_songs=songs, **keys)
    start = gr.Button("Label the songs", variant="primary", scale=0, min_width=180)
    report = gr.HTML(padding=False)
    wires.add(label_report=report)
    inputs = [*who, *controls.knobs, *keys, "label_songs", "song", *VIEW]
    wires.on(
        start.click,
        "label",
        lambda **shown: start_labelling(app, controls, list(keys), shown),
        inputs,
        ["label_report"],
    )
    page.watch(wires, "label_done", partial(label_sign, app), partial(show_report, app), ["label_report"])


def _who(name: str, known: list[BackendFacts], chosen: str) -> gr.Dropdown:
    """The choice of a backend among those that give one of the labels."""
    fitting = [(facts.title, facts.name) for facts in known if facts.gives & WHO[name]]
    values = {value for _, value in fitting}
    return gr.Dropdown(
        [("nobody", ""), *fitting],
        value=chosen if chosen in values else "",
        label=title_of(name),
        info=CaptionSettings.model_fields[name].description,
        elem_id=f"setting-{name}",
        min_width=200,
    )


def _key(variable: str) -> gr.Textbox:
    held = "It is set in the environment; leave this empty to use that." if os.environ.get(variable) else ""
    return gr.Textbox(
        label=f"Key ({variable})", type="password", info=f"Used for this run and then forgotten. {held}".strip()
    )


def start_labelling(app: App, controls: Controls, variables: list[str], shown: dict[str, Any]) -> dict[str, Any]:
    """Label the chosen songs in the background. Keys go into the run and nowhere else."""
    values = {**controls.values(shown), **{name: shown[name] or "" for name in WHO}}
    settings = CaptionSettings.parse(values, "Labelling")
    if not any(getattr(settings, name) for name in WHO):
        raise UserError("Nobody is chosen to label the songs.", fix="Choose at least one backend.")
    songs = chosen_songs(app, shown["label_songs"], shown["song"], {name: shown[name] for name in VIEW})
    needed = {backend(getattr(settings, name)).facts.key_variable for name in WHO if getattr(settings, name)}
    found = {name: shown[name] or os.environ.get(name, "") for name in variables if name in needed}
    if missing := [name for name, key in found.items() if not key]:
        raise UserError(f"The key {missing[0]} is missing.", fix="Type it into its field.")
    app.choose(caption=settings)
    dataset, file = app.labels.history.dataset, app.labels.file

    def label(job: Job) -> Any:
        from acestep.captioning.batch import label_dataset

        try:
            return label_dataset(dataset, settings, found, job, songs=[song.id for song in songs], file=file)
        finally:
            if app.dataset is dataset:
                app.labels.changed_outside()

    app.start_work("label", f"Labelling {len(songs)} songs", label, dataset.root)
    return {"label_report": '<p role="status">Labelling; the line above the tabs shows how far it is.</p>'}


def label_sign(app: App) -> Hashable:
    work = app.background.current
    return work and work.kind == "label" and (work.started, work.state)


def show_report(app: App) -> dict[str, Any]:
    """What the last labelling did, and the trouble with single songs."""
    work = app.background.current
    if work is None or work.kind != "label" or work.running or work.result is None:
        return {}
    result = work.result
    items = "".join(f"<li>{escape(str(problem))}</li>" for problem in result.problems)
    text = f"<p>{len(result.told)} labels written, for {result.labelled} songs; {result.failed} songs failed.</p>"
    return {"label_report": text + (f'<ul class="problems">{items}</ul>' if items else "")}

"""Labels by machine, in the captioner and in the trainer's Dataset tab: who is asked for what, the plan, the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from acestep.captioning.batch import LabelReport, label_dataset
from acestep.captioning.contract import BackendFacts
from acestep.captioning.outlook import StepOutlook, look_ahead, money
from acestep.captioning.plan import ROLES, Step, check_keys, plan_steps
from acestep.captioning.registry import BACKENDS, backend
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import value_hash
from acestep.core.words import counted
from acestep.dataset.song import Song
from acestep.settings import CaptionSettings
from acestep.ui.app import App
from acestep.ui.controls import Controls, by_group, title_of
from acestep.ui.dataset_bulk import SONGS as CHOICES
from acestep.ui.dataset_bulk import chosen_songs
from acestep.ui.dataset_table import VIEW
from acestep.ui.page import Page, drawn, meant
from acestep.ui.wiring import Wires

SONGS = [(CHOICES[name], name) for name in ("all", "unlabelled", "shown", "one")]
WHO = tuple(name for name in CaptionSettings.model_fields if name in ROLES)
"""The settings that name a backend."""

GROUPS = {
    "who": "Language and voices",
    "models": "Models and writing",
    "hardware": "This computer",
    "service": "Services and servers",
}
"""Groups of settings of labelling, as the page calls them."""

PROBLEMS_SHOWN = 200
SHUT = {"label_confirm": gr.update(visible=False)}


def build_labelling(page: Page, wires: Wires) -> Callable[[], None]:
    """Draw the section. Returns what wires it, to be called when the table and the song's form are drawn, too."""
    app = page.app
    known = [backend(name).facts for name in BACKENDS]
    before = app.workspace.caption
    controls = Controls(CaptionSettings)
    with gr.Row():
        who = {name: _who(name, known, getattr(before, name)) for name in WHO}
    wires.add(**who)
    keys = _keys(known, before)
    about = gr.HTML(padding=False, elem_id="label-about")
    with gr.Row():
        songs = gr.Radio(SONGS, value="all", label="Label", scale=3)
        with gr.Column(scale=2, min_width=240):
            controls.draw(["fill"], before.model_dump())
    _draw_settings(controls, before)
    wires.add_controls(controls)
    with gr.Row():
        look = gr.Button("What would happen?", scale=0, min_width=240)
        start = gr.Button("Label the songs", variant="primary", scale=0, min_width=200, elem_id="label-start")
    plan = gr.HTML(padding=False, elem_id="label-plan")
    with gr.Row(visible=False) as confirm:
        agree = gr.Button("Yes, begin", variant="primary", scale=0, min_width=140, elem_id="label-agree")
        leave = gr.Button("Leave it", scale=0, min_width=140)
    report = gr.HTML(padding=False, elem_id="label-report")
    wires.add(label_songs=songs, label_plan=plan, label_confirm=confirm, label_report=report, label_about=about, **keys)
    wires.add(label_asked=gr.State(""))
    return partial(
        _wire, page, wires, controls, list(keys), {"look": look, "start": start, "agree": agree, "leave": leave}
    )


def _wire(page: Page, wires: Wires, controls: Controls, keys: list[str], buttons: dict[str, gr.Button]) -> None:
    app, parts = page.app, wires.parts
    settings = [*ROLES, *controls.knobs]
    # once a page, and never while somebody types: what was chosen before stands in the form
    page.watch_form(
        wires,
        "label_form",
        lambda: "opened",
        lambda: show_settings(app, controls, keys),
        [*settings, "label_about", *keys],
    )
    inputs = [*settings, *keys, "label_songs", "song", *VIEW, drawn("label_form")]
    outputs = ["label_plan", "label_confirm", "label_asked"]
    options: dict[str, Any] = {"show_progress": "minimal"}
    wires.on(buttons["look"].click, "label_plan", lambda **s: show_plan(app, controls, s), inputs, outputs, **options)
    wires.on(buttons["start"].click, "label", lambda **s: ask_or_start(app, controls, s), inputs, outputs, **options)
    agreed = [*inputs, "label_asked"]
    wires.on(buttons["agree"].click, "label_agreed", lambda **s: start_agreed(app, controls, s), agreed, outputs)
    others = [buttons["leave"].click, parts["label_songs"].input]  # type: ignore[union-attr]
    wires.on(others, "label_left", lambda: {**SHUT, "label_plan": ""}, outputs=outputs)
    typed = [parts[name].input for name in settings]  # type: ignore[union-attr]
    wires.on(
        typed,
        "label_settings",
        lambda **s: settings_changed(app, controls, keys, s),
        settings,
        ["label_about", *keys, *outputs],
        trigger_mode="always_last",
    )
    page.watch(wires, "label_done", partial(label_sign, app), partial(show_report, app), ["label_report"])


def _who(name: str, known: list[BackendFacts], chosen: str) -> gr.Dropdown:
    """The choice of a backend among those that give one of the labels."""
    fitting = [(facts.title, facts.name) for facts in known if facts.gives.intersection(ROLES[name])]
    values = {value for _, value in fitting}
    return gr.Dropdown(
        [("nobody", ""), *fitting],
        value=chosen if chosen in values else "",
        label=title_of(name),
        info=CaptionSettings.model_fields[name].description,
        elem_id=f"setting-{name}",
        min_width=200,
    )


def _keys(known: list[BackendFacts], settings: CaptionSettings) -> dict[str, gr.Textbox]:
    """A password field for every key; those of the chosen backends are seen."""
    needed = key_variables(settings)
    with gr.Row():
        return {
            variable: _key(variable, variable in needed)
            for variable in dict.fromkeys(facts.key_variable for facts in known if facts.key_variable)
        }


def _key(variable: str, visible: bool) -> gr.Textbox:
    held = "It is set in the environment; leave this empty to use that." if os.environ.get(variable) else ""
    return gr.Textbox(
        label=f"Key ({variable})",
        type="password",
        info=f"Goes along with each run from this page, and is kept nowhere. {held}".strip(),
        visible=visible,
        elem_id=f"key-{variable}",
    )


def _draw_settings(controls: Controls, before: CaptionSettings) -> None:
    with gr.Accordion("More settings for labelling", open=False):
        for group, names in by_group(CaptionSettings).items():
            gr.HTML(f"<h3>{GROUPS[group]}</h3>", padding=False)
            with gr.Row(elem_classes=["settings"]):
                controls.draw([name for name in names if name not in (*ROLES, "fill")], before.model_dump())


# what is chosen ---------------------------------------------------------------------------------------------------


def chosen_backends(settings: CaptionSettings) -> list[BackendFacts]:
    """The backends that the settings name and that there are, each once."""
    names = dict.fromkeys((settings.caption_by, settings.lyrics_by, settings.metadata_by))
    return [backend(name).facts for name in names if name in BACKENDS]


def key_variables(settings: CaptionSettings) -> list[str]:
    return [facts.key_variable for facts in chosen_backends(settings) if facts.key_variable]


def read_settings(controls: Controls, shown: dict[str, Any]) -> CaptionSettings:
    """The settings that stand on the page. Raises SettingsError."""
    values = {**controls.values(shown), **{name: shown[name] or "" for name in ROLES}}
    return CaptionSettings.parse(values, "Labelling")


def settings_changed(app: App, controls: Controls, keys: list[str], shown: dict[str, Any]) -> dict[str, Any]:
    """Remember what was chosen; a plan made before no longer holds."""
    settings = read_settings(controls, shown)
    if settings != app.workspace.caption:
        app.choose(caption=settings)
    return {**_about(settings, keys), **SHUT, "label_plan": ""}


def show_settings(app: App, controls: Controls, keys: list[str]) -> dict[str, Any]:
    """What was chosen before, what it needs, and the fields of the keys."""
    return {**remembered_form(app, controls), **_about(app.workspace.caption, keys)}


def remembered_form(app: App, controls: Controls) -> dict[str, Any]:
    settings = app.workspace.caption
    who = {name: getattr(settings, name) if getattr(settings, name) in BACKENDS else "" for name in ROLES}
    return {**controls.updates(settings.model_dump()), **who}


def _about(settings: CaptionSettings, keys: list[str]) -> dict[str, Any]:
    """What the chosen backends need, and the fields of the keys they take."""
    words = [backend_words(facts) for facts in chosen_backends(settings)]
    items = "".join(f"<li>{escape(text)}</li>" for text in words if text)
    needed = key_variables(settings)
    fields = {variable: gr.update(visible=variable in needed) for variable in keys}
    return {"label_about": f'<ul class="plain">{items}</ul>' if items else "", **fields}


def backend_words(facts: BackendFacts) -> str:
    """What a backend needs, in a sentence; empty where it needs nothing."""
    if facts.network:
        return f"{facts.title} gets the sound of your songs" + (" and needs a key." if facts.key_needed else ".")
    if facts.memory_gib:
        return f"{facts.title} needs about {facts.memory_gib:.0f} GiB of memory while it runs, less when quantized."
    return ""


# the run ----------------------------------------------------------------------------------------------------------


def prepare(app: App, controls: Controls, shown: dict[str, Any]) -> tuple[CaptionSettings, list[Song], dict[str, str]]:
    """Settings, songs and keys that stand on the page, checked; the settings are remembered, the keys are not."""
    settings = read_settings(controls, meant("label_form", shown, lambda: remembered_form(app, controls)))
    if not chosen_backends(settings) and settings.instrumental != "yes":
        raise UserError("Nobody is chosen to label the songs.", fix="Choose at least one backend.")
    songs = chosen_songs(app, shown["label_songs"], shown["song"], {name: shown[name] for name in VIEW})
    keys = {name: shown[name] for name in key_variables(settings) if shown[name]}
    app.choose(caption=settings)
    return _with_codes_model(app, settings), songs, keys


def _with_codes_model(app: App, settings: CaptionSettings) -> CaptionSettings:
    """The same with a model of the app's own folder, where a backend needs one and none is named.

    Raises UserError when that folder holds none.
    """
    from acestep.captioning import five_hz

    if settings.codes_model or not any(facts.name == five_hz.NAME for facts in chosen_backends(settings)):
        return settings
    return settings.changed(codes_model=str(five_hz.codes_checkpoint("", app.models_folder).dit))


def show_plan(app: App, controls: Controls, shown: dict[str, Any]) -> dict[str, Any]:
    """Who would be asked about how many songs, what is fetched, where the songs go, and what it costs."""
    settings, songs, _ = prepare(app, controls, shown)
    return plan_updates(look_ahead(plan_steps(songs, settings), settings), settings)


def plan_updates(outlook: list[StepOutlook], settings: CaptionSettings, asked: str = "") -> dict[str, Any]:
    """The plan in sentences, with the question whether to begin where something is `asked`."""
    items = "".join(f"<li>{escape(' '.join(step.sentences()))}</li>" for step in outlook)
    question = '<p role="alert"><b>Shall it begin?</b></p>' if asked else ""
    text = f'<ul class="plain">{items}</ul>{question}' if items else f'<p role="status">{nothing_due(settings)}</p>'
    return {"label_plan": text, "label_confirm": gr.update(visible=bool(asked)), "label_asked": asked}


def question_about(steps: list[Step], settings: CaptionSettings) -> str:
    """What somebody agrees to: who is asked about which songs, by which settings."""
    asked = [(step.backend.facts.name, [song.id for song, _ in step.songs]) for step in steps]
    return value_hash([settings.model_dump(mode="json"), asked])


def nothing_due(settings: CaptionSettings) -> str:
    """Why a run would do nothing."""
    hint = "" if settings.fill == "all" else " To have labels written anew, choose more under Fill."
    return f"These songs have all of these labels, or were asked about before.{hint}"


def ask_or_start(app: App, controls: Controls, shown: dict[str, Any]) -> dict[str, Any]:
    """Begin, or ask first where songs leave this computer or something large comes to it."""
    settings, songs, keys = prepare(app, controls, shown)
    steps = plan_steps(songs, settings)
    check_keys(steps, keys)
    outlook = look_ahead(steps, settings)
    if any(step.needs_consent for step in outlook):
        return plan_updates(outlook, settings, question_about(steps, settings))
    if not steps and settings.instrumental != "yes":
        return plan_updates(outlook, settings)
    return start_labelling(app, controls, shown)


def start_agreed(app: App, controls: Controls, shown: dict[str, Any]) -> dict[str, Any]:
    """Begin what was agreed to; where other songs are chosen by now, or other labels are missing, ask again."""
    settings, songs, _ = prepare(app, controls, shown)
    if question_about(plan_steps(songs, settings), settings) != shown["label_asked"]:
        return ask_or_start(app, controls, shown)
    return start_labelling(app, controls, shown)


def start_labelling(app: App, controls: Controls, shown: dict[str, Any]) -> dict[str, Any]:
    """Label the chosen songs in the background. Keys go into the run and nowhere else."""
    from acestep.dataset.store import save_dataset

    settings, songs, keys = prepare(app, controls, shown)
    steps = plan_steps(songs, settings)
    check_keys(steps, keys)
    dataset, file = app.labels.history.dataset, app.labels.file
    report, ids = LabelReport(), [song.id for song in songs]

    def label(job: Job) -> LabelReport:
        try:
            return label_dataset(
                dataset, settings, keys, job, ids, file=file, report=report, changing=app.labels.labelling
            )
        finally:
            with app.labels.lock:  # somebody may have moved the labels into another file meanwhile
                if app.dataset is dataset and app.labels.file is not None:
                    save_dataset(dataset, app.labels.file)

    title = f"Labelling {counted(len(songs), 'songs')}"
    only_asks = bool(steps) and all(step.backend.facts.network for step in steps)
    work = app.start_work("label", title, label, dataset.root, light=only_asks)
    work.result = report  # pages look at it while it grows
    return {**SHUT, "label_plan": ""}


def label_sign(app: App) -> Hashable:
    work = app.background.current
    if work is None or work.kind != "label" or work.result is None:
        return None
    return work.started, work.state, work.result.asked, len(work.result.problems)


def show_report(app: App) -> dict[str, Any]:
    """What the labelling has done so far, and the trouble with single songs."""
    work = app.background.current
    if work is None or work.kind != "label" or work.result is None:
        return {"label_report": ""}
    return {"label_report": report_html(work.result, work.state)}


def report_html(report: LabelReport, state: str) -> str:
    """The report of a run, complete or under way."""
    labelled = len({told.song for told in report.told})
    failed = {problem.subject for problem in report.problems if problem.severity == "error"}
    words = [f"{counted(len(report.told), 'labels')} written for {labelled} of {counted(report.songs, 'songs')}"]
    words += [f"{counted(len(failed), 'songs')} failed"] if failed else []
    words += [money(report.usage["cost_usd"])] if report.usage.get("cost_usd") else []
    ends = {"stopped": " Stopped: label the songs again to go on with the rest.", "running": " Under way…"}
    items = [f"<li>{escape(str(problem))}</li>" for problem in report.problems[:PROBLEMS_SHOWN]]
    if len(report.problems) > PROBLEMS_SHOWN:
        items.append(f"<li>and {len(report.problems) - PROBLEMS_SHOWN} more</li>")
    listed = f'<ul class="problems">{"".join(items)}</ul>' if items else ""
    return f'<p role="status">{", ".join(words)}.{ends.get(state, "")}</p>{listed}'

"""The Listen tab: the model alone and with an adapter, at several strengths, on the same noise."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.settings import GenerateSettings
from acestep.settings.generate import SweepSettings
from acestep.training.origin import run_of_adapter, warn_of_other_model
from acestep.ui.adapter_field import adapter_field, adapter_info, chosen_adapter
from acestep.ui.app import App
from acestep.ui.controls import Controls
from acestep.ui.listen_history import Piece, history_html, history_sign, new_play
from acestep.ui.page import Page, drawn, meant
from acestep.ui.wiring import Wires

if TYPE_CHECKING:
    from acestep.dataset.song import Song
    from acestep.generate import Generated

LABELS = ("caption", "lyrics", "language", "bpm", "keyscale", "timesignature")
METAS = ("duration_s", "seed", "bpm", "keyscale", "timesignature", "language")
MOST_SONG_SECONDS = 60.0
"""How much of a song's length its labels ask for; more would take long to play."""


def build_listen(page: Page) -> None:
    """Draw the tab and wire it."""
    app = page.app
    prompt, sweep = Controls(GenerateSettings), Controls(SweepSettings)
    with page.tab("listen", "Listen") as wires:
        with gr.Row(elem_classes=["setup"]):
            with gr.Column(scale=3, min_width=320):
                gr.Markdown("### What to play")
                _build_prompt(app, prompt)
                wires.add_controls(prompt)
                _build_helpers(page, wires)
            with gr.Column(scale=2, min_width=320):
                gr.Markdown("### With which adapter")
                adapter_field(page, wires)
                with gr.Row(elem_classes=["settings"]):
                    sweep.draw(["strength", "takes"], app.workspace.sweep.model_dump())
                wires.add_controls(sweep)
        with gr.Row():
            play = gr.Button("Play", variant="primary", elem_id="listen-play", scale=0, min_width=180)
        gr.Markdown("### Played, newest first")
        wires.add(played=gr.HTML(elem_id="listen-played", padding=False))

        settings = [*prompt.knobs, *sweep.knobs]
        page.watch_form(
            wires,
            "form",
            lambda: (app.filled["generate"], app.filled["sweep"]),
            lambda: show_form(app, prompt, sweep),
            settings,
        )
        inputs = [*settings, drawn("form")]
        wires.on(play.click, "play", lambda **shown: start_playing(app, prompt, sweep, shown), inputs)
        _remember_typing(app, wires, prompt, sweep)
        page.watch(wires, "played", lambda: history_sign(app), lambda: {"played": history_html(app)}, ["played"])


def _build_prompt(app: App, prompt: Controls) -> None:
    values = app.workspace.generate.model_dump()
    prompt.draw(["caption", "lyrics"], values)
    with gr.Row(elem_classes=["settings"]):
        prompt.draw(METAS, values)
    with gr.Accordion("More settings", open=False), gr.Row(elem_classes=["settings"]):
        prompt.draw(["steps", "guidance", "shift", "format", "device", "precision"], values)


def _build_helpers(page: Page, wires: Wires) -> None:
    app = page.app
    with gr.Row(equal_height=True, elem_classes=["bar"]):
        song = gr.Dropdown(label="Song of the dataset", min_width=240, elem_id="listen-song")
        use = gr.Button("Use its labels", scale=0, min_width=150)
        trigger = gr.Button("Insert the trigger word", scale=0, min_width=210, elem_id="listen-trigger")
    wires.add(song=song)
    filled = [*LABELS, "duration_s"]
    wires.on(use.click, "use_labels", lambda song: use_labels(app, song), ["song"], filled)
    wires.on(trigger.click, "insert_trigger", lambda caption: insert_trigger(app, caption), ["caption"], ["caption"])
    page.watch(wires, "songs", lambda: songs_sign(app), lambda: show_songs(app), ["song"])


def _remember_typing(app: App, wires: Wires, prompt: Controls, sweep: Controls) -> None:
    """Keep what stands in the fields whenever one is left, so that a reload shows it again."""
    page_fields = {**prompt.components, **sweep.components}
    events = [getattr(part, "blur", None) or part.input for part in page_fields.values()]  # type: ignore[attr-defined]
    names = [*page_fields, drawn("form")]
    wires.on(events, "remember", lambda **shown: remember(app, prompt, sweep, shown), names)


def show_form(app: App, prompt: Controls, sweep: Controls) -> dict[str, Any]:
    """The request as it was remembered."""
    return prompt.updates(app.workspace.generate.model_dump()) | sweep.updates(app.workspace.sweep.model_dump())


# the prompt -------------------------------------------------------------------------------------------------------


def songs_sign(app: App) -> Any:
    return id(app.dataset), tuple(song.id for song in app.dataset.labeled_songs) if app.dataset else ()


def show_songs(app: App) -> dict[str, Any]:
    """The songs of the open dataset that have labels."""
    songs = app.dataset.labeled_songs if app.dataset else []
    info = "Fills the prompt." if songs else "Open a dataset in Dataset to choose from its songs."
    return {"song": gr.update(choices=[(song.relative, song.id) for song in songs], info=info)}


def use_labels(app: App, song_id: str | None) -> dict[str, Any]:
    """A song's labels as the prompt, with the trigger word where it has one."""
    song = _song(app, song_id)
    assert app.dataset is not None
    from acestep.adapters import TriggerTag

    tag = TriggerTag("" if song.regularization else app.dataset.tag_of(song), app.dataset.settings.tag_position)
    labels = song.labels(tag.in_caption(song.words("caption")), min(song.duration_s, MOST_SONG_SECONDS))
    lyrics = labels.lyrics or GenerateSettings().lyrics
    values = {name: getattr(labels, name) for name in LABELS} | {"lyrics": lyrics, "duration_s": labels.duration_s}
    app.choose(generate=app.workspace.generate.changed(**values))
    return values


def _song(app: App, song_id: str | None) -> Song:
    for song in app.dataset.songs if app.dataset else []:
        if song.id == song_id:
            return song
    raise UserError("No song is chosen.", fix="Choose one in Song of the dataset.")


def insert_trigger(app: App, caption: str) -> dict[str, Any]:
    """The caption with the chosen adapter's trigger word where it was trained to stand."""
    tag = adapter_info(app).trigger
    if not tag.word:
        raise UserError("The adapter has no trigger word.", fix="It is heard without one.")
    return {"caption": tag.in_caption(caption or "")}


def remember(app: App, prompt: Controls, sweep: Controls, shown: dict[str, Any]) -> dict[str, Any]:
    """Check what stands in the fields and keep it."""
    shown = meant("form", shown, lambda: show_form(app, prompt, sweep))
    app.choose(
        generate=GenerateSettings.parse(prompt.values(shown), "Listen"),
        sweep=SweepSettings.parse(sweep.values(shown), "Listen"),
    )
    return {}


# playing ----------------------------------------------------------------------------------------------------------


def start_playing(app: App, prompt: Controls, sweep: Controls, shown: dict[str, Any]) -> dict[str, Any]:
    """Play in the background; each piece is on the page as soon as it is made."""
    from acestep.model.checkpoints import resolve_checkpoint

    remember(app, prompt, sweep, shown)
    if not app.workspace.model:
        raise UserError("No model is chosen.", fix="Choose one in Service first.")
    adapter = adapter_info(app).path if chosen_adapter(app) else None
    if adapter and not app.workspace.sweep.strength:
        raise UserError("No adapter strength is given.", fix="Name one or more; 0 is the model alone, 1 as trained.")
    checkpoint, folder = resolve_checkpoint(app.workspace.model), new_play(app)
    title = f"Playing {_name_of(adapter)}" if adapter else f"Playing {checkpoint.name} alone"
    settings, strengths = app.workspace.generate, app.workspace.sweep

    def play(job: Job) -> Path:
        from acestep.core.device import choose_device
        from acestep.generate import play_sweep

        if adapter:
            warn_of_other_model(run_of_adapter(adapter), checkpoint, job)
        parts = app.loaded.get(checkpoint, choose_device(settings.device, settings.precision))
        keep = keeper(folder, checkpoint.name, _name_of(adapter) if adapter else "", settings.format, job)
        play_sweep(parts, settings, strengths, adapter, keep, job)
        return folder

    app.start_work("listen", title, play, folder, keep_model=True)
    return {}


def keeper(folder: Path, model: str, adapter: str, suffix: str, job: Job) -> Any:
    """What writes each piece into `folder`, with its request beside it."""
    from acestep.audio.write import write_audio

    began = time.monotonic()

    def keep(piece: Generated, strength: float | None) -> None:
        nonlocal began
        took, began = time.monotonic() - began, time.monotonic()
        stem = f"seed_{piece.seed}" + ("" if strength is None else f"_strength_{strength:g}".replace(".", "_"))
        folder.mkdir(parents=True, exist_ok=True)
        file = write_audio(folder / f"{stem}.{suffix}", piece.samples, piece.sample_rate)
        made = datetime.now().astimezone().isoformat(timespec="seconds")
        used = piece.settings.model_dump(mode="json")
        note = (file, made, model, adapter, strength, piece.seed, piece.duration_s, took, used, list(job.warnings))
        Piece(*note).write_note()

    return keep


def _name_of(adapter: Path) -> str:
    """An adapter as people call it: run and step, or its own name."""
    run = run_of_adapter(adapter)
    if run is None:
        return adapter.name
    return f"{run.path.name} {adapter.relative_to(run.path).as_posix().removesuffix('/adapter')}".strip(" .")

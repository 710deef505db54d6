"""The form of the Train tab: its values, where they come from (presets, profiles, files) and what they amount to."""

from __future__ import annotations

import typing
from collections.abc import Hashable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from acestep.core.errors import UserError
from acestep.core.gpu import read_gpu
from acestep.core.paths import safe_name
from acestep.core.words import counted
from acestep.settings import Settings, TrainSettings, fields_of
from acestep.settings.advice import advise
from acestep.settings.command_line import command_text, options_of
from acestep.settings.foreign import SECTIONS
from acestep.settings.interchange import export_side_step, import_settings
from acestep.settings.presets import (
    AUTO,
    GIB,
    auto_preset,
    load_preset,
    preset_files,
    preset_values,
    same_tier,
    save_preset,
)
from acestep.settings.profiles import save_profile
from acestep.settings.side_step import lost_in_side_step
from acestep.ui.app import App
from acestep.ui.controls import Controls
from acestep.ui.header import duration_words
from acestep.ui.training_work import chosen_inputs, measure_run, start_run

if TYPE_CHECKING:
    from acestep.training.outlook import Measured, Outlook

FAMILIES: tuple[str, ...] = typing.get_args(TrainSettings.model_fields["adapter"].annotation)
"""Kinds of adapters. A group of settings of that name belongs to that kind alone."""

Updates = dict[str, Any]


@dataclass
class Form:
    """What all pages of an app share about the form."""

    app: App
    controls: Controls
    measured: list[Measured] = field(default_factory=list)

    def settings(self, shown: dict[str, Any]) -> TrainSettings:
        """The settings that stand on the page. Raises SettingsError."""
        return TrainSettings.parse(self.controls.values(shown), "Train")

    def fill(self, settings: TrainSettings, **chosen: Any) -> Updates:
        """Put settings into the form, here and on every other page."""
        self.app.fill(train=settings, **chosen)
        return {**self.show(), "drawn": self.sign()}

    def sign(self, drawn: int | None = None) -> Hashable:
        """Does not change with typing: a page must not write into the field its user is in."""
        return self.app.filled["train"]

    def follow(self, drawn: int | None = None) -> Updates:
        """What a page has to redraw; nothing where it filled the form itself, as its user may be typing by now.

        `drawn` is the sign of what the page shows.
        """
        return {} if drawn == self.sign() else {**self.show(), "drawn": self.sign()}

    def show(self) -> Updates:
        """Updates that show the form as it was last, with only the settings of the chosen kind of adapter."""
        chosen = self.app.workspace
        return {
            **self.controls.updates(chosen.train.model_dump()),
            **{f"family_{kind}": gr.update(visible=kind == chosen.train.adapter) for kind in FAMILIES},
            **{f"more_{kind}": gr.update(visible=kind == chosen.train.adapter) for kind in FAMILIES},
            "preset": gr.update(choices=preset_choices(), value=chosen.preset),
            **show_plan(self, chosen.train),
        }


# tensors ----------------------------------------------------------------------------------------------------------


def use_tensors(form: Form, typed: str) -> Updates:
    """Take the folder in the field when tensors are in it; while it is being typed, wait."""
    app = form.app
    if not typed.strip():
        return {"facts": ""}
    folder = app.roots.resolve(typed, "Tensor folder")
    if not holds_tensors(folder):
        return {"facts": tensor_facts(folder)}
    if str(folder) != app.workspace.tensors:
        app.choose(tensors=str(folder))
    return {"facts": tensor_facts(folder), **show_plan(form, app.workspace.train)}


def holds_tensors(folder: str | Path) -> bool:
    """Whether songs have been encoded into a folder."""
    return bool(folder) and (Path(folder) / "index.json").is_file()


def tensor_facts(folder: str | Path) -> str:
    """A line on a tensor folder; empty where none is chosen."""
    from acestep.preprocess.store import TensorStore

    if not folder:
        return ""
    if not holds_tensors(folder):
        return '<p class="quiet">No tensors are in this folder yet. Preprocess writes them.</p>'
    store = TensorStore.open(folder)
    minutes = sum(song.duration_s for song in store.songs) / 60
    trigger = f"trigger word {store.info.trigger_word}" if store.info.trigger_word else "no trigger word"
    facts = (
        counted(len(store.songs), "songs"),
        f"{minutes:.1f} min",
        trigger,
        f"made with {store.info.checkpoint_name}",
    )
    return f'<p class="quiet">{escape(" · ".join(facts))}</p>'


# presets ----------------------------------------------------------------------------------------------------------


def preset_choices() -> list[tuple[str, str]]:
    return [("none: the defaults", ""), ("the one for this computer", AUTO), *((name, name) for name in preset_files())]


def apply_preset(form: Form, name: str) -> Updates:
    """Fill the form with the defaults and the preset's values over them."""
    adapter = form.app.workspace.train.adapter
    if name == AUTO:
        card = read_gpu()
        name = auto_preset(card.total_bytes if card else None, adapter)
        found = f"{card.name}, {card.total_bytes / GIB:.0f} GiB" if card else "no graphics card found"
        note = f"{name} ({found})"
    else:
        note = name or "The defaults"
    values = preset_values(name) if name else {}
    settings = TrainSettings.parse({**values, "adapter": values.get("adapter", adapter) if name else "lora"}, note)
    words = load_preset(name).description if name else "of this program."
    return {**form.fill(settings, preset=name), "preset_note": f"{note}: {words}"}


def change_adapter(form: Form, shown: dict[str, Any]) -> Updates:
    """Another kind of adapter: its own settings come from the preset, and a tier changes to that for the kind."""
    chosen, adapter = form.app.workspace, shown["adapter"]
    tier = same_tier(chosen.preset, adapter)
    preset = preset_values(tier or chosen.preset) if chosen.preset else {}
    values = form.controls.values(shown)
    for knob in fields_of(TrainSettings):
        if knob.group in FAMILIES:
            value = preset.get(knob.name, knob.default)
            # values by module are for the kind of adapter they were made for
            values[knob.name] = knob.default if isinstance(value, dict) and knob.group != adapter else value
    settings = TrainSettings.parse({**values, **(preset if tier else {}), "adapter": adapter}, "Train")
    note = f"{tier}: {load_preset(tier).description}" if tier else ""
    return {**form.fill(settings, preset=tier or chosen.preset), "preset_note": note}


def keep_preset(form: Form, shown: dict[str, Any]) -> Updates:
    """Write what differs from the defaults as a preset of the given name."""
    settings = form.settings(shown)
    defaults = TrainSettings().model_dump()
    values = {name: value for name, value in settings.model_dump(mode="json").items() if value != defaults[name]}
    values["adapter"] = settings.adapter
    name = shown["name"].strip().removesuffix(".json")
    if Path(name).suffix == ".json" or safe_name(name) != name:  # where presets are saved that would be a path
        raise UserError(f'"{name}" cannot be the name of a preset.', fix="Use letters, digits, - and _.")
    path = save_preset(name, values, "Saved from the Train tab.")
    updates = form.fill(settings, preset=path.stem)
    return {**updates, "files_note": f"The preset {path.stem} is saved."}


# profiles and other programs --------------------------------------------------------------------------------------


def profile_files(app: App) -> list[str]:
    """Names of the saved profiles."""
    return sorted(path.stem for path in (app.output / "profiles").glob("*.json"))


def keep_profile(form: Form, shown: dict[str, Any]) -> Updates:
    """Save the settings of every stage in one file."""
    app = form.app
    form.app.choose(train=form.settings(shown))
    path = _new_file(app.output / "profiles", shown["name"])
    sections: dict[str, Settings] = {name: getattr(app.workspace, name) for name in ("preprocess", "train", "generate")}
    if app.dataset:
        sections["dataset"] = app.dataset.settings
    save_profile(path, sections)
    return {
        "files_note": f"The profile {path.stem} is saved.",
        "profile": gr.update(choices=profile_files(app), value=path.stem),
        "download": gr.update(value=str(path), visible=True),
    }


def load_saved(form: Form, name: str | None) -> Updates:
    """Load a profile by its name."""
    if not name or name not in profile_files(form.app):
        raise UserError("No profile is chosen.", fix="Choose one from the list.")
    return load_file(form, form.app.output / "profiles" / f"{name}.json")


def load_file(form: Form, path: str | Path) -> Updates:
    """Fill all tabs from a settings file: profile or preset of this program, of Side-Step or of ace-lora-trainer."""
    app, found = form.app, import_settings(path)
    sections = {name: SECTIONS[name].parse(values, Path(path).name) for name, values in found.sections.items()}
    notes = [*found.notes, *(f"Left out, {name}: {reason}" for name, reason in found.ignored.items())]
    loaded = ", ".join(name for name in sections if name != "dataset" or app.dataset) or "nothing"
    if "dataset" in sections:  # first, as it may be refused
        notes.append(_dataset_settings(app, found.sections["dataset"]))
    others = {name: sections[name] for name in ("preprocess", "generate") if name in sections}
    train = typing.cast(TrainSettings, sections.get("train", app.workspace.train))
    said = f"Loaded {Path(path).name}: {loaded}."
    return {
        **form.fill(train, preset="", **others),
        "files_note": "\n".join([said, *(f"- {note}" for note in notes)]),
        "preset_note": "",
    }


def _dataset_settings(app: App, values: dict[str, Any]) -> str:
    """Give the songs that are open the settings of a file, and say what became of them."""
    if app.dataset is None:
        return "No songs are open, so its settings of the dataset were left out."
    file = app.keep_dataset_settings(**values)
    return f"Its settings of the dataset are kept in {file}." if file else "The dataset has its settings already."


def to_side_step(form: Form, shown: dict[str, Any]) -> Updates:
    """Write the form as a Side-Step preset to download."""
    settings = form.settings(shown)
    path = export_side_step(_new_file(form.app.output / "side_step", shown["name"]), settings)
    lost = lost_in_side_step(settings)
    note = f" Side-Step has no place for: {', '.join(lost)}." if lost else ""
    return {"files_note": f"Written for Side-Step.{note}", "download": gr.update(value=str(path), visible=True)}


def _new_file(folder: Path, name: str) -> Path:
    path = folder / f"{safe_name(name or '', 'my_settings')}.json"
    if path.exists():
        raise UserError(f"{path.name} exists already and is not replaced.", fix="Type another name.")
    return path


# the plan ---------------------------------------------------------------------------------------------------------


def form_changed(form: Form, shown: dict[str, Any]) -> Updates:
    """Remember what was typed, and say what it amounts to."""
    settings = form.settings(shown)
    if settings != form.app.workspace.train:
        form.app.choose(train=settings)
    return show_plan(form, settings)


def show_plan(form: Form, settings: TrainSettings) -> Updates:
    """The plan, the advice and the command for these settings; trouble with the tensors stands in the plan's place."""
    from acestep.preprocess.store import TensorStore
    from acestep.training.outlook import outlook

    app, command = form.app, run_command(form.app, settings)
    if not holds_tensors(app.workspace.tensors):
        waiting = '<p class="quiet">Choose a folder with encoded songs to see how long a run will be.</p>'
        return {"plan": waiting, "advice": "", "command": command}
    try:
        store = TensorStore.open(app.workspace.tensors)
        expected = outlook(store, settings)
        minutes = sum(song.duration_s for song in store.songs) / 60
        advice = advise(len(store.songs), minutes, settings)
    except UserError as error:
        return {"plan": f'<p class="problem">{escape(str(error))}</p>', "advice": "", "command": command}
    lines = "".join(f"<li>{escape(line)}</li>" for line in advice.lines)
    return {"plan": plan_html(form, settings, expected), "advice": f"<ul>{lines}</ul>", "command": command}


def plan_html(form: Form, settings: TrainSettings, expected: Outlook) -> str:
    """A table of what the run will be and cost."""
    held = counted(expected.held_out, "songs")
    held_out = {"songs": f", {held} held out", "windows": f", the ends of {held} held out", "none": ""}
    rows = {
        "Steps": f"{expected.steps}, {expected.steps_per_epoch} an epoch",
        "Epochs": f"{expected.epochs:,.1f}".removesuffix(".0"),
        "Songs": f"{expected.songs}{held_out[expected.held_out_kind]}",
        "Checkpoints": f"{expected.checkpoints} kept in the run folder",
    }
    rows |= _cost_rows(form, settings, expected)
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
    return f'<table class="facts">{cells}</table>'


def _cost_rows(form: Form, settings: TrainSettings, expected: Outlook) -> dict[str, str]:
    measured = form.measured[0] if form.measured else None
    if measured is None or not measured.holds_for(settings):
        changed = "settings have changed since it was measured" if measured else "not measured yet"
        return {"Time, memory, disk": changed}
    found, memory = measured.forecast, measured.forecast.memory
    seconds, disk = measured.seconds(expected), measured.disk_bytes(expected)
    peak = "more than there is" if memory.peak is None else f"{memory.peak / GIB:.2f} GiB"
    rows = {
        "Time": "–" if seconds is None else f"about {duration_words(seconds)} on {found.device}",
        "Memory": f"{peak} of {memory.available / GIB:.1f} GiB free: {memory.verdict}",
        "Disk": "–" if disk is None else f"{disk / 1e9:.2f} GB, {found.disk_free_bytes / 1e9:.1f} GB free",
    }
    return {**rows, "What helps": "; ".join(found.remedies)} if found.remedies else rows


def run_command(app: App, settings: TrainSettings) -> str:
    """The command that makes the same run in a terminal: the preset, and what differs from it."""
    chosen = app.workspace
    preset = chosen.preset if chosen.preset in preset_files() else ""
    return command_text(
        [
            *("acestep", "train", "--model", chosen.model or "MODEL", "--tensors", chosen.tensors or "TENSORS"),
            *(["--preset", preset] if preset else []),
            *options_of(settings, preset_values(preset) if preset else {}),
        ]
    )


def take_advice(form: Form, shown: dict[str, Any]) -> Updates:
    """Put the advised length into the form."""
    from acestep.preprocess.store import TensorStore

    settings = form.settings(shown)
    store = TensorStore.open(form.app.roots.resolve(form.app.workspace.tensors, "Tensor folder"))
    advice = advise(len(store.songs), 0.0, settings)
    length = {"epochs": advice.advised_epochs, "save_every_epochs": advice.advised_save_every, "max_steps": 0}
    return form.fill(settings.changed(**length))


def measure(form: Form, shown: dict[str, Any]) -> Updates:
    """Measure a few steps in the background."""
    settings = form.settings(shown)
    form.app.choose(train=settings)
    measure_run(form.app, settings, form.measured)
    return {}


def start(form: Form, shown: dict[str, Any]) -> Updates:
    """Check everything and begin the run. A page that was clicked before the form was drawn means the form as it is."""
    app = form.app
    if shown["drawn"] is None:
        settings, tensors = app.workspace.train, app.workspace.tensors
    else:
        settings, tensors = form.settings(shown), shown["tensors"]
    app.choose(train=settings, tensors=str(app.roots.resolve(tensors, "Tensor folder")))
    chosen_inputs(app)
    start_run(app, settings, shown["run_name"].strip())
    return {"run_name": ""}

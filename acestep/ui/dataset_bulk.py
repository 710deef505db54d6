"""Changing many songs at once in the Dataset tab: choose them, see every change before it is made, apply, undo."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import Any

import gradio as gr

from acestep.core.errors import UserError
from acestep.core.words import counted
from acestep.dataset.editing import (
    TEXT_FIELDS,
    Draft,
    add_text,
    override_language,
    replace_text,
    set_labels,
)
from acestep.dataset.song import NOT_SAID, Song
from acestep.settings import DatasetSettings
from acestep.ui.app import App
from acestep.ui.controls import Controls
from acestep.ui.dataset_fields import LANGUAGE_CHOICES, TITLES
from acestep.ui.dataset_song import find_song
from acestep.ui.dataset_table import VIEW, rows_shown
from acestep.ui.page import Page
from acestep.ui.wiring import Wires

CHANGES_SHOWN = 60
LONGEST_TEXT = 160

KINDS = {
    "set": "Set a label",
    "replace": "Find and replace",
    "add": "Add text before or after",
    "language": "Language of all songs with a voice",
}
SONGS = {
    "shown": "the songs in the table",
    "all": "all songs",
    "unlabelled": "songs without caption and genre",
    "one": "the selected song",
}
INPUTS = ["bulk_songs", "bulk_kind", "bulk_field", "bulk_value", "bulk_text_field", "bulk_find", "bulk_replacement"]
INPUTS += ["bulk_pattern", "bulk_match_case", "bulk_added", "bulk_where", "bulk_language", "song", *VIEW]


def build_bulk(page: Page, wires: Wires) -> None:
    """Draw the section and wire it."""
    app = page.app
    labels = [(TITLES.get(name, (name, ""))[0], name) for name in NOT_SAID]
    texts = [(title, name) for title, name in labels if name in TEXT_FIELDS]
    with gr.Row():
        songs = gr.Radio([(text, name) for name, text in SONGS.items()], value="shown", label="Change")
        kind = gr.Radio([(text, name) for name, text in KINDS.items()], value="set", label="How")
    with gr.Row() as set_row:
        field = gr.Dropdown(labels, value="genre", label="Label", min_width=200)
        value = gr.Textbox(
            label="Value", info="Spelled as you like: 120 BPM, Am, 3/4, German, yes. Empty clears.", scale=2
        )
    text_field = gr.Dropdown(texts, value="caption", label="Text label", visible=False)
    with gr.Row(visible=False) as replace_row:
        find = gr.Textbox(label="Text to find")
        replacement = gr.Textbox(label="Replace with", info=r"In patterns \1 stands for group 1.")
        pattern = gr.Checkbox(label="Pattern", info="What to find is a regular expression.", min_width=160)
        match_case = gr.Checkbox(label="Match case", value=True, min_width=160)
    with gr.Row(visible=False) as add_row:
        added = gr.Textbox(label="Text to add", scale=2)
        where = gr.Radio([("before", "before"), ("after", "after")], value="before", label="Where")
    language = gr.Dropdown(LANGUAGE_CHOICES, value="en", label="Language for all", visible=False)
    with gr.Row():
        look = gr.Button("Show the changes", scale=0, min_width=210)
        apply = gr.Button("Apply", variant="primary", scale=0, min_width=120)
        undo = gr.Button("Undo the last edit", scale=0, min_width=210)
    preview = gr.HTML(padding=False, elem_id="bulk-preview")
    wires.add(bulk_songs=songs, bulk_kind=kind, bulk_field=field, bulk_value=value, bulk_text_field=text_field)
    wires.add(bulk_find=find, bulk_replacement=replacement, bulk_pattern=pattern, bulk_match_case=match_case)
    wires.add(bulk_added=added, bulk_where=where, bulk_language=language, bulk_preview=preview)
    rows: dict[str, Any] = {"bulk_set_row": set_row, "bulk_replace_row": replace_row, "bulk_add_row": add_row}
    wires.add(**rows)
    kinds = [*rows, "bulk_text_field", "bulk_language", "bulk_preview"]
    wires.on(kind.input, "bulk_kind", show_kind, ["bulk_kind"], kinds)
    wires.on(look.click, "bulk_preview", partial(show_changes, app), INPUTS, ["bulk_preview"])
    wires.on(apply.click, "bulk_apply", partial(apply_changes, app), INPUTS, ["bulk_preview"], show_progress="minimal")
    wires.on(undo.click, "bulk_undo", partial(undo_changes, app), outputs=["bulk_preview"], show_progress="minimal")


def show_kind(bulk_kind: str) -> dict[str, Any]:
    """Only the fields that this kind of change needs."""
    seen = {
        "bulk_set_row": ("set",),
        "bulk_replace_row": ("replace",),
        "bulk_add_row": ("add",),
        "bulk_text_field": ("replace", "add"),
        "bulk_language": ("language",),
    }
    return {part: gr.update(visible=bulk_kind in kinds) for part, kinds in seen.items()} | {"bulk_preview": ""}


def chosen_songs(app: App, which: str, song: str, view: dict[str, Any]) -> list[Song]:
    """The songs a change is for. Raises UserError when there is none."""
    songs = app.labels.history.dataset.songs
    if which == "one":
        return [find_song(app, song)]
    if which == "unlabelled":
        songs = [one for one in songs if not one.labeled]
    elif which == "shown":
        ids = {row.id for row in rows_shown(app, **view)}
        songs = [one for one in songs if one.id in ids]
    if not songs:
        raise UserError(f"There are none of {SONGS[which]}.", fix="Choose other songs.")
    return songs


def draft_of(app: App, shown: dict[str, Any]) -> Draft:
    """The edit that stands on the page, not yet made."""
    view = {name: shown[name] for name in VIEW}
    songs = chosen_songs(app, shown["bulk_songs"], shown["song"], view)
    if shown["bulk_kind"] == "set":
        return set_labels(songs, **{shown["bulk_field"]: shown["bulk_value"]})
    if shown["bulk_kind"] == "language":
        return override_language(songs, shown["bulk_language"])
    if shown["bulk_kind"] == "add":
        return add_text(songs, shown["bulk_text_field"], shown["bulk_added"] or "", shown["bulk_where"])
    return replace_text(
        songs,
        shown["bulk_text_field"],
        shown["bulk_find"] or "",
        shown["bulk_replacement"] or "",
        is_pattern=shown["bulk_pattern"],
        match_case=shown["bulk_match_case"],
    )


def show_changes(app: App, **shown: Any) -> dict[str, Any]:
    """Every change that would be made."""
    draft = draft_of(app, shown)
    return {"bulk_preview": changes_html(draft, "would change; nothing is changed yet.")}


def apply_changes(app: App, **shown: Any) -> dict[str, Any]:
    with app.labels.lock:
        edit = app.labels.apply(draft_of(app, shown))
    return {"bulk_preview": changes_html(edit.draft, "changed and saved. Undo takes it back.")}


def undo_changes(app: App) -> dict[str, Any]:
    edit = app.labels.undo()
    return {"bulk_preview": f'<p role="status">Taken back: {escape(edit.draft.title)}.</p>'}


def changes_html(draft: Draft, what: str) -> str:
    """Labels before and after, and what is doubtful about the change."""
    changes = draft.changes
    if not changes:
        return '<p role="status">Nothing to change: these songs are so already.</p>'
    songs = len({change.song for change in changes})
    rows = "".join(
        f"<tr><td>{escape(change.song)}</td><td>{escape(TITLES.get(change.field, (change.field,))[0])}</td>"
        f"<td><del>{escape(_short(change.before))}</del></td><td><ins>{escape(_short(change.after))}</ins></td></tr>"
        for change in changes[:CHANGES_SHOWN]
    )
    rest = f"<p>and {len(changes) - CHANGES_SHOWN} more.</p>" if len(changes) > CHANGES_SHOWN else ""
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in draft.warnings[:CHANGES_SHOWN])
    return (
        f'<p role="status"><b>{counted(len(changes), "labels")} of {counted(songs, "songs")} {escape(what)}</b></p>'
        + (f'<ul class="problems">{warnings}</ul>' if warnings else "")
        + '<div class="wide"><table class="changes"><thead><tr><th>Song</th><th>Label</th><th>Before</th><th>After</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>{rest}"
    )


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"


# the whole dataset -----------------------------------------------------------------------------------------------


def build_settings(page: Page, wires: Wires) -> None:
    """Draw what is true of all songs, from the settings of datasets."""
    app = page.app
    controls = Controls(DatasetSettings)
    with gr.Row():
        controls.draw(DatasetSettings.model_fields, {})
    wires.add_controls(controls)
    keep = gr.Button("Apply to the dataset", scale=0, min_width=210)
    said = gr.HTML(padding=False)
    wires.add(settings_said=said)
    names = list(controls.knobs)
    wires.on(
        keep.click, "settings", lambda **shown: keep_settings(app, controls.values(shown)), names, ["settings_said"]
    )
    page.watch(
        wires,
        "settings_follow",
        lambda: app.dataset and (app.labels.generation, app.dataset.settings),
        lambda: controls.updates(app.dataset.settings.model_dump()) if app.dataset else {},
        names,
    )


def keep_settings(app: App, values: dict[str, Any]) -> dict[str, Any]:
    """Keep the values in the dataset file."""
    DatasetSettings.parse(values, "The dataset")
    file = app.keep_dataset_settings(**values)
    said = f"Saved to {file}; all edits are kept there now." if file else "It is so already."
    return {"settings_said": f'<p role="status">{escape(said)}</p>'}

"""The selected song in the Dataset tab: player, every label, what the model will be told. Each change is kept at once.

The hidden part `song` says which song the fields on a page belong to; it goes with every edit, so that a label typed
for one song can never land in another, however quickly somebody moves on. The app remembers which song each page was
given last, so that an answer about the song before, when it comes late, is not drawn into the fields of the next.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Hashable
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from acestep.core.errors import UserError
from acestep.dataset.prompts import training_prompts
from acestep.dataset.song import NOT_SAID, Song
from acestep.ui.app import App
from acestep.ui.dataset_fields import TYPED, field_component, help_of_label, part_of, shown_value
from acestep.ui.dataset_table import VIEW, draw_table, length_words, rows_shown, turned
from acestep.ui.page import Page
from acestep.ui.players import playable
from acestep.ui.wiring import Wires

LABELS = [part_of(name) for name in NOT_SAID]
ABOUT = ["prompt", "saved", "notes"]
FORM = ["song", "heading", "player", "mark", *LABELS, *ABOUT]
NO_SONG = "Choose a song in the table."


def build_song(page: Page, wires: Wires) -> None:
    """Draw the form and wire it."""
    with gr.Row(elem_id="song-bar", equal_height=True):
        with gr.Column(scale=3, min_width=260):
            heading = gr.HTML(padding=False, elem_id="song-heading")
            saved = gr.HTML(padding=False, elem_id="song-saved")
        bar = {"previous": "Previous", "next": "Next", "undo": "Undo", "redo": "Redo"}
        buttons = {name: gr.Button(text, scale=0, min_width=110) for name, text in bar.items()}
    with gr.Row():
        with gr.Column(scale=3, min_width=340):
            player = gr.Audio(label="Listen", interactive=False, buttons=["download"], elem_id="song-player")
            columns = {name: field_component(name) for name in ("caption", "genre", "lyrics")}
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                columns |= {name: field_component(name) for name in ("bpm", "keyscale", "timesignature", "language")}
            columns |= {name: field_component(name) for name in NOT_SAID if name not in columns}
    with gr.Accordion("What the model is told", open=False):
        prompt = gr.HTML(padding=False, elem_id="song-prompt")
    notes = gr.HTML(padding=False, elem_id="song-notes")
    wires.add(heading=heading, player=player, prompt=prompt, saved=saved, notes=notes, mark=gr.HTML(padding=False))
    wires.add(**{part_of(name): component for name, component in columns.items()})
    wires.add(
        song=gr.Textbox(elem_id="song-key", elem_classes=["unseen"], label="Song"),
        page=gr.Textbox(value=lambda: secrets.token_hex(6), elem_classes=["unseen"], label="Page"),
    )
    _wire(page, wires, buttons)


def _wire(page: Page, wires: Wires, buttons: dict[str, gr.Button]) -> None:
    app = page.app
    common: dict[str, Any] = {"concurrency_id": "labels", "concurrency_limit": 1}  # in the order they were typed in
    for name in NOT_SAID:
        field: Any = wires.parts[part_of(name)]
        save = partial(save_label, app, name)
        ask = ["song", "page", part_of(name)]
        left = [field.blur, field.submit] if name in TYPED else [field.input]
        wires.on(left, f"edit_{name}", save, ask, [part_of(name), *ABOUT], trigger_mode="multiple", **common)
        if name in ("caption", "genre", "lyrics"):  # long texts are kept while they are typed
            typing = partial(save, typing=True)
            wires.on(
                field.input, f"type_{name}", typing, ask, [part_of(name), *ABOUT], trigger_mode="always_last", **common
            )
    wires.on(
        wires.parts["table"].select,  # type: ignore[union-attr]
        "pick",
        lambda picked, **shown: pick(app, picked, **shown),
        ["page", *VIEW],
        [*FORM, "order", "table"],
        event_data="picked",
    )
    for name, by in (("previous", -1), ("next", 1)):
        wires.on(buttons[name].click, name, partial(step, app, by), ["song", "page", *VIEW], FORM)
    for name in ("undo", "redo"):
        wires.on(buttons[name].click, name, partial(move, app, name), ["song", "page"], FORM, **common)
    page.watch(wires, "form", partial(form_sign, app), partial(follow, app), FORM, ["song", "page"])


def key_of(app: App, song: Song) -> str:
    """What the hidden part holds: of which dataset and since when the fields show this song."""
    return f"{app.labels.generation}.{app.labels.revision}.{song.id}"


def _read_key(key: str) -> tuple[int, int, str]:
    generation, _, rest = (key or "").partition(".")
    revision, _, song_id = rest.partition(".")
    return int(generation or 0), int(revision or 0), song_id


def find_song(app: App, key: str) -> Song:
    """The song whose fields a page shows. Raises UserError when it is gone."""
    song_id = _read_key(key)[2]
    if not song_id:
        raise UserError("No song is chosen.", fix=NO_SONG)
    return app.labels.song(song_id)


def show_song(app: App, song: Song, page: str = "") -> dict[str, Any]:
    """Everything about a song, and remember that it was looked at."""
    app.labels.look_at(page, song.id)
    if app.workspace.song != song.id:
        app.choose(song=song.id)
    player, trouble = None, []
    try:
        player = _player(app, song)
    except UserError as error:
        trouble = [str(error)]
    with app.labels.lock:
        return {
            "song": key_of(app, song),
            "heading": f"<h3>{escape(song.relative)} <small>{length_words(song.duration_s)}</small></h3>",
            "player": player,
            "mark": f'<style>#songs tr[data-song="{song.id}"] td {{ background: var(--chosen); }}</style>',
            **{part_of(name): good(name, value=shown_value(song, name)) for name in NOT_SAID},
            **about(app, song, trouble),
        }


def _player(app: App, song: Song) -> str:
    if not song.path.is_file():
        raise UserError(f"{song.path} is not there any more.", fix="Put it back, or read the folder again.")
    return playable(app, song.path)


def good(name: str, **values: Any) -> Any:
    """An update of a field without a problem."""
    return gr.update(info=help_of_label(name), elem_classes=["setting"], **values)


def about(app: App, song: Song, warnings: list[str] | None = None) -> dict[str, Any]:
    """What follows from a song's labels: its prompts, where they are kept, and what is doubtful."""
    dataset = app.labels.history.dataset
    text, lyrics = training_prompts(dataset, song, app.workspace.preprocess.max_duration_s)
    found = [problem.message for problem in dataset.problems if problem.subject == song.relative]
    items = "".join(f"<li>{escape(note)}</li>" for note in [*(warnings or []), *found])
    return {
        "prompt": f"<pre class='prompt'>{escape(text)}</pre><pre class='prompt'>{escape(lyrics)}</pre>",
        "saved": f'<p class="quiet" role="status">{escape(app.labels.said or saved_words(app, song))}</p>',
        "notes": f'<ul class="problems">{items}</ul>' if items else "",
    }


def saved_words(app: App, song: Song) -> str:
    """Where edits are kept, and when the last one was."""
    file, at = app.labels.file, app.labels.saved_at
    place = file.name if file else f"{song.path.stem}.json"
    if at is None:
        return f"Every change is saved at once, to {place}. Undo takes it back."
    return f"Saved {time.strftime('%H:%M:%S', time.localtime(at))} to {place}."


def save_label(app: App, name: str, song: str, page: str, typing: bool = False, **shown: Any) -> dict[str, Any]:
    """Keep one label as a page shows it. A value that cannot be read is said at its field, and nothing is changed.

    Where the page shows another song by now, nothing is drawn.
    """
    part, desk = part_of(name), app.labels
    value = shown[part]
    found = find_song(app, song)
    if _same(value, shown_value(found, name)):
        if not typing:
            desk.end_typing()
        return {} if desk.moved_on(page, found.id) else {part: good(name)}
    try:
        warnings = desk.set_label(found.id, name, value, page, typing)
    except UserError as error:
        if desk.moved_on(page, found.id):
            raise
        return {part: gr.update(info=str(error), elem_classes=["setting", "wrong"])}
    if desk.moved_on(page, found.id):
        return {}
    # while it is typed, the text on the page is further than the text kept
    field = good(name) if typing else good(name, value=shown_value(found, name))
    return {part: field, **about(app, found, warnings)}


def _same(typed: Any, kept: Any) -> bool:
    if isinstance(kept, bool):
        return bool(typed == kept)
    return str("" if typed is None else typed).strip() == str("" if kept is None else kept).strip()


def pick(app: App, picked: dict[str, str], search: str, show: str, order: list[Any], page: str = "") -> dict[str, Any]:
    """A click in the table: on a song shows it, on the head of a column sorts by it."""
    if picked.get("sort"):
        order = turned(order, picked["sort"])
        return {"order": order, **draw_table(app, search, show, order)}
    return show_song(app, app.labels.song(picked.get("song", "")), page)


def step(app: App, by: int, song: str, page: str = "", **view: Any) -> dict[str, Any]:
    """The song before or after the one shown, in the order of the table."""
    ids = [row.id for row in rows_shown(app, **view)]
    if not ids:
        raise UserError("The table shows no song.", fix="Clear its filter.")
    here = _read_key(song)[2]
    place = ids.index(here) + by if here in ids else 0
    return show_song(app, app.labels.song(ids[place % len(ids)]), page)


def move(app: App, way: str, song: str, page: str = "") -> dict[str, Any]:
    """Undo or redo the last edit, whoever made it, and show the song as it is then."""
    found = find_song(app, song)  # before anything is done: without it the answer would be an error
    edit = app.labels.undo() if way == "undo" else app.labels.redo()
    names = [after.relative for _, after in edit.draft.songs]
    what = names[0] if len(names) == 1 else f"{len(names)} songs"
    said = f"{'Taken back' if way == 'undo' else 'Made again'}: {edit.draft.title}, {what if names else 'all songs'}."
    app.labels.said = said  # also for a look at the app that is under way, and for other pages
    return show_song(app, found, page)


def form_sign(app: App, song: str, page: str) -> Hashable:
    """Changes with the song shown, with another dataset, and with edits made elsewhere."""
    desk = app.labels
    _, since, song_id = _read_key(song)
    others = desk.changed_by_others(song_id, page, since)
    return desk.generation, song_id, max(others.values(), default=0), desk.dataset and desk.dataset.settings


def follow(app: App, song: str, page: str) -> dict[str, Any]:
    """What a page has to redraw: labels changed elsewhere, or all of another song when the dataset is another one."""
    desk = app.labels
    generation, since, song_id = _read_key(song)
    if desk.dataset is None or not desk.dataset.songs:
        return {"song": "", "heading": f'<p class="quiet">{NO_SONG}</p>', "mark": ""}
    ids = [item.id for item in desk.dataset.songs]
    if generation != desk.generation or song_id not in ids:
        wanted = next((one for one in (song_id, app.workspace.song) if one in ids), ids[0])
        return show_song(app, desk.song(wanted), page)
    if desk.moved_on(page, song_id):
        return {}
    found = desk.song(song_id)
    others = desk.changed_by_others(song_id, page, since)
    return {**{part_of(name): good(name, value=shown_value(found, name)) for name in others}, **about(app, found)}

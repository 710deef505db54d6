"""The table of songs in the Dataset tab: sorted and filtered here, clicked in the browser."""

from __future__ import annotations

from collections.abc import Hashable
from html import escape
from typing import Any, get_args

import gradio as gr

from acestep.dataset.languages import LANGUAGE_NAMES
from acestep.dataset.table import Row, Show, filtered_rows, sorted_rows, table_rows
from acestep.ui.app import App
from acestep.ui.page import Page
from acestep.ui.wiring import Wires

METRES = {"2": "2/4", "3": "3/4", "4": "4/4", "6": "6/8"}
VIEW = ("search", "show", "order")
"""Parts of the tab that say which songs the table shows, and in which order."""

COLUMNS = {
    "file": "File",
    "duration_s": "Length",
    "labelled": "Labelled",
    "bpm": "BPM",
    "key": "Key",
    "metre": "Metre",
    "language": "Language",
    "instrumental": "Voice",
    "caption": "Caption",
    "lyrics": "Lyrics",
    "problems": "Problems",
}
LONGEST_CAPTION = 70
SHOW_WORDS = {"all": "all songs"}

CLICKS = """
element.addEventListener('click', (event) => {
  const target = event.target.closest('[data-sort], [data-song]');
  if (target) trigger('select', { song: target.dataset.song || '', sort: target.dataset.sort || '' });
});
"""


def build_table(page: Page, wires: Wires) -> None:
    """Draw the table with its filters. What a click on a song does is wired by the form."""
    app = page.app
    with gr.Row():
        search = gr.Textbox(
            label="Find", placeholder="words of the file name, caption or genre", scale=3, elem_id="dataset-search"
        )
        choices = [(SHOW_WORDS.get(kind, kind), kind) for kind in get_args(Show)]
        show = gr.Dropdown(choices, value="all", label="Show", scale=1, min_width=160, elem_id="dataset-show")
    table = gr.HTML(js_on_load=CLICKS, elem_id="songs", max_height=360, padding=False)
    wires.add(search=search, show=show, table=table, order=gr.State(["file", False]))
    wires.on([search.input, show.input], "filter", lambda **view: draw_table(app, **view), VIEW, ["table"])
    page.watch(
        wires, "table", lambda **view: table_sign(app, **view), lambda **view: draw_table(app, **view), ["table"], VIEW
    )


def table_sign(app: App, search: str, show: str, order: list[Any]) -> Hashable:
    return app.labels.revision, search, show, tuple(order)


def rows_shown(app: App, search: str, show: Any, order: list[Any]) -> list[Row]:
    """The rows that the filters leave, in the order chosen."""
    if app.dataset is None:
        return []
    with app.labels.lock:
        rows = table_rows(app.dataset)
    column, descending = order
    return sorted_rows(filtered_rows(rows, search or "", show or "all"), column, descending)


def draw_table(app: App, search: str, show: str, order: list[Any]) -> dict[str, Any]:
    return {"table": table_html(rows_shown(app, search, show, order), order, bool(app.dataset))}


def turned(order: list[Any], column: str) -> list[Any]:
    """The order after a click on the head of a column: by it, and the other way round at the second click."""
    return [column, not order[1] if order[0] == column else False]


def table_html(rows: list[Row], order: list[Any], opened: bool) -> str:
    if not opened:
        return ""
    if not rows:
        return '<p class="quiet">No song fits; clear the filter to see all.</p>'
    head = "".join(_head(name, title, order) for name, title in COLUMNS.items())
    body = "".join(_row(row) for row in rows)
    return f'<table class="songs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _head(name: str, title: str, order: list[Any]) -> str:
    sort = ("descending" if order[1] else "ascending") if order[0] == name else "none"
    return f'<th scope="col" aria-sort="{sort}"><button data-sort="{name}">{title}</button></th>'


def _row(row: Row) -> str:
    caption = row.caption or row.genre
    short = caption if len(caption) <= LONGEST_CAPTION else caption[:LONGEST_CAPTION] + "…"
    cells = (
        f"<button>{escape(row.file)}</button>",
        length_words(row.duration_s),
        "yes" if row.labelled else '<b class="lacks">no</b>',
        "" if row.bpm is None else str(row.bpm),
        escape(row.key),
        METRES.get(row.metre, escape(row.metre)),
        LANGUAGE_NAMES.get(row.language, ""),
        "no" if row.instrumental else "yes",
        escape(short),
        row.lyrics,
        f'<span title="{escape(" ".join(row.problems))}">{len(row.problems)}</span>' if row.problems else "",
    )
    return f'<tr data-song="{row.id}"><td>{"</td><td>".join(cells)}</td></tr>'


def length_words(seconds: float) -> str:
    """A song's length as players show it: 3:07, 1:02:30."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

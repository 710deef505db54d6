"""The Dataset tab: songs and their labels."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from acestep.core.words import counted
from acestep.dataset.dataset import problems_now, summary
from acestep.ui.app import App
from acestep.ui.dataset_bulk import build_bulk, build_settings
from acestep.ui.dataset_labelling import build_labelling
from acestep.ui.dataset_song import build_song
from acestep.ui.dataset_source import build_files, build_open, read_again
from acestep.ui.dataset_split import build_split
from acestep.ui.dataset_table import build_table, length_words
from acestep.ui.page import Page
from acestep.ui.wiring import Wires

PROBLEMS_SHOWN = 100
FACTS_CLICKS = """
element.addEventListener('click', (event) => {
  if (event.target.closest('[data-again]')) trigger('select', {});
});
"""
NOTHING_YET = """<div class="empty"><h3>No songs are open yet</h3>
<p>Choose a folder of songs above and press Open, or drop songs or a ZIP file. Ten to thirty songs of one style are a
good start. Labels lying beside the songs (JSON, text, LRC, CSV) are read along; what is missing you write here.</p>
<p>Only to try it out: “Prepare the demo” in Service makes some songs.</p></div>"""


def build_dataset(page: Page) -> None:
    """Draw the tab; each section wires itself."""
    app = page.app
    with page.tab("dataset", "Dataset") as wires:
        with gr.Accordion("Open songs", open=app.dataset is None) as opener:
            build_open(page, wires)
        facts = facts_line()
        with gr.Column(visible=False) as songs:
            build_table(page, wires)
            build_song(page, wires)
            with gr.Accordion("Change many songs", open=False):
                build_bulk(page, wires)
            with gr.Accordion("Trigger word, prompts and name of the dataset", open=False):
                build_settings(page, wires)
            with gr.Accordion("Label by machine", open=False):
                build_labelling(page, wires)()
            with gr.Accordion("Save, export and import", open=False):
                build_files(page, wires)
            with gr.Accordion("Split long recordings", open=False):
                build_split(page, wires)
        follow_songs(page, wires, opener, facts, songs)


def facts_line() -> gr.HTML:
    """Draw where the songs are told of in a line; `follow_songs` lets it follow them."""
    return gr.HTML(js_on_load=FACTS_CLICKS, padding=False, elem_id="dataset-facts")


def follow_songs(
    page: Page, wires: Wires, opener: gr.Accordion, facts: gr.HTML, desk: gr.Column, nothing_yet: str = NOTHING_YET
) -> None:
    """Let the line of facts and the sections that need songs follow the songs that are open."""
    app = page.app
    wires.add(opener=opener, facts=facts, desk=desk)
    wires.on(facts.select, "read_changed", partial(read_again, app), outputs=["open_said"])
    page.watch(wires, "facts", partial(facts_sign, app), lambda: {"facts": facts_html(app, nothing_yet)}, ["facts"])
    page.watch(wires, "desk", lambda: app.labels.generation, lambda: show_desk(app), ["opener", "desk"])


def show_desk(app: App) -> dict[str, Any]:
    """The sections that need songs, once there are some; the ways to open songs fold away then."""
    opened = app.dataset is not None
    return {"desk": gr.update(visible=opened), "opener": gr.update(open=not opened)}


def facts_sign(app: App) -> Hashable:
    return app.labels.revision, app.outside.look()


def facts_html(app: App, nothing_yet: str = NOTHING_YET) -> str:
    """The dataset in numbers, and what was found while it was read."""
    if app.dataset is None:
        return nothing_yet
    with app.labels.lock:
        numbers, problems = summary(app.dataset), problems_now(app.dataset)
    words = [
        f"<b>{escape(numbers.name)}</b>",
        counted(numbers.songs, "songs"),
        f"{length_words(numbers.duration_s)} of music",
        f"{numbers.labeled} labelled",
        f"{numbers.with_lyrics} with lyrics",
        f"{numbers.instrumental} instrumental",
    ]
    changed = outside_html(app) if app.outside.found else ""
    if not problems:
        return f'<p class="facts-line" role="status">{" · ".join(words)} · nothing to complain about</p>{changed}'
    items = "".join(f"<li>{escape(str(problem))}</li>" for problem in problems[:PROBLEMS_SHOWN])
    rest = f"<li>and {len(problems) - PROBLEMS_SHOWN} more</li>" if len(problems) > PROBLEMS_SHOWN else ""
    errors = sum(problem.severity == "error" for problem in problems)
    title = f"{counted(len(problems), 'things')} to look at" + (
        f", {counted(errors, 'files')} left out" if errors else ""
    )
    return (
        f'<p class="facts-line" role="status">{" · ".join(words)}</p>{changed}'
        f'<details><summary>{title}</summary><ul class="problems">{items}{rest}</ul></details>'
    )


def outside_html(app: App) -> str:
    """What to say when another program has changed the files of the songs, with a button that reads them again."""
    file = app.labels.file
    what = f"{escape(file.name)} since it was" if file else "files of these songs since they were"
    return (
        f'<p class="outside" role="status">Another program has changed {what} read here, so what you see may be older. '
        '<button type="button" data-again>Read them again</button></p>'
    )

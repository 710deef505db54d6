"""The captioner's page: songs, who labels them, the table that fills, each song to correct, and where it is kept."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import Any

import gradio as gr

from acestep.captioning.outlook import spoken
from acestep.captioning.registry import BACKENDS, backend
from acestep.core.words import counted
from acestep.dataset.editing import set_labels
from acestep.ui.app import App
from acestep.ui.dataset_bulk import build_bulk
from acestep.ui.dataset_labelling import build_labelling
from acestep.ui.dataset_song import build_song
from acestep.ui.dataset_source import build_files, build_open
from acestep.ui.dataset_split import build_split
from acestep.ui.dataset_tab import facts_line, follow_songs
from acestep.ui.dataset_table import build_table
from acestep.ui.page import Page
from acestep.ui.service_tab import build_machine
from acestep.ui.wiring import Wires

TAG_LABEL = "Trigger word"
NOTHING_YET = """<div class="empty"><h3>No songs are open yet</h3>
<p>Choose a folder of songs above and press Open, or drop songs or a ZIP file. Then choose who is to say what about
them: tempo and key are measured, captions and lyrics come from a model on this computer or from a service.</p>
<p>What you correct by hand is never overruled by a machine.</p></div>"""


def build_captioner(page: Page) -> None:
    """Draw the page's one working tab; each section wires itself."""
    with page.tab("songs", "Songs and labels") as wires:
        with gr.Accordion("Open songs", open=page.app.dataset is None) as opener:
            build_open(page, wires)
        facts = facts_line()
        with gr.Column(visible=False) as desk:
            with gr.Accordion("Label by machine", open=True):
                wire_labelling = build_labelling(page, wires)
            build_table(page, wires)
            build_song(page, wires)
            wire_labelling()
            with gr.Accordion("Trigger word of all songs", open=False):
                build_tag(page, wires)
            with gr.Accordion("Change many songs", open=False):
                build_bulk(page, wires)
            with gr.Accordion("Where the labels are: files to save, export and import", open=False):
                build_place(page, wires)
                build_files(page, wires)
            with gr.Accordion("Split long recordings", open=False):
                build_split(page, wires)
        follow_songs(page, wires, opener, facts, desk, NOTHING_YET)


def build_tag(page: Page, wires: Wires) -> None:
    """Draw the word that will call up the style, written into the labels of every song."""
    app = page.app
    with gr.Row(equal_height=True, elem_classes=["bar"]):
        tag = gr.Textbox(
            label=TAG_LABEL,
            info="The word that calls up the trained style, also named activation tag. It is kept with each song.",
            scale=3,
            elem_id="captioner-tag",
        )
        put = gr.Button("Write it into all songs", scale=0, min_width=220)
    said = gr.HTML(padding=False)
    wires.add(tag=tag, tag_said=said)
    wires.on(put.click, "tag", partial(write_tag, app), ["tag"], ["tag_said"])
    page.follow_text(wires, "tag_follow", "tag", lambda: common_tag(app))
    page.watch(wires, "tag_said", lambda: app.labels.generation, lambda: {"tag_said": ""}, ["tag_said"])


def common_tag(app: App) -> str:
    """The trigger word that all songs have, where it is one."""
    tags = {song.custom_tag for song in app.dataset.songs} if app.dataset else set()
    return tags.pop() if len(tags) == 1 else ""


def write_tag(app: App, tag: str) -> dict[str, Any]:
    """Give every song the trigger word; empty takes it away. One undo takes it back."""
    with app.labels.lock:
        edit = app.labels.apply(set_labels(app.labels.history.dataset.songs, custom_tag=tag))
    count = len(edit.draft.songs)
    text = f"Written into {counted(count, 'songs')}. Undo takes it back." if count else "All songs have it already."
    return {"tag_said": f'<p role="status">{text}</p>'}


def build_place(page: Page, wires: Wires) -> None:
    """Draw where labels are kept at present, and how the trainer finds them."""
    app = page.app
    place = gr.HTML(padding=False, elem_id="captioner-place")
    wires.add(place=place)
    page.watch(
        wires, "place", lambda: (app.labels.generation, app.labels.file), lambda: {"place": place_html(app)}, ["place"]
    )


def place_html(app: App) -> str:
    if app.dataset is None:
        return ""
    file = app.labels.file
    where = (
        f"Every change is kept in {file}."
        if file
        else f"Every change is kept at once in a JSON file beside each song in {app.dataset.root}."
    )
    trainer = f"To train with them, open {file or app.dataset.root} in the trainer's Dataset tab."
    return f'<p role="status">{escape(where)} {escape(trainer)}</p>'


# the other tab ----------------------------------------------------------------------------------------------------


def build_computer(page: Page) -> None:
    """Draw what this computer has left, and who can label on it."""
    with page.tab("computer", "This computer") as wires, gr.Row():
        with gr.Column(scale=3, min_width=340):
            who = gr.HTML(padding=False, elem_id="captioner-backends")
            wires.add(backends=who)
            gr.Markdown(
                "Models are loaded for a run, one at a time, and their memory is given back when it ends. A model that "
                "is not here yet is fetched at its first use, and its size is told before."
            )
        with gr.Column(scale=2, min_width=320):
            build_machine(page, wires)
        sign = partial(work_sign, page.app)
        page.watch(wires, "backends", sign, lambda: {"backends": backends_html()}, ["backends"])


def work_sign(app: App) -> Any:
    work = app.background.current
    return (work and (work.started, work.state),)


def backends_html() -> str:
    """All backends: what they tell, what they need, and whether their model is here."""
    rows = ""
    for name in BACKENDS:
        facts = backend(name).facts
        needs = [f"{facts.memory_gib:.0f} GiB of memory"] if facts.memory_gib else []
        needs += ["key" if facts.key_needed else "address"] if facts.network else []
        cells = (facts.title, spoken(facts.gives), ", ".join(needs) or "nothing", model_state(name))
        rows += f"<tr><td>{'</td><td>'.join(escape(cell) for cell in cells)}</td></tr>"
    head = "".join(f"<th>{name}</th>" for name in ("Who", "Tells", "Needs", "Model"))
    return (
        f'<div class="wide backends"><table class="changes"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def model_state(name: str) -> str:
    """Where the model of a backend is."""
    from acestep.captioning.local import present_folder

    facts = backend(name).facts
    if facts.origin == "service":
        return f"{facts.model} at the service" if facts.model else "chosen by its server"
    if "/" not in facts.model:
        return facts.model
    return f"{facts.model}, {'on this computer' if present_folder(facts.model) else 'fetched at first use'}"

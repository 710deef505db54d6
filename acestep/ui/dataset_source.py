"""Where the songs of the Dataset tab come from and go to: folders, uploads, dataset files, tables."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import processing_utils
from gradio.utils import get_upload_folder

from acestep.audio.format import AUDIO_SUFFIXES
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import safe_name
from acestep.dataset.archive import LABEL_SUFFIXES
from acestep.ui.app import App
from acestep.ui.folders import folder_field
from acestep.ui.page import Page
from acestep.ui.wiring import Wires

SONGS_LABEL = "Folder of songs, or a dataset file"
BUSY = '<p class="quiet" role="status">Reading the songs; the line above the tabs shows how far it is.</p>'


def build_open(page: Page, wires: Wires) -> None:
    """Draw the ways to open songs."""
    app = page.app
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            folder_field(
                app, wires, "songs", SONGS_LABEL, info="All songs below the folder are found, with their labels."
            )
            with gr.Row():
                opened = gr.Button("Open", variant="primary", scale=0, min_width=120)
                again = gr.Button("Read again", scale=0, min_width=150)
        with gr.Column(scale=2, min_width=300):
            name = gr.Textbox(label="Name for dropped songs", value="songs", info="A new folder below datasets.")
            dropped = gr.File(
                label="Songs and their label files, or one ZIP",
                file_count="multiple",
                file_types=[*sorted(AUDIO_SUFFIXES | LABEL_SUFFIXES), ".zip"],
                height=130,
                elem_id="dataset-drop",
            )
    said = gr.HTML(padding=False)
    wires.add(drop_name=name, dropped=dropped, open_said=said)
    wires.on(opened.click, "open", partial(open_place, app), ["songs"], ["open_said"])
    wires.on(again.click, "read_again", partial(read_again, app), outputs=["open_said"])
    wires.on(dropped.upload, "drop", partial(take_dropped, app), ["dropped", "drop_name"], ["dropped", "open_said"])
    page.follow_text(wires, "songs_place", "songs", lambda: app.workspace.songs)
    page.watch(wires, "open_done", partial(reading_sign, app), partial(show_reading, app), ["open_said", "files_said"])


def open_place(app: App, songs: str) -> dict[str, Any]:
    """Open what is at a path, in the background: a folder, a dataset file or a ZIP file."""
    path = app.roots.resolve(songs, SONGS_LABEL)
    if not path.exists():
        raise UserError(f"{SONGS_LABEL}: {path} does not exist.", fix="Correct the path or choose another.")
    if path.suffix.lower() == ".zip":
        return _take(app, [path], "")
    app.start_work("songs", f"Reading {path.name}", lambda job: app.open_songs(path, job), path, light=True)
    return {"open_said": BUSY}


def take_dropped(app: App, dropped: list[str] | None, drop_name: str) -> dict[str, Any]:
    """Put dropped files into a new folder below datasets and open it, in the background."""
    if not dropped:
        return {}
    return {"dropped": None, **_take(app, [Path(file) for file in dropped], drop_name)}


def _take(app: App, files: list[Path], name: str) -> dict[str, Any]:
    from acestep.dataset.uploads import take_in

    def take(job: Job) -> Any:
        result = take_in(files, app.datasets, name, job)
        dataset = app.open_songs(result.folder, job)
        dataset.problems += result.skipped
        app.labels.changed_outside()
        return result

    app.start_work(
        "songs",
        f"Taking in {files[0].name if len(files) == 1 else f'{len(files)} files'}",
        take,
        app.datasets,
        light=True,
    )
    return {"open_said": BUSY}


def read_again(app: App) -> dict[str, Any]:
    """Read the folder of the open songs anew, with what was edited: files may have come, gone or changed."""
    dataset = app.labels.history.dataset
    title = f"Reading {dataset.settings.name} again"
    app.start_work("songs", title, app.read_songs_again, dataset.root, light=True)
    return {"open_said": BUSY}


def reading_sign(app: App) -> Hashable:
    work = app.background.current
    return work and work.kind == "songs" and (work.started, work.state)


def show_reading(app: App) -> dict[str, Any]:
    """What is said while songs are read; how that ended stands above the tabs, whether it went well or not."""
    work = app.background.current
    running = work is not None and work.kind == "songs" and work.running
    return dict.fromkeys(("open_said", "files_said"), BUSY if running else "")


# files out and tables in ----------------------------------------------------------------------------------------


def build_files(page: Page, wires: Wires) -> None:
    """Draw saving, and tables for spreadsheets."""
    app = page.app
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            file = gr.Textbox(
                label="Dataset file",
                info="All labels in one JSON file. Once saved, edits are kept in it and no longer beside the songs.",
                elem_id="dataset-file",
            )
            save = gr.Button("Save the dataset file", scale=0, min_width=200)
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                table = gr.Button("Labels as a CSV table", min_width=180)
                imported = gr.UploadButton("Import a CSV table", file_types=[".csv"], min_width=180)
            download = gr.File(label="Table", visible=False, interactive=False)
    done = gr.HTML(padding=False)
    wires.add(file=file, imported=imported, download=download, files_said=done)
    wires.on(save.click, "save", partial(save_file, app), ["file"], ["files_said"])
    wires.on(table.click, "csv", partial(write_table, app), outputs=["download"])
    wires.on(imported.upload, "import", partial(import_table, app), ["imported"], ["files_said"])
    page.follow_text(wires, "file", "file", lambda: file_place(app))


def file_place(app: App) -> str:
    """The dataset file in use, or a proposal."""
    if app.dataset is None:
        return ""
    return str(app.labels.file or app.datasets / f"{safe_name(app.dataset.settings.name, 'my_dataset')}.json")


def save_file(app: App, file: str) -> dict[str, Any]:
    path = app.labels.keep_in(app.roots.resolve(file, "Dataset file"))
    app.choose(songs=str(path))
    return {"files_said": f'<p role="status">Saved to {escape(str(path))}; edits are kept there from now on.</p>'}


def write_table(app: App) -> dict[str, Any]:
    """Labels as CSV, to download."""
    from acestep.dataset.table import write_csv

    dataset = app.labels.history.dataset
    with tempfile.TemporaryDirectory() as folder:
        path = write_csv(dataset, Path(folder) / f"{safe_name(dataset.settings.name, 'labels')}.csv")
        copy = processing_utils.save_file_to_cache(path, get_upload_folder())
    return {"download": gr.update(value=copy, visible=True)}


def import_table(app: App, imported: str) -> dict[str, Any]:
    """Put a table beside the songs and read them again, in the background."""
    from acestep.dataset.uploads import add_table

    root = app.labels.history.dataset.root

    def take(job: Job) -> None:
        add_table(imported, root)
        app.read_songs_again(job)

    app.start_work("songs", f"Importing {Path(imported).name}", take, root, light=True)
    return {"files_said": BUSY}

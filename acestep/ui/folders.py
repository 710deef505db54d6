"""A field for a folder on the server: typed, or found by walking through the allowed folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gradio as gr

from acestep.core.errors import UserError
from acestep.ui.app import App
from acestep.ui.wiring import Wires

UP = ".. (one folder up)"


def folder_field(
    app: App,
    wires: Wires,
    name: str,
    label: str,
    info: str = "",
    take: Callable[[str], dict[str, Any]] = lambda path: {},
    changes: Iterable[str] = (),
) -> gr.Textbox:
    """Draw the field; its path is the part `name` of the wires. Returns the text field.

    A folder that was chosen from the list goes to `take`, which may draw the parts `changes`.
    """
    with gr.Row(equal_height=True, elem_classes=["folder"]):
        path = gr.Textbox(label=label, info=info or None, scale=5, elem_id=f"{wires.tab}-{name}")
        browse = gr.Button("Browse", scale=0, min_width=110)
    choices = gr.Dropdown(
        label=f"Folders ({label.lower()})", choices=[], value=None, visible=False, elem_id=f"{wires.tab}-{name}-folders"
    )
    wires.add(**{name: path, f"{name}_folders": choices})
    outputs = [name, f"{name}_folders"]

    def look(**shown: Any) -> dict[str, Any]:
        return {f"{name}_folders": listing(app, shown[name], label)}

    def enter(**shown: Any) -> dict[str, Any]:
        chosen = entered(app, shown[name], shown[f"{name}_folders"], label)
        return {name: str(chosen), f"{name}_folders": listing(app, str(chosen), label), **take(str(chosen))}

    wires.on(browse.click, f"{name}_browse", look, [name], outputs)
    wires.on(choices.input, f"{name}_enter", enter, [name, f"{name}_folders"], [*outputs, *changes])
    return path


def listing(app: App, typed: str, label: str) -> Any:
    """An update of the list of folders: those in the typed folder, or the allowed ones where nothing is typed."""
    if not typed.strip():
        return gr.update(choices=[str(folder) for folder in app.roots.folders], value=None, visible=True)
    folder = _nearest(app, typed, label)
    above = [UP] if app.roots.parent(folder) else []
    names = [path.name for path in app.roots.subfolders(folder)]
    return gr.update(choices=[*above, *names], value=None, visible=True, label=f"Folders in {folder}")


def entered(app: App, typed: str, choice: str | None, label: str) -> Path:
    """The folder that a choice in the list leads to."""
    if not typed.strip():
        return app.roots.resolve(choice or "", label)
    folder = _nearest(app, typed, label)
    if choice == UP:
        return app.roots.parent(folder) or folder
    return app.roots.resolve(folder / (choice or ""), label)


def _nearest(app: App, typed: str, label: str) -> Path:
    """The typed folder, or the nearest one above it that exists: the field may name a folder yet to be made."""
    path = app.roots.resolve(typed, label)
    while not path.is_dir():
        if not app.roots.allows(path.parent):
            raise UserError(f"{label}: {path} does not exist.", fix="Choose another folder.")
        path = path.parent
    return path

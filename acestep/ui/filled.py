"""Pages that are served with their fields filled in.

What is drawn into a page after it was opened comes late: somebody may be typing by then, and while Gradio still puts a
tab together, it may be lost. So each page brings along what is to stand in its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr


class FilledBlocks(gr.Blocks):
    """Blocks whose pages show what `fill` gives at the moment they are served: values or updates by component."""

    fill: Callable[[], Mapping[Any, Any]] | None = None
    _made: Any

    @property
    def config(self) -> Any:
        """What Gradio sends to a browser that opens the page."""
        if self.fill is None:
            return self._made
        changes = {part._id: _properties(part, update) for part, update in self.fill().items()}
        components = [
            {**component, "props": {**component["props"], **changes.get(component["id"], {})}}
            for component in self._made["components"]
        ]
        return {**self._made, "components": components}

    @config.setter
    def config(self, made: Any) -> None:
        self._made = made


def _properties(part: Any, update: Any) -> dict[str, Any]:
    """An update of a component as Gradio's page takes it."""
    if isinstance(part, gr.State):  # lives on the server alone
        return {}
    if not (isinstance(update, dict) and update.get("__type__") == "update"):
        update = {"value": update}
    properties = {name: value for name, value in update.items() if name != "__type__"}
    if "value" in properties:
        properties["value"] = part.postprocess(properties["value"])
    return properties

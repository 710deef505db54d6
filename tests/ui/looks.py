"""The clock of a page without a browser: what its looks at the app draw, from what stands on the page."""

from __future__ import annotations

from typing import Any

import gradio as gr

from acestep.ui.page import Page


class OpenPage:
    """One open page: what its parts hold, by "tab.part", and what it has seen."""

    def __init__(self, blocks: gr.Blocks, page: Page, tab: str) -> None:
        self.tab = tab
        self.holds: dict[str, Any] = {}
        self._names = {
            part: f"{wires.tab}.{name}" for wires in page.tabs.values() for name, part in wires.parts.items()
        }
        self._looks = {function.name: function for function in blocks.fns.values()}
        self._signs: dict[Any, Any] = {}

    def look(self) -> dict[str, Any]:
        """One look; returns what it draws, by "tab.part", which then stands on the page."""
        return self.show(self.ask())

    def ask(self) -> dict[Any, Any]:
        """The answer to a look, which has not reached the page yet."""
        look = self._looks[f"look_{self.tab}"]
        inputs = [self.holds.get(self._names[part], getattr(part, "value", None)) for part in look.inputs[1:]]
        return look.fn(self._signs.get(look.inputs[0], {}), *inputs)

    def show(self, answer: dict[Any, Any]) -> dict[str, Any]:
        """An answer reaches the page; returns what it draws."""
        drawn = {self._names[part]: update for part, update in answer.items() if part in self._names}
        for part, seen in answer.items():
            nothing_new = isinstance(seen, dict) and seen.get("__type__") == "update"
            if isinstance(part, gr.State) and part not in self._names and not nothing_new:
                self._signs[part] = seen
        self.holds |= drawn
        return drawn

    def type(self, part: str, text: str) -> None:
        """Somebody types into a field."""
        self.holds[part] = text

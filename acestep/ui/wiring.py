"""From a click to a function: values go in by name, updates come out by name, errors stand where they belong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from acestep.core.errors import UserError
from acestep.settings.base import SettingsError
from acestep.ui.controls import Controls

_log = logging.getLogger(__name__)

MOST_DETAIL_LINES = 20
BUG = "This should not happen; the details stand in the window the app was started from."

Handler = Callable[..., Mapping[str, Any] | None]
"""Takes the inputs it names, by keyword; returns what changes, by the name of the output."""


@dataclass
class Wires:
    """The named components of one tab and the events between them.

    `problem` is where errors stand. Each handler is kept in `handlers`, to be called by name without a page.
    """

    tab: str
    problem: gr.Markdown
    parts: dict[str, gr.components.Component | gr.blocks.BlockContext] = field(default_factory=dict)
    controls: list[Controls] = field(default_factory=list)
    handlers: dict[str, Handler] = field(default_factory=dict)
    _once_wrong: set[str] = field(default_factory=set)
    """Settings that had a problem on any page: what one page has put right may still be marked on another."""

    def add(self, **components: Any) -> None:
        """Name components. A name stands for one component only."""
        for name, component in components.items():
            if name in self.parts:
                raise ValueError(f"{self.tab} has two components named {name}")
            self.parts[name] = component

    def add_controls(self, controls: Controls) -> None:
        """Name the components of settings by their settings."""
        self.controls.append(controls)
        self.add(**controls.components)

    def on(
        self,
        event: Any,
        name: str,
        handler: Handler,
        inputs: Iterable[str] = (),
        outputs: Iterable[str] = (),
        event_data: str = "",
        refused: Callable[[], Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Any:
        """When `event` happens (a click, a change, or a list of them), call `handler` with the named inputs.

        A UserError is shown in the tab's problem line and at the fields it names; any other error goes to the log
        with its traceback. What the event itself tells goes in under the name `event_data`, if one is given.
        `refused` gives what to draw after a UserError, where the page would go on to show a choice that was not taken.
        Returns gradio's dependency, for `.then`.
        """
        self.handlers[name] = handler
        inputs = list(inputs)
        marked = [controls for controls in self.controls if any(part in controls.knobs for part in inputs)]
        shown = dict.fromkeys([*outputs, *(part for controls in marked for part in controls.knobs)])

        def call(*values: Any, **told: Any) -> dict[Any, Any]:
            try:
                updates = handler(**dict(zip(inputs, values, strict=True)), **told) or {}
            except UserError as error:
                fields = error.fields if isinstance(error, SettingsError) else {}
                restored = self._named(refused() if refused else {})
                return {self.problem: problem(str(error), error.detail), **self._marks(marked, fields), **restored}
            except Exception as error:  # noqa: BLE001 - the edge of a request: traceback to the log, a word to the page
                _log.exception("%s: %s", self.tab, name)
                return {self.problem: problem(f"{BUG} ({type(error).__name__}: {error})")}
            return {self.problem: problem(""), **self._marks(marked, {}), **self._named(updates)}

        def call_with_event(event: gr.EventData, *values: Any) -> dict[Any, Any]:
            return call(*values, **{event_data: event._data})

        return gr.on(
            event if isinstance(event, list) else [event],
            call_with_event if event_data else call,
            inputs=[self.parts[part] for part in inputs],
            outputs=[self.problem, *(self.parts[part] for part in shown)],
            api_name=f"{self.tab}_{name}",
            **{"show_progress": "hidden", **options},
        )

    def _named(self, updates: Mapping[str, Any]) -> dict[Any, Any]:
        return {self.parts[part]: update for part, update in updates.items()}

    def _marks(self, marked: list[Controls], problems: Mapping[str, str]) -> dict[Any, Any]:
        """Updates that put each problem at its field and take away those of before."""
        self._once_wrong.update(problems)
        return {
            controls.components[name]: controls.marked(name, problems.get(name))
            for controls in marked
            for name in self._once_wrong & controls.knobs.keys()
        }


def problem(text: str, detail: str = "") -> Any:
    """An update of a problem line: hidden when there is none."""
    rest = "\n".join(f"    {line}" for line in detail.splitlines()[:MOST_DETAIL_LINES])
    return gr.update(value=f"{text}\n\n{rest}".strip(), visible=bool(text))

"""The frame under an app's page: its tabs, and the clock by which open pages follow the app.

A page never holds work. Once a second it looks at the app and redraws what has changed, so that a reload, a second
window and another browser all show the same. A text that was changed by hand is left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from acestep.core.errors import UserError
from acestep.ui.app import App
from acestep.ui.wiring import BUG, Handler, Wires, problem

LOOK_EVERY_S = 1.0
FRAME = "frame"
"""Name of what stands above the tabs and is always seen."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trouble:
    """The sign of a part that could not be drawn; it is tried again with every look."""

    text: str


@dataclass(frozen=True)
class Watcher:
    """A part of the page that follows the app: `sign` is cheap and changes when `show` would draw something else.

    Both get what stands in the parts named by `inputs` on the page that looks, by keyword.
    """

    wires: Wires
    name: str
    sign: Callable[..., Hashable]
    show: Handler
    outputs: tuple[str, ...]
    inputs: tuple[str, ...] = ()

    def look(self, before: Hashable, shown: Mapping[str, Any] | None = None) -> tuple[Hashable, dict[Any, Any]]:
        """The sign now, and updates where it is another than `before`; `shown` is what its inputs hold."""
        shown = shown or {}
        try:
            sign = self.sign(**shown)
            if sign == before:
                return sign, {}
            updates = self.show(**shown) or {}
        except UserError as error:
            trouble = Trouble(str(error))
            return trouble, {} if before == trouble else {self.wires.problem: problem(str(error), error.detail)}
        except Exception as error:  # noqa: BLE001 - one broken part must not stop the others: traceback to the log
            _log.exception("%s: %s", self.wires.tab, self.name)
            return Trouble(repr(error)), {self.wires.problem: problem(f"{BUG} ({type(error).__name__}: {error})")}
        over = {self.wires.problem: problem("")} if isinstance(before, Trouble) else {}
        return sign, over | {self.wires.parts[part]: update for part, update in updates.items()}


@dataclass
class Page:
    """A page under construction, and the handlers of all its tabs."""

    app: App
    tabs: dict[str, Wires] = field(default_factory=dict)
    watchers: list[Watcher] = field(default_factory=list)
    _blocks: dict[str, gr.Tab] = field(default_factory=dict)

    @contextmanager
    def tab(self, name: str, label: str) -> Iterator[Wires]:
        """Open a tab; what is built inside the block stands on it, below the line for its problems."""
        with gr.Tab(label, id=name, elem_id=f"tab-{name}") as block:
            self._blocks[name] = block
            yield self.wires(name)

    def wires(self, name: str) -> Wires:
        """The line for problems of a part of the page, made here, with the wires of that part."""
        line = gr.Markdown(visible=False, elem_classes=["problem"], elem_id=f"{name}-problem")
        self.tabs[name] = Wires(name, line)
        return self.tabs[name]

    def watch(
        self,
        wires: Wires,
        name: str,
        sign: Callable[..., Hashable],
        show: Handler,
        outputs: Iterable[str],
        inputs: Iterable[str] = (),
    ) -> None:
        """Redraw `outputs` by `show` whenever `sign` gives something new while the part is seen.

        What the parts `inputs` hold on each page goes into both; keep it small, as it is sent with every look.
        """
        wires.handlers[name] = show
        self.watchers.append(Watcher(wires, name, sign, show, tuple(outputs), tuple(inputs)))

    def watch_form(
        self, wires: Wires, name: str, sign: Callable[[], Hashable], show: Handler, outputs: Iterable[str]
    ) -> None:
        """Redraw a form that the app remembers. Handlers that get `drawn(name)` can tell by `meant` what it says."""
        wires.add(**{drawn(name): gr.State(False)})
        self.watch(wires, name, sign, lambda: {**(show() or {}), drawn(name): True}, [*outputs, drawn(name)])

    def follow_text(self, wires: Wires, name: str, part: str, wanted: Callable[[], str]) -> None:
        """Let the text field `part` show what `wanted` says, but leave it to whoever has typed into it."""
        if drawn(part) not in wires.parts:
            add_drawn(wires, part)
        inputs = [part, drawn(part)]
        self.watch(wires, name, lambda **_: wanted(), lambda **shown: followed(part, wanted(), shown), inputs, inputs)

    def handler(self, path: str) -> Handler:
        """A handler by "tab.name", to be called without a browser."""
        tab, _, name = path.partition(".")
        return self.tabs[tab].handlers[name]

    def start_clock(self, blocks: gr.Blocks) -> None:
        """Look once a second, and at once when the page is opened or another tab is chosen.

        Every tab has a clock of its own, which goes while the tab is seen: a browser works on every output of a look,
        changed or not, and with those of all tabs in one look that was half a core for an idle page. What was seen is
        kept by tab as well: looks of two tabs may overlap, and the later to end would forget what the other has drawn.
        Choices of tabs are answered one after the other: an opened page chooses its first, and answered last that would
        stop the clock of the tab chosen since.
        """
        first = next(iter(self._blocks))
        clocks = {name: gr.Timer(LOOK_EVERY_S, active=name == first) for name in self._blocks}
        for name, block in self._blocks.items():
            look, options = self._look(name)
            clocks[name].tick(look, trigger_mode="once", **options)
            if name == first:
                blocks.load(look, **options)
            block.select(
                lambda name=name: {clock: gr.Timer(active=tab == name) for tab, clock in clocks.items()},
                outputs=[*clocks.values()],
                api_visibility="private",
                show_progress="hidden",
                concurrency_id="tabs",
                concurrency_limit=1,
            ).then(look, **options)

    def _look(self, tab: str) -> tuple[Callable[..., dict[Any, Any]], dict[str, Any]]:
        """What draws the frame and a tab anew where they have changed, and what it needs on the page."""
        seen = gr.State({})
        watchers = [watcher for watcher in self.watchers if watcher.wires.tab in (FRAME, tab)]
        problems = [watcher.wires.problem for watcher in watchers]
        shown = [watcher.wires.parts[part] for watcher in watchers for part in watcher.outputs]
        asked = list(dict.fromkeys(watcher.wires.parts[part] for watcher in watchers for part in watcher.inputs))

        def look(signs: dict[str, Hashable], *values: Any) -> dict[Any, Any]:
            holds = dict(zip(asked, values, strict=True))
            now = dict(signs)
            updates: dict[Any, Any] = {}
            for watcher in watchers:
                key = f"{watcher.wires.tab}.{watcher.name}"
                shown = {part: holds[watcher.wires.parts[part]] for part in watcher.inputs}
                now[key], changed = watcher.look(now.get(key), shown)
                updates |= changed
            return {seen: now if now != signs else gr.skip(), **updates}

        look.__name__ = f"look_{tab}"
        return look, {
            "inputs": [seen, *asked],
            "outputs": list(dict.fromkeys([seen, *problems, *shown])),
            "show_progress": "hidden",
            "api_visibility": "private",
        }


def drawn(part: str) -> str:
    """The part that holds, for each page, the text that the field `part` was given last or that was taken from it.

    For a form: whether it has been drawn on that page.
    """
    return f"{part}_drawn"


def meant(form: str, shown: Mapping[str, Any], remembered: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What a page holds, with the `remembered` values where its form has not been drawn yet.

    A form is drawn when its tab is opened. Until then its fields hold what they held when the app began, and a click
    means the form as it is to be shown.
    """
    return {**shown} if shown.get(drawn(form), True) else {**shown, **remembered()}


def add_drawn(wires: Wires, part: str) -> None:
    """Let pages know which text of a field is not of their user's typing; at first there is none."""
    wires.add(**{drawn(part): gr.State("")})


def followed(part: str, text: str, shown: Mapping[str, Any]) -> dict[str, Any]:
    """Updates by which a text field shows `text`, unless somebody has typed something else into it.

    `shown` holds the field and what was drawn there last, as they stand on the page.
    """
    typed = str(shown.get(part) or "")
    if typed == text:
        return {drawn(part): text}
    if typed != shown.get(drawn(part), ""):
        return {drawn(part): typed} if _same_place(typed, text) else {}
    return {part: text, drawn(part): text}


def _same_place(typed: str, path: str) -> bool:
    """Whether somebody has typed this path, spelled in his own way."""
    try:
        return bool(path) and Path(typed.strip().strip('"')).expanduser().resolve() == Path(path)
    except (OSError, RuntimeError, ValueError):  # no path at all
        return False

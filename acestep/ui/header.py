"""Above the tabs of the trainer: the way from folder to adapter, and the work under way with its stop button."""

from __future__ import annotations

from collections.abc import Hashable
from html import escape
from typing import Any

import gradio as gr

from acestep.core.background import Work
from acestep.core.jobs import Stage, job_elsewhere
from acestep.ui.app import App
from acestep.ui.page import FRAME, Page
from acestep.ui.stations import Station, stations


def build_header(page: Page, title: str, shows_way: bool = True) -> None:
    """Draw the header; it follows the app by itself. `shows_way`: with the way from folder to adapter."""
    app = page.app
    gr.HTML(f"<h1>{escape(title)}</h1>", padding=False)
    way = gr.HTML(elem_id="way", padding=False, visible=shows_way)
    wires = page.wires(FRAME)
    with gr.Row(elem_id="work", equal_height=True):
        work = gr.HTML(elem_id="work-line", padding=False)
        stop = gr.Button("Stop", visible=False, scale=0, min_width=120, elem_id="stop-work")
        dismiss = gr.Button("Dismiss", visible=False, scale=0, min_width=120, elem_id="dismiss-work")
    notes = gr.Markdown(visible=False, elem_classes=["problem"])
    wires.add(way=way, work=work, stop=stop, dismiss=dismiss, notes=notes)
    page.watch(wires, "notes", lambda: len(app.notes), lambda: show_notes(app), ["notes"])
    if shows_way:
        page.watch(wires, "way", lambda: way_sign(app), lambda: {"way": way_html(stations(app))}, ["way"])
    page.watch(
        wires,
        "work",
        lambda: (work_sign(app.background.current), elsewhere(app), app.dismissed),
        lambda: show_work(app),
        ["work", "stop", "dismiss"],
    )
    wires.on(stop.click, "stop_work", lambda: stop_work(app), outputs=["stop"])
    wires.on(dismiss.click, "dismiss", lambda: dismiss_work(app), outputs=["work", "stop", "dismiss"])


def show_notes(app: App) -> dict[str, Any]:
    """What went wrong while the app started."""
    return {"notes": gr.update(value="\n\n".join(app.notes), visible=bool(app.notes))}


def way_sign(app: App) -> Hashable:
    """Changes with the workspace, the dataset in hand, and each piece of work that begins or ends."""
    current = app.background.current
    return app.revision, app.labels.revision, current and (current.started, current.state)


def way_html(found: list[Station]) -> str:
    """The stations as a list; the first that is not done is where the user is."""
    here = next((station for station in found if not station.done), None)
    items = []
    for station in found:
        state = "done" if station.done else "here" if station is here else "ahead"
        current = ' aria-current="step"' if station is here else ""
        items.append(
            f'<li class="{state}"{current}><b>{escape(station.label)}</b><span>{escape(station.facts)}</span></li>'
        )
    advice = here.advice if here else "Listen to the adapter, then export it for the program you play it in."
    return f'<ol class="way">{"".join(items)}</ol><p class="next">Next: {escape(advice)}</p>'


def work_sign(work: Work | None) -> Hashable:
    """Changes with every step that shows."""
    if work is None:
        return None
    stage = work.stage
    place = stage and (stage.name, stage.done, int(stage.elapsed_s(work.job.clock())))
    return work.started, work.state, place, work.job.stop_requested


def elsewhere(app: App) -> str:
    """What another app does on this computer, while this one does nothing."""
    return "" if app.background.busy else job_elsewhere()


def show_work(app: App) -> dict[str, Any]:
    work = app.background.current
    other = elsewhere(app)
    beside = other_work_html(other) if other else ""
    ended = work is not None and not work.running
    if work is None or (ended and app.dismissed == work.started):
        return {"work": beside, "stop": gr.update(visible=False), "dismiss": gr.update(visible=False)}
    asked = work.job.stop_requested
    button = gr.update(visible=work.running, value="Stopping…" if asked else "Stop", interactive=not asked)
    return {"work": work_html(work) + beside, "stop": button, "dismiss": gr.update(visible=ended)}


def work_html(work: Work) -> str:
    """One line on the work: what it is, how far, how long still; or how it ended."""
    title = f"<b>{escape(work.title)}</b>"
    if not work.running:
        ending = {"finished": "is finished.", "stopped": "was stopped; what was done is kept.", "failed": "failed: "}
        return f'<div class="work {work.state}" role="status">{title} {ending[work.state]}{escape(work.problem)}</div>'
    stage = work.stage
    if stage is None:
        return f'<div class="work running" role="status">{title} is getting ready…</div>'
    share = min(100.0, 100 * stage.done / stage.total) if stage.total else 0.0
    return (
        f'<div class="work running" role="status">{title}<span>{escape(stage_words(stage, work.job.clock()))}</span>'
        f'<progress max="100" value="{share:.1f}" aria-label="{escape(stage.name)}"></progress></div>'
    )


def other_work_html(title: str) -> str:
    """One line on heavy work of another program."""
    return (
        f'<div class="work" role="status"><b>{escape(title)}</b>goes on in another program on this computer. '
        "Heavy work can begin here when that has ended; opening and editing songs goes on.</div>"
    )


def stage_words(stage: Stage, now: float) -> str:
    """How far a stage is, such as "train: 120 of 500 steps, epoch 3, loss 0.8, 2 min left"."""
    progress = stage.progress
    if stage.unit == "bytes":
        progress = f"{stage.done / 1e9:.2f} of {stage.total / 1e9:.2f} GB"
    parts = [f"{stage.name}: {progress}"]
    parts += [stage.note] if stage.note else []
    remaining = stage.remaining_s(now)
    parts += [f"{duration_words(remaining)} left"] if remaining is not None and stage.ended is None else []
    return ", ".join(parts)


def duration_words(seconds: float) -> str:
    """A duration as people say it: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def stop_work(app: App) -> dict[str, Any]:
    app.background.stop()
    return {"stop": gr.update(value="Stopping…", interactive=False)}


def dismiss_work(app: App) -> dict[str, Any]:
    """Put the line on ended work away, on every page."""
    if app.background.current and not app.background.busy:
        app.dismissed = app.background.current.started
    return show_work(app)

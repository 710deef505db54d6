"""How light the trainer app is: time to the first page, memory while idle, time of each look and handler with many
songs, and what five open pages cost the server while a run goes on.

    python benchmarks/app.py [--songs 500] [--rounds 5] [--pages 5]

The baseline beside each figure is the smallest gradio page there is, or the same work without pages, in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SMALLEST_APP = """
import sys, gradio as gr
with gr.Blocks(analytics_enabled=False) as blocks:
    gr.Textbox("hello")
blocks.launch(server_port=int(sys.argv[1]), quiet=True, ssr_mode=False)
"""
OUR_APP = """
import sys
from pathlib import Path
import lora_training_ui
from acestep.ui.app import App
from acestep.ui.serving import ServeOptions, serve
app = App(Path(sys.argv[2]))
blocks, page = lora_training_ui.build(app)
if app.workspace.train.max_steps:
    from acestep.ui.training_work import start_run
    start_run(app, app.workspace.train)
serve(blocks, app, ServeOptions(port=int(sys.argv[1])), print)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(code: str, *arguments: str) -> tuple[subprocess.Popen[bytes], str, float]:
    """A server process, its address, and the seconds until it answered with a page."""
    port, begun = free_port(), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(port), *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"},
    )
    address = f"http://127.0.0.1:{port}/"
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).read()
            return process, address, time.perf_counter() - begun
        except OSError:
            if process.poll() is not None:
                raise SystemExit("the server did not start") from None
            time.sleep(0.02)


def memory_mb(process: subprocess.Popen[bytes]) -> float:
    import psutil

    return psutil.Process(process.pid).memory_info().rss / 1e6


def first_page(rounds: int, project: Path) -> None:
    rows = {}
    for name, code, more in (("smallest page", SMALLEST_APP, ()), ("trainer", OUR_APP, (str(project),))):
        times, sizes = [], []
        for _ in range(rounds):
            process, _, seconds = started(code, *more)
            times.append(seconds)
            sizes.append(memory_mb(process))
            process.terminate()
            process.wait()
        rows[name] = statistics.median(times), statistics.median(sizes)
    for name, (seconds, size) in rows.items():
        print(f"{name:<16} first page after {seconds:5.2f} s, {size:5.0f} MB when idle")


def many_songs(folder: Path, count: int) -> None:
    """So many labelled songs of two seconds, all different."""
    import numpy as np
    import soundfile

    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(count):
        soundfile.write(folder / f"song {number:04d}.wav", noise.normal(0, 0.1, 96_000).astype("float32"), 48_000)
        (folder / f"song {number:04d}.caption.txt").write_text(f"song number {number}, calm piano", encoding="utf-8")


def median_ms(rounds: int, function: Callable[[], object]) -> float:
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


def looks(rounds: int, project: Path, songs: Path) -> None:
    """Every part of the page that follows the app: its sign, asked for once a second, and drawing it anew."""
    from acestep.core.jobs import Job
    from acestep.ui.app import App
    from lora_training_ui import build

    app = App(project, (songs,))
    _, page = build(app)
    begun = time.perf_counter()
    app.open_songs(songs, Job())
    print(f"scan of {len(app.dataset.songs)} songs: {time.perf_counter() - begun:.2f} s")  # type: ignore[union-attr]
    song = app.dataset.songs[len(app.dataset.songs) // 2]  # type: ignore[union-attr]
    key = f"{app.labels.generation}.{app.labels.revision}.{song.id}"
    view = {"search": "", "show": "all", "order": ["file", False]}
    holds = {**view, "song": key, "page": "me", "drawn": None}
    rows = []
    for watcher in page.watchers:
        shown = {name: holds.get(name, "") for name in watcher.inputs}
        times = [median_ms(rounds, partial(function, **shown)) for function in (watcher.sign, watcher.show)]
        rows.append((f"{watcher.wires.tab}.{watcher.name}", *times))
    print(f"{'part':<28} {'sign ms':>8} {'draw ms':>8}")
    for name, sign, draw in sorted(rows, key=lambda row: -row[2]):
        print(f"{name:<28} {sign:8.2f} {draw:8.2f}")
    print(f"{'all signs, once a second':<28} {sum(row[1] for row in rows):8.2f}")
    handlers(rounds, page, view, key, song.id)


def handlers(rounds: int, page: Any, view: dict[str, Any], key: str, song: str) -> None:
    """What a user of the Dataset tab waits for."""
    words = (f"calm piano {number}" for number in itertools.count())
    kinds = {"bulk_songs": "all", "bulk_kind": "set", "bulk_field": "genre", "bulk_text_field": "caption", "song": key}
    texts = dict.fromkeys(("bulk_find", "bulk_replacement", "bulk_added"), "")
    bulk = {**view, **kinds, **texts, "bulk_pattern": False, "bulk_match_case": True, "bulk_where": "before"}

    def many(name: str) -> object:
        return page.handler(f"dataset.{name}")(**bulk, bulk_language="en", bulk_value=next(words))

    calls: dict[str, Callable[[], object]] = {
        "choose a song": lambda: page.handler("dataset.pick")(picked={"song": song, "sort": ""}, **view),
        "next song": lambda: page.handler("dataset.next")(song=key, **view),
        "filter the table": lambda: page.handler("dataset.filter")(**{**view, "search": "42"}),
        "edit one caption": lambda: page.handler("dataset.edit_caption")(
            song=key, page="me", label_caption=next(words)
        ),
        "show a change of all songs": lambda: many("bulk_preview"),
        "change all songs": lambda: many("bulk_apply"),
        "take that back": lambda: (many("bulk_apply"), page.handler("dataset.bulk_undo")()),
        "labels as a table": lambda: page.handler("dataset.csv")(),
    }
    print(f"{'handler':<28} {'ms':>8}")
    for name, function in calls.items():
        print(f"{name:<28} {median_ms(rounds, function):8.1f}")


def prepare_run(project: Path) -> None:
    """Choose the demo's model and tensors and a run without an end, which the server then begins."""
    from acestep.core.jobs import Job
    from acestep.model.checkpoints import resolve_checkpoint
    from acestep.preprocess.run import preprocess
    from acestep.settings import PreprocessSettings
    from acestep.ui.app import App
    from acestep.ui.demo import prepare_demo

    app = App(project)
    prepare_demo(app, Job())
    chosen = app.workspace
    assert app.dataset is not None
    preprocess(app.dataset, resolve_checkpoint(chosen.model), chosen.tensors, PreprocessSettings(), Job())
    app.choose(train=chosen.train.changed(max_steps=1_000_000))


def open_pages(pages: int, seconds: float, project: Path) -> None:
    """Processor time of the server without pages and with several, seen by real browsers; and steps of its run."""
    import psutil
    from playwright.sync_api import sync_playwright

    process, address, _ = started(OUR_APP, str(project))
    server = psutil.Process(process.pid)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for count in (0, 1, pages):
            opened = [browser.new_page() for _ in range(count)]
            for page in opened:
                page.goto(address)
                page.get_by_role("tab", name="Train", exact=True).click()
            time.sleep(2)
            before, steps = sum(server.cpu_times()[:2]), steps_done(project)
            time.sleep(seconds)
            used, done = sum(server.cpu_times()[:2]) - before, steps_done(project) - steps
            training = f", {done / seconds:.1f} steps/s" if done else ""
            print(
                f"{count} open pages: {100 * used / seconds:5.1f} % of one core, {memory_mb(process):.0f} MB{training}"
            )
            for page in opened:
                page.close()
        browser.close()
    process.terminate()
    process.wait()


def steps_done(project: Path) -> int:
    """Optimizer steps in the logs of all runs."""
    return sum(log.read_text().count('"kind": "step"') for log in (project / "lora_output").glob("*/events.jsonl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pages", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    folder = Path(tempfile.mkdtemp(prefix="acestep-app-"))
    os.environ["ACESTEP_STATE_DIR"] = str(folder / "state")
    try:
        project, songs = folder / "project", folder / "songs"
        project.mkdir()
        many_songs(songs, options.songs)
        first_page(options.rounds, project)
        looks(options.rounds, project, songs)
        open_pages(options.pages, options.seconds, project)
        print("the same while a run goes on:")
        prepare_run(project)
        open_pages(options.pages, options.seconds, project)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

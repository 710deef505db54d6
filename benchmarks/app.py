"""How light the trainer app is: time to the first page, memory while idle, time of each look and handler with many
songs, and what five open pages cost the server while a run goes on.

    python benchmarks/app.py [--songs 500] [--rounds 5] [--pages 5]

The baseline beside each figure is the smallest gradio page there is, or the same work without pages, in the same run.
"""

from __future__ import annotations

import argparse
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
from pathlib import Path

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
blocks, _ = lora_training_ui.build(app)
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
    rows = [
        (f"{watcher.wires.tab}.{watcher.name}", median_ms(rounds, watcher.sign), median_ms(rounds, watcher.show))
        for watcher in page.watchers
    ]
    print(f"{'part':<28} {'sign ms':>8} {'draw ms':>8}")
    for name, sign, draw in sorted(rows, key=lambda row: -row[2]):
        print(f"{name:<28} {sign:8.2f} {draw:8.2f}")
    print(f"{'all signs, once a second':<28} {sum(row[1] for row in rows):8.2f}")


def open_pages(pages: int, seconds: float, project: Path) -> None:
    """Processor time of the server without pages and with several, seen by real browsers."""
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
                page.get_by_role("tab").first.wait_for()
            time.sleep(2)
            before = sum(server.cpu_times()[:2])
            time.sleep(seconds)
            used = sum(server.cpu_times()[:2]) - before
            print(f"{count} open pages: {100 * used / seconds:5.1f} % of one core, {memory_mb(process):.0f} MB")
            for page in opened:
                page.close()
        browser.close()
    process.terminate()
    process.wait()


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
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

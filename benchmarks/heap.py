"""What it saves on a processor to keep freed pages, and what memory that takes.

Preprocesses the demo's songs and trains an adapter on the demo's model in fresh processes, in turns:

* kept: as the program does it (`acestep.core.heap`);
* plain: with the C library's own habits.

    env/bin/python benchmarks/heap.py [--steps N] [--repeats N] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

WAYS = ("kept", "plain")
FIGURES = {"preprocess_cpu_s": "preprocess, CPU s", "train_cpu_s": "train, CPU s", "wall_s": "both, s", "peak_mb": "MB"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of the training")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes for each way")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder, options.steps)))
        return 0
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way in WAYS:
            with tempfile.TemporaryDirectory(prefix="acestep-heap-") as folder:
                runs[way].append(in_fresh_process(way, Path(folder), options.steps))
    report(runs, options.json)
    return 0


def in_fresh_process(way: str, folder: Path, steps: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", way, "--folder", str(folder), "--steps", str(steps)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(way: str, folder: Path, steps: int) -> dict[str, float]:
    """CPU seconds of both commands, their time together and the peak memory of the process."""
    from acestep.cli import main as acestep
    from acestep.core import device
    from acestep.dataset.demo import write_demo_songs
    from acestep.model.demo import write_demo_checkpoint

    if way == "plain":
        device.keep_freed_pages = lambda: False  # type: ignore[assignment]
    model, songs, tensors = write_demo_checkpoint(folder / "model"), write_demo_songs(folder / "songs"), folder / "t"
    preprocess = ["preprocess", str(songs), "--model", str(model), "--out", str(tensors)]
    train = ["train", "--model", str(model), "--tensors", str(tensors), "--out", str(folder / "runs"), "--yes"]
    train += ["--max-steps", str(steps), "--no-tensorboard"]
    found, began = {}, time.perf_counter()
    for command in (preprocess, train):
        before = time.process_time()
        with contextlib.redirect_stdout(sys.stderr):
            if acestep(command):
                raise SystemExit(f"acestep {command[0]} failed")
        found[f"{command[0]}_cpu_s"] = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {**found, "wall_s": time.perf_counter() - began, "peak_mb": peak}


def report(runs: dict[str, list[dict[str, float]]], as_json: bool) -> None:
    medians = {way: {name: statistics.median(run[name] for run in runs[way]) for name in FIGURES} for way in WAYS}
    ratios = {name: medians["kept"][name] / medians["plain"][name] for name in FIGURES}
    if as_json:
        print(json.dumps({"runs": runs, "medians": medians, "kept / plain": ratios}))
        return
    print(f"{'':20}{'kept':>10}{'plain':>10}{'ratio':>8}")
    for name, label in FIGURES.items():
        print(f"{label:20}{medians['kept'][name]:10.1f}{medians['plain'][name]:10.1f}{ratios[name]:8.2f}")


if __name__ == "__main__":
    sys.exit(main())

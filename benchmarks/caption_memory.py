"""Memory of a local model over many songs: the process after each song, and how fast it grows.

Builds a tiny random model of the true class, labels songs of different lengths through the ordinary backend, and fits
a line through the resident memory after the first fifth, which holds caches that fill once. Then the model is
unloaded, and how many of its tensors are still alive is counted.

    env/bin/python benchmarks/caption_memory.py [--songs N] [--backend NAME] [--model FOLDER] [--json]

With `--model` the folder or Hub name of a real model is measured instead.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

LIMIT_KIB = 64
"""KiB a song that memory may grow by and still be called flat: 100 000 songs then need 6 GiB."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=200)
    parser.add_argument("--backend", default="ace-captioner")
    parser.add_argument("--model", default="")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="acestep-caption-") as place:
        facts = measure(options.backend, options.model or build(options.backend, Path(place)), options.songs)
    if options.json:
        print(json.dumps(facts))
    else:
        print(
            f"{options.backend}: {facts['songs']} songs in {facts['seconds']:.0f} s, "
            f"{facts['start_mib']:.0f} MiB after the first fifth, {facts['end_mib']:.0f} MiB at the end, "
            f"{facts['growth_kib_a_song']:+.1f} KiB a song; {facts['tensors_left']} tensors left after unloading"
        )
    return 0 if facts["growth_kib_a_song"] <= LIMIT_KIB and facts["tensors_left"] <= 0 else 1


def build(backend: str, folder: Path) -> str:
    from acestep.captioning.demo import build_flamingo, build_omni, build_whisper

    builders = {"whisper": build_whisper, "music-flamingo": build_flamingo}
    return str(builders.get(backend, build_omni)(folder))


def measure(name: str, model: str, songs: int) -> dict[str, Any]:
    """Resident memory in MiB, its growth in KiB a song, and the tensors that outlive the model."""
    from acestep.captioning.contract import FIELDS, SongToLabel
    from acestep.captioning.registry import backend
    from acestep.core.jobs import Job
    from acestep.settings.caption import CaptionSettings

    chosen = {"caption_by": name, "lyrics_by": name, "caption_model": model, "lyrics_model": model}
    settings = CaptionSettings(**chosen, max_tokens=32, window_s=10)
    before = live_tensors()
    memory, process, begun = [], psutil.Process(), time.monotonic()
    random = np.random.default_rng(0)
    with backend(name).open(settings, {}, Job()) as opened:
        for number in range(songs):
            duration_s = 2 + number * 7 % 11
            samples = random.normal(0, 0.1, (1, 16_000 * duration_s)).astype(np.float32)
            opened.label(SongToLabel(Path(f"{number}.wav"), duration_s, frozenset(FIELDS), samples))
            memory.append(process.memory_info().rss)
    seconds = time.monotonic() - begun
    steady = memory[songs // 5 :]
    growth = np.polyfit(np.arange(len(steady)), steady, 1)[0] if len(steady) > 1 else 0.0
    return {
        "songs": songs,
        "seconds": seconds,
        "start_mib": steady[0] / 2**20,
        "end_mib": steady[-1] / 2**20,
        "growth_kib_a_song": float(growth) / 2**10,
        "tensors_left": live_tensors() - before,
    }


def live_tensors() -> int:
    import torch

    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


if __name__ == "__main__":
    raise SystemExit(main())

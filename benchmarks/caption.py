"""What a labelling batch gains by decoding ahead and by asking services in parallel, and that its memory stays flat.

    env/bin/python benchmarks/caption.py [--songs 12] [--seconds 60] [--cost 0.15] [--many 1000] [--repeats 5]

The backend stands in for a model on a graphics card or a service: it looks at the samples it is given and takes a
known time in which the processor is free. Decoding, reading, deciding and writing are those of the program. The first
part is compared with the plain loop (decode, ask, write, next) in turns, so that a busy machine slows both alike.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import soundfile

from acestep.audio.resample import decode_as
from acestep.captioning.batch import label_dataset
from acestep.captioning.contract import Answer, BackendFacts, Guess, Hearing, SongToLabel
from acestep.captioning.registry import BACKENDS
from acestep.core.jobs import Job
from acestep.dataset.dataset import Dataset
from acestep.dataset.label_files import LabelWriter
from acestep.dataset.scan import scan_folder
from acestep.dataset.song import Song
from acestep.settings.caption import CaptionSettings


class StandIn:
    """Captions a song by its peak or its length and takes `cost_s` for it."""

    def __init__(self, name: str, cost_s: float, hears: Hearing | None) -> None:
        self.facts = BackendFacts(name, name, "model", frozenset({"caption"}), hears, parallel=hears is None)
        self.cost_s = cost_s

    @contextmanager
    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Iterator[StandIn]:
        yield self

    def label(self, song: SongToLabel) -> Answer:
        time.sleep(self.cost_s)
        told = song.duration_s if song.samples is None else float(np.abs(song.samples).max())
        return Answer({"caption": Guess(f"a song of {told:.6f}")})


LOCAL, SERVICE = StandIn("local", 0.0, Hearing(16_000, 1)), StandIn("service", 0.0, None)


def local() -> StandIn:
    return LOCAL


def service() -> StandIn:
    return SERVICE


def write_songs(folder: Path, count: int, seconds: float, rate: int) -> Path:
    """Noise-like chords as FLAC, so that decoding is real work."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        samples = generator.normal(0, 0.1, (int(seconds * rate), 2)).cumsum(axis=0)
        samples *= 0.5 / np.abs(samples).max()
        soundfile.write(folder / f"song{number:04d}.flac", samples, rate)
    return folder


def unlabelled(folder: Path) -> Dataset:
    for sidecar in folder.glob("*.json"):
        sidecar.unlink()
    return scan_folder(folder)


def plain_loop(dataset: Dataset) -> None:
    """Decode, ask, write, next."""
    with LabelWriter(dataset) as writer:
        for song in dataset.songs:
            samples = decode_as(song.path, 16_000, 1).samples
            answer = LOCAL.label(SongToLabel(song.path, song.duration_s, frozenset({"caption"}), samples))
            song.set_from("local", "caption", answer.values["caption"].value)
            writer.write(song)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def overlap(folder: Path, repeats: int) -> None:
    chosen = CaptionSettings(caption_by="local", lyrics_by="", metadata_by="")
    plain, ahead, decoding = [], [], []
    for _ in range(repeats):
        dataset = unlabelled(folder)
        decoding.append(seconds(lambda songs=dataset.songs: [decode_as(song.path, 16_000, 1) for song in songs]))
        plain.append(seconds(lambda songs=dataset: plain_loop(songs)))
        first = captions(scan_folder(folder).songs)
        dataset = unlabelled(folder)
        ahead.append(seconds(lambda songs=dataset: label_dataset(songs, chosen, {})))
        assert captions(scan_folder(folder).songs) == first, "both ways write the same captions"
    count, model_s = len(dataset.songs), LOCAL.cost_s * len(dataset.songs)
    print(f"{count} songs, model {model_s:.2f} s, decoding alone {statistics.median(decoding):.2f} s")
    print(
        f"  plain loop {statistics.median(plain):.2f} s, ours {statistics.median(ahead):.2f} s (medians of {repeats})"
    )
    print(f"  {1 - statistics.median(ahead) / statistics.median(plain):.0%} of the time saved")


def captions(songs: list[Song]) -> list[str]:
    return [song.caption for song in songs]


def parallel(folder: Path, repeats: int) -> None:
    process = psutil.Process(os.getpid())
    for requests in (1, 16):
        chosen = CaptionSettings(caption_by="service", lyrics_by="", metadata_by="", parallel_requests=requests)
        times, growth = [], []
        for _ in range(repeats if requests > 1 else 1):
            dataset = unlabelled(folder)
            dataset.songs = dataset.songs[:: 16 // requests]  # as many rounds of waiting
            before = process.memory_info().rss
            job, most = Job(), [before]
            job.listen(lambda kind, what, most=most: most.append(max(most[-1], process.memory_info().rss)))
            started = time.perf_counter()
            report = label_dataset(dataset, chosen, {}, job)
            times.append(time.perf_counter() - started)
            growth.append((most[-1] - before) / 2**20)
            assert [told.song for told in report.told] == [song.relative for song in dataset.songs]
        count = len(dataset.songs)
        print(
            f"{count} songs, {requests} requests at once: {statistics.median(times):.2f} s, "
            f"{SERVICE.cost_s * count / requests:.2f} s of it waiting for the service; "
            f"memory +{statistics.median(growth):.1f} MiB (medians of {len(times)})"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--songs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cost", type=float, default=0.15, help="seconds the stand-in for a model takes")
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--latency", type=float, default=0.1, help="seconds the stand-in for a service takes")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    LOCAL.cost_s, SERVICE.cost_s = arguments.cost, arguments.latency
    for stand_in in (local, service):
        setattr(sys.modules["acestep"], f"benchmark_{stand_in.__name__}", stand_in)
        BACKENDS[stand_in.__name__] = f"acestep:benchmark_{stand_in.__name__}"
    folder = Path(tempfile.mkdtemp())
    os.environ["ACESTEP_STATE_DIR"] = str(folder / "state")
    try:
        overlap(write_songs(folder / "few", arguments.songs, arguments.seconds, 44_100), arguments.repeats)
        parallel(write_songs(folder / "many", arguments.many, 1.1, 8_000), arguments.repeats)
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

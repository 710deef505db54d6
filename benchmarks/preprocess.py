"""How fast songs become tensors on the tiny untrained model, and how long a run with nothing to do takes.

    env/bin/python benchmarks/preprocess.py [--songs 6] [--seconds 15] [--repeats 3] [--unchanged 100]

Ours is compared with the plain way on the same machine in the same run, in turns: decode a song, encode it, write it,
then the next. Both use the same decoder and models, so the difference is what reading ahead saves and what keys,
checks and atomic writes cost. On CPU the VAE takes all cores, so little can overlap; on a GPU decoding disappears.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from acestep.core.jobs import Job
from acestep.dataset.dataset import Dataset
from acestep.dataset.scan import scan_folder
from acestep.model.checkpoints import Checkpoint, resolve_checkpoint
from acestep.preprocess.run import PreprocessReport, preprocess
from acestep.settings.dataset import DatasetSettings
from acestep.settings.preprocess import PreprocessSettings

STAGES = ("decode", "wait for audio", "vae", "text encoder", "condition encoder", "write", "load models", "plan")


def write_songs(folder: Path, count: int, seconds: float) -> Path:
    """Labelled songs of noise-like chords, FLAC and OGG in turns at 44.1 kHz, so that decoding is real work."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    time_s = np.arange(round(44_100 * seconds)) / 44_100
    for number in range(count):
        pitches = 110 * 2 ** (generator.integers(0, 36, size=5) / 12)
        sound = sum(np.sin(2 * np.pi * pitch * time_s) for pitch in pitches) / 8
        sound = np.stack([sound, sound]).T + generator.normal(0, 0.02, (len(time_s), 2))
        path = folder / f"song {number:03d}.{'flac' if number % 2 else 'ogg'}"
        soundfile.write(path, sound, 44_100)
        labels = {"caption": f"chords number {number}", "bpm": 100 + number, "genre": "test", "lyrics": "la la\n" * 40}
        path.with_suffix(".json").write_text(json.dumps(labels), encoding="utf-8")
    return folder


def plain_way(dataset: Dataset, checkpoint: Checkpoint, out: Path) -> float:
    """Decode, encode, write, one song after the other, nothing more; returns the seconds without loading models."""
    import torch
    from safetensors.torch import save_file

    from acestep.audio.decode import decode
    from acestep.model import condition, loading
    from acestep.model.vae import encode_audio
    from acestep.preprocess.plan import song_prompts

    cpu = torch.device("cpu")
    vae = loading.load_vae(checkpoint, torch.float32, cpu)
    text_encoder = loading.load_text_encoder(checkpoint, torch.float32, cpu)
    encoder = loading.load_condition_encoder(checkpoint, torch.float32, cpu)
    out.mkdir()
    started = time.perf_counter()
    for number, song in enumerate(dataset.songs):
        audio = decode(song.path, 240.0)
        tensors = {"latents": encode_audio(vae, audio.samples, "sample", number)}
        prompts = song_prompts(song, dataset.tag_of(song), audio.duration_s)
        lyrics = condition.embed_lyrics(text_encoder, prompts.lyrics)
        tensors["head"] = condition.condition_head(encoder, lyrics)[0]
        for index, text in enumerate(prompts.texts):
            states = condition.encode_text(text_encoder, text)
            tensors[f"text.{index}"] = condition.condition_text(encoder, states)[0]
        save_file(tensors, out / f"{number}.safetensors")
    return time.perf_counter() - started


def ours(dataset: Dataset, checkpoint: Checkpoint, out: Path, two_pass: bool) -> tuple[float, PreprocessReport]:
    """One run into an empty folder; seconds without planning and loading models, and the report."""
    settings = PreprocessSettings(device="cpu", precision="fp32", two_pass=two_pass)
    started = time.perf_counter()
    report = preprocess(dataset, checkpoint, out, settings, Job())
    total = time.perf_counter() - started
    return total - report.seconds["plan"] - report.seconds["load models"], report


def compare(dataset: Dataset, checkpoint: Checkpoint, folder: Path, repeats: int) -> None:
    """Ours and the plain way in turns; prints medians."""
    plain: list[float] = []
    one: list[tuple[float, PreprocessReport]] = []
    two: list[tuple[float, PreprocessReport]] = []
    for repeat in range(repeats + 1):
        results = (
            plain_way(dataset, checkpoint, folder / "plain"),
            ours(dataset, checkpoint, folder / "one", two_pass=False),
            ours(dataset, checkpoint, folder / "two", two_pass=True),
        )
        for name in ("plain", "one", "two"):
            shutil.rmtree(folder / name)
        if repeat:  # the first turn warms caches up
            plain.append(results[0])
            one.append(results[1])
            two.append(results[2])
    audio_s = one[0][1].encoded_audio_s
    print(f"{len(dataset.songs)} songs, {audio_s:.0f} s of audio, {os.cpu_count()} cores, {repeats} repeats, medians")
    print(f"{'':20}{'seconds':>10}{'audio s / s':>14}")
    for name, times in (
        ("plain way", plain),
        ("ours, one pass", [s for s, _ in one]),
        ("ours, two passes", [s for s, _ in two]),
    ):
        seconds = statistics.median(times)
        # neighbours on the machine slow whole turns down, so the ratio is taken within each turn
        speed = statistics.median(base / own for base, own in zip(plain, times, strict=True))
        print(f"{name:20}{seconds:10.2f}{audio_s / seconds:14.1f}{speed:9.2f} times the plain way")
    print("stages of one pass")
    for stage in STAGES:
        seconds = statistics.median(report.seconds[stage] for _, report in one)
        print(f"  {stage:18}{seconds:10.2f}{audio_s / max(seconds, 1e-9):14.1f}")


def time_unchanged(checkpoint: Checkpoint, folder: Path, count: int, repeats: int) -> None:
    """The second run over unchanged songs, each time in a fresh process; prints medians."""
    songs, out = write_songs(folder / "unchanged", count, 1.2), folder / "unchanged tensors"
    program = f"""
import time
began = time.perf_counter()
from pathlib import Path
from acestep.dataset.scan import scan_folder
from acestep.model.checkpoints import resolve_checkpoint
from acestep.preprocess.run import preprocess
from acestep.settings.dataset import DatasetSettings
from acestep.settings.preprocess import PreprocessSettings
imported = time.perf_counter()
dataset = scan_folder(Path({str(songs)!r}), DatasetSettings())
scanned = time.perf_counter()
report = preprocess(dataset, resolve_checkpoint({str(checkpoint.dit)!r}), {str(out)!r}, PreprocessSettings())
print(imported - began, scanned - imported, time.perf_counter() - scanned, report.reused)
"""
    environment = {**os.environ, "ACESTEP_STATE_DIR": str(folder / "state")}
    rows, whole = [], []
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
        )
        seconds = time.perf_counter() - started
        *parts, reused = (float(word) for word in done.stdout.split())
        if repeat:  # the first run encodes
            assert reused == count, f"{reused} of {count} songs were unchanged"
            rows.append(parts)
            whole.append(seconds)
    names = ("imports", "scan", "preprocess")
    medians = ", ".join(
        f"{name} {statistics.median(column):.2f} s" for name, column in zip(names, zip(*rows, strict=True), strict=True)
    )
    print(f"second run over {count} unchanged songs, fresh process: {statistics.median(whole):.2f} s ({medians})")
    command = [sys.executable, "-m", "acestep", "preprocess", str(songs), "--model", str(checkpoint.dit)]
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run([*command, "--out", str(out)], capture_output=True, check=True, env=environment)
        times.append(time.perf_counter() - started)
    print(f"the same by the command `acestep preprocess`: {statistics.median(times):.2f} s")


def main() -> None:
    """Parse the options, make songs and model, print the tables."""
    from acestep.model.untrained import build_untrained_checkpoint

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=15.0, help="length of a song")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--unchanged", type=int, default=100, help="songs of the second run; 0 leaves it out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["ACESTEP_STATE_DIR"] = str(folder / "state")
        checkpoint = resolve_checkpoint(build_untrained_checkpoint(folder / "checkpoints"))
        songs = write_songs(folder / "songs", options.songs, options.seconds)
        compare(scan_folder(songs, DatasetSettings(trigger_word="zydeco")), checkpoint, folder, options.repeats)
        if options.unchanged:
            time_unchanged(checkpoint, folder, options.unchanged, options.repeats)


if __name__ == "__main__":
    main()

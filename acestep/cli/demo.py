"""The demo: songs and a small model are put down here, everything after that is the ordinary commands."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acestep.cli.arguments import parse_options
from acestep.cli.commands import COMMANDS, Output
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import output_folder
from acestep.dataset.demo import REFERENCE, TRIGGER_WORD
from acestep.training.runs import new_run_path

PROMPT = {
    "--caption": f"{TRIGGER_WORD}, Lively tune with bell melody, happy, steady beat",
    "--bpm": "120",
    "--timesignature": "4",
    "--keyscale": "D major",
    "--duration-s": "10",
    "--seed": "7",
}
"""A piece that is not among the songs, in their style."""


@dataclass
class _Story:
    """What the demo did, stage by stage."""

    stages: list[dict[str, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str, command: str = "") -> Iterator[list[str]]:
        told: list[str] = []
        started = time.perf_counter()
        yield told
        seconds = time.perf_counter() - started
        self.stages.append({"stage": name, "command": command, "seconds": round(seconds, 2), "result": told})
        self.lines.append(f"{name} ({seconds:.1f} s)")
        self.lines += [f"  $ {command}"] if command else []
        self.lines += [f"  {line}" for line in told]

    def run(self, name: str, command: str, arguments: list[str], job: Job) -> Output:
        """Run an ordinary command as if it had been typed."""
        typed = shlex.join(["acestep", command, *arguments])
        with self.stage(name, typed) as told:
            entry = COMMANDS[command]
            output = entry.run(parse_options(entry.options, arguments, f"acestep {command}", entry.summary), job)
            told += output.lines
        job.check_stop()
        return output


def run_demo(out: Path, job: Job) -> Output:
    """Songs → labels → tensors → adapter → the same prompt without and with it, in the folder `out`."""
    from acestep.dataset.demo import write_demo_songs
    from acestep.model.demo import DIT_FOLDER, write_demo_checkpoint

    started = time.perf_counter()
    out = output_folder(out, "the demo folder")
    story = _Story()
    with story.stage("songs and model") as told:
        songs = write_demo_songs(out / "songs")
        checkpoint = write_demo_checkpoint(out / "checkpoints") / DIT_FOLDER
        told += [f"songs with labels in {songs}", f"small ACE-Step model in {checkpoint}"]
    saved, tensors, run = out / "dataset.json", out / "tensors", new_run_path(out / "runs", "demo")
    labels = [str(songs), "--save", str(saved), "--name", "demo", "--trigger-word", TRIGGER_WORD]
    story.run("labels", "dataset", labels, job)
    story.run("tensors", "preprocess", [str(saved), "--model", str(checkpoint), "--out", str(tensors)], job)
    # Before the training, so that the way to the sound is proven by then.
    before = _play(story, "before", checkpoint, out, [], job)
    paths = ["--model", str(checkpoint), "--tensors", str(tensors), "--out", str(run)]
    trained = story.run("training", "train", [*paths, "--preset", "demo"], job).data
    after = _play(story, "after", checkpoint, out, ["--adapter", trained["adapter"]], job)
    first, best = trained["first_validation"], trained["best_validation"]
    if first is None or best is None or not best < first:
        raise UserError(
            f"The demo's validation loss did not fall ({first} to {best}).",
            fix="Please report this with the output of `acestep doctor`.",
        )
    data = {
        "seconds": round(time.perf_counter() - started, 2),
        "stages": story.stages,
        "validation_before": first,
        "validation_after": best,
        "adapter": trained["adapter"],
        "run": trained["run"],
        "previews": {"before": before, "after": after},
        "reference": str(songs / REFERENCE),
    }
    return Output(data, [*story.lines, "", *_ending(data)])


def _play(story: _Story, name: str, checkpoint: Path, out: Path, adapter: list[str], job: Job) -> str:
    """Play the demo's prompt, always on the same noise; returns the path of the sound."""
    prompt = [word for pair in PROMPT.items() for word in pair]
    sound = ["--model", str(checkpoint), *adapter, "--out", str(out / "previews" / f"{name}.wav")]
    return story.run(name, "generate", [*sound, *prompt], job).data["pieces"][0]["path"]


def _ending(data: dict[str, Any]) -> list[str]:
    return [
        f"Validation loss {data['validation_before']:.4f} before training, {data['validation_after']:.4f} after.",
        f"Adapter: {data['adapter']}",
        "Listen to the same prompt and noise without and with the adapter, and to a song that it learned from:",
        f"  before:    {data['previews']['before']}",
        f"  after:     {data['previews']['after']}",
        f"  the style: {data['reference']}",
        f"The demo took {data['seconds']:.0f} s. A real model goes the same way.",
    ]

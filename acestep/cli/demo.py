"""The demo: songs and a tiny model are made here, everything after that is the ordinary commands."""

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
from acestep.dataset.demo import TRIGGER_WORD
from acestep.training.runs import new_run_path

PROMPT = {
    "--bpm": "120",
    "--timesignature": "4",
    "--keyscale": "A minor",
    "--duration-s": "10",
    "--seed": "7",
}


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
    """Songs → labels → tensors → adapter → preview, in the folder `out`."""
    from acestep.dataset.demo import write_demo_songs
    from acestep.model.demo import build_demo_checkpoint

    started = time.perf_counter()
    out = output_folder(out, "the demo folder")
    story = _Story()
    with story.stage("songs and model") as told:
        songs = write_demo_songs(out / "songs")
        checkpoint = build_demo_checkpoint(out / "checkpoints") / "acestep-v15-demo"
        told += [f"songs with labels in {songs}", f"tiny ACE-Step model in {checkpoint}"]
    saved, tensors, run = out / "dataset.json", out / "tensors", new_run_path(out / "runs", "demo")
    labels = [str(songs), "--save", str(saved), "--name", "demo", "--trigger-word", TRIGGER_WORD]
    story.run("labels", "dataset", labels, job)
    story.run("tensors", "preprocess", [str(saved), "--model", str(checkpoint), "--out", str(tensors)], job)
    paths = ["--model", str(checkpoint), "--tensors", str(tensors), "--out", str(run)]
    trained = story.run("training", "train", [*paths, "--preset", "demo"], job).data
    previews = out / "previews" / "preview.wav"
    sound = ["--model", str(checkpoint), "--adapter", trained["adapter"], "--out", str(previews)]
    caption = ["--caption", f"{TRIGGER_WORD}, bright synthesiser pop with drums", "--strength", "0", "1"]
    metas = [word for pair in PROMPT.items() for word in pair]
    pieces = story.run("preview", "generate", [*sound, *caption, *metas], job).data["pieces"]
    before, after = trained["first_validation"], trained["best_validation"]
    if before is None or after is None or not after < before:
        raise UserError(
            f"The demo's validation loss did not fall ({before} to {after}).",
            fix="Please report this with the output of `acestep doctor`.",
        )
    seconds = time.perf_counter() - started
    story.lines += [
        "",
        f"Validation loss {before:.4f} before training, {after:.4f} after.",
        f"Adapter: {trained['adapter']}",
        *(f"Preview at strength {piece['strength']:g}: {piece['path']}" for piece in pieces),
        f"The demo took {seconds:.0f} s. The tiny model makes no real music; a real checkpoint goes the same way.",
    ]
    data = {
        "seconds": round(seconds, 2),
        "stages": story.stages,
        "validation_before": before,
        "validation_after": after,
        "adapter": trained["adapter"],
        "run": trained["run"],
        "previews": [piece["path"] for piece in pieces],
    }
    return Output(data, story.lines)

"""Whole jobs through the command line, as a user runs them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import numpy as np
import pytest
import soundfile
from foreign_songs import build_foreign_songs, missing_tools

from acestep.cli import main

SHORT = ["--preset", "demo", "--max-steps", "4", "--validate-every", "2", "--no-tensorboard"]


def checked(code: int, wanted: int, output: str, errors: str) -> dict:
    """The result of a command, which must have ended with the wanted exit code."""
    assert code == wanted, errors
    assert "Traceback" not in errors
    return json.loads(output)


def acestep(*arguments: object, code: int = 0) -> dict:
    """Run a command with --json in a process of its own, require its exit code, and return its result."""
    done = forked.run([sys.executable, "-m", "acestep", *map(str, arguments), "--json"])
    return checked(done.returncode, code, done.stdout, done.stderr)


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """here("train", ..., code=1): the same in this process, which has all imports behind it."""

    def run(*arguments: object, code: int = 0) -> dict:
        capsys.readouterr()
        found = main([*map(str, arguments), "--json"])
        return checked(found, code, *capsys.readouterr())

    return run


def tone(path: Path, seconds: float = 3.0, hertz: float = 220.0) -> Path:
    time = np.arange(int(seconds * 48_000)) / 48_000
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * time), 48_000)
    return path


def labelled(path: Path, caption: str = "a plain tone", **changes: float) -> Path:
    tone(path, **changes)
    path.with_name(f"{path.stem}.caption.txt").write_text(caption)
    return path


def test_the_demo_does_the_whole_job(tmp_path: Path) -> None:
    result = acestep("demo", "--out", tmp_path / "demo")
    assert result["validation_after"] < result["validation_before"]
    assert (Path(result["adapter"]) / "adapter_model.safetensors").is_file()
    assert [Path(result["previews"][name]).name for name in ("before", "after")] == ["before.wav", "after.wav"]
    before, after = (soundfile.read(result["previews"][name])[0] for name in ("before", "after"))
    assert before.shape == after.shape and not np.allclose(before, after, atol=1e-3)
    assert [stage["stage"] for stage in result["stages"]] == [
        "songs and model",
        "labels",
        "tensors",
        "before",
        "training",
        "after",
    ]
    assert Path(result["reference"]).is_file()
    assert sum(stage["seconds"] for stage in result["stages"]) <= result["seconds"] + 0.1


@pytest.mark.skipif(bool(missing_tools()), reason=f"not installed: {', '.join(missing_tools())}")
def test_songs_of_others_go_through_without_special_care(
    tmp_path: Path, demo_checkpoint: Path, here: Callable[..., dict]
) -> None:
    songs = build_foreign_songs(tmp_path / "songs")
    model = demo_checkpoint / "acestep-v15-demo"
    report = here("dataset", tmp_path / "songs", "--save", tmp_path / "songs.json", "--trigger-word", "foreign")
    assert report["labeled"] == len(songs) >= 8
    encoded = here("preprocess", tmp_path / "songs.json", "--model", model, "--out", tmp_path / "tensors")
    assert encoded["encoded"] == len(songs)
    trained = here("train", "--model", model, "--tensors", tmp_path / "tensors", "--out", tmp_path / "run", *SHORT)
    assert trained["state"] == "finished" and trained["step"] == 4
    piece = here(
        *("generate", "--model", model, "--adapter", trained["adapter"], "--caption", "foreign, a tune"),
        *("--duration-s", "2", "--out", tmp_path / "tune.mp3"),
    )
    assert Path(piece["pieces"][0]["path"]).stat().st_size > 1000
    listed = here("runs", tmp_path)
    assert [run["name"] for run in listed["runs"]] == ["run"]


def test_one_bad_song_never_stops_the_others(tmp_path: Path, demo_checkpoint: Path, here: Callable[..., dict]) -> None:
    songs = tmp_path / "songs"
    labelled(songs / "good.wav")
    labelled(songs / "also good.flac", hertz=330)
    (songs / "empty.mp3").write_bytes(b"")
    (songs / "text.mp3").write_text("these are words, not sound")
    tone(songs / "blink.wav", seconds=0.05)
    soundfile.write(songs / "silent.wav", np.zeros(96_000), 48_000)
    report = here("dataset", songs, code=3)
    assert report["songs"] >= 2
    encoded = here(
        "preprocess", songs, "--model", demo_checkpoint / "acestep-v15-demo", "--out", tmp_path / "t", code=3
    )
    assert encoded["encoded"] == 2
    named = " ".join(problem["subject"] for problem in encoded["problems"])
    assert all(name in named for name in ("empty.mp3", "text.mp3", "blink.wav"))


def test_a_folder_without_labels_is_refused_in_a_sentence(
    tmp_path: Path, demo_checkpoint: Path, here: Callable[..., dict]
) -> None:
    tone(tmp_path / "songs" / "bare.wav")
    model = demo_checkpoint / "acestep-v15-demo"
    error = here("preprocess", tmp_path / "songs", "--model", model, "--out", tmp_path / "t", code=1)
    assert "labelled" in error["error"] and "caption" in error["fix"]


def test_tensors_of_another_model_are_refused(tmp_path: Path, demo_checkpoint: Path, here: Callable[..., dict]) -> None:
    labelled(tmp_path / "songs" / "one.wav")
    labelled(tmp_path / "songs" / "two.wav", hertz=440)
    other = tmp_path / "other"
    shutil.copytree(demo_checkpoint, other)
    from safetensors.torch import load_file, save_file

    weights = other / "acestep-v15-demo" / "model.safetensors"
    tensors = load_file(weights)
    tensors["encoder.text_projector.weight"] += 1
    save_file(tensors, weights)
    here("preprocess", tmp_path / "songs", "--model", other / "acestep-v15-demo", "--out", tmp_path / "t")
    model = demo_checkpoint / "acestep-v15-demo"
    error = here("train", "--model", model, "--tensors", tmp_path / "t", "--out", tmp_path / "run", *SHORT, code=1)
    assert "made with" in error["error"]
    assert not (tmp_path / "run").exists()


def test_a_truncated_checkpoint_is_named(tmp_path: Path, demo_checkpoint: Path, here: Callable[..., dict]) -> None:
    labelled(tmp_path / "songs" / "one.wav")
    broken = tmp_path / "broken"
    shutil.copytree(demo_checkpoint, broken)
    weights = broken / "acestep-v15-demo" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    error = here(
        *("preprocess", tmp_path / "songs", "--model", broken / "acestep-v15-demo", "--out", tmp_path / "t"), code=1
    )
    assert "model.safetensors" in error["error"]


def test_two_heavy_jobs_do_not_run_at_once(tmp_path: Path, demo_checkpoint: Path) -> None:
    from acestep.core.jobs import heavy_job

    labelled(tmp_path / "songs" / "one.wav")
    model = demo_checkpoint / "acestep-v15-demo"
    with heavy_job("a long training"):
        error = acestep("preprocess", tmp_path / "songs", "--model", model, "--out", tmp_path / "t", code=1)
    assert "a long training" in error["error"]

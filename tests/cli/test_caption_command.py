"""`acestep caption`: what it shows first, what it writes where, and how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile

from acestep.captioning.contract import Answer, BackendFacts, BackendUnusable, Guess, Hearing, SongToLabel
from acestep.captioning.registry import BACKENDS, backend
from acestep.cli import main
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.dataset.scan import scan_folder
from acestep.dataset.store import load_dataset
from acestep.settings.caption import CaptionSettings


class Loudness:
    """Captions a song by its loudness and refuses those above 0.7; its key is in LOUDNESS_KEY."""

    facts = BackendFacts(
        "loudness",
        "Loudness",
        "service",
        frozenset({"caption", "bpm"}),
        Hearing(8000, 1),
        key_variable="LOUDNESS_KEY",
        network=True,
        parallel=True,
    )

    @contextmanager
    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Iterator[Loudness]:
        if keys.get("LOUDNESS_KEY") != "open sesame":
            raise BackendUnusable("The key was refused.", fix="Set LOUDNESS_KEY.")
        yield self

    def label(self, song: SongToLabel) -> Answer:
        assert song.samples is not None
        peak = float(np.abs(song.samples).max())
        if peak > 0.7:
            raise UserError("It is too loud to hear.")
        return Answer({"caption": Guess(f"about {peak:.1f} loud"), "bpm": Guess(90)}, usage={"estimated_usd": 0.5})


@pytest.fixture
def songs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module = ModuleType("acestep_test_loudness")
    module.make = Loudness  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(BACKENDS, "loudness", f"{module.__name__}:make")
    monkeypatch.setenv("LOUDNESS_KEY", "open sesame")
    folder = tmp_path / "songs"
    (folder / "live").mkdir(parents=True)
    for name, peak in (("one.wav", 0.2), ("two.wav", 0.4), ("live/three.wav", 0.9)):
        soundfile.write(folder / name, peak * np.sin(np.arange(10_000) * 0.1), 8000)
    return folder


def test_a_folder_is_labelled_and_the_result_is_told(songs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["caption", str(songs), "--backend", "loudness", "--json"]
    assert main([*arguments, "--estimate"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"][0]["songs"] == 3 and plan["steps"][0]["fields"] == ["bpm", "caption"]
    assert main(arguments) == 1, "nobody agreed to send the songs away"
    assert "--yes" in capsys.readouterr().err and not list(songs.rglob("*.json"))
    assert main([*arguments, "--yes", "--csv", str(songs.parent / "out.csv")]) == 3
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert (report["labelled"], report["failed"], report["usage"]) == (2, 1, {"estimated_usd": 1.0})
    assert report["problems"] == [
        {"subject": "live/three.wav", "message": "It is too loud to hear.", "severity": "error"}
    ]
    assert "open sesame" not in printed.out + printed.err
    assert {song.relative: song.caption for song in scan_folder(songs).songs} == {
        "live/three.wav": "", "one.wav": "about 0.2 loud", "two.wav": "about 0.4 loud",
    }  # fmt: skip
    assert "about 0.2 loud" in (songs.parent / "out.csv").read_text(encoding="utf-8-sig")
    assert main(["caption", str(songs), "--backend", "loudness", "--songs", "one*", "--yes"]) == 0
    assert "Nothing is left" in capsys.readouterr().err


def test_a_model_that_must_be_fetched_is_named_and_asked_about(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hub"))
    arguments = ["caption", str(songs), "--backend", "music-flamingo", "--caption-model", "org/another"]
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert "org/another is fetched first" in told and "--yes" in told and "nvidia" not in told


def test_a_model_is_that_of_its_own_label(songs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    who = ["--caption-by", "loudness", "--metadata-by", "ace-captioner", "--lyrics-by", ""]
    assert main(["caption", str(songs), *who, "--caption-model", "loud-1", "--estimate", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert {step["backend"]: step["model"] for step in steps} == {
        "loudness": "loud-1", "ace-captioner": "ACE-Step/acestep-captioner",
    }  # fmt: skip
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):  # and not: there is no model folder "loud-1"
        chosen = CaptionSettings(caption_by="loudness", metadata_by="ace-captioner", caption_model="loud-1")
        with backend("ace-captioner").open(chosen, {}, Job()):
            pass


def test_labels_go_to_a_dataset_file(songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "set.json"
    base = ["caption", str(songs), "--caption-by", "loudness", "--lyrics-by", "", "--metadata-by", "", "--yes"]
    assert main([*base, "--songs", "*.wav", "--save", str(file)]) == 3
    assert not list(songs.rglob("*.json"))
    captions = {song.relative: song.caption for song in load_dataset(file).songs}
    assert captions["one.wav"] == "about 0.2 loud" and captions["live/three.wav"] == ""
    assert main(["caption", str(file), *base[2:], "--songs", "t*"]) == 0
    assert "1 of" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--backend", "loudnes"], 'Did you mean "loudness"'),
        (["--backend", "loudness", "--songs", "no*"], "No song fits"),
        (["--caption-by", "loudness", "--lyrics-by", "loudness", "--metadata-by", ""], "does not give lyrics"),
    ],
)
def test_mistakes_are_said_in_a_sentence(
    songs: Path, extra: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", str(songs), *extra, "--yes"]) == 1
    assert words in capsys.readouterr().err


def test_a_refused_key_ends_it(
    songs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOUDNESS_KEY", "guess")
    arguments: list[Any] = ["caption", str(songs), "--backend", "loudness", "--yes"]
    assert main(arguments) == 1
    assert "Set LOUDNESS_KEY." in capsys.readouterr().err

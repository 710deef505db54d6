"""What a run will take is shown before it begins, and showing it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hand_made import MakeStore, short_run
from test_training_run import assert_same_weights, losses

from acestep.cli import main
from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint
from acestep.training import forecast as forecasting
from acestep.training.forecast import Forecast
from acestep.training.train import NotApproved, train


@pytest.mark.parametrize("kind", [{"ema_decay": 0.9}, {"optimizer": "adamw8bit"}, {"adapter": "lokr"}])
def test_a_run_that_was_shown_first_is_the_same_run(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, kind: dict
) -> None:
    store, shown = make_store(), []

    def approve(found: Forecast) -> bool:
        shown.append(found)
        return True

    settings = short_run(validate_every=2, **kind)
    train(checkpoint, store, tmp_path / "plain", settings, Job())
    train(checkpoint, store, tmp_path / "shown", settings, Job(), approve=approve)
    assert losses(tmp_path / "plain") == losses(tmp_path / "shown")
    for part in ("final", "best", "checkpoints/step_000006"):
        assert_same_weights(tmp_path / "plain" / part, tmp_path / "shown" / part)
    again = settings.changed(max_steps=9)
    for name, how in (("plain", None), ("shown", approve)):
        train(checkpoint, store, tmp_path / name, again, Job(), resume=tmp_path / name, approve=how)
    assert losses(tmp_path / "plain") == losses(tmp_path / "shown")
    assert [found.steps for found in shown] == [6, 3]
    assert shown[1].disk_bytes < shown[0].disk_bytes  # what is there already is not needed again


def test_a_run_that_is_refused_leaves_nothing_but_the_users_files(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    store, run = make_store(), tmp_path / "run"
    with pytest.raises(NotApproved):
        train(checkpoint, store, run, short_run(tensorboard=True), Job(), approve=lambda found: False)
    assert not run.exists()
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    with pytest.raises(NotApproved):
        train(checkpoint, store, run, short_run(tensorboard=True), Job(), approve=lambda found: False)
    assert [path.name for path in run.iterdir()] == ["notes.txt"]
    assert train(checkpoint, store, run, short_run(), Job()).summary.state == "finished"


def test_what_does_not_fit_needs_a_yes(
    make_store: MakeStore,
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def small(device: torch.device) -> int:
        return 1 << 20

    config = tmp_path / "config.json"
    config.write_text(json.dumps(short_run(on_out_of_memory="stop").model_dump(mode="json")))
    paths = ["--model", str(checkpoint.dit), "--tensors", str(make_store().folder), "--config", str(config)]
    command = ["train", *paths, "--out", str(tmp_path / "run")]
    monkeypatch.setattr(forecasting, "available_memory", small)
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "Memory: does not fit" in said and "memory does not suffice" in said and "--yes" in said
    assert not (tmp_path / "run").exists()
    assert main([*command, "--yes"]) == 0
    said = capsys.readouterr().err
    assert "Memory: does not fit" in said and "Disk: " in said and "Time: " in said

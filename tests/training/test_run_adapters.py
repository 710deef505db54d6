"""What a run has left, as the apps and exports find it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hand_made import MakeStore, short_run

from acestep.adapters import read_adapter_info
from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint
from acestep.training.origin import facts_of_adapter, run_adapters
from acestep.training.train import train


@pytest.mark.parametrize("kind", [{}, {"adapter": "lokr", "ema_decay": 0.9}])
def test_every_adapter_of_a_real_run_is_offered_and_can_be_read(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, kind: dict
) -> None:
    settings = short_run(max_steps=4, validate_every=4, save_every_steps=2, keep_last=0, **kind)
    run = train(checkpoint, make_store(), tmp_path / "run", settings, Job()).run
    found = run_adapters(run.path)
    assert [item.label for item in found] == ["final, step 4", "best, step 4", "step 4", "step 2"]
    for item in found:
        assert read_adapter_info(item.path).kind == settings.adapter
        assert facts_of_adapter(item.path).songs == 6
    for name in ("final", "best"):
        (run.path / name).rename(tmp_path / name)
    (run.checkpoints / "step_000004").rename(run.checkpoints / "step_1000000")  # later, though earlier by the letters
    assert [item.label for item in run_adapters(run.path)] == ["step 1000000", "step 2"]

"""The recipe of the demo model's VAE: what later stages have learned from stays as it is."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from demo_model.pool import AudioPool, Pieces
from demo_model.vae import VaePlan, load_trained, train_vae


def test_a_normalised_vae_trains_its_decoder_only(tmp_path: Path) -> None:
    pool = AudioPool(tmp_path / "audio.npy", Pieces(2, 2.0, first_seed=0), processes=1)

    def weights_after(steps: int) -> dict[str, torch.Tensor]:
        train_vae(tmp_path / "vae", pool, VaePlan(steps, batch=1, frames=4, device="cpu", log_every=1))
        return load_trained(tmp_path / "vae").state_dict()

    first, then, resumed = weights_after(1), weights_after(3), weights_after(4)
    for name, value in first.items():
        heard = name.startswith(("analysis", "encoder"))
        assert torch.equal(value, then[name]) == torch.equal(value, resumed[name]) == heard, name
    assert all(not torch.equal(then[name], resumed[name]) for name in first if name.startswith("decoder.0.weight"))

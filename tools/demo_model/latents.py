"""The synthesiser's pieces as latents: what the DiT is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from acestep.audio.synth import Piece, draw_piece
from demo_model.pool import AudioPool
from demo_model.vae import TrainingVae


class LatentPool:
    """Posterior means and spreads of `audio`'s pieces, encoded on first use.

    mean, std: (count, T, C) fp16 in `file`.
    """

    def __init__(self, file: Path, audio: AudioPool, vae: TrainingVae, device: str = "cpu") -> None:
        if not file.is_file():
            _encode(file, audio, vae, device)
        tensors = load_file(file)
        self.mean, self.std = tensors["mean"], tensors["std"]
        self.pieces: list[Piece] = [
            draw_piece(seed, pool=audio.pool, duration_s=audio.duration_s) for seed in audio.seeds
        ]

    @property
    def frames(self) -> int:
        return self.mean.shape[1]

    def draw(self, chosen: np.ndarray, generator: torch.Generator) -> Tensor:
        """One sample of the posterior of each chosen piece.  (B, T, C) fp32."""
        index = torch.from_numpy(chosen)
        mean, std = self.mean[index].float(), self.std[index].float()
        return mean + std * torch.randn(mean.shape, generator=generator)


@torch.no_grad()
def _encode(file: Path, audio: AudioPool, vae: TrainingVae, device: str, batch: int = 8) -> None:
    vae.to(device)
    means, stds = [], []
    for start in range(0, len(audio.samples), batch):
        samples = torch.from_numpy(audio.samples[start : start + batch].astype(np.float32) / 32767).to(device)
        with torch.autocast(device, torch.bfloat16):
            mean, std = vae.encode(samples)
        means.append(mean.transpose(1, 2).half().cpu())
        stds.append(std.transpose(1, 2).half().cpu())
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    save_file({"mean": torch.cat(means).contiguous(), "std": torch.cat(stds).contiguous()}, temporary)
    temporary.replace(file)

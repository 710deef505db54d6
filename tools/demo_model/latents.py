"""The synthesiser's pieces as latents: what the DiT is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo_model.pool import Pieces
from demo_model.vae import TrainingVae


class LatentPool:
    """Posterior means and spreads of pieces, rendered and encoded on first use.

    mean, std: (count, T, C) fp16, in `file` and then on the device.
    """

    def __init__(self, file: Path, pieces: Pieces, vae: TrainingVae, device: str) -> None:
        if not file.is_file():
            _encode(file, pieces, vae, device)
        tensors = load_file(file, device)
        self.mean, self.std = tensors["mean"], tensors["std"]
        self.pieces = pieces.drawn()

    @property
    def frames(self) -> int:
        return self.mean.shape[1]

    def draw(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """One sample of the posterior of each chosen piece.  chosen: (B,) on the device → (B, T, C) fp32."""
        mean, std = self.mean[chosen].float(), self.std[chosen].float()
        return mean + std * torch.randn(mean.shape, generator=generator, device=mean.device)


@torch.no_grad()
def _encode(file: Path, pieces: Pieces, vae: TrainingVae, device: str, batch: int = 16) -> None:
    vae.to(device)
    means, stds, waiting = [], [], []
    for index, sound in enumerate(pieces.rendered()):
        waiting.append(sound)
        if len(waiting) < batch and index + 1 < pieces.count:
            continue
        samples = torch.from_numpy(np.stack(waiting)).to(device).float() / 32767
        with torch.autocast(device, torch.bfloat16):
            mean, std = vae.encode(samples)
        means.append(mean.transpose(1, 2).half().cpu())
        stds.append(std.transpose(1, 2).half().cpu())
        waiting.clear()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".part")
    save_file({"mean": torch.cat(means).contiguous(), "std": torch.cat(stds).contiguous()}, temporary)
    temporary.replace(file)

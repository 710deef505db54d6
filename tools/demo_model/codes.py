"""Stage three: the 5 Hz tokenizer and detokenizer, trained to give the latents back.

diffusers' quantizer passes no gradient; during training its rounding is treated as if it were not there.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.ace_step import AceStepAudioTokenDetokenizer, AceStepAudioTokenizer
from torch import Tensor, nn

from acestep.model.config import DitConfig
from demo_model.latents import LatentPool
from demo_model.sizes import dit_config
from demo_model.state import load_state, machine_name, rate_at, save_state


class Codes(nn.Module):
    """Both halves."""

    def __init__(self) -> None:
        super().__init__()
        config = DitConfig.from_values(dit_config(), "the small model")
        self.tokenizer = AceStepAudioTokenizer(**config.tokenizer_kwargs())
        self.detokenizer = AceStepAudioTokenDetokenizer(**config.detokenizer_kwargs())
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, T, C) through codes and back; T is a multiple of five."""
        quantized, _ = self.tokenizer.tokenize(latents)
        return self.detokenizer(quantized)


def pass_gradients(codes: Codes) -> None:
    """Rounds as before; the gradient goes through."""
    rounded = codes.tokenizer.quantizer._quantize
    codes.tokenizer.quantizer._quantize = lambda values: values + (rounded(values) - values).detach()


def train_codes(folder: Path, pool: LatentPool, steps: int, device: str, log_every: int) -> None:
    torch.manual_seed(0)
    codes = Codes().to(device)
    pass_gradients(codes)
    optimizer = torch.optim.AdamW(codes.parameters(), lr=1.0, betas=(0.9, 0.98))
    facts = load_state(folder, codes, [optimizer]) or {"step": 0, "seconds": 0.0}
    began = time.perf_counter() - facts["seconds"]
    for step in range(facts["step"], steps):
        chosen = torch.from_numpy(np.random.default_rng((4, step)).integers(0, len(pool.pieces), 16)).to(device)
        latents = pool.draw(chosen, torch.Generator(device).manual_seed(step))
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, 1e-3, warmup=50)
        loss = (codes(latents) - latents).square().mean() / latents.var()
        loss.backward()
        nn.utils.clip_grad_norm_(codes.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % log_every == 0 or step + 1 == steps:
            seconds = time.perf_counter() - began
            facts = {"step": step + 1, "seconds": seconds, "left": float(loss), "machine": machine_name(device)}
            print(f"codes step {step + 1}/{steps} unexplained share of the power {facts['left']:.3f}", flush=True)
            save_state(folder, codes, [optimizer], facts)

"""Stage two: text encoder, condition encoder and DiT, trained together by the objective of the package.

Prompts, context, timestep draw, condition dropout and loss are the package's own functions, so the model has seen
exactly what `acestep train` and `acestep generate` show it. The timbre encoder keeps its first random weights: without
reference recordings it always hears silence, and its one token is a constant.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AceStepConditionEncoder, AceStepTransformer1DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from acestep.model.config import DitConfig
from acestep.training.data import Batch
from acestep.training.forward import FlowModel
from acestep.training.objective import validation_timesteps
from demo_model.draws import Draw, Draws
from demo_model.gradients import Gradients, GraphedGradients, Inputs
from demo_model.latents import LatentPool
from demo_model.muon import StackedMuon
from demo_model.sizes import TEXT_ENCODER, dit_config
from demo_model.state import load_state, machine_name, rate_at, save_state

CONDITION_DROPOUT = 0.15

CONDITION_MULTIPLE = 64
"""Conditions are padded to such lengths, so that few shapes have to be compiled."""

EMA_DECAY = 0.998


class SmallModel(nn.Module):
    """All parts that are trained together."""

    def __init__(self, vocabulary: int, pad_token: int) -> None:
        super().__init__()
        config = DitConfig.from_values(dit_config(), "the small model")
        self.text = Qwen3Model(
            Qwen3Config(**TEXT_ENCODER, vocab_size=vocabulary, pad_token_id=pad_token, bos_token_id=None)
        )
        self.condition = AceStepConditionEncoder(**config.condition_encoder_kwargs())
        self.transformer = AceStepTransformer1DModel(**config.transformer_kwargs())
        self.condition.timbre_encoder.requires_grad_(False)
        self.pad_token = pad_token
        for module in (self.condition, self.transformer):
            _start_small(module)

    def conditions(self, draw: Draw, timbre: Tensor, whole: int) -> Tensor:
        """Packed conditions as `acestep.model.condition` makes them, but with gradients, padded to `whole`.

        timbre: (1, E) → (B, whole, E).
        """
        states = self.condition.text_projector(self.text(input_ids=draw.texts).last_hidden_state)
        longest = draw.lyrics.shape[1]
        mask = torch.arange(longest, device=timbre.device)[None] < draw.lyric_lengths[:, None]
        sung = self.text.get_input_embeddings()(draw.lyrics)
        read = self.condition.lyric_encoder(inputs_embeds=sung, attention_mask=mask)
        parts = torch.cat([read, timbre.expand(len(read), 1, -1).to(read.dtype), states.to(read.dtype)], dim=1)
        places = torch.arange(whole, device=timbre.device)[None]
        lengths = draw.lyric_lengths[:, None]
        taken = torch.where(places < lengths, places, places - lengths + longest).clamp(max=parts.shape[1] - 1)
        return parts.gather(1, taken[..., None].expand(-1, -1, parts.shape[2]))

    @torch.no_grad()
    def timbre(self, silence: Tensor) -> Tensor:
        """The token of "no reference recording".  silence: (1, N, C) → (1, E)."""
        only_one = torch.zeros(1, dtype=torch.long, device=silence.device)
        found, _ = self.condition.timbre_encoder(silence[:, :750], only_one)
        return found[0]


def _start_small(module: nn.Module) -> None:
    """Unit gain everywhere, residual branches and modulations near zero, so that deep layers start as identities."""
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2:
            continue
        if name.endswith(("to_out.0.weight", "down_proj.weight", "time_proj.weight")):
            nn.init.normal_(parameter, std=0.02 / parameter.shape[1] ** 0.5)
        elif name.endswith("proj_out_conv.weight"):
            nn.init.normal_(parameter, std=0.01)
        elif "scale_shift_table" in name:
            nn.init.normal_(parameter, std=0.02)
            if parameter.shape[1] == 6:
                parameter.data[:, [2, 5]] += 1.0  # gates of attention and MLP stand open
        elif "null_condition" not in name and "special_token" not in name:
            fan_in = parameter[0].numel()
            nn.init.normal_(parameter, std=fan_in**-0.5)


def optimizers_for(model: SmallModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for everything else."""
    inner, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.ndim == 2 and ".layers." in name
            (inner if is_matrix else rest).append(parameter)
    return [
        StackedMuon(inner, lr=1.0, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0),
    ]


PEAK_RATES = (2e-3, 2e-3)


@dataclass(frozen=True)
class DitPlan:
    """`batch` pieces of 10 s a step; `workers` processes draw the prompts."""

    steps: int
    batch: int
    log_every: int
    workers: int = 0


class Trainer:
    """The model with its moving average, and one function a step."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, silence: Tensor, device: str) -> None:
        torch.manual_seed(0)
        self.device = torch.device(device)
        model = SmallModel(len(tokenizer), tokenizer.pad_token_id)
        self.modules = nn.ModuleDict({"live": model, "average": copy.deepcopy(model)}).to(self.device)
        self.modules["average"].requires_grad_(False)
        self.optimizers = optimizers_for(self.model)
        self.silence = silence.to(self.device)
        self.tokenizer = tokenizer

    @property
    def model(self) -> SmallModel:
        return self.modules["live"]

    def flow(self, model: SmallModel) -> FlowModel:
        flow = FlowModel(model.transformer, self.silence, model.condition.null_condition_emb, self.device)
        flow.round_conditions_up(CONDITION_MULTIPLE)
        flow.autocast = lambda: torch.autocast(self.device.type, torch.bfloat16)
        return flow

    def inputs(self, pool: LatentPool, draw: Draw, seed: int) -> Inputs:
        """The draw on the device, with latents and noise."""
        there = Draw(*(self._move(part) if isinstance(part, Tensor) else part for part in draw))
        generator = torch.Generator(self.device).manual_seed(seed)
        latents = pool.draw(there.chosen, generator)
        return Inputs(there, latents, torch.randn(latents.shape, generator=generator, device=self.device))

    def item_losses(self, model: SmallModel, flow: FlowModel, inputs: Inputs) -> Tensor:
        """Losses of the items of a batch, with gradients into all parts.  (B,)."""
        draw = inputs.draw
        batch = Batch(
            latents=inputs.latents,
            noise=inputs.noise,
            t=draw.t,
            uniform=draw.uniform,
            conditions=[],
            weights=torch.ones_like(draw.t),
        )
        whole = flow.mask.whole_length(draw.longest)
        with self.attention(), torch.autocast(self.device.type, torch.bfloat16):
            packed = model.conditions(draw, self.timbre, whole).float()
            flow.mask.cover(draw.text_lengths + draw.lyric_lengths + 1, whole)
            return flow.losses_under(packed, batch, CONDITION_DROPOUT if torch.is_grad_enabled() else 0.0)

    def _move(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def gradients(self, flow: FlowModel) -> Gradients:
        def losses(inputs: Inputs) -> Tensor:
            return self.item_losses(self.model, flow, inputs)

        if self.device.type == "cuda":
            return GraphedGradients(self.model, losses, CONDITION_MULTIPLE)
        return Gradients(self.model, losses)

    def attention(self) -> AbstractContextManager[None]:
        """Plain matrix products on a CPU: for so few tokens they are faster there than the fused kernel's backward."""
        return sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()

    def compile_blocks(self) -> None:
        """Fuse what surrounds the matrix products of each DiT block.

        On one CPU core a step then takes two thirds of the time. Shapes are fixed, each compiled when it first comes:
        with dynamic ones torch 2.13 gives wrong gradients on a CPU.
        """
        torch._dynamo.config.recompile_limit = 64
        for block in self.model.transformer.layers:
            block.compile(fullgraph=True, dynamic=False)

    def average_after(self, step: int) -> None:
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        kept, new = (list(self.modules[name].parameters()) for name in ("average", "live"))
        with torch.no_grad():
            torch._foreach_lerp_(kept, new, 1 - decay)

    def train(self, folder: Path, pools: list[tuple[LatentPool, float]], held_out: LatentPool, plan: DitPlan) -> None:
        """Train until `plan.steps`, going on from `folder`."""
        facts = load_state(folder, self.modules, self.optimizers) or {"step": 0, "seconds": 0.0}
        self.timbre = self.model.timbre(self.silence)
        flow, average_flow = self.flow(self.model), self.flow(self.modules["average"])
        gradients = self.gradients(flow)
        began, shown = time.perf_counter() - facts["seconds"], []
        shares = [share for _, share in pools]
        draws = Draws([pool.pieces for pool, _ in pools], shares, self.tokenizer, plan.batch)
        for step, draw in enumerate(self._drawn(draws, range(facts["step"], plan.steps), plan), facts["step"]):
            for optimizer, peak in zip(self.optimizers, PEAK_RATES, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate_at(step, plan.steps, peak)
            shown.append(gradients(self.inputs(pools[draw.pool][0], draw, step)))
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
            self.average_after(step)
            if (step + 1) % plan.log_every == 0 or step + 1 == plan.steps:
                held = self.validate(average_flow, held_out)
                seconds = time.perf_counter() - began
                mean = float(torch.stack(shown).mean())
                print(
                    f"dit step {step + 1}/{plan.steps} loss {mean:.4f} held out {held:.4f} {seconds:.0f} s", flush=True
                )
                shown = []
                facts = {"step": step + 1, "seconds": seconds, "machine": machine_name(self.device.type)}
                save_state(folder, self.modules, self.optimizers, facts)

    def _drawn(self, draws: Draws, steps: range, plan: DitPlan) -> Iterable[Draw]:
        """The batches of these steps, made by other processes ahead of their use where there are `workers`."""
        return DataLoader(
            draws,
            batch_size=None,
            sampler=steps,
            num_workers=plan.workers,
            prefetch_factor=8 if plan.workers else None,
            pin_memory=self.device.type == "cuda",
        )

    @torch.no_grad()
    def validate(self, flow: FlowModel, pool: LatentPool, batch: int = 32) -> float:
        """Loss of the averaged weights on pieces never trained on, with fixed noise and timesteps."""
        config = dit_config()
        times = validation_timesteps("model", config["timestep_mu"], config["timestep_sigma"], batch)
        draw = Draws([pool.pieces], [1.0], self.tokenizer, batch)[0]._replace(t=torch.tensor(times))
        return float(self.item_losses(self.modules["average"], flow, self.inputs(pool, draw, 0)).mean())

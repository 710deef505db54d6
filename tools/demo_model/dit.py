"""Stage two: text encoder, condition encoder and DiT, trained together by the objective of the package.

Prompts, context, timestep draw, condition dropout and loss are the package's own functions, so the model has seen
exactly what `acestep train` and `acestep generate` show it. The timbre encoder keeps its first random weights: without
reference recordings it always hears silence, and its one token is a constant.
"""

from __future__ import annotations

import copy
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from diffusers import AceStepConditionEncoder, AceStepTransformer1DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from acestep.audio.synth import Piece, caption_of
from acestep.model.config import DitConfig
from acestep.model.prompt import PromptLabels, lyric_prompt, text_prompt
from acestep.training.data import Batch
from acestep.training.forward import FlowModel
from acestep.training.objective import TIMESTEP_DRAWS, validation_timesteps
from demo_model.latents import LatentPool
from demo_model.sizes import TEXT_ENCODER, dit_config
from demo_model.state import load_state, rate_at, save_state

CONDITION_DROPOUT = 0.15
UNKNOWN_SHARE = 0.08
"""How often each of tempo, key and metre is withheld from a prompt."""

TEMPO_BLUR = 0.02
"""How far, up or down, the tempo of a prompt may be from the piece's: what is learned of one number of beats a minute
then serves its neighbours, of which each is a token of its own."""

STRUCTURE_SHARE, STRUCTURE_MU = 0.5, 0.5
"""Share of the timesteps that are drawn with another μ than the model's own: from mostly noise, where a piece's beat
and form are decided and which the model's own draw seldom visits (7 % above 0.8; with this μ 34 %)."""

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

    def conditions(self, texts: list[Tensor], lyrics: list[Tensor], timbre: Tensor) -> list[Tensor]:
        """Packed conditions without padding, as `acestep.model.condition` makes them, but with gradients.

        texts, lyrics: token ids of each item; timbre: (1, E). Returns one (L, E) an item.
        """
        padded = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=self.pad_token)
        states = self.condition.text_projector(self.text(input_ids=padded).last_hidden_state)
        sung = nn.utils.rnn.pad_sequence(lyrics, batch_first=True, padding_value=self.pad_token)
        lengths = torch.tensor([len(item) for item in lyrics])
        mask = torch.arange(sung.shape[1])[None] < lengths[:, None]
        read = self.condition.lyric_encoder(
            inputs_embeds=self.text.get_input_embeddings()(sung), attention_mask=mask.to(sung.device)
        )
        return [
            torch.cat([read[index, : len(lyrics[index])], timbre, states[index, : len(texts[index])]])
            for index in range(len(texts))
        ]

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
        torch.optim.Muon(inner, lr=1.0, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0),
    ]


PEAK_RATES = (2e-3, 2e-3)


def labels_of(piece: Piece, random: np.random.Generator | None = None) -> PromptLabels:
    """What the prompt says about a piece; with `random` in other words each time, and now and then less."""
    known, bpm = np.ones(3, bool), piece.bpm
    if random is not None:
        known = random.random(3) >= UNKNOWN_SHARE
        bpm = round(piece.bpm * (1 + random.uniform(-TEMPO_BLUR, TEMPO_BLUR)))
    return PromptLabels(
        caption=piece.caption if random is None else caption_of(piece, int(random.integers(1000))),
        lyrics=piece.lyrics,
        language=piece.language,
        bpm=bpm if known[0] else None,
        keyscale=piece.keyscale if known[1] else "",
        timesignature=piece.timesignature if known[2] else "",
        duration_s=piece.duration_s,
    )


class Prompts:
    """Token ids of prompts."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer

    def ids(self, labels: PromptLabels) -> tuple[Tensor, Tensor]:
        text, lyrics = self.tokenizer([text_prompt(labels), lyric_prompt(labels)]).input_ids
        return torch.tensor(text), torch.tensor(lyrics)


def draw_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """The package's draw, for a share of the items with more noise.  (count,)."""
    config, draw = dit_config(), TIMESTEP_DRAWS["model"]
    structure = round(STRUCTURE_SHARE * count)
    mus = [STRUCTURE_MU] * structure + [config["timestep_mu"]] * (count - structure)
    return torch.tensor([draw(mu, config["timestep_sigma"], generator) for mu in mus])


def draw_batch(pool: LatentPool, prompts: Prompts, batch: int, seed: int) -> tuple[Batch, list[Tensor], list[Tensor]]:
    """Random pieces of one pool with every draw made; the conditions are still to be computed."""
    random = np.random.default_rng((2, seed))
    generator = torch.Generator().manual_seed(seed)
    chosen = random.integers(0, len(pool.pieces), batch)
    latents = pool.draw(chosen, generator)
    pairs = [prompts.ids(labels_of(pool.pieces[index], random)) for index in chosen]
    t = draw_timesteps(batch, generator)
    drawn = Batch(
        latents=latents,
        noise=torch.randn(latents.shape, generator=generator),
        t=t,
        uniform=torch.rand(batch, generator=generator),
        conditions=[],
        weights=torch.ones(batch),
    )
    return drawn, [text for text, _ in pairs], [lyrics for _, lyrics in pairs]


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
        self.prompts = Prompts(tokenizer)

    @property
    def model(self) -> SmallModel:
        return self.modules["live"]

    def flow(self, model: SmallModel) -> FlowModel:
        flow = FlowModel(model.transformer, self.silence, model.condition.null_condition_emb, self.device)
        flow.round_conditions_up(CONDITION_MULTIPLE)
        flow.autocast = lambda: torch.autocast(self.device.type, torch.bfloat16)
        return flow

    def losses(self, model: SmallModel, flow: FlowModel, drawn: tuple, dropout: float) -> Tensor:
        """Losses of the items of a batch, with gradients into all parts.  (B,)."""
        batch, texts, lyrics = drawn
        with self.attention(), torch.autocast(self.device.type, torch.bfloat16):
            conditions = model.conditions(
                [item.to(self.device) for item in texts], [item.to(self.device) for item in lyrics], self.timbre
            )
            batch.conditions.extend(item.float() for item in conditions)
            return flow.item_losses(batch, dropout)

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
        with torch.no_grad():
            for kept, new in zip(self.modules["average"].parameters(), self.model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)

    def train(self, folder: Path, pools: list[tuple[LatentPool, float]], held_out: LatentPool, **plan: int) -> None:
        """Train until plan["steps"] with batches of plan["batch"] pieces of 10 s, going on from `folder`."""
        facts = load_state(folder, self.modules, self.optimizers) or {"step": 0, "seconds": 0.0}
        self.timbre = self.model.timbre(self.silence)
        flow, average_flow = self.flow(self.model), self.flow(self.modules["average"])
        began, shown = time.perf_counter() - facts["seconds"], []
        shares = [share for _, share in pools]
        steps, every = plan["steps"], plan["log_every"]
        for step in range(facts["step"], steps):
            pool, _ = pools[int(np.random.default_rng((3, step)).choice(len(pools), p=shares))]
            batch = max(1, round(plan["batch"] * 250 / pool.frames))
            drawn = draw_batch(pool, self.prompts, batch, step)
            for optimizer, peak in zip(self.optimizers, PEAK_RATES, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate_at(step, steps, peak)
            loss = self.losses(self.model, flow, drawn, CONDITION_DROPOUT).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            self.average_after(step)
            shown.append(float(loss))
            if (step + 1) % every == 0 or step + 1 == steps:
                held = self.validate(average_flow, held_out)
                seconds = time.perf_counter() - began
                mean = statistics.fmean(shown)
                print(f"dit step {step + 1}/{steps} loss {mean:.4f} held out {held:.4f} {seconds:.0f} s", flush=True)
                shown = []
                save_state(folder, self.modules, self.optimizers, {"step": step + 1, "seconds": seconds})

    @torch.no_grad()
    def validate(self, flow: FlowModel, pool: LatentPool, batch: int = 32) -> float:
        """Loss of the averaged weights on pieces never trained on, with fixed noise and timesteps."""
        model = self.modules["average"]
        drawn, texts, lyrics = draw_batch(pool, self.prompts, batch, seed=0)
        config = dit_config()
        drawn.t.copy_(
            torch.tensor(validation_timesteps("model", config["timestep_mu"], config["timestep_sigma"], batch))
        )
        return float(self.losses(model, flow, (drawn, texts, lyrics), 0.0).mean())

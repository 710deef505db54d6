"""What a training step of the DiT is drawn from: pieces, prompts in ever other words, timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from acestep.audio.synth import Piece, caption_of
from acestep.model.prompt import PromptLabels, lyric_prompt, text_prompt
from acestep.training.objective import TIMESTEP_DRAWS
from demo_model.sizes import dit_config

UNKNOWN_SHARE = 0.08
"""How often each of tempo, key and metre is withheld from a prompt."""

TEMPO_BLUR = 0.02
"""How far, up or down, the tempo of a prompt may be from the piece's: what is learned of one number of beats a minute
then serves its neighbours, of which each is a token of its own."""

STRUCTURE_SHARE, STRUCTURE_MU = 0.5, 0.5
"""Share of the timesteps that are drawn with another μ than the model's own: from mostly noise, where a piece's beat
and form are decided and which the model's own draw seldom visits (7 % above 0.8; with this μ 34 %)."""


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


PROMPT_MULTIPLE = 32
"""Token ids are padded to such lengths, so that batches come in few shapes."""


class Draw(NamedTuple):
    """One batch, but for what is drawn on the device.

    pool: number of the pool; chosen: (B,); texts, lyrics: token ids (B, L), padded, with their lengths (B,);
    longest: length of the longest condition; t, uniform: (B,) fp32.
    """

    pool: int
    chosen: Tensor
    texts: Tensor
    text_lengths: Tensor
    lyrics: Tensor
    lyric_lengths: Tensor
    longest: int
    t: Tensor
    uniform: Tensor


class Draws(Dataset[Draw]):
    """The batch of every step, from pools of pieces and the shares of the steps that each is used in.

    batch: pieces of 10 s a step; of shorter ones there are more.
    """

    def __init__(
        self, pools: Sequence[list[Piece]], shares: Sequence[float], tokenizer: PreTrainedTokenizerFast, batch: int
    ) -> None:
        self.pools, self.shares = pools, shares
        self.tokenizer, self.batch = tokenizer, batch

    def __getitem__(self, step: int) -> Draw:
        random = np.random.default_rng((2, step))
        generator = torch.Generator().manual_seed(step)
        number = int(random.choice(len(self.pools), p=self.shares))
        pieces = self.pools[number]
        count = max(1, round(self.batch * 10 / pieces[0].duration_s))
        chosen = random.integers(0, len(pieces), count)
        texts, text_lengths = self._tokens([text_prompt(labels_of(pieces[index], random)) for index in chosen])
        lyrics, lyric_lengths = self._tokens([lyric_prompt(labels_of(pieces[index])) for index in chosen])
        return Draw(
            pool=number,
            chosen=torch.from_numpy(chosen),
            texts=texts,
            text_lengths=text_lengths,
            lyrics=lyrics,
            lyric_lengths=lyric_lengths,
            longest=int((text_lengths + lyric_lengths).max()) + 1,  # the token of the timbre stands between
            t=draw_timesteps(count, generator),
            uniform=torch.rand(count, generator=generator),
        )

    def _tokens(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        found = [torch.tensor(ids) for ids in self.tokenizer(prompts).input_ids]
        lengths = torch.tensor([len(ids) for ids in found])
        whole = -(-int(lengths.max()) // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
        padded = torch.full((len(found), whole), self.tokenizer.pad_token_id)
        for row, ids in zip(padded, found, strict=True):
            row[: len(ids)] = ids
        return padded, lengths


def draw_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """The package's draw, for a share of the items with more noise.  (count,)."""
    config, draw = dit_config(), TIMESTEP_DRAWS["model"]
    structure = round(STRUCTURE_SHARE * count)
    mus = [STRUCTURE_MU] * structure + [config["timestep_mu"]] * (count - structure)
    return torch.tensor([draw(mu, config["timestep_sigma"], generator) for mu in mus])

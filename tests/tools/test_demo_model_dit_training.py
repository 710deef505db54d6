"""The recipe of the demo model's DiT: what is computed together gives what is computed one by one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from demo_model.dit import DitPlan, Trainer
from demo_model.draws import Draws, labels_of
from demo_model.muon import StackedMuon
from demo_model.vae import LATENT_WIDTH

from acestep.audio.synth import draw_piece
from acestep.model.condition import condition_head, condition_text, join_condition
from acestep.model.prompt import lyric_prompt, text_prompt
from acestep.model.untrained_text import train_tokenizer

PIECES = [draw_piece(seed, duration_s=10.0) for seed in range(20)]


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    words = [text for piece in PIECES for text in (text_prompt(labels_of(piece)), lyric_prompt(labels_of(piece)))]
    tokenizer = train_tokenizer(corpus=words, vocabulary=400)
    return Trainer(tokenizer, torch.zeros(1, 800, LATENT_WIDTH), "cpu")


@torch.no_grad()
def test_conditions_of_a_batch_are_those_of_the_package_one_by_one(trainer: Trainer) -> None:
    model = trainer.model
    draw = Draws([PIECES], [1.0], trainer.tokenizer, batch=6)[0]
    packed = model.conditions(draw, model.timbre(trainer.silence), whole=draw.longest + 7)
    lengths = zip(draw.text_lengths.tolist(), draw.lyric_lengths.tolist(), strict=True)
    assert packed.shape[:2] == (6, draw.longest + 7)
    for index, (text_length, lyric_length) in enumerate(lengths):
        text_states = model.text(input_ids=draw.texts[index : index + 1, :text_length]).last_hidden_state
        lyric_states = model.text.get_input_embeddings()(draw.lyrics[index : index + 1, :lyric_length])
        head = condition_head(model.condition, lyric_states)
        wanted = join_condition(head, condition_text(model.condition, text_states))[0]
        torch.testing.assert_close(packed[index, : len(wanted)], wanted, rtol=1e-4, atol=1e-4)


def test_batches_drawn_by_other_processes_are_those_of_this_one(trainer: Trainer) -> None:
    draws = Draws([PIECES[:10], PIECES[10:]], [0.5, 0.5], trainer.tokenizer, batch=3)
    here, there = (
        list(trainer._drawn(draws, range(4, 9), DitPlan(steps=9, batch=3, log_every=1, workers=workers)))
        for workers in (0, 2)
    )
    assert len({draw.pool for draw in here}) == 2
    for one, other in zip(here, there, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


def test_stacked_muon_takes_the_steps_of_torchs_muon() -> None:
    shapes = [(8, 24), (24, 8), (8, 24), (16, 16), (8, 24)]
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    pushes = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(3)]
    unused = torch.nn.Parameter(torch.ones(8, 24))

    def trained(kind: type[torch.optim.Muon]) -> list[torch.Tensor]:
        matrices = [torch.nn.Parameter(value.clone()) for value in start]
        optimizer = kind([unused, *matrices], lr=0.05, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for gradients in pushes:
            for matrix, gradient in zip(matrices, gradients, strict=True):
                matrix.grad = gradient.clone()
            optimizer.step()
        return [matrix.detach() for matrix in matrices]

    for begun, one, other in zip(start, trained(torch.optim.Muon), trained(StackedMuon), strict=True):
        moved = (one - begun).norm()
        assert moved > 0.2
        assert (one - other).norm() < 0.02 * moved  # directions are computed in bf16
    assert torch.equal(unused, torch.ones(8, 24))

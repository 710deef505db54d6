"""Trains the small ACE-Step model of the demo from scratch, on music of the project's own synthesiser.

    python tools/train_demo_model.py vae                 the VAE
    python tools/train_demo_model.py dit                 text encoder, condition encoder and DiT
    python tools/train_demo_model.py codes               the 5 Hz tokenizer and its inverse
    python tools/train_demo_model.py assemble --out DIR  everything as a checkpoint in the original layout
    python tools/train_demo_model.py all --out DIR

Stages go on where they were stopped; their states lie in --work. Seeds are fixed. What each stage cost is printed and
kept in the checkpoint's README. With --device cuda the same runs on a graphics card.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo_model.assemble import assemble
from demo_model.codes import train_codes
from demo_model.dit import Trainer
from demo_model.latents import LatentPool
from demo_model.pool import AudioPool
from demo_model.texts import make_tokenizer
from demo_model.vae import load_trained, silence_latent, train_vae

VAE_PIECES, HELD_OUT_PIECES = 1200, 64
HELD_OUT_SEED = 9_000_000
TRAINING_POOLS = ((6.0, 1_000_000, 0.5), (10.0, 2_000_000, 0.4), (20.0, 3_000_000, 0.1))
"""Length in seconds, first seed and share of the batches."""


def training_pools(options: argparse.Namespace) -> tuple[list[tuple[LatentPool, float]], LatentPool]:
    vae = load_trained(options.work / "vae")
    pools = []
    for duration_s, first_seed, share in TRAINING_POOLS:
        count = round(options.pieces * share * 10 / duration_s)
        name = f"{duration_s:g}s"
        audio = AudioPool(options.work / "audio" / f"{name}.npy", count, duration_s, first_seed)
        pools.append((LatentPool(options.work / "latents" / f"{name}.safetensors", audio, vae, options.device), share))
    audio = AudioPool(options.work / "audio" / "held_out.npy", HELD_OUT_PIECES, 10.0, HELD_OUT_SEED)
    return pools, LatentPool(options.work / "latents" / "held_out.safetensors", audio, vae, options.device)


def run_vae(options: argparse.Namespace) -> None:
    pool = AudioPool(options.work / "audio" / "vae.npy", options.vae_pieces, 10.0, 0)
    train_vae(options.work / "vae", pool, options.vae_steps, options.vae_batch, 32, options.device, options.log_every)


def run_dit(options: argparse.Namespace) -> None:
    pools, held_out = training_pools(options)
    silence = silence_latent(load_trained(options.work / "vae"))
    trainer = Trainer(make_tokenizer(options.work / "tokenizer"), silence, options.device)
    if options.compile:
        trainer.compile_blocks()
    plan = {"steps": options.dit_steps, "batch": options.dit_batch, "log_every": options.log_every}
    trainer.train(options.work / "dit", pools, held_out, **plan)


def run_codes(options: argparse.Namespace) -> None:
    pools, _ = training_pools(options)
    train_codes(options.work / "codes", pools[1][0], options.code_steps, options.device, options.log_every)


def run_assemble(options: argparse.Namespace) -> None:
    if options.out is None:
        raise SystemExit("assemble needs --out DIR.")
    print(assemble(options.work, options.out))


STAGES = {"vae": run_vae, "dit": run_dit, "codes": run_codes, "assemble": run_assemble}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("--work", type=Path, default=Path("demo_model_work"), help="states, sound and latents")
    parser.add_argument("--out", type=Path, help="the checkpoint folder that assemble writes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--vae-pieces", type=int, default=VAE_PIECES)
    parser.add_argument("--vae-steps", type=int, default=6000)
    parser.add_argument("--vae-batch", type=int, default=4, help="clips of 1.28 s in a step")
    parser.add_argument("--pieces", type=int, default=4800, help="pieces that the DiT is trained on, counted as 10 s")
    parser.add_argument("--dit-steps", type=int, default=11700)
    parser.add_argument("--dit-batch", type=int, default=24, help="pieces of 10 s in a step")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="the DiT's blocks")
    parser.add_argument("--code-steps", type=int, default=600)
    parser.add_argument("--log-every", type=int, default=100)
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    for stage in STAGES if options.stage == "all" else [options.stage]:
        STAGES[stage](options)


if __name__ == "__main__":
    main()

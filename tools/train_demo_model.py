"""Trains the small ACE-Step model of the demo from scratch, on music of the project's own synthesiser.

    python tools/train_demo_model.py vae                 the VAE
    python tools/train_demo_model.py dit                 text encoder, condition encoder and DiT
    python tools/train_demo_model.py codes               the 5 Hz tokenizer and its inverse
    python tools/train_demo_model.py assemble --out DIR  everything as a checkpoint in the original layout
    python tools/train_demo_model.py all --out DIR

Stages go on where they were stopped; their states lie in --work. Seeds are fixed. What each stage cost is printed and
kept in the checkpoint's README. With --device cuda the same runs on a graphics card, with more music in less time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo_model.assemble import assemble
from demo_model.codes import train_codes
from demo_model.dit import DitPlan, Trainer
from demo_model.latents import LatentPool
from demo_model.pool import AudioPool, Pieces
from demo_model.texts import make_tokenizer
from demo_model.vae import VaePlan, load_trained, silence_latent, train_vae

HELD_OUT = Pieces(64, 10.0, first_seed=9_000_000)
TRAINING_POOLS = ((6.0, 1_000_000, 0.5), (10.0, 2_000_000, 0.4), (20.0, 3_000_000, 0.1))
"""Length in seconds, first seed and share of the batches."""


DEFAULTS = {
    "cpu": {
        "vae_pieces": 1200,
        "vae_steps": 6000,
        "vae_batch": 4,
        "vae_frames": 32,
        "pieces": 4800,
        "dit_steps": 11700,
        "dit_batch": 24,
        "workers": 0,
        "code_steps": 600,
        "log_every": 100,
    },
    "cuda": {
        "vae_pieces": 4000,
        "vae_steps": 9000,
        "vae_batch": 16,
        "vae_frames": 64,
        "pieces": 12000,
        "dit_steps": 12000,
        "dit_batch": 128,
        "workers": 10,
        "code_steps": 1000,
        "log_every": 250,
    },
}
"""By device. The shipped weights were trained with those for a graphics card."""


def training_pools(options: argparse.Namespace) -> tuple[list[tuple[LatentPool, float]], LatentPool]:
    vae = load_trained(options.work / "vae")

    def pool(name: str, pieces: Pieces) -> LatentPool:
        return LatentPool(options.work / "latents" / f"{name}.safetensors", pieces, vae, options.device)

    pools = []
    for duration_s, first_seed, share in TRAINING_POOLS:
        pieces = Pieces(round(options.pieces * share * 10 / duration_s), duration_s, first_seed)
        pools.append((pool(f"{duration_s:g}s", pieces), share))
    return pools, pool("held_out", HELD_OUT)


def run_vae(options: argparse.Namespace) -> None:
    pool = AudioPool(options.work / "audio" / "vae.npy", Pieces(options.vae_pieces, 10.0, first_seed=0))
    compiled = options.compile and options.device == "cuda"
    train_vae(
        options.work / "vae",
        pool,
        VaePlan(options.vae_steps, options.vae_batch, options.vae_frames, options.device, options.log_every, compiled),
    )


def run_dit(options: argparse.Namespace) -> None:
    pools, held_out = training_pools(options)
    silence = silence_latent(load_trained(options.work / "vae"))
    trainer = Trainer(make_tokenizer(options.work / "tokenizer"), silence, options.device)
    if options.compile and options.device == "cpu":
        trainer.compile_blocks()
    plan = DitPlan(options.dit_steps, options.dit_batch, options.log_every, options.workers)
    trainer.train(options.work / "dit", pools, held_out, plan)


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
    numbers = parser.add_argument_group("numbers", "Left out, they are as suits the device.")
    numbers.add_argument("--vae-pieces", type=int, help="pieces of 10 s that the VAE is trained on")
    numbers.add_argument("--vae-steps", type=int)
    numbers.add_argument("--vae-batch", type=int, help="clips in a step")
    numbers.add_argument("--vae-frames", type=int, help="length of a clip, 25 a second")
    numbers.add_argument("--pieces", type=int, help="pieces that the DiT is trained on, counted as 10 s")
    numbers.add_argument("--dit-steps", type=int)
    numbers.add_argument("--dit-batch", type=int, help="pieces in a step, counted as 10 s")
    numbers.add_argument("--workers", type=int, help="processes that draw prompts for the DiT")
    numbers.add_argument("--code-steps", type=int)
    numbers.add_argument("--log-every", type=int)
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the DiT's blocks on a processor, the VAE on a graphics card (where the DiT is a CUDA graph)",
    )
    options = parser.parse_args()
    for name, number in DEFAULTS[options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, number)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    for stage in STAGES if options.stage == "all" else [options.stage]:
        STAGES[stage](options)


if __name__ == "__main__":
    main()

"""Measures the small ACE-Step model of the demo; see tools/train_demo_model.py for its making.

    python tools/evaluate_demo_model.py vae --checkpoint DIR          what the VAE loses and adds, on unseen pieces
    python tools/evaluate_demo_model.py generation --checkpoint DIR   whether unseen prompts are played as they say
    python tools/evaluate_demo_model.py adaptation --checkpoint DIR   what a short training on a new style does

Tables go to the screen, all numbers as JSON, pictures and some sounds into --out. No piece that is judged here was
trained on: the seeds lie far apart.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]


def run_vae(options: argparse.Namespace) -> str:
    from demo_model.evaluate_vae import evaluate_vae

    from acestep.model.checkpoints import resolve_checkpoint

    return evaluate_vae(resolve_checkpoint(options.checkpoint), options.count or 24, options.out, options.processes)


def run_generation(options: argparse.Namespace) -> str:
    os.environ["OMP_NUM_THREADS"] = "1"  # every process has one thread
    from demo_model.evaluate_generation import Sampling, evaluate_generation

    sampling = Sampling(options.steps, options.guidance, options.shift)
    count = options.count or 100
    return evaluate_generation(options.checkpoint, count, options.out, options.processes, sampling, options.listened)


def run_adaptation(options: argparse.Namespace) -> str:
    from demo_model.evaluate_adaptation import Plan, evaluate_adaptation
    from demo_model.evaluate_generation import Sampling

    plan = Plan(
        style=options.style,
        preset=options.preset,
        settings=dict(given.split("=", 1) for given in options.set),
        regularization=options.regularization,
        caption=options.caption,
        longest_s=options.seconds,
        seeds=options.seeds,
        played=options.count or 12,
        judged=options.judged,
        overfit_factor=options.overfit_factor,
        sampling=Sampling(options.steps, options.guidance, options.shift),
    )
    return evaluate_adaptation(options.checkpoint, plan, options.out, options.processes)


STAGES = {"vae": run_vae, "generation": run_generation, "adaptation": run_adaptation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=tuple(STAGES))
    parser.add_argument("--checkpoint", type=Path, required=True, help="the model, or the folder that holds it")
    parser.add_argument("--out", type=Path, default=Path("demo_model_evaluation"))
    parser.add_argument("--count", type=int, help="pieces: 24 of each pool for vae, 100 generated, 12 for adaptation")
    parser.add_argument("--processes", type=int, default=2, help="processes of generation, threads of the others")
    sampler = parser.add_argument_group("sampler; left out: as the variant has it")
    sampler.add_argument("--steps", type=int)
    sampler.add_argument("--guidance", type=float)
    sampler.add_argument("--shift", type=float)
    generation = parser.add_argument_group("generation")
    generation.add_argument("--listened", type=int, default=900, help="real pieces the classifiers learn from")
    adaptation = parser.add_argument_group("adaptation")
    adaptation.add_argument("--style", default="toybox", help="a style that was kept back")
    adaptation.add_argument("--preset", help="a preset for the training; left out: default settings")
    adaptation.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings that win over it")
    adaptation.add_argument("--regularization", type=int, default=0, help="songs of the base trained on beside them")
    adaptation.add_argument("--caption", default="", help="said of all songs instead of their own")
    adaptation.add_argument("--seconds", type=float, default=120.0, help="the training is stopped after so long")
    adaptation.add_argument("--judged", type=int, default=16, help="songs whose loss is measured, at most 16")
    adaptation.add_argument("--seeds", type=int, default=3)
    adaptation.add_argument(
        "--overfit-factor", type=int, default=5, help="how many times as many steps show overfitting; 0 leaves it out"
    )
    options = parser.parse_args()
    from acestep.core.errors import UserError

    try:
        print(STAGES[options.stage](options))
    except UserError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()

"""Median time of a training step beside a minimal eager PyTorch + PEFT loop, on the same model in the same run.

    python benchmarks/train_step.py [--steps 4] [--rounds 12] [--frames 375] [--layers 4] [--hidden 512]
    python benchmarks/train_step.py --device cuda --frames 1500 --layers 24 --hidden 2048   (the 2B model's sizes)

Both loops train the same modules at the same rank on windows of the same length. Rounds alternate, and the
ratio is taken within each round, so that other work on the machine hits both alike. Also printed: LoKr beside
LoRA, the share of a step that waits for data, start-up to the first step and peak memory, each in a fresh process.

    python benchmarks/train_step.py --table --size 2b --device cuda
    python benchmarks/train_step.py --table --windows 250,500 --batches 1,2 --compile off     (a small part, on a CPU)

prints a table instead: every adapter, compiled or not, with or without gradient checkpointing, by batch and window.
A token is two latent frames. The share of the peak is what a step computes, recomputation included, over what the
machine reaches in one large multiplication of matrices in the same number format, measured in the same process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

LATENT_WIDTH, CONDITION_TOKENS = 64, 300
WARMUP_STEPS = 3
FRAMES_PER_TOKEN = 2
SIZES = {"small": {}, "2b": {"layers": 24, "hidden": 2048, "condition": 2048}}


def make_transformer(options: argparse.Namespace):
    import torch
    from diffusers.models.transformers.ace_step_transformer import AceStepTransformer1DModel

    torch.manual_seed(0)
    head_dim = 128 if options.hidden >= 1024 else 64
    with torch.device(options.device):
        transformer = AceStepTransformer1DModel(
            hidden_size=options.hidden,
            intermediate_size=3 * options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=options.hidden // head_dim,
            num_key_value_heads=options.hidden // head_dim // 2,
            head_dim=head_dim,
            encoder_hidden_size=options.condition,
            in_channels=3 * LATENT_WIDTH,
            audio_acoustic_hidden_dim=LATENT_WIDTH,
            is_turbo=True,
        )
    if options.device != "cpu":
        transformer.to(torch.bfloat16)
    return transformer.requires_grad_(False)


class OurLoop:
    """The package's own step, exactly as `acestep train` runs it, on songs of random latents in memory."""

    def __init__(self, options: argparse.Namespace, adapter: str, batch: int = 1, checkpointing: bool = False) -> None:
        import torch
        from lightning_fabric import Fabric

        from acestep.adapters import TriggerTag, attach
        from acestep.settings import TrainSettings
        from acestep.training.averaging import Averaging
        from acestep.training.data import EpochOrder, Flow, TrainingData, TrainingSong
        from acestep.training.forward import FlowModel
        from acestep.training.loop import Session
        from acestep.training.optimizers import make_optimizer
        from acestep.training.plan import Plan
        from acestep.training.processes import Processes
        from acestep.training.recorder import SilentRecorder
        from acestep.training.step_down import Economy

        self.settings = TrainSettings.parse(
            {
                "adapter": adapter,
                "rank": options.rank,
                "alpha": 2 * options.rank,
                "dropout": 0.0,
                "batch_size": batch,
                "gradient_accumulation": 1,
                "max_latent_length": options.frames,
                "validation": "none",
                "max_steps": 100_000,
            },
            "benchmark",
        )
        transformer = make_transformer(options)
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        attached = attach(transformer, self.settings)
        songs = [
            TrainingSong(
                stored=SimpleNamespace(id=f"{index:016x}", repeat=1, regularization=False, title=str(index)),
                latents=torch.randn(4 * options.frames, LATENT_WIDTH),
                condition=torch.randn(CONDITION_TOKENS, options.condition),
                frames=4 * options.frames,
            )
            for index in range(8)
        ]
        data = TrainingData(songs, [], "none", options.frames)
        silence, null = torch.randn(1, options.frames, LATENT_WIDTH), torch.randn(1, 1, options.condition)
        model = FlowModel(transformer, silence, null, torch.device(options.device))
        precision = "32-true" if options.device == "cpu" else "bf16-mixed"
        fabric = Fabric(accelerator=options.device, devices=1, precision=precision)
        processes = Processes(fabric)
        model.autocast = processes.autocast
        optimizer = fabric.setup_optimizers(make_optimizer(attached.parameters(), self.settings))
        transformer.train()
        order = EpochOrder(data, self.settings)
        self.modules = len(attached.module_names)
        self.session = Session(
            settings=self.settings,
            economy=Economy.of(self.settings),
            plan=Plan.of(self.settings, order.steps_per_epoch),
            processes=processes,
            model=model,
            adapter=attached,
            tag=TriggerTag(),
            optimizer=optimizer,
            averaging=Averaging(),
            data=data,
            order=order,
            flow=Flow(-0.4, 1.0),
            validation=None,
            run=None,  # type: ignore[arg-type]  # nothing is written here
            record=SilentRecorder(),
            previews=None,  # type: ignore[arg-type]
        )
        self.waits: list[float] = []

    def step(self) -> None:
        from acestep.training.loop import optimizer_step, steps_of

        stats = optimizer_step(self.session, *steps_of(self.session, self.session.state.step))
        self.session.state.step += 1
        self.waits.append(stats.data_seconds / stats.seconds)


class EagerLoop:
    """What a capable user would write in an afternoon: PEFT, AdamW, fixed tensors, no safeguards."""

    def __init__(self, options: argparse.Namespace) -> None:
        import torch
        from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(
            r=options.rank, lora_alpha=2 * options.rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"]
        )
        self.model = inject_adapter_in_model(config, make_transformer(options)).train()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
        self.trained, self.frames = trained, options.frames
        with torch.device(options.device):
            self.latents = [torch.randn(1, options.frames, LATENT_WIDTH) for _ in range(8)]
            self.condition = torch.randn(1, CONDITION_TOKENS, options.condition)
            self.context = torch.randn(1, options.frames, 2 * LATENT_WIDTH)
        self.count = 0

    def step(self) -> None:
        import torch

        latents = self.latents[self.count % len(self.latents)]
        self.count += 1
        noise, t = torch.randn_like(latents), torch.rand(1, device=latents.device)
        noisy = t * noise + (1 - t) * latents
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.device.type != "cpu"):
            prediction = self.model(noisy, t, t, self.condition, self.context, return_dict=False)[0]
            loss = torch.nn.functional.mse_loss(prediction.float(), noise - latents)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()


def timed(loop: OurLoop | EagerLoop, steps: int) -> list[float]:
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        loop.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def alone(options: argparse.Namespace, kind: str) -> dict[str, float]:
    """Start-up to the end of the first step and peak memory of one loop, in a process of its own."""
    arguments = [sys.executable, __file__, "--alone", kind]
    for name in ("steps", "frames", "layers", "hidden", "condition", "rank", "device"):
        arguments += [f"--{name}", str(getattr(options, name))]
    return json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def run_alone(options: argparse.Namespace, began: float) -> None:
    loop = EagerLoop(options) if options.alone == "eager" else OurLoop(options, options.alone)
    loop.step()
    first = time.perf_counter() - began
    timed(loop, 3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if options.device == "cuda":
        import torch

        peak = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps({"first_step_s": first, "peak_mb": peak}))


def matrix_peak(device: str, seconds: float = 1.0) -> float:
    """Operations a second of one large multiplication in the number format of training, the best of a second."""
    import torch

    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        one @ other
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def measure_case(options: argparse.Namespace, case: dict) -> dict:
    """One row of the table; run in a process of its own, so that peaks and compilations are its own."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from acestep.core.jobs import Job
    from acestep.training.compiling import compiled_blocks

    options.frames = case["window"]
    try:
        loop = OurLoop(options, case["adapter"], case["batch"], case["checkpointing"] == "on")
        with FlopCounterMode(display=False) as counter:
            loop.step()
        wanted = case["compile"] == "on"
        with compiled_blocks(loop.session, Job()) if wanted else nullcontext():
            compiled = loop.session.model.transformer.layers[0]._compiled_call_impl is not None
            timed(loop, WARMUP_STEPS)
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = statistics.median(timed(loop, options.steps))
    except torch.OutOfMemoryError:
        return {**case, "trouble": "out of memory"}
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if options.device == "cuda":
        peak_mb = torch.cuda.max_memory_allocated() / 2**20
    return {
        **case,
        "trouble": "not compiled" if wanted and not compiled else "",
        "step_ms": 1000 * seconds,
        "tokens_per_s": case["batch"] * case["window"] / FRAMES_PER_TOKEN / seconds,
        "peak_share": counter.get_total_flops() / seconds / matrix_peak(options.device),
        "peak_memory_mb": peak_mb,
    }


def print_table(options: argparse.Namespace) -> None:
    """Every chosen case in turn, each in a fresh process, as one line; `--json FILE` keeps the numbers."""
    axes = {
        "adapter": options.adapters.split(","),
        "compile": options.compile.split(","),
        "checkpointing": options.checkpointing.split(","),
        "batch": [int(text) for text in options.batches.split(",")],
        "window": [int(text) for text in options.windows.split(",")],
    }
    print("adapter compile checkpointing batch window   step ms  tokens/s  of peak  peak MB")
    rows = []
    for values in itertools.product(*axes.values()):
        case = dict(zip(axes, values, strict=True))
        command = [sys.executable, __file__, "--case", json.dumps(case)]
        for name in ("steps", "layers", "hidden", "condition", "rank", "device"):
            command += [f"--{name}", str(getattr(options, name))]
        row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        rows.append(row)
        line = (
            f"{row['adapter']:<7} {row['compile']:<7} {row['checkpointing']:<13} {row['batch']:5d} {row['window']:6d} "
        )
        if "step_ms" in row:
            line += f"{row['step_ms']:9.1f} {row['tokens_per_s']:9.0f} {row['peak_share']:8.1%} "
            line += f"{row['peak_memory_mb']:8.0f}"
        print(f"{line}  {row['trouble']}".rstrip(), flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


def main() -> None:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"steps": 4, "rounds": 12, "frames": 375, "layers": 4, "hidden": 512, "condition": 256, "rank": 32}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--alone", choices=("eager", "lora", "lokr"), help=argparse.SUPPRESS)
    parser.add_argument("--size", choices=tuple(SIZES), default="small", help="2b: the 2B model, with random weights")
    parser.add_argument("--table", action="store_true", help="print the table of cases")
    parser.add_argument("--adapters", default="lora,lokr")
    parser.add_argument("--compile", default="off,on")
    parser.add_argument("--checkpointing", default="off,on")
    parser.add_argument("--batches", default="1,2,4")
    parser.add_argument("--windows", default="750,1500,3000")
    parser.add_argument("--json", help="file for the numbers of the table")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    vars(options).update(SIZES[options.size])
    if options.case:
        print(json.dumps(measure_case(options, options.case)))
        return
    if options.table:
        print_table(options)
        return
    if options.alone:
        run_alone(options, began)
        return
    loops = {
        "eager LoRA": EagerLoop(options),
        "ours LoRA": OurLoop(options, "lora"),
        "ours LoKr": OurLoop(options, "lokr"),
    }
    for loop in loops.values():
        timed(loop, WARMUP_STEPS)
    rounds = [
        {name: statistics.median(timed(loop, options.steps)) for name, loop in loops.items()}
        for _ in range(options.rounds)
    ]
    for name in loops:
        median = statistics.median(found[name] for found in rounds)
        print(f"{name:<12} median step {1000 * median:8.1f} ms over {options.rounds} rounds of {options.steps} steps")
    for one, other in (("ours LoRA", "eager LoRA"), ("ours LoKr", "ours LoRA")):
        ratios = sorted(found[one] / found[other] for found in rounds)
        print(
            f"{one} / {other}: median ratio {statistics.median(ratios):.3f}, "
            f"middle half {ratios[len(ratios) // 4]:.3f} to {ratios[(3 * len(ratios)) // 4]:.3f}"
        )
    print(f"waiting for data        {100 * statistics.median(loops['ours LoRA'].waits):.2f} % of a step")
    for kind in ("eager", "lora", "lokr"):
        found = [alone(options, kind) for _ in range(3)]
        first = statistics.median(item["first_step_s"] for item in found)
        peak = statistics.median(item["peak_mb"] for item in found)
        print(f"{kind:<6} alone: first step done after {first:.1f} s, peak memory {peak:.0f} MB")


if __name__ == "__main__":
    main()

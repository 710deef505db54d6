"""Forward and backward time of each adapter on the same modules of one transformer, and of LyCORIS' usual way.

    python benchmarks/adapter_forward.py [--layers 6] [--hidden 512] [--tokens 750] [--rounds 8]

The kinds take turns within every round, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import AceStepTransformer1DModel
from torch import Tensor, nn

from acestep.adapters import Adapter, attach
from acestep.settings import AdapterSettings


def build_transformer(arguments: argparse.Namespace) -> AceStepTransformer1DModel:
    torch.manual_seed(0)
    heads = arguments.hidden // 64
    return AceStepTransformer1DModel(
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=64,
    ).train()


def make_step(transformer: nn.Module, adapter: Adapter, arguments: argparse.Namespace) -> Callable[[], None]:
    frames = 2 * arguments.tokens
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    timestep = torch.full((1,), 0.5)
    inputs = {
        "hidden_states": draw(1, frames, 64),
        "timestep": timestep,
        "timestep_r": timestep,
        "encoder_hidden_states": draw(1, 256, arguments.hidden),
        "context_latents": draw(1, frames, 128),
    }
    target = draw(1, frames, 64)

    def step() -> None:
        for parameter in adapter.parameters():
            parameter.grad = None
        velocity = transformer(**inputs, return_dict=False)[0]
        nn.functional.mse_loss(velocity, target).backward()

    return step


def use_rebuilt_weights(adapter: Adapter) -> Adapter:
    """LyCORIS' ordinary path: kron(w1, w2) and a second full product."""
    for module in adapter.holder.values():  # type: ignore[attr-defined]
        layer = module.org_module[0]
        layer.forward = module._rebuild_forward
    return adapter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=750)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()

    lora = AdapterSettings(adapter="lora", rank=64, dropout=0.0)
    kinds = {"LoRA rank 64": lora}
    for factor in (-1, 4, 8, 16):
        kinds[f"LoKr factor {factor}"] = AdapterSettings(adapter="lokr", lokr_factor=factor)
    kinds["LoKr factor 4, dim 16"] = AdapterSettings(adapter="lokr", lokr_factor=4, lokr_dim=16)
    steps = {}
    for name, settings in kinds.items():
        transformer = build_transformer(arguments)
        steps[name] = make_step(transformer, attach(transformer, settings), arguments)
    transformer = build_transformer(arguments)
    rebuilt = use_rebuilt_weights(attach(transformer, kinds["LoKr factor 8"]))
    steps["LoKr factor 8, weight rebuilt"] = make_step(transformer, rebuilt, arguments)

    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(arguments.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    reference = times["LoRA rank 64"]
    for name, seconds in times.items():
        ratio = statistics.median(own / other for own, other in zip(seconds, reference, strict=True))
        print(f"{name:32s} {1000 * statistics.median(seconds):8.1f} ms a step   {ratio:.2f} of LoRA")


if __name__ == "__main__":
    main()

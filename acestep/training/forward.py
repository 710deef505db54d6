"""From a batch of draws to one loss an item: the model call that training and validation share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from diffusers.models.transformers.ace_step_transformer import AceStepTransformer1DModel
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from acestep.model.attention import attention_kernels
from acestep.model.condition import context_latents
from acestep.training.data import Batch
from acestep.training.objective import drop_conditions, flow_target, item_losses
from acestep.training.padding import ConditionMask


def recompute_layers(transformer: AceStepTransformer1DModel, share: float) -> None:
    """Let a share of the layers keep only their input and compute their activations again in the backward pass.

    It is the first layers that do: when the backward pass reaches them the others have let go of theirs already, so
    what is made again does not come on top. All layers are of one size, though their attention alternates.
    """
    count = math.ceil(share * len(transformer.layers))
    chosen = set(transformer.layers[:count])
    more: dict[str, Any] = {"context_fn": _same_draws} if transformer.device.type == "mps" else {}

    def call(layer: torch.nn.Module, *inputs: Any) -> Any:
        return checkpoint(layer, *inputs, use_reentrant=False, **more) if layer in chosen else layer(*inputs)

    if chosen:
        transformer.enable_gradient_checkpointing(call)


def _same_draws() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a layer's two passes on a Mac: the second drops out what the first did.

    torch's checkpoint keeps the generators of other devices, but not that of Macs (torch 2.13, pytorch#127676).
    """
    return nullcontext(), _drawing_from(torch.mps.get_rng_state())


@contextmanager
def _drawing_from(state: Tensor) -> Iterator[None]:
    with torch.random.fork_rng(devices=[0], device_type="mps"):
        torch.mps.set_rng_state(state)
        yield


class FlowModel:
    """The transformer with what stays the same for every batch: null condition, silence context, condition mask.

    silence_latent: (1, N, C); null_condition: (1, 1, E). `autocast` is the precision the transformer computes in.
    """

    def __init__(
        self,
        transformer: AceStepTransformer1DModel,
        silence_latent: Tensor,
        null_condition: Tensor,
        device: torch.device,
    ) -> None:
        self.transformer = transformer
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.device = device
        self.null_condition = null_condition.to(device)
        self._silence = silence_latent
        self.mask = ConditionMask(transformer)
        self._context: dict[int, Tensor] = {}

    def context(self, frames: int) -> Tensor:
        """Text-to-music context latents (1, T, 2C): silence as source, ones as mask."""
        if frames not in self._context:
            self._context[frames] = context_latents(self._silence, frames).to(self.device)
        return self._context[frames]

    def round_conditions_up(self, multiple: int) -> None:
        """Pad conditions to lengths that this divides; the mask keeps all numbers what they are."""
        self.mask.multiple = multiple

    def unmasked(self) -> AbstractContextManager[None]:
        """Leaves the mask of the last training batch out of the transformer's calls inside the block."""
        return self.mask.lifted()

    def item_losses(self, batch: Batch, condition_dropout: float) -> Tensor:
        """Flow-matching loss of each item, (B,) fp32. Items with `uniform` below the rate lose their condition."""
        condition = self.mask.pad([self._move(item) for item in batch.conditions], self.null_condition.dtype)
        return self.losses_under(condition, batch, condition_dropout)

    def losses_under(self, condition: Tensor, batch: Batch, condition_dropout: float) -> Tensor:
        """The same under conditions (B, L, E) that are padded, and covered by `mask`, already."""
        latents, noise = self._move(batch.latents), self._move(batch.noise)
        t, uniform = self._move(batch.t), self._move(batch.uniform)
        condition = drop_conditions(condition, self.null_condition, uniform, condition_dropout)
        noisy, velocity = flow_target(latents, noise, t)
        with self.autocast(), attention_kernels(self.device):
            (prediction,) = self.transformer(
                hidden_states=noisy,
                timestep=t,
                timestep_r=t,
                encoder_hidden_states=condition,
                context_latents=self.context(latents.shape[1]).expand(len(batch), -1, -1),
                return_dict=False,
            )
        return item_losses(prediction, velocity)

    def _move(self, tensor: Tensor) -> Tensor:
        # On a Mac the copy would read the tensor's memory later, when a batch that is gone has given it back.
        return tensor.to(self.device, non_blocking=self.device.type == "cuda")

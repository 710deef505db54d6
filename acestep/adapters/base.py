"""What every adapter can do once it is attached to a transformer, whatever its family."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from acestep.adapters.specs import Spec
from acestep.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

_MARK = "attached_adapter"
"""Attribute of a transformer that holds the adapter attached to it."""


class Adapter(ABC):
    """An adapter in place: the transformer stays the same object and computes with the adapter added.

    Its weights are fp32 and trainable, those of the transformer frozen. Dropout follows the transformer's own
    train() and eval().
    """

    kind: ClassVar[str]
    name: ClassVar[str]

    def __init__(self, transformer: nn.Module, modules: Sequence[str], spec: Spec) -> None:
        refuse_second(transformer)
        self.transformer = transformer
        self.module_names = tuple(modules)
        """Wrapped modules, diffusers names in model order."""
        self.spec = spec
        self.notes: tuple[str, ...] = ()
        """What the user should know about this adapter on this model, in sentences."""
        self._strength = 1.0
        transformer.requires_grad_(False)

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Trainable weights with their names in a file, in an order that is the same in every run."""

    def parameters(self) -> list[nn.Parameter]:
        """Trainable weights, in the order of `named_parameters`."""
        return [parameter for _, parameter in self.named_parameters()]

    def constants(self) -> dict[str, Tensor]:
        """What a file holds beside the trainable weights; files that say otherwise are refused."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the adapter's file by their names there. The memory is shared with the adapter's own."""
        weights = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return {**weights, **self.constants()}

    def load_tensors(self, tensors: Mapping[str, Tensor], source: str = "The adapter") -> None:
        """Copy weights into the adapter; every tensor must be known, there, finite and of the right shape.

        Raises a UserError that lists what does not fit; the adapter is then as before.
        """
        own = self.tensors()
        check_fit(
            {name: tuple(tensor.shape) for name, tensor in own.items()},
            {name: tuple(tensor.shape) for name, tensor in tensors.items()},
            source,
        )
        refuse_unusable(tensors, source)
        for name, constant in self.constants().items():
            stored = float(tensors[name])
            # two parts in a hundred: constants are stored in bf16 by some trainers
            if not math.isclose(stored, float(constant), rel_tol=0.02):
                raise UserError(
                    f"{source}: {name} is {stored:g}, but {float(constant):g} follows from its configuration.",
                    fix="Take the adapter's original files.",
                )
        for name, parameter in self.named_parameters():
            parameter.data.copy_(tensors[name])

    @property
    def strength(self) -> float:
        return self._strength

    def set_strength(self, strength: float) -> None:
        """How strongly the adapter is heard: 1 as trained, 0 exactly the model without it; any number is allowed."""
        if not math.isfinite(strength):
            raise UserError(f"The adapter's strength cannot be {strength}.", fix="Choose a number, 1 is as trained.")
        self._strength = float(strength)
        self._apply_strength()

    @abstractmethod
    def _apply_strength(self) -> None: ...

    def detach_from_model(self) -> None:
        """Take the adapter off; the transformer computes what it did before, bit for bit. Does nothing twice."""
        if getattr(self.transformer, _MARK, None) is self:
            self._remove()
            delattr(self.transformer, _MARK)

    @abstractmethod
    def _remove(self) -> None: ...

    def _mark_attached(self) -> None:
        setattr(self.transformer, _MARK, self)
        self.train(self.transformer.training)

    def train(self, training: bool = True) -> None:
        """Switch the adapter's dropout on or off, as train() and eval() of the whole transformer do."""
        layers = dict(self.transformer.named_modules())
        for name in self.module_names:
            layers[name].train(training)

    @abstractmethod
    def weight_delta(self, module: str) -> Tensor:
        """What the adapter adds to the weight of a wrapped module at full strength: fp32 [out, in]."""


def attached_adapter(transformer: nn.Module) -> Adapter | None:
    """The adapter a transformer carries at the moment."""
    return getattr(transformer, _MARK, None)


def refuse_second(transformer: nn.Module) -> None:
    """Raise a UserError when the transformer already carries an adapter, ours or another program part's."""
    there = attached_adapter(transformer)
    if there is not None:
        raise UserError(f"The model already carries a {there.name} adapter.", fix="Detach it first.")
    for name, module in transformer.named_modules():
        if hasattr(module, "base_layer") or hasattr(module, "_lycoris_wrappers"):
            raise UserError(f"The model already carries an adapter, on {name}.", fix="Load the model again.")


def check_fit(own: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Compare names and shapes of the tensors needed and those in a file; a UserError lists every difference."""
    missing = sorted(own.keys() - given.keys())
    unexpected = sorted(given.keys() - own.keys())
    shapes = [
        f"{name} is {list(given[name])}, this model needs {list(shape)}"
        for name, shape in own.items()
        if name in given and given[name] != shape
    ]
    if not (missing or unexpected or shapes):
        return
    counts = [
        f"{len(missing)} of {len(own)} tensors are missing (first {missing[0]})" if missing else "",
        f"{len(unexpected)} are unknown here (first {unexpected[0]})" if unexpected else "",
        f"{len(shapes)} have another shape ({shapes[0]})" if shapes else "",
    ]
    lists = [
        "Missing: " + ", ".join(missing) if missing else "",
        "Unknown: " + ", ".join(unexpected) if unexpected else "",
        "Other shape: " + "; ".join(shapes) if shapes else "",
    ]
    raise UserError(
        f"{source} does not fit this model: {'; '.join(filter(None, counts))}.",
        fix="It was made for a model of another size, or its files are damaged.",
        detail="\n".join(filter(None, lists)),
    )


def refuse_unusable(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise a UserError for tensors that are not floating point or hold NaN or infinity."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UserError(
                f"{source}: {name} holds {tensor.dtype}, not floating-point numbers.",
                fix="Take the adapter's original files.",
            )
        if not tensor.isfinite().all():
            raise UserError(
                f"{source}: {name} holds values that are not numbers (NaN or infinity).",
                fix="Use an earlier checkpoint.",
            )

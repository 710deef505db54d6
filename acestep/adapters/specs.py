"""What defines the tensors of an adapter beside its modules, in each family's own terms, as its files state it.

A spec is made from the settings of a run, or read from a file that any trainer wrote. It holds more than the
settings offer, so that such a file plays as it was meant and can be written again.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from acestep.core.errors import UserError
from acestep.settings import AdapterSettings
from acestep.settings.base import explain

Rank = Annotated[int, Field(ge=1, le=100_000)]
Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]

_PLAIN_NAME = re.compile(r"\^?[\w.]+")


class Spec(BaseModel):
    """Values of an adapter file: types are checked strictly, fields that do not matter here are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    @classmethod
    def read(cls, values: dict[str, Any], source: str) -> Self:
        """The spec in a file's values, where null means the default; a UserError names `source` and the wrong field."""
        try:
            return cls.model_validate({key: value for key, value in values.items() if value is not None})
        except ValidationError as error:
            sentences = " ".join(explain(cls, error))  # type: ignore[arg-type]  # reads the fields' names only
            raise UserError(f"{source}: {sentences}", fix="Take the adapter's original files.") from error

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: AdapterSettings) -> Self:
        """The spec of a new adapter."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """Kind and size in a few words."""

    @property
    @abstractmethod
    def needs_base(self) -> bool:
        """Whether what the adapter adds to a weight depends on that weight."""

    @property
    @abstractmethod
    def rank(self) -> int | None:
        """Rank or dimension of its factors, or None for a family without."""


class LoraSpec(Spec):
    """LoRA and DoRA, in the words of PEFT's adapter_config.json. Pattern keys are module names or their ends."""

    r: Rank
    lora_alpha: Alpha
    lora_dropout: Share = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, Rank] = {}
    alpha_pattern: dict[str, Alpha] = {}

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _names_only(cls, pattern: dict[str, Any]) -> dict[str, Any]:
        # PEFT reads these keys as regular expressions; trainers write plain module names, and a crafted
        # expression could keep a reader busy for ever.
        for key in pattern:
            if not _PLAIN_NAME.fullmatch(key):
                raise ValueError(f'pattern "{key}" is not a plain module name')
        return pattern

    @classmethod
    def from_settings(cls, settings: AdapterSettings) -> Self:
        return cls(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            use_rslora=settings.rslora,
            use_dora=settings.dora,
            rank_pattern=settings.rank_pattern,
            alpha_pattern=dict(settings.alphas_by_module()),
        )

    @property
    def summary(self) -> str:
        return f"{'DoRA' if self.use_dora else 'LoRA'}, rank {self.r}, alpha {self.lora_alpha:g}"

    @property
    def needs_base(self) -> bool:
        return self.use_dora

    @property
    def rank(self) -> int:
        return self.r

    def rank_of(self, module: str) -> int:
        """Rank of a module, by its original name."""
        return self.rank_pattern.get(_pattern_for(self.rank_pattern, module), self.r)

    def alpha_of(self, module: str) -> float:
        """Alpha of a module, by its original name."""
        return self.alpha_pattern.get(_pattern_for(self.alpha_pattern, module), self.lora_alpha)

    def scale_of(self, module: str) -> float:
        """What B @ A is multiplied with: alpha / rank, or alpha / sqrt(rank) for rsLoRA (Kalajdzievski 2023)."""
        rank = self.rank_of(module)
        return self.alpha_of(module) / (math.sqrt(rank) if self.use_rslora else rank)


class LycorisSpec(Spec):
    """What LyCORIS' families have in common. The fields are named as its modules' arguments."""

    linear_dim: Rank
    linear_alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    use_tucker: bool = False
    weight_decompose: bool = False
    rs_lora: bool = False

    @property
    def needs_base(self) -> bool:
        return self.weight_decompose

    @property
    def rank(self) -> int:
        return self.linear_dim


class LokrSpec(LycorisSpec):
    """LoKr, in the words of the `lokr_config` that the official app reads."""

    factor: Annotated[int, Field(ge=-1)] = -1
    decompose_both: bool = False
    full_matrix: bool = False
    unbalanced_factorization: bool = False
    dropout: Share = 0.0

    @field_validator("factor")
    @classmethod
    def _not_zero(cls, factor: int) -> int:
        if factor == 0:
            raise ValueError("must be -1 or at least 1")
        return factor

    @classmethod
    def from_settings(cls, settings: AdapterSettings) -> Self:
        return cls(
            linear_dim=settings.lokr_dim,
            linear_alpha=settings.lokr_alpha,
            factor=settings.lokr_factor,
            decompose_both=settings.lokr_decompose_both,
            use_tucker=settings.lokr_tucker,
            dropout=settings.lokr_dropout,
        )

    @property
    def summary(self) -> str:
        return f"LoKr, factor {self.factor}, dimension {self.linear_dim}"


class LohaSpec(LycorisSpec):
    """LoHa, in the words of Side-Step's `loha_config`."""

    @classmethod
    def from_settings(cls, settings: AdapterSettings) -> Self:
        return cls(linear_dim=settings.loha_dim, linear_alpha=settings.loha_alpha)

    @property
    def summary(self) -> str:
        return f"LoHa, dimension {self.linear_dim}, alpha {self.linear_alpha:g}"


class OftSpec(Spec):
    """OFT, in the words of PEFT's adapter_config.json. Either `r` (blocks of a module) or their size is 0."""

    r: Annotated[int, Field(ge=0, le=100_000)] = 0
    oft_block_size: Annotated[int, Field(ge=0, le=100_000)] = 32
    coft: bool = False
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 6e-5
    block_share: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: Annotated[int, Field(ge=1, le=100)] = 5
    module_dropout: Share = 0.0

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.r == 0) == (self.oft_block_size == 0):
            raise ValueError("one of r and oft_block_size must be 0, and the other not")
        return self

    @classmethod
    def from_settings(cls, settings: AdapterSettings) -> Self:
        return cls(oft_block_size=settings.oft_block_size, coft=settings.oft_constrained, eps=settings.oft_eps)

    @property
    def summary(self) -> str:
        blocks = f"block size {self.oft_block_size}" if self.oft_block_size else f"{self.r} blocks"
        return f"{'COFT' if self.coft else 'OFT'}, {blocks}"

    @property
    def needs_base(self) -> bool:
        return True

    @property
    def rank(self) -> None:
        return None


def _pattern_for(patterns: dict[str, Any], module: str) -> str:
    """The first key that names `module`: its end at a dot, or the whole of it after a caret."""
    for key in patterns:
        name = key.removeprefix("^")
        if module == name or (not key.startswith("^") and module.endswith(f".{name}")):
            return key
    return ""


def whole_number(value: float) -> int | float:
    """64 for 64.0: other programs expect to find an integer where one will do."""
    return int(value) if value == int(value) else value

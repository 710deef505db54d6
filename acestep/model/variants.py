"""The published ACE-Step 1.5 models, one row each: where they come from and how they are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acestep.model.config import DitConfig

MAIN_REPOSITORY = "ACE-Step/Ace-Step1.5"
"""Holds the turbo model and, as sub-folders, what all models share."""

VAE_FOLDER = "vae"
TEXT_ENCODER_FOLDER = "Qwen3-Embedding-0.6B"

SHARED_BYTES = {VAE_FOLDER: 337_000_000, TEXT_ENCODER_FOLDER: 1_200_000_000}
"""About what the shared folders take on disk."""

_BYTES_2B = 4_790_000_000  # 2.39 billion parameters in bf16
_BYTES_XL = 19_950_000_000  # 4.99 billion parameters, published in fp32


@dataclass(frozen=True)
class Variant:
    """A model people can choose.

    `folder` is its name under `checkpoints/`; `subfolder` where it lies in the hub repository `repo` (empty: at the
    top). `steps`, `guidance` (1: none) and `shift` are the sampler's defaults; `size_bytes` is the size on disk
    without the shared VAE and text encoder, 0 where unknown.
    """

    name: str
    repo: str
    folder: str
    is_turbo: bool
    steps: int
    guidance: float
    shift: float
    size_bytes: int
    subfolder: str = ""


def _turbo(name: str, size_bytes: int, shift: float = 3.0, repo: str = "", subfolder: str = "") -> Variant:
    folder = f"acestep-v15-{name}"
    return Variant(name, repo or f"ACE-Step/{folder}", folder, True, 8, 1.0, shift, size_bytes, subfolder)


def _guided(name: str, size_bytes: int) -> Variant:
    folder = f"acestep-v15-{name}"
    return Variant(name, f"ACE-Step/{folder}", folder, False, 50, 7.0, 1.0, size_bytes)


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        _turbo("turbo", _BYTES_2B, repo=MAIN_REPOSITORY, subfolder="acestep-v15-turbo"),
        _guided("base", _BYTES_2B),
        _guided("sft", _BYTES_2B),
        _turbo("turbo-shift1", _BYTES_2B, shift=1.0),
        _turbo("turbo-shift3", _BYTES_2B),
        _turbo("turbo-continuous", _BYTES_2B),
        _turbo("xl-turbo", _BYTES_XL),
        _guided("xl-base", _BYTES_XL),
        _guided("xl-sft", _BYTES_XL),
    )
}


def variant_of(config: DitConfig, folder_name: str = "") -> Variant:
    """The row of a checkpoint: by its folder's name, else a nameless row with the defaults of its kind.

    A folder named like a published model whose configuration is of the other kind counts as unknown.
    """
    for variant in VARIANTS.values():
        if folder_name in (variant.folder, f"{variant.folder}-diffusers") and variant.is_turbo == config.is_turbo:
            return variant
    likeness = VARIANTS["turbo" if config.is_turbo else "base"]
    return Variant(
        name="turbo-like" if config.is_turbo else "base-like",
        repo="",
        folder=folder_name,
        is_turbo=likeness.is_turbo,
        steps=likeness.steps,
        guidance=likeness.guidance,
        shift=likeness.shift,
        size_bytes=0,
    )

"""Settings of exports: for which program an adapter is written, and how."""

from __future__ import annotations

from typing import Literal

from acestep.settings.base import Settings, knob

ExportFormat = Literal["comfyui", "peft", "diffusers", "lycoris"]


class ExportSettings(Settings):
    """How an adapter is written for another program."""

    to: ExportFormat = knob(
        "comfyui",
        "Program: comfyui, diffusers, or the ACE-Step app (peft for LoRA, DoRA and OFT, lycoris for LoKr).",
        group="export",
    )
    dtype: Literal["bf16", "fp32"] = knob("bf16", "Number format of the weights in the file.", group="export")
    dora: Literal["diff", "refit"] = knob(
        "diff",
        "DoRA and OFT for comfyui as full differences, or (also for diffusers) as a re-fitted LoRA.",
        group="export",
    )
    refit_rank: int = knob(
        0, "Rank of a re-fitted LoRA; 0 takes twice the adapter's, 64 for OFT.", group="export", ge=0, le=4096
    )
    card: bool = knob(False, "Write a card (README.md) too; peft folders always get one.", group="export")

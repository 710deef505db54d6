"""What the card of an adapter says about its training, from the run's record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from acestep.adapters.card import CardFacts
from acestep.training.runs import RunFolder

_MODULES_ON_CARD = ("attention", "train_mlp", "self_modules", "cross_modules", "layers")
_SETTINGS_ON_CARD = {
    "lora": ("rank", "alpha", "dropout", "rslora", "dora", *_MODULES_ON_CARD),
    "lokr": ("lokr_factor", "lokr_dim", "lokr_alpha", "lokr_decompose_both", *_MODULES_ON_CARD),
    "loha": ("loha_dim", "loha_alpha", *_MODULES_ON_CARD),
    "oft": ("oft_block_size", "oft_constrained", "oft_eps", *_MODULES_ON_CARD),
}
_MORE_ON_CARD = (
    *("optimizer", "learning_rate", "schedule", "weight_decay", "batch_size", "gradient_accumulation", "epochs"),
    *("max_steps", "window", "max_latent_length", "condition_dropout", "timestep_draw", "seed"),
)


def card_facts(
    run: RunFolder,
    note: Mapping[str, Any],
    validations: Iterable[tuple[int, float]],
    settings: Mapping[str, Any] | None = None,
    variant: str = "",
) -> CardFacts:
    """The facts of a run for the card of one of its adapters.

    `note` is the content of training.json beside the adapter: its step and the reason it was kept. `validations` are
    pairs of step and loss. `settings` are those in force where they differ from the run's record, as after resuming.
    """
    record = run.record
    settings = record.get("settings", {}) if settings is None else settings
    model, tensors = record.get("model", {}), record.get("tensors", {})
    data = record.get("data", tensors)  # runs of earlier versions know the folder's songs only
    names = (*_SETTINGS_ON_CARD.get(str(settings.get("adapter")), ()), *_MORE_ON_CARD)
    return CardFacts(
        title=str(tensors.get("dataset") or run.path.name),
        variant=variant or str(model.get("variant") or str(model.get("name", "")).removeprefix("acestep-v15-")),
        songs=int(data.get("songs", 0)),
        audio_s=float(data.get("audio_s", 0.0)),
        held_out=int(data.get("held_out", 0)),
        held_out_kind=str(data.get("held_out_kind", "")),
        step=note.get("step"),
        why=str(note.get("reason", "")),
        settings={name: settings[name] for name in names if name in settings and settings[name] not in (None, "")},
        validations=sorted(validations),
    )

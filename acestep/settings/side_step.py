"""Presets and run configurations of Side-Step 1.1, in and out.

Keys, types, defaults and aliases are those of its published files. A formula for the learning rate is passed on as
text and never evaluated here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from acestep.settings.advice import FRAMES_PER_SECOND
from acestep.settings.foreign import ForeignKey, ForeignReader, Imported
from acestep.settings.formula import Formula
from acestep.settings.train import TrainSettings

PROGRAM = "Side-Step"
ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "prodigy")
CONSTANT_SCHEDULES = ("constant", "constant_with_warmup")

_WINDOWS_ARE_DRAWN = "not supported: windows are drawn evenly from the whole song here, so there is nothing to forget."
_SAMPLES_ONLY = "not used: Side-Step notes it in the preset and never trains with it."
_RUN_ONLY = "not part of a preset: folders, model and device are given on the command line."
_FULL_LOG = "not supported: every step is logged in full here."

_ADAPTERS = ("lora", "dora", "lokr", "loha", "oft")
_ONLY_LOHA = ("adapter_type", ("loha",))
_ONLY_LOKR = ("adapter_type", ("lokr",))
_WITH_CROP = ("crop_mode", ("seconds", "latent"))

_K = ForeignKey

KEYS: tuple[ForeignKey, ...] = (
    _K("name", "text", by_hand=True),
    _K("description", "text", by_hand=True),
    _K("adapter_type", "text", "adapter", default="lora", by_hand=True),
    _K("use_dora", "switch", "dora", default=False, by_hand=True),
    _K("rank", "whole", "rank", default=64),
    _K("alpha", "number", "alpha", default=128),
    _K("dropout", "number", "dropout", default=0.1),
    _K("target_modules_str", "words", by_hand=True, aliases=("projections", "target_modules")),
    _K("self_target_modules_str", "words", by_hand=True, aliases=("self_projections", "self_target_modules")),
    _K("cross_target_modules_str", "words", by_hand=True, aliases=("cross_projections", "cross_target_modules")),
    _K("attention_type", "text", "attention", default="both"),
    _K("target_mlp", "switch", "train_mlp", default=True),
    _K("bias", "text", "bias", neutral=("none",)),
    _K("lokr_linear_dim", "whole", "lokr_dim", default=64),
    _K("lokr_linear_alpha", "number", "lokr_alpha", default=128),
    _K("lokr_factor", "whole", "lokr_factor", default=-1),
    _K("lokr_decompose_both", "switch", "lokr_decompose_both", default=False),
    _K("lokr_use_tucker", "switch", "lokr_tucker", default=False),
    _K("lokr_use_scalar", "switch", "lokr_scalar", neutral=(False,), matters=_ONLY_LOKR),
    _K("lokr_weight_decompose", "switch", "lokr_weight_decompose", neutral=(False,), matters=_ONLY_LOKR),
    _K("loha_linear_dim", "whole", "loha_dim", default=64),
    _K("loha_linear_alpha", "number", "loha_alpha", default=128),
    _K("loha_factor", "whole", "loha_factor", neutral=(-1,), matters=_ONLY_LOHA),
    _K("loha_use_tucker", "switch", "loha_tucker", neutral=(False,), matters=_ONLY_LOHA),
    _K("loha_use_scalar", "switch", "loha_scalar", neutral=(False,), matters=_ONLY_LOHA),
    _K("oft_block_size", "whole", "oft_block_size", default=64),
    _K("oft_coft", "switch", "oft_constrained", default=False),
    _K("oft_eps", "number", "oft_eps", default=6e-5),
    _K("learning_rate", "number", "learning_rate", default=3e-4, by_hand=True, aliases=("lr",)),
    _K("batch_size", "whole", "batch_size", default=1),
    _K(
        "gradient_accumulation",
        "whole",
        "gradient_accumulation",
        default=4,
        aliases=("grad_accum", "gradient_accumulation_steps"),
    ),
    _K("epochs", "whole", "epochs", default=1000, by_hand=True, aliases=("max_epochs",)),
    _K("max_steps", "whole", "max_steps", default=0),
    _K("dataset_repeats", "whole", "dataset_repeats", default=1, by_hand=True),
    _K("warmup_steps", "whole", "warmup_steps", default=100),
    _K("weight_decay", "number", "weight_decay", default=0.01),
    _K("max_grad_norm", "number", "max_grad_norm", default=1.0),
    _K("seed", "whole", "seed", default=42),
    _K("shift", "number", reason=_SAMPLES_ONLY),
    _K("num_inference_steps", "whole", reason=_SAMPLES_ONLY),
    _K("crop_mode", "text", by_hand=True),
    _K("chunk_duration", "number", by_hand=True),
    _K("max_latent_length", "whole", by_hand=True),
    _K("chunk_decay_every", "whole", neutral=(0,), matters=_WITH_CROP, reason=_WINDOWS_ARE_DRAWN),
    _K("optimizer_type", "text", "optimizer", by_hand=True),
    _K("scheduler_type", "text", "schedule", default="cosine", by_hand=True, aliases=("scheduler",)),
    _K("scheduler_formula", "text", "schedule_formula", default="", by_hand=True),
    _K(
        "timestep_mode",
        "text",
        "timestep_draw",
        default="continuous",
        words={"continuous": "model", "discrete": "turbo"},
    ),
    _K("timestep_mu", "number", "timestep_mu"),
    _K("timestep_sigma", "number", "timestep_sigma"),
    _K("cfg_ratio", "number", "condition_dropout", default=0.15),
    _K("loss_weighting", "text", "loss_weighting", neutral=("none",)),
    _K("snr_gamma", "number", "snr_gamma", matters=("loss_weighting", ("min_snr",))),
    _K("save_every", "whole", "save_every_epochs", default=50, by_hand=True, aliases=("save_every_n_epochs",)),
    _K("save_best", "switch", default=True, neutral=(True,), reason="not needed: the best step is always kept here."),
    _K("save_best_after", "whole", "best_after_share", default=200, by_hand=True),
    _K("save_best_every_n_steps", "whole", neutral=(0,), reason="not used: each validation looks for the best here."),
    _K("early_stop_patience", "whole", "early_stop_patience", default=0, by_hand=True, aliases=("early_stop",)),
    _K("target_loss", "number", "target_loss", default=0.0, neutral=(0,)),
    _K("target_loss_floor", "number", neutral=(0.01,)),
    _K("target_loss_warmup", "whole", neutral=(50,)),
    _K("target_loss_smoothing", "number", neutral=(0.98,)),
    _K("gradient_checkpointing", "switch", "gradient_checkpointing", default=True, by_hand=True),
    _K("gradient_checkpointing_ratio", "number", "checkpointing_ratio", default=1.0, by_hand=True),
    _K("offload_encoder", "switch", reason="not needed: training here reads tensors and never loads the encoders."),
    _K("log_every", "whole", "log_every", default=10),
    _K("log_heavy_every", "whole", neutral=(50,), reason=_FULL_LOG),
    _K("ema_decay", "number", "ema_decay", neutral=(0,)),
    _K("val_split", "number", "validation_share", by_hand=True),
    _K("adaptive_timestep_ratio", "number", neutral=(0,)),
    _K("warmup_start_factor", "number", neutral=(0.1,)),
    _K("cosine_eta_min_ratio", "number", neutral=(0.01,)),
    _K(
        "cosine_restarts_count",
        "whole",
        matters=("scheduler_type", ("cosine_restarts",)),
        reason="not used: here the first cycle is a quarter of the run, and each next one twice as long.",
    ),
    *(
        _K(name, "text", reason=_RUN_ONLY)
        for name in ("checkpoint_dir", "dataset_dir", "output_dir", "model_variant", "device", "precision")
    ),
)
"""Every key of Side-Step's presets, with the further spellings of its pages and run configurations."""


def from_side_step(values: Mapping[str, Any]) -> Imported:
    """Our settings for a Side-Step preset or run configuration. Raises UserError for values of a wrong kind.

    Keys that are missing take Side-Step's own defaults, so that the run is the one Side-Step would have made.
    """
    reader = ForeignReader(PROGRAM, KEYS, values)
    reader.read_rows()
    _read_adapter(reader)
    _read_targets(reader)
    _read_length(reader)
    _read_window(reader)
    reader.set_optimizer_and_rate()
    _read_schedule(reader)
    _read_checkpointing(reader)
    _read_validation(reader)
    _read_end(reader)
    return reader.finish(reader.given.get("name", ""), reader.given.get("description", ""))


def to_side_step(settings: TrainSettings, name: str = "", description: str = "") -> dict[str, Any]:
    """A complete Side-Step preset. `lost_in_side_step` says which settings it cannot hold."""
    values = {
        **_plain_keys(settings),
        "name": name,
        "description": description,
        "adapter_type": "dora" if settings.adapter == "lora" and settings.dora else settings.adapter,
        "use_dora": settings.dora,
        **_target_keys(settings),
        "bias": "none",
        "learning_rate": settings.learning_rate,
        "epochs": settings.epochs,
        "dataset_repeats": 1,
        "crop_mode": "full" if settings.window == "whole" or not settings.max_latent_length else "latent",
        "chunk_duration": 0,
        "max_latent_length": settings.max_latent_length,
        "optimizer_type": settings.optimizer if settings.optimizer in OPTIMIZERS else "adamw",
        **_schedule_keys(settings),
        "save_every": settings.save_every_epochs,
        "save_best": True,
        "save_best_after": round(settings.best_after_share * settings.epochs),
        "early_stop_patience": settings.early_stop_patience,
        "gradient_checkpointing": settings.gradient_checkpointing > 0,
        "gradient_checkpointing_ratio": settings.gradient_checkpointing or 1.0,
        "offload_encoder": True,
        "val_split": 0.0 if settings.validation == "none" else settings.validation_share,
    }
    return {key.name: values[key.name] for key in KEYS if values.get(key.name) is not None}


def lost_in_side_step(settings: TrainSettings) -> list[str]:
    """Names of the settings that come back with another value from a Side-Step preset."""
    back = TrainSettings.parse(from_side_step(to_side_step(settings)).values, "The Side-Step preset").model_dump()
    return [name for name, value in settings.model_dump().items() if back[name] != value]


def _target_keys(settings: TrainSettings) -> dict[str, str]:
    """One list where both attentions have the same projections; its lists for each count only with both."""
    lists = {block: " ".join(f"{name}_proj" for name in settings.projections_of(block)) for block in ("self", "cross")}
    same = settings.attention != "both" or lists["self"] == lists["cross"]
    return {
        "target_modules_str": (lists["self"] or lists["cross"]) if same else " ".join(ATTENTION_MODULES),
        "self_target_modules_str": "" if same else lists["self"],
        "cross_target_modules_str": "" if same else lists["cross"],
    }


def _schedule_keys(settings: TrainSettings) -> dict[str, Any]:
    """Its constant rate warms up; ours has no warm-up. Schedule-free training is constant too."""
    word = "constant_with_warmup" if settings.optimizer == "schedule_free" else settings.schedule
    keys = {"scheduler_type": "custom" if word == "formula" else word, "scheduler_formula": settings.schedule_formula}
    return {**keys, "warmup_steps": 0} if word == "constant" else keys


def _plain_keys(settings: TrainSettings) -> dict[str, Any]:
    """The keys that follow from their row alone; where there is no setting, what amounts to the same here."""
    values: dict[str, Any] = {}
    for key in KEYS:
        if key.by_hand:
            continue
        if key.setting in TrainSettings.model_fields:
            value = getattr(settings, key.setting)
            theirs = {ours: word for word, ours in key.words.items()}.get(value, value)
            values[key.name] = int(theirs) if key.kind == "number" and theirs == int(theirs or 0) else theirs
            if key.words and theirs not in key.words:
                values[key.name] = key.default
        elif key.neutral:
            values[key.name] = key.neutral[0]
    return values


def _read_adapter(reader: ForeignReader) -> None:
    kind = reader.value("adapter_type")
    if kind not in _ADAPTERS:
        reader.ignore("adapter_type", f'not supported: "{kind}" is no adapter of {PROGRAM}.')
        return
    dora = kind == "dora" or (kind == "lora" and reader.value("use_dora"))
    reader.set("adapter", "lora" if dora else kind, "adapter_type")
    reader.set("dora", dora, "use_dora")


def _read_targets(reader: ForeignReader) -> None:
    """A list for one attention counts only where both are trained; MLP modules in any list switch the MLP on."""
    both = reader.value("attention_type") == "both"
    for name, blocks in (
        ("target_modules_str", ("self", "cross")),
        ("self_target_modules_str", ("self",)),
        ("cross_target_modules_str", ("cross",)),
    ):
        modules = set(reader.given.get(name, ()))
        if not modules or (len(blocks) == 1 and not both):
            continue
        if modules & set(MLP_MODULES):
            reader.set("train_mlp", True, name)
        attention = modules & set(ATTENTION_MODULES)
        if unknown := modules - attention - set(MLP_MODULES):
            reader.ignore(name, f"not supported: {name} ({' '.join(sorted(unknown))}) names no modules known here.")
        if attention or len(blocks) == 1 or not unknown:
            for block in blocks:
                reader.set(
                    f"{block}_modules", tuple(module[0] for module in ATTENTION_MODULES if module in modules), name
                )


def _read_length(reader: ForeignReader) -> None:
    """Repeating every song N times in an epoch is N epochs."""
    repeats = max(1, reader.value("dataset_repeats"))
    epochs, save_every = reader.value("epochs"), reader.value("save_every")
    if repeats > 1:
        reader.notes.append(
            f"Each epoch of {PROGRAM} held every song {repeats} times: {epochs} epochs become {epochs * repeats}."
        )
    reader.set("epochs", epochs * repeats, "epochs")
    reader.set("save_every_epochs", save_every * repeats, "save_every")


def _read_end(reader: ForeignReader) -> None:
    """It looks for the best epoch, and stops early, only after an epoch; its patience counts longer epochs."""
    repeats, epochs = max(1, reader.value("dataset_repeats")), reader.value("epochs")
    after = reader.value("save_best_after")
    if reader.value("save_best") and (after < epochs or "save_best_after" in reader.given):
        reader.set_best_after(after, epochs, "save_best_after")
    reader.set_patience(reader.value("early_stop_patience") * repeats, "early_stop_patience")


def _read_window(reader: ForeignReader) -> None:
    frames = reader.given.get("max_latent_length", 0)
    by_seconds = round(reader.given.get("chunk_duration", 0) * FRAMES_PER_SECOND)
    mode = reader.given.get("crop_mode", "")
    chosen = {"full": 0, "seconds": by_seconds, "latent": frames}.get(mode, frames or by_seconds)
    if mode not in ("", "full", "seconds", "latent"):
        reader.ignore("crop_mode")
    if mode == "full" and (frames or by_seconds):
        reader.notes.append('"crop_mode" is full, so the window lengths beside it are not used.')
    if not chosen:
        reader.notes.append("Trains on whole songs, as there; a max_latent_length of 1500 takes far less memory.")
    reader.set("max_latent_length", chosen, "max_latent_length")


def _read_schedule(reader: ForeignReader) -> None:
    """Its constant rate warms up, and Prodigy always gets that one. A formula is checked and never run here."""
    word, formula = reader.value("scheduler_type"), reader.value("scheduler_formula")
    if word == "custom":
        try:
            Formula(formula)
        except ValueError as error:
            reader.ignore("scheduler_formula", f"not supported: {error}; the schedule is cosine.")
            return
        word = "formula"
    elif word == "constant" and reader.value("warmup_steps") > 0:
        word = "constant_with_warmup"
    if reader.given.get("optimizer_type") == "prodigy" and word not in CONSTANT_SCHEDULES:
        reader.notes.append(f"{PROGRAM} holds the rate constant with Prodigy, whatever the schedule says.")
        word = "constant_with_warmup"
    reader.set("schedule", word, "scheduler_type")
    reader.set("schedule_formula", formula, "scheduler_formula")


def _read_checkpointing(reader: ForeignReader) -> None:
    on = reader.value("gradient_checkpointing")
    ratio = reader.value("gradient_checkpointing_ratio") if on else 0.0
    reader.set("gradient_checkpointing", ratio, "gradient_checkpointing_ratio" if on else "gradient_checkpointing")


def _read_validation(reader: ForeignReader) -> None:
    """Where the preset says nothing, this program's own validation stays on."""
    share = reader.given.get("val_split")
    if share is None:
        return
    reader.set("validation", "songs" if share > 0 else "none", "val_split")
    if share > 0:
        reader.set("validation_share", share, "val_split")

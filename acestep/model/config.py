"""A checkpoint's config.json, checked, and turned into the arguments of the diffusers classes.

Fields that a file leaves out mean what they mean in the 2B models (`facts.CONFIG_DEFAULTS`); unknown ones are kept.
What diffusers 0.42 cannot represent is refused here, before any weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acestep.core.errors import UserError
from acestep.core.paths import read_json
from acestep.model.facts import CONFIG_DEFAULTS

MODEL_TYPE = "acestep"
MODEL_INDEX = "model_index.json"
"""The file that marks a folder in the diffusers layout."""

_ENCODER_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
_DEPTHS = (
    "num_lyric_encoder_hidden_layers",
    "num_timbre_encoder_hidden_layers",
    "num_attention_pooler_hidden_layers",
)
_SIZES = (
    *_ENCODER_SIZES,
    *(f"encoder_{name}" for name in _ENCODER_SIZES),
    *_DEPTHS,
    "num_hidden_layers",
    "head_dim",
    "sliding_window",
    "in_channels",
    "audio_acoustic_hidden_dim",
    "patch_size",
    "pool_window_size",
    "text_hidden_dim",
    "timbre_hidden_dim",
    "timbre_fix_frame",
    "fsq_dim",
    "fsq_input_num_quantizers",
)
_LARGEST_SIZE = 1 << 20
_MOST_LAYERS = 512  # a typing error in a depth must not build modules for minutes
_SWITCHES = ("attention_bias", "is_turbo", "use_sliding_window")

# What every part of a diffusers folder states again and must state alike.
_COMMON = ("head_dim", "rope_theta", "attention_bias", "attention_dropout", "rms_norm_eps", "sliding_window")


@dataclass(frozen=True)
class DitConfig:
    """The configuration of one checkpoint: all fields by their published names, defaults filled in.

    `source` is the file or folder it came from, as errors name it.
    """

    values: Mapping[str, Any] = field(hash=False)
    source: str = field(compare=False)

    @classmethod
    def read(cls, folder: Path) -> DitConfig:
        """The configuration of a DiT folder (config.json) or of a folder in the diffusers layout (model_index.json).

        Raises UserError naming the field and its value when the file is broken or asks for what cannot be built.
        """
        folder = Path(folder)
        if not (folder / "config.json").exists() and (folder / MODEL_INDEX).exists():
            return cls.from_values(_diffusers_values(folder), str(folder))
        path = folder / "config.json"
        return cls.from_values(read_json(path, "the model's configuration"), str(path))

    @classmethod
    def from_values(cls, given: Mapping[str, Any], source: str) -> DitConfig:
        """A checked configuration from plain values."""
        values = {**CONFIG_DEFAULTS, **_without_rope_parameters(given, source)}
        config = cls(values, source)
        _check(config)
        return config

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def latent_width(self) -> int:
        """Channels of a latent frame, C."""
        return int(self["audio_acoustic_hidden_dim"])

    @property
    def condition_width(self) -> int:
        """Width of the packed condition, E."""
        return int(self._encoder_size("hidden_size"))

    @property
    def text_width(self) -> int:
        """Width of the text encoder's states, TD."""
        return int(self["text_hidden_dim"])

    @property
    def timbre_frames(self) -> int:
        return int(self["timbre_fix_frame"])

    @property
    def timestep_mu(self) -> float:
        return float(self["timestep_mu"])

    @property
    def timestep_sigma(self) -> float:
        return float(self["timestep_sigma"])

    @property
    def is_turbo(self) -> bool:
        return bool(self["is_turbo"])

    def transformer_kwargs(self) -> dict[str, Any]:
        """Constructor arguments of diffusers' AceStepTransformer1DModel."""
        plain = (
            *_ENCODER_SIZES,
            *_COMMON,
            *("num_hidden_layers", "in_channels", "audio_acoustic_hidden_dim", "patch_size", "is_turbo"),
        )
        return {
            **{name: self[name] for name in plain},
            "layer_types": alternating_layers(self["num_hidden_layers"]),
            "encoder_hidden_size": self.condition_width,
            "model_version": self["model_version"],
        }

    def condition_encoder_kwargs(self) -> dict[str, Any]:
        """Constructor arguments of diffusers' AceStepConditionEncoder."""
        names = (
            *("text_hidden_dim", "timbre_hidden_dim"),
            *("num_lyric_encoder_hidden_layers", "num_timbre_encoder_hidden_layers"),
        )
        return {**self._encoder_sizes(), **{name: self[name] for name in names}}

    def tokenizer_kwargs(self) -> dict[str, Any]:
        """Constructor arguments of diffusers' AceStepAudioTokenizer."""
        names = ("fsq_dim", "fsq_input_num_quantizers")
        return {
            **self.detokenizer_kwargs(),
            **{name: self[name] for name in names},
            "fsq_input_levels": list(self["fsq_input_levels"]),
        }

    def detokenizer_kwargs(self) -> dict[str, Any]:
        """Constructor arguments of diffusers' AceStepAudioTokenDetokenizer."""
        names = ("audio_acoustic_hidden_dim", "pool_window_size", "num_attention_pooler_hidden_layers")
        return {**self._encoder_sizes(), **{name: self[name] for name in names}}

    def _encoder_sizes(self) -> dict[str, Any]:
        sizes = {name: self._encoder_size(name) for name in _ENCODER_SIZES}
        return {**sizes, **{name: self[name] for name in _COMMON}}

    def _encoder_size(self, name: str) -> Any:
        """A size of everything but the DiT: XL has fields of its own for it, the 2B models use the plain one."""
        value = self.values.get(f"encoder_{name}")
        return self[name] if value is None else value


def alternating_layers(count: int) -> list[str]:
    """The published order of attention: sliding first, then full, in turns."""
    return ["full_attention" if index % 2 else "sliding_attention" for index in range(count)]


def _without_rope_parameters(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`rope_parameters`, which newer transformers write when they save a model, as the published `rope_theta`."""
    values = dict(given)
    parameters = values.pop("rope_parameters", None)
    if parameters is None:
        return values
    if not isinstance(parameters, dict) or parameters.get("rope_type", "default") != "default":
        raise _refusal(source, "rope_parameters", parameters, "only plain rotary positions can be built")
    if "rope_theta" in parameters:
        values["rope_theta"] = parameters["rope_theta"]
    return values


def _diffusers_values(folder: Path) -> dict[str, Any]:
    """The parts' configurations of a diffusers folder, put together under the published names."""
    transformer = _part_values(folder, "transformer")
    encoder = _part_values(folder, "condition_encoder")
    values = {**transformer, "model_type": MODEL_TYPE}
    if values.get("layer_types") is None:
        values.pop("layer_types", None)
    for part in ("audio_tokenizer", "audio_token_detokenizer"):  # some conversions leave them out
        if (folder / part / "config.json").exists():
            extra = _part_values(folder, part)
            _check_agreement(folder, "condition_encoder", encoder, part, extra, (*_ENCODER_SIZES, *_COMMON))
            values.update({name: extra[name] for name in extra if name not in (*_ENCODER_SIZES, *values)})
    _check_agreement(folder, "transformer", transformer, "condition_encoder", encoder, _COMMON)
    width = transformer.get("encoder_hidden_size")
    if width is not None and encoder.get("hidden_size", width) != width:
        _check_agreement(
            folder, "transformer", transformer, "condition_encoder", {"encoder_hidden_size": encoder["hidden_size"]},
            ("encoder_hidden_size",),
        )  # fmt: skip
    values.update({name: encoder[name] for name in encoder if name not in (*_ENCODER_SIZES, *values)})
    values.update({f"encoder_{name}": encoder[name] for name in _ENCODER_SIZES if name in encoder})
    return values


def _part_values(folder: Path, part: str) -> dict[str, Any]:
    values = read_json(folder / part / "config.json", f"the configuration of the {part}")
    return {name: value for name, value in values.items() if not name.startswith("_")}


def _check_agreement(
    folder: Path, first: str, one: Mapping[str, Any], second: str, other: Mapping[str, Any], names: tuple[str, ...]
) -> None:
    for name in names:
        if name in one and name in other and one[name] != other[name]:
            raise UserError(
                f'{folder}: "{name}" is {one[name]!r} in {first}/config.json but {other[name]!r} in '
                f"{second}/config.json.",
                fix="The folder mixes parts of different models; get it again.",
            )


def _refusal(source: str, name: str, value: Any, why: str) -> UserError:
    return UserError(f'{source}: "{name}" is {value!r}; {why}.', fix="Use a checkpoint of the ACE-Step 1.5 kind.")


def _check(config: DitConfig) -> None:
    values, source = config.values, config.source
    if values["model_type"] != MODEL_TYPE:
        raise _refusal(source, "model_type", values["model_type"], f"ACE-Step 1.5 models say {MODEL_TYPE!r}")
    for name in _SIZES:
        _check_size(source, name, values.get(name), optional=name.startswith("encoder_"))
    for name in _SWITCHES:
        if not isinstance(values[name], bool):
            raise _refusal(source, name, values[name], "it must be true or false")
    for name, lowest, inclusive in (
        ("rms_norm_eps", 0.0, False),
        ("rope_theta", 0.0, False),
        ("attention_dropout", 0.0, True),
        ("timestep_mu", -math.inf, False),
        ("timestep_sigma", 0.0, False),
    ):
        _check_number(source, name, values[name], lowest, inclusive)
    if values["model_version"] is not None and not isinstance(values["model_version"], str):
        raise _refusal(source, "model_version", values["model_version"], "it must be text")
    _check_representable(config)
    _check_relations(config)


def _check_size(source: str, name: str, value: Any, optional: bool) -> None:
    if value is None and optional:
        return
    largest = _MOST_LAYERS if name.endswith("_layers") else _LARGEST_SIZE
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise _refusal(source, name, value, f"it must be a whole number from 1 to {largest}")


def _check_number(source: str, name: str, value: Any, lowest: float, inclusive: bool) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < lowest or (value == lowest and not inclusive):
        bound = "" if lowest == -math.inf else f" {'from' if inclusive else 'above'} {lowest:g}"
        raise _refusal(source, name, value, f"it must be a finite number{bound}")


def _check_representable(config: DitConfig) -> None:
    """Refuse what the published code computes and the diffusers classes do not."""
    values, source = config.values, config.source
    if values["hidden_act"] != "silu":
        raise _refusal(source, "hidden_act", values["hidden_act"], 'only "silu" can be built')
    if values["rope_scaling"] is not None:
        raise _refusal(source, "rope_scaling", values["rope_scaling"], "only null can be built")
    if not values["use_sliding_window"]:
        raise _refusal(source, "use_sliding_window", False, "models without sliding attention cannot be built")
    layers = values["num_hidden_layers"]
    # diffusers gives this list to the lyric encoder but not to the timbre encoder, which always alternates.
    if values["layer_types"] is not None and list(_as_list(values["layer_types"])) != alternating_layers(layers):
        why = f"only {layers} layers that take turns, sliding_attention first, can be built"
        raise _refusal(source, "layer_types", values["layer_types"], why)
    for name in _DEPTHS:
        # The published code stops its small encoders at the DiT's depth, diffusers does not.
        if values[name] > layers:
            raise _refusal(source, name, values[name], f"it may not exceed num_hidden_layers ({layers})")
    levels = values["fsq_input_levels"]
    if not _as_list(levels) or any(isinstance(n, bool) or not isinstance(n, int) or n < 2 for n in levels):
        raise _refusal(source, "fsq_input_levels", levels, "it must be a list of whole numbers from 2")


def _as_list(value: Any) -> list[Any] | tuple[Any, ...]:
    return value if isinstance(value, list | tuple) else []


def _check_relations(config: DitConfig) -> None:
    values, source = config.values, config.source
    width = config.latent_width
    if values["in_channels"] != 3 * width:
        why = f"it must be three times audio_acoustic_hidden_dim ({width}): source, mask and noisy latents"
        raise _refusal(source, "in_channels", values["in_channels"], why)
    if values["timbre_hidden_dim"] != width:
        why = f"it must equal audio_acoustic_hidden_dim ({width}): timbre is read from latents"
        raise _refusal(source, "timbre_hidden_dim", values["timbre_hidden_dim"], why)
    if values["head_dim"] % 2:
        raise _refusal(source, "head_dim", values["head_dim"], "rotary positions need an even number")
    for prefix in ("", "encoder_"):
        name = f"{prefix}num_key_value_heads"
        heads = values.get(f"{prefix}num_attention_heads") or values["num_attention_heads"]
        groups = values.get(name) or values["num_key_value_heads"]
        if heads % groups:
            given = name if values.get(name) is not None else "num_key_value_heads"
            raise _refusal(source, given, groups, f"it must divide the {heads} attention heads")

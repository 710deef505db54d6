"""Parameter names: the original ones on disk, those of diffusers 0.42 in memory. The only place that translates.

An original checkpoint is one file of five groups. Each prefix stands for one diffusers class:

| original                | part                      | diffusers class                |
|-------------------------|---------------------------|--------------------------------|
| `decoder.…`             | `transformer`             | `AceStepTransformer1DModel`    |
| `encoder.…`             | `condition_encoder`       | `AceStepConditionEncoder`      |
| `tokenizer.…`           | `audio_tokenizer`         | `AceStepAudioTokenizer`        |
| `detokenizer.…`         | `audio_token_detokenizer` | `AceStepAudioTokenDetokenizer` |
| `null_condition_emb`    | `condition_encoder`       | a parameter of the same name   |

The silence latent has no name in the original file: it lies in `silence_latent.pt`, channels first, `(1, C, N)`.
diffusers keeps it as the buffer `silence_latent` of the condition encoder, `(1, N, C)`.

Within a part every rule is a plain renaming; no tensor is transposed, reshaped or split.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from acestep.core.errors import UserError

Part = Literal["transformer", "condition_encoder", "audio_tokenizer", "audio_token_detokenizer"]
PARTS: tuple[Part, ...] = get_args(Part)

NULL_CONDITION = "null_condition_emb"
SILENCE_LATENT = "silence_latent"

_PART_OF_PREFIX: dict[str, Part] = {
    "decoder": "transformer",
    "encoder": "condition_encoder",
    "tokenizer": "audio_tokenizer",
    "detokenizer": "audio_token_detokenizer",
}
_PREFIX_OF_PART = {part: prefix for prefix, part in _PART_OF_PREFIX.items()}

_ATTENTION = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "o_proj": "to_out.0",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
_PATCHES = {"proj_in.1": "proj_in_conv", "proj_out.1": "proj_out_conv"}  # of the DiT only


def _renaming(names: dict[str, str], before: str) -> tuple[re.Pattern[str], dict[str, str]]:
    """A pattern for whole path elements `names` behind `before`, and the new names."""
    choices = "|".join(re.escape(name) for name in names)
    return re.compile(rf"({before})({choices})(?=\.|$)"), names


_INSIDE_ATTENTION = r"(?:^|\.)(?:self|cross)_attn\."
_TO_DIFFUSERS = (_renaming(_ATTENTION, _INSIDE_ATTENTION), _renaming(_PATCHES, "^"))
_TO_ORIGINAL = (
    _renaming({new: old for old, new in _ATTENTION.items()}, _INSIDE_ATTENTION),
    _renaming({new: old for old, new in _PATCHES.items()}, "^"),
)


def part_of(original: str) -> Part | None:
    """The part an original parameter name belongs to, or None for a name no ACE-Step checkpoint has."""
    if original == NULL_CONDITION:
        return "condition_encoder"
    prefix, dot, rest = original.partition(".")
    return _PART_OF_PREFIX.get(prefix) if dot and rest else None


def to_diffusers(original: str) -> tuple[Part, str]:
    """Part and diffusers name of a full original parameter name, e.g. `decoder.layers.0.self_attn.q_proj.weight`."""
    part = part_of(original)
    if part is None:
        raise UserError(
            f'"{original}" is not a parameter name of an ACE-Step 1.5 checkpoint.',
            fix="Names begin with "
            + ", ".join(f"{prefix}." for prefix in _PART_OF_PREFIX)
            + f" or are {NULL_CONDITION}.",
        )
    if original == NULL_CONDITION:
        return part, original
    name = original.partition(".")[2]
    return part, module_to_diffusers(name) if part == "transformer" else _rename(name, _TO_DIFFUSERS[:1])


def to_original(part: Part, name: str) -> str:
    """Full original name of a diffusers parameter `name` of `part`; the inverse of `to_diffusers`."""
    if part == "condition_encoder" and name == NULL_CONDITION:
        return name
    if part == "condition_encoder" and name == SILENCE_LATENT:
        raise UserError("The silence latent has no name in the original layout; it is the file silence_latent.pt.")
    renamed = module_to_original(name) if part == "transformer" else _rename(name, _TO_ORIGINAL[:1])
    return f"{_PREFIX_OF_PART[part]}.{renamed}"


def module_to_diffusers(path: str) -> str:
    """diffusers path of a module or parameter of the DiT given by its original path below `decoder`."""
    return _rename(path, _TO_DIFFUSERS)


def module_to_original(path: str) -> str:
    """Original path, below `decoder`, of a module or parameter of the DiT: `…to_out.0` becomes `…o_proj`."""
    return _rename(path, _TO_ORIGINAL)


def _rename(path: str, rules: tuple[tuple[re.Pattern[str], dict[str, str]], ...]) -> str:
    for pattern, names in rules:
        path = pattern.sub(lambda match, names=names: match[1] + names[match[2]], path)  # type: ignore[misc]
    return path

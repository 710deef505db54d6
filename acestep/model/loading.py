"""Loading the parts of a checkpoint, each on its own, straight into the wanted dtype and device.

Callers ask for what they need: training for the transformer and the null condition, preprocessing for VAE, text
encoder and condition encoder. Loading one part reads none of the others' bytes. Every module comes back frozen and
in eval mode. Whatever is wrong with a file is a UserError that names it.
"""

from __future__ import annotations

import struct
import warnings
import zipfile
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from acestep.core.errors import UserError
from acestep.core.paths import existing_folder, read_json
from acestep.model.checkpoints import (
    DIFFUSERS_STEM,
    SILENCE_LATENT_FILE,
    WEIGHTS_STEM,
    Checkpoint,
    missing_silence_latent,
)
from acestep.model.names import NULL_CONDITION, SILENCE_LATENT, Part, part_of, to_diffusers, to_original
from acestep.model.quantising import quantise_block_weight
from acestep.model.streaming import Placed, StoredPart, fill, on_meta, read_tensors
from acestep.model.weights import StoredTensor, read_weights
from acestep.settings.train import BaseWeights

if TYPE_CHECKING:
    from diffusers import AceStepConditionEncoder, AceStepTransformer1DModel, AutoencoderOobleck
    from diffusers.pipelines.ace_step import AceStepAudioTokenDetokenizer, AceStepAudioTokenizer
    from transformers import PreTrainedTokenizerBase, Qwen3Model

    Device: TypeAlias = torch.device | str

_SPOKEN: dict[Part, str] = {
    "transformer": "transformer",
    "condition_encoder": "condition encoder",
    "audio_tokenizer": "audio tokenizer",
    "audio_token_detokenizer": "audio detokenizer",
}

_VAE_SIZES = ("encoder_hidden_size", "decoder_channels", "decoder_input_channels", "audio_channels", "sampling_rate")
_VAE_LISTS = ("downsampling_ratios", "channel_multiples")

# What a damaged or foreign file makes torch.load raise, besides refusing code.
_LOAD_ERRORS = (
    *(UnpicklingError, RuntimeError, EOFError, OSError, ValueError, struct.error),
    *(KeyError, IndexError, TypeError, AttributeError, AssertionError, OverflowError),
)

_BUILD_ERRORS = (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, RuntimeError)


@dataclass(frozen=True)
class TextEncoder:
    """The Qwen3 text model and its tokenizer."""

    model: Qwen3Model
    tokenizer: PreTrainedTokenizerBase


def load_transformer(
    checkpoint: Checkpoint, dtype: torch.dtype, device: Device, base_weights: BaseWeights = "full"
) -> AceStepTransformer1DModel:
    """The DiT. Its blocks' weights are quantised one by one while they are read, if `base_weights` says so."""
    from diffusers.models.transformers.ace_step_transformer import AceStepTransformer1DModel

    module = on_meta(lambda: AceStepTransformer1DModel(**checkpoint.config.transformer_kwargs()))
    if base_weights == "full":
        return _fill_part(module, checkpoint, "transformer", dtype, device)

    def placed(name: str, weight: Tensor) -> bool:
        return quantise_block_weight(module, name, weight, base_weights)

    return _fill_part(module, checkpoint, "transformer", dtype, device, placed=placed)


def load_condition_encoder(checkpoint: Checkpoint, dtype: torch.dtype, device: Device) -> AceStepConditionEncoder:
    """The condition encoder with its null condition and, as the buffer `silence_latent`, the latent of silence.

    Asked for in fp16 it computes in fp32, and takes and gives fp16: of songs with lyrics its layers give infinite
    numbers in fp16 (ACE-Step-1.5#1243).
    """
    from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder

    silence = load_silence_latent(checkpoint)  # first: a missing file is noticed before the long read
    module = on_meta(lambda: AceStepConditionEncoder(**checkpoint.config.condition_encoder_kwargs()))
    if dtype == torch.float16:
        dtype = torch.float32
        module.register_forward_pre_hook(
            lambda _, args, named: _in_dtype((args, named), torch.float32), with_kwargs=True
        )
        module.register_forward_hook(lambda _, args, given: _in_dtype(given, torch.float16))
    module.silence_latent = silence.to(device=device, dtype=dtype)
    return _fill_part(module, checkpoint, "condition_encoder", dtype, device, optional=(SILENCE_LATENT,))


def _in_dtype(value: Any, dtype: torch.dtype) -> Any:
    """A tensor of broken numbers in another dtype, also in tuples and dictionaries; everything else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    if isinstance(value, dict):
        return {name: _in_dtype(item, dtype) for name, item in value.items()}
    return tuple(_in_dtype(item, dtype) for item in value) if isinstance(value, tuple) else value


def load_audio_tokenizer(checkpoint: Checkpoint, dtype: torch.dtype, device: Device) -> AceStepAudioTokenizer:
    """Latents to 5 Hz tokens; used for covers and by codes.py."""
    from diffusers.pipelines.ace_step.modeling_ace_step import AceStepAudioTokenizer

    arguments = checkpoint.config.tokenizer_kwargs()
    module = on_meta(lambda: AceStepAudioTokenizer(**arguments))
    # The quantizer's tables follow from the configuration and are stored nowhere, so it is built for real.
    with torch.random.fork_rng(devices=[]):
        quantizer = type(module.quantizer)(
            dim=arguments["fsq_dim"],
            levels=arguments["fsq_input_levels"],
            num_quantizers=arguments["fsq_input_num_quantizers"],
        )
    module.quantizer = quantizer.to(device)
    return _fill_part(module, checkpoint, "audio_tokenizer", dtype, device)


def load_audio_token_detokenizer(
    checkpoint: Checkpoint, dtype: torch.dtype, device: Device
) -> AceStepAudioTokenDetokenizer:
    """5 Hz tokens back to latents; used for covers only."""
    from diffusers.pipelines.ace_step.modeling_ace_step import AceStepAudioTokenDetokenizer

    module = on_meta(lambda: AceStepAudioTokenDetokenizer(**checkpoint.config.detokenizer_kwargs()))
    return _fill_part(module, checkpoint, "audio_token_detokenizer", dtype, device)


def _fill_part(
    module: Any,
    checkpoint: Checkpoint,
    part: Part,
    dtype: torch.dtype,
    device: Device,
    optional: Collection[str] = (),
    placed: Placed | None = None,
) -> Any:
    stored = stored_part(checkpoint, part)
    needed = {name: tensor for name, tensor in stored.tensors.items() if name not in optional}
    return fill(module, replace(stored, tensors=needed), dtype, device, optional, placed)


def stored_part(checkpoint: Checkpoint, part: Part) -> StoredPart:
    """The tensors of one part on disk, by their diffusers names; nothing but headers is read.

    Raises UserError when an original file holds tensors that belong to no part.
    """
    folder, stem = checkpoint.part_location(part)
    existing_folder(folder, f"the folder of the {_SPOKEN[part]}")
    tensors = read_weights(folder, stem)
    if checkpoint.layout == "diffusers":
        return StoredPart(tensors, _SPOKEN[part], folder)
    strangers = {name: tensors[name] for name in sorted(tensors) if part_of(name) is None}
    StoredPart(strangers, "model", folder).check({})
    own = {to_diffusers(name)[1]: tensor for name, tensor in tensors.items() if part_of(name) == part}
    return StoredPart(own, _SPOKEN[part], folder, partial(to_original, part))


def load_null_condition(checkpoint: Checkpoint) -> Tensor:
    """The learned embedding that stands for "no condition".  (1, 1, E) fp32 on the CPU; nothing else is read."""
    stored = stored_part(checkpoint, "condition_encoder")
    found = {name: tensor for name, tensor in stored.tensors.items() if name == NULL_CONDITION}
    part = replace(stored, tensors=found, what="null condition")
    part.check({NULL_CONDITION: (1, 1, checkpoint.config.condition_width)})
    return read_tensors(found, torch.float32, "cpu", part.what)[NULL_CONDITION]


def load_silence_latent(checkpoint: Checkpoint) -> Tensor:
    """The VAE's latent of silence.  (1, N, C) fp32 on the CPU."""
    if checkpoint.layout == "diffusers":
        folder, stem = checkpoint.part_location("condition_encoder")
        stored = read_weights(folder, stem).get(SILENCE_LATENT)
        if stored is None:
            raise UserError(f"{folder} lacks the tensor {SILENCE_LATENT}.", fix="Get the folder again.")
        silence, file = read_tensors({"": stored}, torch.float32, "cpu", "silence latent")[""], stored.file
    else:
        file = checkpoint.dit / SILENCE_LATENT_FILE
        silence = _read_silence_file(checkpoint, file)
    width = checkpoint.config.latent_width
    if silence.ndim != 3 or silence.shape[0] != 1 or silence.shape[2] != width or not silence.shape[1]:
        shown = list(silence.shape if checkpoint.layout == "diffusers" else silence.mT.shape)
        wanted = f"[1, frames, {width}]" if checkpoint.layout == "diffusers" else f"[1, {width}, frames]"
        hint = " (it looks transposed)" if silence.ndim == 3 and silence.shape[1] == width else ""
        raise UserError(f"{file}: the silence latent is {shown} instead of {wanted}{hint}.", fix="Get it again.")
    if not silence.isfinite().all():
        raise UserError(f"{file}: the silence latent holds values that are no numbers.", fix="Get it again.")
    return silence.contiguous()


def _read_silence_file(checkpoint: Checkpoint, file: Path) -> Tensor:
    """The tensor in silence_latent.pt, which is stored channels first, turned to (1, N, C) in fp32."""
    if not file.is_file():
        raise missing_silence_latent(checkpoint)
    try:
        if not zipfile.is_zipfile(file):  # the form before 2020; only old and foreign files have it
            raise ValueError("not the archive that torch.save writes")
        value = torch.load(file, map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        raise UserError(
            f"{file} is damaged or holds something other than a tensor.", fix="Get it again.", detail=str(error)
        ) from error
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim != 3:
        kind = f"a tensor {list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{file} holds {kind}, not the silence latent [1, channels, frames].", fix="Get it again.")
    return value.detach().float().transpose(1, 2)


def load_vae(checkpoint: Checkpoint, dtype: torch.dtype, device: Device) -> AutoencoderOobleck:
    """The VAE, built as its own config.json says (the class's defaults describe another model).

    Asked for in fp16 it comes in fp32: fp16 does not hold its activations.
    """
    from diffusers.models.autoencoders.autoencoder_oobleck import AutoencoderOobleck

    folder = existing_folder(checkpoint.vae, "the VAE folder")
    arguments = _vae_arguments(folder / "config.json", checkpoint)
    with warnings.catch_warnings():  # diffusers uses a form of weight normalisation that torch is giving up
        warnings.filterwarnings("ignore", message=".*weight_norm", category=FutureWarning)
        module = on_meta(lambda: AutoencoderOobleck(**arguments))
    dtype = torch.float32 if dtype == torch.float16 else dtype
    return fill(module, StoredPart(read_weights(folder, DIFFUSERS_STEM), "VAE", folder), dtype, device)


def _vae_arguments(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    values = read_json(path, "the VAE's configuration")
    if values.get("_class_name", "AutoencoderOobleck") != "AutoencoderOobleck":
        raise UserError(f"{path} describes a {values['_class_name']}, not the VAE of ACE-Step.", fix="Get it again.")
    arguments: dict[str, Any] = {}
    for name in (*_VAE_SIZES, *_VAE_LISTS):
        value = values.get(name)
        numbers = value if name in _VAE_LISTS else [value]
        if not isinstance(numbers, list) or not numbers or any(type(n) is not int or n < 1 for n in numbers):
            kind = "a list of whole numbers" if name in _VAE_LISTS else "a whole number"
            raise UserError(f'{path}: "{name}" is {value!r}; it must be {kind} from 1.', fix="Get the file again.")
        arguments[name] = value
    if len(arguments["channel_multiples"]) != len(arguments["downsampling_ratios"]):
        raise UserError(
            f'{path}: "channel_multiples" and "downsampling_ratios" differ in length.', fix="Get the file again."
        )
    width = checkpoint.config.latent_width
    # The encoder's last layer gives mean and spread of every latent channel.
    for name, expected in (("decoder_input_channels", width), ("encoder_hidden_size", 2 * width)):
        if arguments[name] != expected:
            raise UserError(
                f'{path}: "{name}" is {arguments[name]}, but the model in {checkpoint.dit} needs {expected}.',
                fix="Use the VAE that belongs to the model.",
            )
    return arguments


def load_text_encoder(checkpoint: Checkpoint, dtype: torch.dtype, device: Device) -> TextEncoder:
    """The Qwen3 text model and its tokenizer. Python files in the folder are never run."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

    folder = existing_folder(checkpoint.text_encoder, "the text encoder folder")
    path = folder / "config.json"
    values = read_json(path, "the text encoder's configuration")
    if values.get("model_type") != "qwen3":
        raise UserError(
            f'{path}: "model_type" is {values.get("model_type")!r}; the text encoder is a "qwen3".',
            fix="Use the text encoder that belongs to the model, Qwen3-Embedding-0.6B.",
        )
    width = checkpoint.config.text_width
    if values.get("hidden_size") != width:
        raise UserError(
            f'{path}: "hidden_size" is {values.get("hidden_size")!r}, but the model in {checkpoint.dit} needs {width}.',
            fix="Use the text encoder that belongs to the model.",
        )
    try:
        config = Qwen3Config.from_dict(values)
        module = on_meta(lambda: Qwen3Model(config))
        # Rotary frequencies follow from the configuration and are stored nowhere.
        module.rotary_emb = type(module.rotary_emb)(config).to(device)
    except (StrictDataclassError, *_BUILD_ERRORS) as error:
        raise UserError(
            f"{path} describes a model that cannot be built.", fix="Get it again.", detail=str(error)
        ) from error
    stored = StoredPart(_without_head(read_weights(folder, WEIGHTS_STEM)), "text encoder", folder)
    tokenizer = _load_tokenizer(existing_folder(checkpoint.tokenizer, "the tokenizer folder"))
    return TextEncoder(fill(module, stored, dtype, device), tokenizer)


def _without_head(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The text model's tensors; files saved with a language-model head name them `model.…`."""
    if any(name.startswith("model.") for name in stored):
        stored = {name.removeprefix("model."): tensor for name, tensor in stored.items() if name != "lm_head.weight"}
    return stored


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    _check_tokenizer_files(folder)
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (StrictDataclassError, OSError, *_BUILD_ERRORS) as error:
        raise UserError(f"The tokenizer in {folder} cannot be read.", fix="Get it again.", detail=str(error)) from error


def _check_tokenizer_files(folder: Path) -> None:
    """transformers makes an empty tokenizer of a folder without vocabulary, and the library below it raises bare
    exceptions for a damaged one; both are noticed here."""
    read_json(folder / "tokenizer_config.json", "the tokenizer's configuration")
    whole = folder / "tokenizer.json"
    if whole.is_file():
        values = read_json(whole, "the tokenizer")
        model, added = values.get("model"), values.get("added_tokens")
        if not isinstance(model, dict) or not model.get("vocab") or not isinstance(added, list):
            raise UserError(f"{whole} holds no tokenizer.", fix="Get it again.")
        return
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} has no tokenizer: neither tokenizer.json nor {' and '.join(missing)}.",
            fix="Get the folder again.",
        )
    read_json(folder / "vocab.json", "the tokenizer's vocabulary")

"""What a model is, as 32 hex digits: the same for the same content wherever it lies and whatever its folder is called.

Stored tensors remember which model made them by these. Files of several gigabytes are not read whole: each tensor
counts with its name, type and shape and with samples of its bytes from beginning, middle and end, which no training
leaves as they were. How tensors are spread over files does not count, nor, for transformer and VAE, the layout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from acestep.core.errors import UserError
from acestep.core.paths import content_hash, existing_file, existing_folder, read_json, value_hash
from acestep.model.checkpoints import (
    DIFFUSERS_STEM,
    SILENCE_LATENT_FILE,
    WEIGHTS_STEM,
    Checkpoint,
    missing_silence_latent,
)
from acestep.model.names import NULL_CONDITION, SILENCE_LATENT, Part, part_of, to_original
from acestep.model.weights import StoredTensor, read_weights

_SAMPLE_BYTES = 1024

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)


def transformer_fingerprint(checkpoint: Checkpoint) -> str:
    """Identity of what an adapter is trained on: the transformer, the null condition and their configuration."""
    tensors = _original_tensors(checkpoint, "transformer")
    encoder = _original_tensors(checkpoint, "condition_encoder")
    tensors.update({name: tensor for name, tensor in encoder.items() if name == NULL_CONDITION})
    config = checkpoint.config
    arguments = config.transformer_kwargs()
    del arguments["model_version"]  # a label
    return value_hash([arguments, config.timestep_mu, config.timestep_sigma, _sampled(tensors)])


def condition_fingerprint(checkpoint: Checkpoint) -> str:
    """Identity of what makes conditions: text encoder, tokenizer, condition encoder and the silence latent."""
    tensors = _original_tensors(checkpoint, "condition_encoder")
    tensors.pop(NULL_CONDITION, None)  # stands in for conditions and makes none
    text_encoder = existing_folder(checkpoint.text_encoder, "the text encoder folder")
    config = checkpoint.config
    return value_hash(
        [
            config.condition_encoder_kwargs(),
            config.timbre_frames,
            _sampled(tensors),
            _silence(checkpoint),
            _settings(text_encoder / "config.json"),
            _sampled(read_weights(text_encoder, WEIGHTS_STEM)),
            _files(existing_folder(checkpoint.tokenizer, "the tokenizer folder"), _TOKENIZER_FILES),
        ]
    )


def vae_fingerprint(checkpoint: Checkpoint) -> str:
    """Identity of what makes latents."""
    folder = existing_folder(checkpoint.vae, "the VAE folder")
    return value_hash([_settings(folder / "config.json"), _sampled(read_weights(folder, DIFFUSERS_STEM))])


def codes_fingerprint(checkpoint: Checkpoint) -> str:
    """Identity of what makes 5 Hz codes: the VAE, the audio tokenizer and the silence that fills up the last code."""
    tokenizer = _original_tensors(checkpoint, "audio_tokenizer")
    arguments = checkpoint.config.tokenizer_kwargs()
    return value_hash([vae_fingerprint(checkpoint), arguments, _sampled(tokenizer), _silence(checkpoint)])


def folder_fingerprint(folder: Path) -> str:
    """Identity of any model in a folder as transformers saves it: configuration, weights and tokenizer."""
    return value_hash(
        [
            _settings(folder / "config.json"),
            _sampled(read_weights(folder, WEIGHTS_STEM)),
            _files(folder, _TOKENIZER_FILES),
        ]
    )


def _original_tensors(checkpoint: Checkpoint, part: Part) -> dict[str, StoredTensor]:
    """A part's tensors under their original names, from either layout."""
    stored = read_weights(*checkpoint.part_location(part))
    if checkpoint.layout == "original":
        return {name: tensor for name, tensor in stored.items() if part_of(name) == part}
    return {to_original(part, name): tensor for name, tensor in stored.items() if name != SILENCE_LATENT}


def _sampled(tensors: Mapping[str, StoredTensor]) -> str:
    """Hash of names, types, shapes and samples of the bytes, whatever the order and number of files."""
    samples: dict[str, list[Any]] = {}
    files: dict[Path, list[tuple[str, StoredTensor]]] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
        files.setdefault(tensor.file, []).append((name, tensor))
    for file, entries in files.items():
        try:
            with open(file, "rb", buffering=0) as handle:
                for name, tensor in entries:
                    samples[name] = [tensor.dtype, tensor.shape, _sample(handle, tensor)]
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror or error}).", fix="Check the disk.") from error
    return value_hash(samples)


def _sample(handle: BinaryIO, tensor: StoredTensor) -> str:
    middle = tensor.begin + (tensor.size_bytes - _SAMPLE_BYTES) // 2
    digest = hashlib.sha256()
    for begin in sorted({tensor.begin, max(tensor.begin, middle), max(tensor.begin, tensor.end - _SAMPLE_BYTES)}):
        handle.seek(begin)
        digest.update(handle.read(min(_SAMPLE_BYTES, tensor.end - begin)))
    return digest.hexdigest()


def _silence(checkpoint: Checkpoint) -> str:
    if checkpoint.layout == "diffusers":
        stored = read_weights(*checkpoint.part_location("condition_encoder"))
        return _sampled({name: tensor for name, tensor in stored.items() if name == SILENCE_LATENT})
    file = checkpoint.dit / SILENCE_LATENT_FILE
    if not file.is_file():
        raise missing_silence_latent(checkpoint)
    return content_hash(file)


def _settings(path: Path) -> dict[str, Any]:
    """A configuration without notes about the program that wrote it."""
    values = read_json(existing_file(path, "the configuration"), "the configuration")
    notes = ("transformers_version", "architectures", "torch_dtype", "dtype", "auto_map")
    return {name: value for name, value in values.items() if not name.startswith("_") and name not in notes}


def _files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: content_hash(folder / name) for name in names if (folder / name).is_file()}

"""A model with an adapter added for good: a complete folder in the original layout, written tensor by tensor."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acestep import __version__
from acestep.adapters.exports.opened import OpenAdapter
from acestep.adapters.exports.placing import already_there
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import atomic_folder, content_hash, nearest_existing, read_json, write_json
from acestep.model.checkpoints import SILENCE_LATENT_FILE, WEIGHTS_STEM, Checkpoint, open_checkpoint
from acestep.model.identity import transformer_fingerprint
from acestep.model.loading import load_silence_latent
from acestep.model.names import PARTS, SILENCE_LATENT, to_original
from acestep.model.streaming import DTYPES
from acestep.model.weights import Entry, StoredTensor, read_weights, write_safetensors

RECORD_FILE = "merge.json"
_LARGEST_FILE_BYTES = 5_000_000_000
"""Models larger than this are spread over several files, as transformers does."""


@dataclass
class Rounding:
    """What storing merged weights in the model's own type changes, measured against the adapter's effect."""

    lost: float = 0.0
    added: float = 0.0
    largest: float = 0.0

    def add(self, exact: Tensor, stored: Tensor, delta: Tensor) -> None:
        error = exact - stored.float()
        self.lost += float(error.square().sum())
        self.added += float(delta.square().sum())
        self.largest = max(self.largest, float(error.abs().max()))

    @property
    def share(self) -> float:
        return math.sqrt(self.lost / self.added) if self.added else 0.0


@dataclass(frozen=True)
class MergeReport:
    """What was written. `new` is False when the same merge was there already."""

    path: Path
    new: bool
    modules: int
    files: int
    size_bytes: int
    rounding_share: float
    largest_rounding: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "notes": list(self.notes)}


def merge_adapter(
    adapter_path: Path, checkpoint: Checkpoint, out: Path, strength: float = 1.0, job: Job | None = None
) -> MergeReport:
    """Write the model in `checkpoint` with an adapter at `strength` added to its weights, as the folder `out`.

    The sum is made in fp32 and stored in each tensor's own type. Only one tensor is in memory at a time. A folder
    that exists is left alone, with a UserError unless it holds this very merge.
    """
    job = job or Job()
    out = out.expanduser()
    if not math.isfinite(strength):
        raise UserError(f"The strength cannot be {strength}.", fix="Choose a number, 1 is as trained.")
    adapter = OpenAdapter(adapter_path, checkpoint)
    record = _record(adapter, checkpoint, strength)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _same_merge(out, record)
    tensors = _original_tensors(checkpoint)
    files = _spread(tensors)
    require_room(out, merged_bytes(checkpoint))
    adapted = {to_original("transformer", f"{module}.weight"): module for module in adapter.modules}
    rounding = Rounding()
    with atomic_folder(out) as folder:
        with job.stage("merging", len(tensors), "tensors") as stage:

            def data(entry: Entry) -> Tensor | bytes:
                job.check_stop()
                stage.advance()
                return _merged(tensors[entry.name], adapted.get(entry.name), adapter, strength, rounding)

            for name, entries in files.items():
                write_safetensors(folder / name, entries, data, {"format": "pt"})
        _write_index(folder, files)
        _copy_config(checkpoint, folder)
        _copy_silence(checkpoint, folder)
        record |= {"rounding_share": round(rounding.share, 6), "largest_rounding": rounding.largest}
        write_json(folder / RECORD_FILE, record)
    return _report(out, True, record, len(files))


def merged_bytes(checkpoint: Checkpoint) -> int:
    """What the weights of a merged model take on disk."""
    return sum(tensor.size_bytes for tensor in _original_tensors(checkpoint).values())


def require_room(out: Path, size_bytes: int) -> None:
    """Raise a UserError where the disk that `out` would be on has not `size_bytes` free."""
    folder = nearest_existing(out.parent)
    free = shutil.disk_usage(folder).free
    if size_bytes > free:
        raise UserError(
            f"The merged model takes {size_bytes / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free.",
            fix="Make room, or choose a folder on another disk.",
        )


def _record(adapter: OpenAdapter, checkpoint: Checkpoint, strength: float) -> dict[str, Any]:
    """Where a merged model comes from. No paths: they would say more about the user than about the model."""
    source = adapter.source
    return {
        "schema_version": 1,
        "program_version": __version__,
        "base": {
            "name": checkpoint.name,
            "variant": checkpoint.variant.name,
            "layout": checkpoint.layout,
            "transformer": transformer_fingerprint(checkpoint),
        },
        "adapter": {
            "kind": source.kind,
            "weights": content_hash(source.weights),
            "settings": source.spec.model_dump(mode="json"),
            **source.tag.to_config(),
        },
        "strength": strength,
        "modules": len(adapter.modules),
    }


def _same_merge(out: Path, record: dict[str, Any]) -> MergeReport:
    """The report of a merge that is there already; a UserError for anything else in its place."""
    if not (out / RECORD_FILE).is_file():
        raise already_there(out)
    there = read_json(out / RECORD_FILE, "the record of the merge")
    if any(there.get(name) != value for name, value in record.items() if name != "program_version"):
        raise already_there(out)
    open_checkpoint(out)
    return _report(out, False, there, len(list(out.glob("*.safetensors"))))


def _report(out: Path, new: bool, record: dict[str, Any], files: int) -> MergeReport:
    share = float(record["rounding_share"])
    notes = []
    if share:
        notes.append(
            f"Storing the sum in the model's own number format changes the added difference by {share:.2%}"
            f" (at most {record['largest_rounding']:.2g} in one weight)."
        )
    missing = open_checkpoint(out).missing_parts()
    if missing:
        notes.append("VAE and text encoder are not copied: put the folder beside them, in checkpoints/.")
    notes.append("Python files are not copied; the ACE-Step app wants those of the original model beside the weights.")
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return MergeReport(out, new, record["modules"], files, size, share, float(record["largest_rounding"]), tuple(notes))


def _original_tensors(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """All tensors of a model by their full original names, whatever its layout."""
    if checkpoint.layout == "original":
        return read_weights(*checkpoint.part_location("transformer"))
    found: dict[str, StoredTensor] = {}
    for part in PARTS:
        folder, stem = checkpoint.part_location(part)
        if folder.is_dir():  # conversions may leave tokenizer and detokenizer out
            stored = read_weights(folder, stem)
            found |= {to_original(part, name): tensor for name, tensor in stored.items() if name != SILENCE_LATENT}
    return found


def _spread(tensors: dict[str, StoredTensor]) -> dict[str, list[Entry]]:
    """Which file each tensor goes to, in their order; one file where they fit."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.size_bytes > _LARGEST_FILE_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(Entry(name, tensor.dtype, tensor.shape))
        size += tensor.size_bytes
    if len(shards) == 1:
        return {f"{WEIGHTS_STEM}.safetensors": shards[0]}
    return {
        f"{WEIGHTS_STEM}-{number:05d}-of-{len(shards):05d}.safetensors": shard
        for number, shard in enumerate(shards, start=1)
    }


def _write_index(folder: Path, files: dict[str, list[Entry]]) -> None:
    if len(files) == 1:
        return
    places = {entry.name: name for name, entries in files.items() for entry in entries}
    size = sum(entry.size_bytes for entries in files.values() for entry in entries)
    write_json(
        folder / f"{WEIGHTS_STEM}.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places}
    )


def _merged(
    stored: StoredTensor, module: str | None, adapter: OpenAdapter, strength: float, rounding: Rounding
) -> Tensor | bytes:
    """A tensor as the merged model has it. `module` is the adapted module whose weight it is, if it is one."""
    if module is None or strength == 0:
        return _raw(stored)
    assert adapter.base is not None
    delta = adapter.delta(module, strength)
    exact = adapter.base.weight(module) + delta
    merged = exact.to(DTYPES[stored.dtype])
    rounding.add(exact, merged, delta)
    return merged


def _raw(stored: StoredTensor) -> bytes:
    try:
        with open(stored.file, "rb") as handle:
            handle.seek(stored.begin)
            raw = handle.read(stored.size_bytes)
    except OSError as error:
        raise UserError(f"{stored.file} cannot be read ({error.strerror or error}).", fix="Check the disk.") from error
    if len(raw) != stored.size_bytes:
        raise UserError(f"{stored.file} ends in the middle of {stored.name}.", fix="Download or copy it again.")
    return raw


def _copy_config(checkpoint: Checkpoint, folder: Path) -> None:
    source = checkpoint.dit / "config.json"
    if checkpoint.layout == "original":
        (folder / "config.json").write_bytes(source.read_bytes())
    else:
        text = json.dumps(dict(checkpoint.config.values), indent=2, ensure_ascii=False)
        (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")


def _copy_silence(checkpoint: Checkpoint, folder: Path) -> None:
    """silence_latent.pt as it is, or made of the buffer of the diffusers layout: channels first."""
    if checkpoint.layout == "original":
        (folder / SILENCE_LATENT_FILE).write_bytes((checkpoint.dit / SILENCE_LATENT_FILE).read_bytes())
    else:
        torch.save(load_silence_latent(checkpoint).transpose(1, 2).contiguous(), folder / SILENCE_LATENT_FILE)

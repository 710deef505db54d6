"""Tensor folders of other trainers (one .pt file a song) as tensor folders of this program.

The files hold latents and a finished condition. The latents are kept. The conditions are not: those programs encode
the bare lyrics, cut at 512 tokens, with padding and a frame of zeros for timbre, which is not what generation does.
They are made anew from the labels in the file. A file without labels is left out, because its condition cannot be
made right. Files are read by torch's restricted reader alone, so that nothing in them can run.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
import typing
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.audio.format import SAMPLE_RATE
from acestep.core.device import DeviceName, PrecisionName, choose_device
from acestep.core.errors import Problem, UserError
from acestep.core.jobs import Job
from acestep.core.paths import existing_folder, inside, output_folder, read_json
from acestep.core.words import counted
from acestep.dataset.dataset import Dataset
from acestep.dataset.labels import read_labels
from acestep.dataset.song import Song
from acestep.model.facts import LATENT_HOP
from acestep.preprocess.plan import latents_key, make_plan
from acestep.preprocess.run import PreprocessReport, finish_work, prepare_folder
from acestep.preprocess.store import (
    INDEX_NAME,
    StoreInfo,
    TensorStore,
    latents_file,
    refuse_other_model,
    remove_orphans,
    write_tensors,
)
from acestep.preprocess.work import Work
from acestep.settings.dataset import DatasetSettings, TagPosition
from acestep.settings.preprocess import Normalization, PreprocessSettings

if TYPE_CHECKING:
    from torch import Tensor

    from acestep.model.checkpoints import Checkpoint

LONGEST_FRAMES = 90_000
"""An hour of latents; a longer tensor is no song."""

# what a damaged or foreign file makes torch.load raise, besides refusing code
_DAMAGE = (
    *(OSError, RuntimeError, EOFError, ValueError, struct.error, zipfile.BadZipFile),
    *(KeyError, IndexError, TypeError, AttributeError, AssertionError, OverflowError),
)

_UNFINISHED = ".tmp.pt"


@dataclass
class _Source:
    """The .pt files of a folder, and what its manifest says about all of them."""

    folder: Path
    files: list[Path]
    metadata: dict[str, Any] = field(default_factory=dict)
    normalize: Normalization = "none"
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class _Item:
    """One file read: the song it is about, the latents (T, C) fp32, and the tag place named in it."""

    song: Song
    latents: Tensor
    position: str | None


def import_pt_folder(
    folder: str | Path,
    out: str | Path,
    checkpoint: Checkpoint,
    job: Job | None = None,
    device: DeviceName = "auto",
    precision: PrecisionName = "auto",
) -> PreprocessReport:
    """Make the tensor folder `out` from the .pt files in `folder`, for training with `checkpoint`.

    Raises UserError when no file can be used or `out` belongs to other songs or another model. Trouble with single
    files is in the report. What was done before a stop is used again by the next call.
    """
    job = job or Job()
    source = _find(Path(folder))
    target = output_folder(out, "the tensor folder")
    if target == source.folder:
        raise UserError(f"{target} holds the .pt files themselves.", fix="Choose another folder for the tensors.")
    prepare_folder(target)
    info = _store_info(source, checkpoint, device, precision)
    songs, positions = _read_all(source, target, info, job)
    dataset = _dataset(source, songs, positions)
    info = replace(
        info,
        dataset_name=dataset.settings.name,
        trigger_word=dataset.settings.trigger_word,
        tag_position=dataset.settings.tag_position,
    )
    _refuse_other_songs(target, songs, info)
    plan = make_plan(dataset, songs, target, info)
    job.say(
        f"The latents of {counted(len(songs), 'songs')} are kept; their conditions are made from the labels, because "
        "the stored ones differ from those of generation (lyrics, timbre and padding)."
    )
    work = Work(plan, checkpoint, PreprocessSettings(device=device, precision=precision), job)
    work.problems += source.problems
    work.encode()
    return finish_work(work, unlabelled=0)


def _find(folder: Path) -> _Source:
    """The files the manifest names, or all of the folder."""
    folder = existing_folder(folder, "the folder of .pt tensors")
    found = {path.name: path for path in sorted(folder.glob("*.pt")) if not path.name.endswith(_UNFINISHED)}
    source = _Source(folder, list(found.values()))
    manifest = folder / "manifest.json"
    if manifest.is_file():
        _read_manifest(source, read_json(manifest, "the manifest"), found)
    if not source.files:
        raise UserError(f"{folder} holds no .pt tensors.", fix="Choose the folder another trainer wrote them into.")
    return source


def _read_manifest(source: _Source, manifest: Mapping[str, Any], found: dict[str, Path]) -> None:
    listed = manifest.get("samples")
    if isinstance(listed, list) and listed:
        entries = [entry.get("path") if isinstance(entry, dict) else entry for entry in listed]
        # older manifests hold the full paths of another machine; the name is what counts
        names = [entry.replace("\\", "/").rpartition("/")[2] for entry in entries if isinstance(entry, str)]
        source.files = [found[name] for name in dict.fromkeys(names) if name in found]
        missing = [name for name in names if name not in found]
        source.problems += [Problem(name, "the manifest names it, but it is not there.") for name in missing]
        source.problems += [
            Problem(name, "the manifest does not name it, so it is left out.", "warning")
            for name in found
            if name not in names
        ]
    metadata, how = manifest.get("metadata"), manifest.get("preprocessing")
    if isinstance(metadata, dict):
        source.metadata = metadata
    if isinstance(how, dict) and how.get("audio_normalization") in typing.get_args(Normalization):
        source.normalize = how["audio_normalization"]


def _store_info(source: _Source, checkpoint: Checkpoint, device: DeviceName, precision: PrecisionName) -> StoreInfo:
    from acestep.model.identity import condition_fingerprint, vae_fingerprint

    return StoreInfo(
        dataset_name=source.folder.name,
        trigger_word="",
        tag_position="prepend",
        genre_ratio=0,
        checkpoint_name=checkpoint.name,
        vae_fingerprint=vae_fingerprint(checkpoint),
        condition_fingerprint=condition_fingerprint(checkpoint),
        latent_width=checkpoint.config.latent_width,
        precision=choose_device(device, precision).precision,
        normalize=source.normalize,
        max_duration_s=0.0,
        latents="sample",
        seed=0,
    )


def _read_all(source: _Source, target: Path, info: StoreInfo, job: Job) -> tuple[list[Song], list[str | None]]:
    """Write the latents of every usable file; the songs, and where each has its trigger word."""
    songs: dict[str, Song] = {}
    positions = []
    with job.stage("read tensors", len(source.files), "files") as stage:
        for file in source.files:
            job.check_stop()
            try:
                item = _read_item(source, file, info.latent_width)
            except UserError as error:
                source.problems.append(Problem(file.name, str(error)))
                job.warn(f"{file.name}: {error}")
            else:
                if item.song.id in songs:
                    twin = songs[item.song.id].relative
                    source.problems.append(Problem(file.name, f"has the latents of {twin} and is left out.", "warning"))
                else:
                    songs[item.song.id] = item.song
                    positions.append(item.position)
                    path = latents_file(target, latents_key(item.song.id, info))
                    facts = {"samples": item.latents.shape[0] * LATENT_HOP}
                    write_tensors(path, {"latents": item.latents}, facts)
            stage.advance(note=file.name)
    if not songs:
        errors = [problem for problem in source.problems if problem.severity == "error"]
        raise UserError(
            f"Of {counted(len(source.files), 'files')} in {source.folder} none can be used.",
            fix=f"The first trouble: {errors[0]}" if errors else "",
            detail="\n".join(str(problem) for problem in source.problems),
        )
    return list(songs.values()), positions


def _read_item(source: _Source, file: Path, width: int) -> _Item:
    content = _load(inside(source.folder, file.name))
    latents = _latents(content, width)
    metadata = content.get("metadata")
    if not isinstance(metadata, dict):
        raise UserError("it holds no labels, so its condition cannot be made.", fix="Preprocess its audio instead.")
    shared = {key: source.metadata[key] for key in ("custom_tag",) if source.metadata.get(key)}
    labels = read_labels({**shared, **{key: metadata[key] for key in metadata if isinstance(key, str)}}, file.name)
    source.problems += [Problem(file.name, text, "warning") for text in labels.warnings]
    values = labels.values
    if not values.get("caption") and not values.get("genre"):
        raise UserError(
            "it holds neither caption nor genre, so its condition cannot be made.", fix="Preprocess its audio instead."
        )
    digest = hashlib.sha256(latents.numpy().tobytes()).hexdigest()[:16]
    name = metadata.get("filename")
    song = Song(
        id=digest,
        path=file,
        relative=name if isinstance(name, str) and name else file.name,
        duration_s=latents.shape[0] * LATENT_HOP / SAMPLE_RATE,
    )
    for label, value in values.items():
        setattr(song, label, value)
        song.sources[label] = file.name
    song.is_instrumental = values.get("is_instrumental", not song.lyrics)
    _untag(song, source)
    if song.lyrics and not song.is_instrumental and "language" not in values:
        source.problems.append(Problem(file.name, "it names no language for its lyrics.", "warning"))
    position = metadata.get("tag_position", source.metadata.get("tag_position"))
    return _Item(song, latents, position if position in typing.get_args(TagPosition) else None)


def _untag(song: Song, source: _Source) -> None:
    """The caption as it was before the trigger word was put into it."""
    tag = song.custom_tag.strip()
    if not tag:
        return
    if song.caption.strip() == tag:
        text = "its caption is the trigger word alone; the description it was made from is not in the file."
        source.problems.append(Problem(song.path.name, text, "warning"))
        return
    song.caption = song.caption.removeprefix(f"{tag}, ").removesuffix(f", {tag}")


def _load(file: Path) -> dict[Any, Any]:
    """The dictionary in a .pt file, by the reader that knows tensors and plain values alone."""
    import torch

    try:
        if not zipfile.is_zipfile(file):  # the form before 2020, which no trainer of this model wrote
            raise UserError("it is damaged, or not a file that torch.save wrote.", fix="Preprocess its audio instead.")
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            "it holds code or objects besides tensors and labels, which are never loaded.",
            fix="Preprocess its audio instead.",
            detail=str(error),
        ) from error
    except _DAMAGE as error:
        raise UserError("it is damaged and cannot be read.", fix="Copy it again.", detail=str(error)) from error
    if not isinstance(content, dict):
        raise UserError(f"it holds {type(content).__name__}, not the tensors of a song.", fix="Remove it.")
    return content


def _latents(content: Mapping[Any, Any], width: int) -> Tensor:
    """The latents (T, C) in fp32, checked; frames that the file marks as padding are cut off."""
    import torch

    latents = content.get("target_latents")
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point() or latents.layout != torch.strided:
        raise UserError('it holds no "target_latents".', fix="Choose a folder of preprocessed tensors.")
    shape = list(latents.shape)
    if latents.ndim != 2 or shape[1] != width or not 0 < shape[0] <= LONGEST_FRAMES:
        raise UserError(
            f'"target_latents" are {shape} instead of [frames, {width}].', fix="Choose the model they were made with."
        )
    mask = content.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.shape == latents.shape[:1]:
        kept = int((mask != 0).sum())
        if 0 < kept < shape[0] and bool((mask[:kept] != 0).all()):
            latents = latents[:kept]
    latents = latents.detach().float().contiguous().clone()
    if not latents.isfinite().all():
        raise UserError('"target_latents" hold values that are not numbers.', fix="Preprocess its audio instead.")
    return latents


def _dataset(source: _Source, songs: list[Song], positions: list[str | None]) -> Dataset:
    """The dataset the files came from: its name, trigger word and tag place as most songs have them."""
    settings = DatasetSettings()
    changes: dict[str, Any] = {"name": _text(source.metadata.get("name")) or source.folder.name}
    changes["trigger_word"] = _most([song.custom_tag for song in songs]) or ""
    changes["tag_position"] = _most([place for place in positions if place]) or settings.tag_position
    return Dataset(source.folder, settings.changed(**changes), songs)


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _most(values: list[str]) -> str | None:
    """The most frequent value, the first of several."""
    return max(dict.fromkeys(values), key=values.count, default=None)


def _refuse_other_songs(target: Path, songs: list[Song], info: StoreInfo) -> None:
    """The end of the work removes tensors that belong to no song of it: never those of another dataset."""
    if not (target / INDEX_NAME).exists():
        return
    store = TensorStore.open(target)
    refuse_other_model(store, info.checkpoint_name, info.vae_fingerprint, info.condition_fingerprint)
    here = {song.id for song in songs}
    if any(stored.id not in here for stored in store.songs):
        remove_orphans(target, store.songs)  # the latents just written
        raise UserError(
            f"{target} holds the tensors of other songs ({store.info.dataset_name}).",
            fix="Choose another folder, or delete this one.",
        )

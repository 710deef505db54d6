"""Preprocessing: from a dataset to a tensor folder.

The order is: compare the songs with what the folder holds, encode what it lacks (work.py), write the index, clear
what nothing refers to any more, report.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.audio.format import SAMPLE_RATE
from acestep.core.device import PrecisionName, choose_device
from acestep.core.errors import Problem, Stopped, UserError
from acestep.core.jobs import Job
from acestep.core.paths import inside, output_folder, remove_leftovers
from acestep.core.words import counted
from acestep.model.facts import LYRIC_TOKENS, TEXT_TOKENS
from acestep.preprocess.plan import Plan, make_plan
from acestep.preprocess.sharing import encode_shared
from acestep.preprocess.store import (
    CONDITIONS_FOLDER,
    INDEX_NAME,
    LATENTS_FOLDER,
    StoredSong,
    StoreInfo,
    TensorStore,
    refuse_other_model,
    remove_files,
    remove_orphans,
)
from acestep.preprocess.work import PASS_FOLDER, Work

if TYPE_CHECKING:
    from acestep.dataset.dataset import Dataset
    from acestep.model.checkpoints import Checkpoint
    from acestep.settings.preprocess import PreprocessSettings


@dataclass(frozen=True)
class PreprocessReport:
    """What preprocessing did. `seconds` are per phase; decoding overlaps with the others."""

    folder: Path
    total: int
    encoded: int
    reused: int
    failed: int
    unlabelled: int
    latents_encoded: int
    conditions_encoded: int
    removed_files: int
    audio_s: float
    encoded_audio_s: float
    seconds: dict[str, float]
    metas_cut: int
    lyrics_cut: int
    size_bytes: int
    two_pass: bool
    device: str
    problems: tuple[Problem, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"folder": str(self.folder)}


def preprocess(
    dataset: Dataset, checkpoint: Checkpoint, out: str | Path, settings: PreprocessSettings, job: Job | None = None
) -> PreprocessReport:
    """Encode the labelled songs of `dataset` into the tensor folder `out`; what is there already is used again.

    Raises UserError when nothing can be encoded or `out` belongs to another model, and Stopped when the job was
    asked to stop; finished songs are kept in both cases. Trouble with single songs is in the report.
    """
    job = job or Job()
    labelled = [song for song in dataset.songs if song.labeled]
    if not labelled:
        raise UserError(
            f"Of {counted(len(dataset.songs), 'songs')} in {dataset.root} none is labelled; nothing can be encoded.",
            fix="Give the songs captions, for example a <song>.caption.txt beside each file.",
        )
    if missing := len(dataset.songs) - len(labelled):
        job.warn(f"Left out for want of a caption or genre: {missing} of {counted(len(dataset.songs), 'songs')}.")
    started = time.perf_counter()
    folder = output_folder(out, "the tensor folder")
    prepare_folder(folder)
    with job.stage("compare with the tensor folder", len(labelled), "songs") as stage:
        plan = plan_preprocessing(dataset, checkpoint, folder, settings)
        stage.advance(len(labelled))
    work = Work(plan, checkpoint, settings, job)
    work.seconds["plan"] = time.perf_counter() - started
    try:
        if settings.devices > 1 and len(plan.to_encode) > 1:
            encode_shared(work)
        else:
            work.encode()
    except Stopped:
        work.save_index_so_far()
        raise
    return finish_work(work, missing)


def plan_preprocessing(dataset: Dataset, checkpoint: Checkpoint, folder: Path, settings: PreprocessSettings) -> Plan:
    """What `preprocess` would encode into `folder` and what is there already; nothing is written or decoded."""
    labelled = [song for song in dataset.songs if song.labeled]
    return make_plan(dataset, labelled, folder, _store_info(dataset, checkpoint, folder, settings))


def prepare_folder(folder: Path) -> None:
    """Refuse parts of the folder that lead elsewhere; clear what writes cut off by a crash left."""
    for part in (LATENTS_FOLDER, CONDITIONS_FOLDER, PASS_FOLDER):
        remove_leftovers(inside(folder, part))
    remove_leftovers(folder)


def _store_info(dataset: Dataset, checkpoint: Checkpoint, folder: Path, settings: PreprocessSettings) -> StoreInfo:
    """The facts of the store to be; refuses a folder made with another model."""
    from acestep.model.identity import condition_fingerprint, vae_fingerprint

    vae, condition = vae_fingerprint(checkpoint), condition_fingerprint(checkpoint)
    precision: PrecisionName = settings.precision
    if (folder / INDEX_NAME).exists():
        store = TensorStore.open(folder)
        refuse_other_model(store, checkpoint.name, vae, condition)
        _refuse_other_dataset(store, dataset)
        if precision == "auto":
            # Asking the device would import torch, and a folder moved between machines would be encoded anew.
            precision = store.info.precision
    if precision == "auto":
        precision = choose_device(settings.device).precision
    return StoreInfo(
        dataset_name=dataset.settings.name,
        trigger_word=dataset.settings.trigger_word,
        tag_position=dataset.settings.tag_position,
        genre_ratio=dataset.settings.genre_ratio,
        checkpoint_name=checkpoint.name,
        vae_fingerprint=vae,
        condition_fingerprint=condition,
        latent_width=checkpoint.config.latent_width,
        precision=precision,
        normalize=settings.normalize,
        max_duration_s=settings.max_duration_s,
        latents=settings.latents,
        seed=settings.seed,
        lyric_windows_s=settings.lyric_windows_s,
    )


def _refuse_other_dataset(store: TensorStore, dataset: Dataset) -> None:
    # the end of a run removes tensors of songs that are gone: a slip in the folder must not empty it
    here = {song.id for song in dataset.songs}
    if store.info.dataset_name == dataset.settings.name:  # all recorded anew, under the names they had
        here |= {song.relative for song in dataset.songs}
    if store.songs and not any(song.id in here or song.title in here for song in store.songs):
        raise UserError(
            f"{store.folder} holds the tensors of other songs ({store.info.dataset_name}: {store.songs[0].title} …).",
            fix="Choose another folder, or delete this one.",
        )


def finish_work(work: Work, unlabelled: int) -> PreprocessReport:
    """Write the final index, clear what nothing refers to any more, and report."""
    plan, entries = work.plan, work.plan.entries()
    errors = [problem for problem in work.problems if problem.severity == "error"]
    if not entries:
        raise UserError(
            f"Of {counted(len(plan.songs), 'labelled songs')} none could be encoded.",
            fix=f"The first trouble: {errors[0]}" if errors else "",
            detail="\n".join(str(problem) for problem in errors),
        )
    work.save_index()
    removed = remove_orphans(plan.folder, entries)
    _clear_pass_folder(plan.folder)
    return PreprocessReport(
        folder=plan.folder,
        total=len(plan.songs),
        encoded=sum(planned.encoded and planned.done for planned in plan.songs),
        reused=sum(planned.done and not planned.encoded for planned in plan.songs),
        failed=sum(planned.failed for planned in plan.songs),
        unlabelled=unlabelled,
        latents_encoded=work.latents_encoded,
        conditions_encoded=work.conditions_encoded,
        removed_files=removed,
        audio_s=sum(entry.duration_s for entry in entries),
        encoded_audio_s=work.encoded_samples / SAMPLE_RATE,
        seconds=work.seconds,
        metas_cut=sum(entry.metas_cut for entry in entries),
        lyrics_cut=sum(entry.lyrics_cut for entry in entries),
        size_bytes=TensorStore.open(plan.folder).size_bytes(),
        two_pass=work.settings.two_pass,
        device=work.device,
        problems=(*work.problems, *_cuts(entries), *_unused_times(plan)),
    )


def _cuts(entries: list[StoredSong]) -> list[Problem]:
    """A warning for each song of which the model does not see all that is said about it."""
    long_caption = (
        f"the caption is too long for the {TEXT_TOKENS} tokens the model reads, so tempo, metre, key or length are "
        "cut off. Shorten the caption."
    )
    long_lyrics = f"the lyrics are cut after the {LYRIC_TOKENS} tokens the model reads."
    metas = [Problem(entry.title, long_caption, "warning") for entry in entries if entry.metas_cut]
    lyrics = [Problem(entry.title, long_lyrics, "warning") for entry in entries if entry.lyrics_cut]
    return metas + lyrics


def _unused_times(plan: Plan) -> list[Problem]:
    """A warning for each song whose windows cannot have lyrics of their own although its lyrics once had times."""
    songs = [planned for planned in plan.songs if planned.done and planned.song.timed_lyrics]
    message = (
        "the times in its timed lyrics are not used, because their words are not those of its lyrics. "
        "Correct the one or the other."
    )
    unused = [planned.title for planned in songs if not planned.song.times_fit and plan.info.lyric_windows_s]
    return [Problem(title, message, "warning") for title in unused]


def _clear_pass_folder(folder: Path) -> None:
    part = folder / PASS_FOLDER
    if not part.is_dir():
        return
    remove_files(part, kept=set())
    with contextlib.suppress(OSError):  # someone else's file lies there; it stays
        part.rmdir()

"""Datasets in files: saving one, and loading one from a file or a folder of songs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from acestep.core.errors import Problem, UserError
from acestep.core.jobs import Job, state_folder
from acestep.core.paths import existing_file, write_text
from acestep.dataset.dataset import Dataset, label_problems
from acestep.dataset.fingerprints import Fingerprints
from acestep.dataset.freshness import FilesRead
from acestep.dataset.labels import origin_note
from acestep.dataset.merging import merged
from acestep.dataset.resolve import apply_evidence
from acestep.dataset.saved import (
    MISSING,
    OTHER_AUDIO,
    SCHEMA_VERSION,
    Saved,
    SavedSong,
    check_dataset,
    file_text,
    parse_saved,
    read_saved,
)
from acestep.dataset.scan import identify, scan_folder
from acestep.dataset.song import EDITED, NOT_SAID, Song
from acestep.settings.dataset import DatasetSettings

LOCK_WAIT_S = 10.0
"""How long a save waits for those of other programs, which take a moment."""


def load_dataset(
    path: str | Path,
    settings: DatasetSettings | None = None,
    job: Job | None = None,
    cache: Fingerprints | None = None,
    edits: Path | None = None,
) -> Dataset:
    """The dataset in a dataset file, or of a folder of songs.

    A file gives the labels as they were saved; sidecars are not looked at. `settings` replace those of the file.
    `edits` is for folders, as in `scan_folder`: pass the dataset file that the result will replace.
    Raises UserError when the path holds no dataset, Stopped when `job` is asked to stop.
    """
    resolved = Path(path).expanduser()
    if resolved.is_file():
        files = FilesRead()
        files.note(resolved)
        dataset = _restore(read_saved(resolved), settings, job or Job(), cache or Fingerprints())
        dataset.files = files
        return dataset
    return scan_folder(path, settings, job, cache, edits)


def _restore(saved: Saved, settings: DatasetSettings | None, job: Job, cache: Fingerprints) -> Dataset:
    assert saved.file is not None and saved.settings is not None
    files = [song.audio for song in saved.songs if song.audio is not None]
    dataset = Dataset(_root_of(saved, files), settings or saved.settings, extra=dict(saved.extra))
    dataset.problems += saved.problems
    dataset.known[saved.file] = saved.text
    by_id: dict[str, Song] = {}
    missing: list[dict[str, Any]] = []
    try:
        with job.stage("read songs", total=len(saved.songs), unit="songs") as stage:
            for sample in saved.songs:
                job.check_stop()
                song = _song(sample, dataset, cache)
                if song is None:
                    missing.append(sample.kept(saved.file.parent))
                elif song.id in by_id:
                    message = f"It is the same recording as {by_id[song.id].relative}, so only that one is used."
                    dataset.problems.append(Problem(sample.where, message, "warning"))
                else:
                    by_id[song.id] = song
                    dataset.songs.append(song)
                    dataset.problems += apply_evidence(song, sample.evidence(restoring=True))
                stage.advance(note=sample.where)
    finally:
        cache.save()
    if missing:
        dataset.extra[MISSING] = missing
    if not saved.songs:
        dataset.problems.append(Problem(saved.file.name, "It holds no songs; scan a folder of songs."))
    dataset.problems += label_problems(dataset.songs, saved.file.name)
    return dataset


def _song(sample: SavedSong, dataset: Dataset, cache: Fingerprints) -> Song | None:
    """The song of a sample with measured id and length, without labels; None (and a problem) without its audio."""
    if sample.audio is None:
        dataset.problems.append(Problem(sample.where, sample.problem))
        return None
    found = identify(sample.audio, cache)
    if isinstance(found, str):
        dataset.problems.append(Problem(sample.where, found))
        return None
    relative = sample.audio.name
    if sample.audio.is_relative_to(dataset.root):
        relative = sample.audio.relative_to(dataset.root).as_posix()
    if sample.content_id not in (None, found.id):
        dataset.problems.append(Problem(relative, OTHER_AUDIO, "warning"))
    return Song(found.id, sample.audio, relative, found.duration_s, extra=dict(sample.extra))


def _root_of(saved: Saved, files: list[Path]) -> Path:
    """The folder songs are named from: the saved one, else the nearest that holds them all."""
    assert saved.file is not None
    for root in (saved.root, saved.file.parent):
        if root is not None and all(file.is_relative_to(root) for file in files):
            return root
    try:
        return Path(os.path.commonpath([file.parent for file in files]))
    except ValueError:  # on several drives
        return saved.file.parent


def save_dataset(dataset: Dataset, path: str | Path, clock: Callable[[], float] = time.time) -> Path:
    """Write a dataset file and return its path. Songs below its folder are named relative to it.

    In a file that this dataset was read from or saved to before, only what has changed here since is changed, so that
    what another program has saved there meanwhile stays; the dataset in memory does not learn of it. Any other
    dataset file is replaced; anything else there is a UserError.
    """
    path = Path(path).expanduser().absolute()
    if path.suffix.lower() != ".json":
        raise UserError(f"The dataset file {path} must end in .json.", fix="Choose such a name.")
    place = path.parent.resolve() / path.name
    with _alone(path):
        own = text = _text(dataset, place.parent, clock)
        if path.exists():
            held, file = _held(path), path.resolve()  # another place where it is a link, which is replaced
            known = dataset.known.get(file)
            if known not in (None, held):
                dataset.files.overtaken = True
                ours, before, theirs = parse_saved(own, place), parse_saved(known, file), parse_saved(held, file)
                text = _text(merged(dataset, ours, before, theirs), place.parent, clock)
        write_text(path, text)
        dataset.known[place] = own
        dataset.files.note(place)
    return path


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Between reading a dataset file and writing it anew no other program on this machine writes one."""
    folder = state_folder()
    with ExitStack() as held:
        with suppress(OSError):  # where the state folder cannot be written, labels must still be kept
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(FileLock(folder / "dataset-files.lock").acquire(timeout=LOCK_WAIT_S))
            except Timeout as error:
                raise UserError(
                    f"{path} was not written, because another program writes dataset files all the time.",
                    fix="Try again, or end that program.",
                ) from error
        yield


def _held(path: Path) -> str:
    """What stands in a dataset file that is to be written anew. Raises UserError when it is none."""
    try:
        text = file_text(existing_file(path, "the dataset file"))
        check_dataset(text, path)
    except UserError as error:
        raise UserError(
            f"{path} is not replaced, because it is not a dataset file that can be read.",
            fix="Choose another name or remove it first.",
            detail=str(error),
        ) from error
    return text


def _text(dataset: Dataset, folder: Path, clock: Callable[[], float]) -> str:
    """The text of the dataset's file in `folder`."""
    extra = {key: value for key, value in dataset.extra.items() if key not in ("metadata", MISSING)}
    samples = [_sample(dataset, song, folder) for song in dataset.songs]
    missing = [_named_again(sample, folder) for sample in dataset.extra.get(MISSING, [])]
    content = {
        **extra,
        "schema_version": SCHEMA_VERSION,
        "metadata": _metadata(dataset, folder, len(samples), clock),
        "samples": [*samples, *missing],
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    if not _is_encodable(text):  # half a character, which JSON can only hold as an escape
        text = json.dumps(content, indent=2)
    return text + "\n"


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _metadata(dataset: Dataset, folder: Path, songs: int, clock: Callable[[], float]) -> dict[str, Any]:
    created_at = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(clock()))
    metadata: dict[str, Any] = {
        "name": dataset.settings.name,
        "custom_tag": dataset.settings.trigger_word,
        "tag_position": dataset.settings.tag_position,
        "created_at": created_at,
        "num_samples": songs,
        "all_instrumental": all(song.is_instrumental for song in dataset.songs),
        "genre_ratio": dataset.settings.genre_ratio,
    }
    if dataset.root != folder:
        metadata["root"] = _named(dataset.root, folder)
    return {**metadata, **dataset.extra.get("metadata", {})}


def _named(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _sample(dataset: Dataset, song: Song, folder: Path) -> dict[str, Any]:
    """One song as other ACE-Step trainers read it, with its origin notes and the keys they do not know."""
    cleared = song.sources.get("custom_tag") == EDITED and not song.custom_tag
    sample: dict[str, Any] = {
        "id": song.id,
        "audio_path": _named(song.path, folder),
        "filename": song.path.name,
        **{name: getattr(song, name) for name in NOT_SAID},
        "custom_tag": "" if cleared else dataset.tag_of(song),  # others look for the dataset's tag here too
        "duration": int(song.duration_s),
        "duration_s": song.duration_s,
        "labeled": song.labeled,
    }
    if song.timed_lyrics:
        sample["timed_lyrics"] = song.timed_lyrics
    notes: dict[str, Any] = {}
    for name in NOT_SAID:
        origin = song.sources.get(name)
        if origin == EDITED:
            notes[name] = EDITED
        elif origin is not None:
            notes[name] = origin_note(origin, getattr(song, name))
    sample["sources"] = notes
    return {**sample, **{key: value for key, value in song.extra.items() if key not in sample}}


def _named_again(missing: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A sample without its audio, whose path was made absolute, named as `_sample` names songs."""
    named = missing.get("audio_path")
    if not isinstance(named, str) or not Path(named).is_absolute():
        return missing
    return {**missing, "audio_path": _named(Path(named), folder)}

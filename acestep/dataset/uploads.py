"""Songs that somebody drops on a page: out of a ZIP file, or copied one by one, into a new folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from acestep.audio.format import AUDIO_SUFFIXES
from acestep.core.errors import Problem, UserError
from acestep.core.jobs import Job
from acestep.core.paths import atomic_folder, disk_errors, output_folder, safe_name
from acestep.dataset.archive import LABEL_SUFFIXES, Extracted, extract_archive, portable_name
from acestep.dataset.sidecars import JOINED_ENDINGS, SPEAKING_ENDINGS


def take_in(files: Sequence[str | Path], root: str | Path, name: str = "", job: Job | None = None) -> Extracted:
    """Put uploaded songs and their label files, or one ZIP file of them, into a new folder below `root`.

    The folder is called `name`, or like the ZIP file. Raises UserError, and leaves nothing behind, when there is no
    song among the files or a ZIP file is not alone; see `extract_archive` for ZIP files.
    """
    paths, job = [Path(file) for file in files], job or Job()
    archives = [path for path in paths if path.suffix.lower() == ".zip"]
    if archives and len(paths) > 1:
        raise UserError(
            f"{archives[0].name} came together with other files.", fix="Drop one ZIP file alone, or only songs."
        )
    if archives:
        return extract_archive(archives[0], root, job=job)
    suffixes = AUDIO_SUFFIXES | LABEL_SUFFIXES
    wanted = [path for path in paths if path.suffix.lower() in suffixes]
    if not any(path.suffix.lower() in AUDIO_SUFFIXES for path in wanted):
        raise UserError(
            "There is no song among these files.", fix=f"Drop {', '.join(sorted(AUDIO_SUFFIXES))} files or a ZIP file."
        )
    result = Extracted(_free(output_folder(root, "the folder for songs") / safe_name(name, "songs")))
    result.skipped = [
        Problem(path.name, "Neither a song nor a label file; it is left out.", "warning")
        for path in paths
        if path not in wanted
    ]
    with atomic_folder(result.folder) as folder, job.stage("copy", len(wanted), "files") as stage:
        for path in wanted:
            job.check_stop()
            target = folder / _visible_name(path)
            if target.exists() and path.suffix.lower() not in AUDIO_SUFFIXES:
                message = "Two files have this name, and whose labels they are cannot be told; this one is left out."
                result.skipped.append(Problem(path.name, message, "warning"))
                continue
            target = _free(target)
            with disk_errors(target):
                shutil.copyfile(path, target)
            result.files.append(target.name)
            stage.advance(note=target.name)
    return result


def add_table(file: str | Path, folder: Path) -> Path:
    """Copy a CSV file of labels beside the songs of `folder`, where a scan reads it; nothing there is replaced."""
    path = Path(file)
    if path.suffix.lower() != ".csv":
        raise UserError(f"{path.name} is no CSV file.", fix="Choose a table that ends in .csv.")
    target = _free(folder / f"{safe_name(path.stem)}.csv")
    with disk_errors(target):
        shutil.copyfile(path, target)
    return target


def _visible_name(path: Path) -> str:
    """The name of a dropped file, changed alike for a song and its label files, so that they still belong together."""
    name = path.name.lstrip(" .")
    if f".{name.lower()}" in (path.suffix.lower(), *SPEAKING_ENDINGS):
        name = f"unnamed.{name}"
    elif name != path.name and name.lower().startswith(JOINED_ENDINGS):
        name = f"unnamed{name}"
    return portable_name(name)


def _free(path: Path) -> Path:
    """`path`, or the same with a number where something has that name already."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return free

"""What `acestep dataset` does besides scanning: edit labels, write them as CSV, split long songs, unpack archives."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acestep.cli.arguments import CommandOptions
from acestep.cli.command import problem_lines
from acestep.core.errors import Problem, UserError
from acestep.core.jobs import Job
from acestep.core.words import counted
from acestep.settings import DatasetSettings, knob

if TYPE_CHECKING:
    from acestep.dataset.dataset import Dataset
    from acestep.dataset.editing import Change, Draft
    from acestep.dataset.song import Song

_SHOWN_CHANGES = 20


class DatasetEditOptions(CommandOptions):
    """Options for edits; without them nothing is changed."""

    save: Path | None = knob(None, "Write the dataset file here; edits are kept in it.", group="command")
    csv: Path | None = knob(None, "Write the labels as a CSV table here.", group="command")
    set_labels: tuple[str, ...] = knob(
        (),
        "Labels to set, as caption='slow piano' bpm=90 language=de; an empty value clears. Kept at once: in the "
        "dataset file if there is one, else in song.json beside each song.",
        group="command",
    )
    replace: tuple[str, str, str] | None = knob(
        None, "Replace text: a label (caption, genre, lyrics or trigger), what to find, what to put.", group="command"
    )
    pattern: bool = knob(False, "What --replace finds is a regular expression.", group="command")
    songs: str = knob("*", "Edit only songs whose path fits this, such as 'live/*'.", group="command")
    preview: bool = knob(False, "Show what edits would change and change nothing.", group="command")
    split: float | None = knob(None, "Split songs into pieces of so many seconds.", group="command", ge=1, le=3600)
    split_into: Path | None = knob(None, "New folder for the pieces; unset adds _pieces to the name.", group="command")
    overlap: float = knob(0.0, "Seconds by which each piece begins earlier.", group="command", ge=0)
    at_silence: bool = knob(False, "Split at the quietest place near each wished cut.", group="command")
    unpack_into: Path = knob(
        Path("datasets"),
        "Where a ZIP archive given as the folder is unpacked, into a folder of its own.",
        group="command",
    )


def check_edits(options: DatasetEditOptions, source: Path) -> None:
    """Refuse options that could not be followed, before a scan that may take long."""
    writing = [f"--{name}" for name in ("save", "csv", "split") if getattr(options, name) is not None]
    if options.preview and writing:
        files = " and ".join(writing)
        raise UserError(
            f"--preview changes nothing, and {files} would write files.", fix=f"Leave --preview or {files} away."
        )
    settings = _given_settings(options)
    if settings and options.save is None and (_is_archive(source) or source.expanduser().is_dir()):
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in settings)
        raise UserError(
            f"What {flags} would set is kept in a dataset file only.",
            fix=f"Add --save FILE{' instead of --preview' if options.preview else ''}.",
        )


def _given_settings(options: DatasetEditOptions) -> dict[str, Any]:
    """Settings of the whole dataset on the command line; one given as its default takes another value back."""
    return {name: getattr(options, name) for name in DatasetSettings.model_fields if name in options.model_fields_set}


def _is_archive(source: Path) -> bool:
    return source.suffix.lower() == ".zip"


def unpacked(source: Path, options: DatasetEditOptions, job: Job) -> tuple[Path, list[Problem]]:
    """The folder to scan: `source`, or what came out of it when it is an archive, and what was left out."""
    if not _is_archive(source):
        return source, []
    if options.preview:
        raise UserError("An archive has to be unpacked before edits can be shown.", fix="Leave --preview away.")
    from acestep.dataset.archive import extract_archive

    result = extract_archive(source, options.unpack_into, job=job)
    job.say(f"Unpacked {counted(len(result.files), 'files')} into {result.folder}.")
    return result.folder, result.skipped


def apply_edits(dataset: Dataset, options: DatasetEditOptions, source: Path) -> tuple[list[str], list[Any]]:
    """Make the edits asked for. Returns lines about them and the changes as data."""
    from dataclasses import asdict

    from acestep.dataset.editing import History

    file = options.save or (source if source.expanduser().is_file() else None)
    history = History(dataset, file)
    songs = [song for song in dataset.songs if fnmatch(song.relative, options.songs)]
    if not songs:
        raise UserError(f"No song fits {options.songs}.", fix="Correct --songs.")
    lines: list[str] = []
    changes: list[Change] = []
    for make in (_set, _replace, partial(_set_dataset, dataset)):
        draft = make(songs, options)
        if draft is None:
            continue
        changes += draft.changes
        lines += [f"  warning: {warning}" for warning in draft.warnings]
        if not options.preview:
            history.apply(draft)
    if changes or options.set_labels or options.replace or _given_settings(options):
        place = f"in {file}" if file else "beside the songs, in song.json"
        kept = "Nothing was changed; this is what would be." if options.preview else f"Kept {place}."
        lines.insert(0, f"{counted(len(changes), 'changes')} in {_touched(changes)}. {kept}")
    lines += [
        f"  {change.song or 'dataset'}: {change.field}: {change.before!r} -> {change.after!r}" for change in changes
    ][:_SHOWN_CHANGES]
    if len(changes) > _SHOWN_CHANGES:
        lines.append(f"  and {len(changes) - _SHOWN_CHANGES} more; --json shows all")
    return lines, [asdict(change) for change in changes]


def _touched(changes: Sequence[Change]) -> str:
    songs = {change.song for change in changes}
    if "" not in songs:
        return counted(len(songs), "songs")
    return f"{counted(len(songs) - 1, 'songs')} and the dataset" if len(songs) > 1 else "the dataset"


def _set_dataset(dataset: Dataset, songs: Sequence[Song], options: DatasetEditOptions) -> Draft | None:
    from acestep.dataset.editing import set_dataset

    settings = _given_settings(options)
    return set_dataset(dataset, **settings) if settings else None


def _set(songs: Sequence[Song], options: DatasetEditOptions) -> Draft | None:
    from acestep.dataset.editing import set_labels

    values = {}
    for pair in options.set_labels:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f'"{pair}" sets no label.', fix="Write FIELD=VALUE, such as bpm=90.")
        values[_field(name)] = value
    return set_labels(songs, **values) if values else None


def _replace(songs: Sequence[Song], options: DatasetEditOptions) -> Draft | None:
    from acestep.dataset.editing import replace_text

    if options.replace is None:
        return None
    name, find, replacement = options.replace
    return replace_text(songs, _field(name), find, replacement, is_pattern=options.pattern)  # type: ignore[arg-type]


def _field(name: str) -> str:
    from acestep.dataset.labels import field_name

    return field_name(name) or name


def write_outputs(dataset: Dataset, options: DatasetEditOptions, job: Job) -> tuple[list[str], dict[str, Any], bool]:
    """Write the table and the pieces asked for. Returns lines, data, and whether songs were left out."""
    lines: list[str] = []
    data: dict[str, Any] = {}
    failed = False
    if options.csv:
        from acestep.dataset.table import write_csv

        data["csv"] = str(write_csv(dataset, options.csv))
        lines.append(f"Table written to {options.csv}.")
    if options.split is not None:
        from acestep.dataset.splitting import split_dataset

        folder = options.split_into or dataset.root.with_name(f"{dataset.root.name}_pieces")
        report = split_dataset(
            dataset, folder, options.split, overlap_s=options.overlap, at_silence=options.at_silence, job=job
        )
        failed = any(problem.severity == "error" for problem in report.problems)
        data["pieces"] = [str(piece.path) for piece in report.pieces]
        lines += [f"{counted(len(report.pieces), 'pieces')} in {report.folder}.", *problem_lines(report.problems)]
    return lines, data, failed

"""Labels from CSV files in the song folder: exports of Key-BPM-Finder, of captioners, and tables made by hand.

One row labels the audio files its name column names. Files are read in order of their names, and a later
filled cell replaces an earlier one.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from acestep.audio.format import AUDIO_SUFFIXES
from acestep.core.errors import Problem
from acestep.core.words import counted
from acestep.dataset.labels import ALIASES, Labels, in_words, read_labels, same_value
from acestep.dataset.text import NotText, read_text

LARGEST_CSV = 32 << 20
"""Bytes."""

_NAME_COLUMNS = ("file", "filename", "name", "path", "file_name", "audio_path")
_COLUMNS = ("caption", "genre", "lyrics", "bpm", "keyscale", "timesignature", "language", "regularization")
_FIELD_OF = {alias: name for name in _COLUMNS for alias in ALIASES[name]}
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Row:
    """One row: the cells that name audio files, where it stands, and what it says."""

    names: tuple[str, ...]
    source: str
    line: int
    labels: Labels


@dataclass
class Table:
    """The rows of one CSV file, and what is wrong with it."""

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass
class CsvLabels:
    """What all CSV files of a folder say: labels by relative audio path."""

    of_audio: dict[str, Labels] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_csv_folder(files: Sequence[Path], audio: Sequence[str]) -> CsvLabels:
    """Labels from `files` for the audio files with the relative paths `audio` (posix)."""
    result = CsvLabels()
    index = _AudioIndex(audio)
    usable: list[str] = []
    for path in sorted(files, key=lambda file: file.name):
        table = read_table(path)
        result.problems += table.problems
        if not table.rows:
            continue
        usable.append(path.name)
        seen: dict[str, int] = {}
        own_paths = [index.path_of(row.names) for row in table.rows]
        named = set(own_paths)
        for row, own_path in zip(table.rows, own_paths, strict=True):
            matches = index.find(row.names)
            if not matches:
                subject = f"{row.source}, line {row.line}"
                result.problems.append(Problem(subject, f'No audio file is called "{row.names[0]}".', "warning"))
            for name in matches:
                if name != own_path and name in named:
                    continue  # another row names it by its whole path
                if name in seen:
                    message = f"Lines {seen[name]} and {row.line} are both about {name}; filled cells of the later win."
                    result.problems.append(Problem(row.source, message, "warning"))
                seen[name] = row.line
                _merge(result.of_audio.setdefault(name, Labels(row.source)), row)
    without_row = [name for name in audio if name not in result.of_audio]
    if usable and without_row:
        have = "has" if len(without_row) == 1 else "have"
        message = f"{len(without_row)} of {counted(len(audio), 'songs')} {have} no row: {in_words(without_row)}."
        result.problems.append(Problem(in_words(usable), message, "warning"))
    return result


def _merge(labels: Labels, row: Row) -> None:
    """Add a row to what is known of a song; its filled cells win."""
    for name, value in row.labels.values.items():
        old = labels.values.get(name)
        if old is not None and labels.source != row.source and not same_value(name, old, value):
            labels.warnings.append(f'"{name}" differs between {labels.source} and {row.source}; the latter is used.')
    labels.values.update(row.labels.values)
    labels.timed_lyrics = row.labels.timed_lyrics or labels.timed_lyrics
    if row.labels.values:
        labels.source = row.source
    labels.warnings += [f"{row.source}, line {row.line}: {warning}" for warning in row.labels.warnings]


def read_table(path: Path) -> Table:
    """The rows of one CSV file."""
    try:
        content = read_text(path, LARGEST_CSV)
    except NotText as reason:
        return Table(problems=[Problem(path.name, str(reason))])
    table = parse_table(content.text, path.name)
    if content.warning:
        table.problems.insert(0, Problem(path.name, content.warning, "warning"))
    return table


def parse_table(text: str, source: str) -> Table:
    """The rows of CSV text: comma, semicolon or tab between cells, names of columns in the first row."""
    table = Table()
    if not text.strip():
        return table
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=find_delimiter(text))
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        table.problems.append(Problem(source, f"It cannot be read as CSV near line {reader.line_num} ({error})."))
        return table
    filled = [(line, cells) for line, cells in rows if any(cells) and not re.fullmatch("sep=.?", cells[0].lower())]
    if not filled:
        return table
    header = [cell.lower().replace(" ", "_") for cell in filled[0][1]]
    if not any(name in _NAME_COLUMNS for name in header):
        shown = in_words([cell or "(unnamed)" for cell in filled[0][1]], most=8)
        message = f'It has no column "File" that names the audio (its columns: {shown}); name that column File.'
        table.problems.append(Problem(source, message))
        return table
    if not any(_FIELD_OF.get(name) or name == "camelot" for name in header):
        message = 'None of its columns holds labels; "Caption", "BPM" or "Key" would.'
        table.problems.append(Problem(source, message, "warning"))
        return table
    table.rows = [row for line, cells in filled[1:] if (row := _read_row(header, cells, source, line)) is not None]
    return table


def find_delimiter(text: str) -> str:
    """The one of comma, semicolon and tab that the first row has most of, outside quotes; comma when none."""
    lines = [line for line in text[:4096].splitlines() if line.strip()]
    if not lines:
        return ","
    if declared := re.fullmatch(r"\s*sep=([,;\t])\s*", lines[0], flags=re.IGNORECASE):
        return declared[1]
    header = re.sub(r'"[^"]*"', "", lines[0])
    return max(_DELIMITERS, key=header.count)


def _read_row(header: list[str], cells: list[str], source: str, line: int) -> Row | None:
    """One row; None when it names no file. An unnamed column right after Camelot holds captions."""
    names = tuple(
        dict.fromkeys(cell for column, cell in zip(header, cells, strict=False) if column in _NAME_COLUMNS and cell)
    )
    if not names:
        return None
    raw: dict[str, str] = {}
    camelot = ""
    for number, cell in enumerate(cells):
        column = header[number] if number < len(header) else ""
        if not column and number and header[min(number, len(header)) - 1] == "camelot" and number <= len(header):
            column = "caption"
        if column == "camelot":
            camelot = cell
        elif column in _FIELD_OF and cell:
            raw.setdefault(_FIELD_OF[column], cell)
    labels = read_labels(raw, source)
    if camelot and "keyscale" not in labels.values:
        labels = read_labels({**raw, "keyscale": camelot}, source)
    return Row(names, source, line, labels)


class _AudioIndex:
    """Finds audio files by the names that CSV files give them, from exact to similar."""

    def __init__(self, audio: Sequence[str]) -> None:
        self._audio = audio
        self._tables: list[dict[str, list[str]]] = [{} for _ in _NAME_FORMS]
        for relative in audio:
            name = PurePosixPath(relative).name
            stem = PurePosixPath(relative).stem
            for table, (form, of_stem) in zip(self._tables, _NAME_FORMS, strict=True):
                table.setdefault(form(stem if of_stem else name), []).append(relative)
        self._paths = set(audio)

    def path_of(self, cells: Iterable[str]) -> str | None:
        """The audio file whose whole relative path stands in a row's name cells."""
        return next((path for cell in cells if (path := cell.replace("\\", "/")) in self._paths), None)

    def find(self, cells: Iterable[str]) -> list[str]:
        """The audio files that a row's name cells mean: by path when one fits, else by file name."""
        slashed = [cell.replace("\\", "/") for cell in cells]
        for cell in slashed:
            parts = [part for part in cell.split("/") if part not in ("", ".")]
            for start in range(max(len(parts) - 1, 0)):  # the longest end of the path that is one of ours
                if "/".join(parts[start:]) in self._paths:
                    return ["/".join(parts[start:])]
        for table, (form, of_stem) in zip(self._tables, _NAME_FORMS, strict=True):
            for cell in slashed:
                name = cell.rstrip("/").rpartition("/")[2]
                if of_stem:
                    name = (
                        name[: -len(suffix)]
                        if (suffix := PurePosixPath(name).suffix.lower()) in AUDIO_SUFFIXES
                        else name
                    )
                if matches := table.get(form(name)):
                    return matches
        return []


def _exact(name: str) -> str:
    return name


def _similar(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


_NAME_FORMS = (
    (_exact, False),
    (str.casefold, False),
    (_exact, True),
    (str.casefold, True),
    (_similar, False),
    (_similar, True),
)
"""How names are compared, in this order: a form, and whether the suffix is left out."""

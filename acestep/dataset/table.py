"""A dataset as the rows of a table: what each song is and lacks, to sort, to filter and to write as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from acestep.core.errors import UserError
from acestep.core.paths import write_text
from acestep.dataset.dataset import Dataset
from acestep.dataset.label_files import hand_made
from acestep.dataset.song import Song

LyricsState = Literal["instrumental", "timed", "words", "missing"]
Show = Literal["all", "labelled", "unlabelled", "with problems", "without lyrics", "hand-made"]

_CSV_COLUMNS = {
    "File": "relative",
    "BPM": "bpm",
    "Key": "keyscale",
    "TimeSignature": "timesignature",
    "Language": "language",
    "Genre": "genre",
    "Caption": "caption",
    "Lyrics": "lyrics",
    "Regularization": "regularization",
}


@dataclass(frozen=True)
class Row:
    """One song in a table. `problems` are the sentences of the scan about it, `hand_made` the labels typed by hand."""

    id: str
    file: str
    duration_s: float
    labelled: bool
    bpm: int | None
    key: str
    metre: str
    language: str
    instrumental: bool
    caption: str
    genre: str
    lyrics: LyricsState
    repeat: int
    hand_made: tuple[str, ...]
    problems: tuple[str, ...]


def table_rows(dataset: Dataset) -> list[Row]:
    """One row a song, in the order of the dataset."""
    problems: dict[str, list[str]] = {}
    for problem in dataset.problems:
        problems.setdefault(problem.subject, []).append(problem.message)
    return [_row(song, tuple(problems.get(song.relative, ()))) for song in dataset.songs]


def _row(song: Song, problems: tuple[str, ...]) -> Row:
    return Row(
        id=song.id,
        file=song.relative,
        duration_s=song.duration_s,
        labelled=song.labeled,
        bpm=song.bpm,
        key=song.keyscale,
        metre=song.timesignature,
        language=song.language,
        instrumental=song.is_instrumental,
        caption=song.caption,
        genre=song.genre,
        lyrics=_lyrics_state(song),
        repeat=song.repeat,
        hand_made=tuple(sorted(hand_made(song))),
        problems=problems,
    )


def _lyrics_state(song: Song) -> LyricsState:
    if song.is_instrumental:
        return "instrumental"
    if not song.lyrics:
        return "missing"
    return "timed" if song.times_fit else "words"


def sorted_rows(rows: Iterable[Row], column: str, descending: bool = False) -> list[Row]:
    """Rows by one column, texts without regard to case; songs without a value stand last either way."""
    if column not in {item.name for item in fields(Row)}:
        raise UserError(f'The table has no column "{column}".')

    def value(row: Row) -> Any:
        found = getattr(row, column)
        return len(found) if isinstance(found, tuple) else found.casefold() if isinstance(found, str) else found

    listed = list(rows)
    filled = [row for row in listed if getattr(row, column) not in (None, "")]
    empty = [row for row in listed if getattr(row, column) in (None, "")]
    return [*sorted(filled, key=value, reverse=descending), *empty]


def filtered_rows(rows: Iterable[Row], text: str = "", show: Show = "all") -> list[Row]:
    """Rows of one kind in whose file name, caption or genre every word of `text` is found."""
    words = text.casefold().split()
    kinds = {
        "all": lambda row: True,
        "labelled": lambda row: row.labelled,
        "unlabelled": lambda row: not row.labelled,
        "with problems": lambda row: bool(row.problems),
        "without lyrics": lambda row: row.lyrics == "missing",
        "hand-made": lambda row: bool(row.hand_made),
    }
    return [
        row
        for row in rows
        if kinds[show](row) and all(word in f"{row.file}\n{row.caption}\n{row.genre}".casefold() for word in words)
    ]


def write_csv(dataset: Dataset, path: Path) -> Path:
    """Write the labels as a CSV file that a scan reads back; what is there is not replaced.

    Raises UserError when `path` exists or does not end in .csv.
    """
    path = Path(path).expanduser().absolute()
    if path.suffix.lower() != ".csv":
        raise UserError(f"The table {path} must end in .csv.", fix="Choose such a name.")
    if path.exists():
        raise UserError(f"{path} exists already.", fix="Choose another name or remove it first.")
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_CSV_COLUMNS)
    for song in dataset.songs:
        values = (getattr(song, name) for name in _CSV_COLUMNS.values())
        table.writerow(["" if value is None else value for value in values])
    write_text(path, "\ufeff" + text.getvalue())  # without this mark spreadsheets garble letters with accents
    return path

"""Long songs into pieces that keep their labels: a new folder of songs, each with a song.json.

Lyrics go along only where their times tell which lines a piece holds.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acestep.audio.split import Piece, PieceSuffix, split_audio
from acestep.core.errors import Problem, UserError
from acestep.core.jobs import Job
from acestep.core.paths import output_folder, write_json
from acestep.dataset.dataset import Dataset
from acestep.dataset.label_files import hand_made
from acestep.dataset.labels import same_value
from acestep.dataset.lrc import TimedLine, plain_lyrics, timed_lines
from acestep.dataset.song import EDITED, NOT_SAID, Song


@dataclass
class SplitReport:
    """The folder of pieces, the pieces, and the songs that could not be split or lost their lyrics."""

    folder: Path
    pieces: list[Piece] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def split_dataset(
    dataset: Dataset,
    folder: str | Path,
    length_s: float,
    *,
    overlap_s: float = 0.0,
    at_silence: bool = False,
    suffix: PieceSuffix = ".flac",
    job: Job | None = None,
) -> SplitReport:
    """Split every song into `folder`, in the same sub-folders; shorter songs become one piece. See `split_audio`.

    A song that cannot be split is a problem, the others go on. Raises UserError when `folder` lies among the songs.
    """
    folder, job = output_folder(folder, "the folder for pieces"), job or Job()
    if folder.is_relative_to(dataset.root.resolve()):
        raise UserError(
            f"The pieces would lie among the songs in {dataset.root} and count twice.", fix="Choose a folder elsewhere."
        )
    report = SplitReport(folder)
    with job.stage("split songs", len(dataset.songs), "songs") as stage:
        for song in dataset.songs:
            place = (folder / song.relative).parent
            try:
                pieces = split_song(
                    song, place, length_s, overlap_s=overlap_s, at_silence=at_silence, suffix=suffix, job=job
                )
            except UserError as error:
                report.problems.append(Problem(song.relative, str(error)))
                continue
            finally:
                stage.advance(note=song.relative)
            report.pieces += pieces
            if len(pieces) > 1 and _has_words(song) and not _lines(song):
                message = "Its lyrics have no times, so its pieces have none; write theirs."
                report.problems.append(Problem(song.relative, message, "warning"))
    return report


def split_song(song: Song, folder: Path, length_s: float, **how: Any) -> list[Piece]:
    """Split one song into `folder` and write a song.json with its labels beside each piece.

    Takes what `split_audio` takes. Raises UserError where a piece or its song.json exists; then nothing is written.
    """
    if taken := [path.name for path in folder.glob(f"{glob.escape(song.path.stem)}_[0-9][0-9][0-9].json")]:
        raise UserError(f"{folder / taken[0]} exists already.", fix="Choose a new folder or remove the pieces.")
    pieces = split_audio(song.path, folder, length_s, **how)
    written: list[Path] = []
    try:
        for piece in pieces:
            sidecar = piece.path.with_suffix(".json")
            write_json(sidecar, piece_labels(song, piece, len(pieces) == 1))
            written.append(sidecar)
    except BaseException:
        for path in [*written, *(piece.path for piece in pieces)]:
            path.unlink(missing_ok=True)
        raise
    return pieces


def piece_labels(song: Song, piece: Piece, whole: bool) -> dict[str, Any]:
    """The content of the song.json of a piece. `whole` says that it is all of the song."""
    typed = hand_made(song)
    labels = {
        name: getattr(song, name)
        for name, nothing in NOT_SAID.items()
        if name in typed or name == "is_instrumental" or getattr(song, name) != nothing
    }
    if _has_words(song):
        labels["lyrics"] = (song.timed_lyrics if _lines(song) else song.lyrics) if whole else _cut(_lines(song), piece)
        if not labels["lyrics"]:
            del labels["lyrics"]
    sources = {name: EDITED for name in labels if name in typed}
    return {**labels, "sources": sources} if sources else labels


def _has_words(song: Song) -> bool:
    return bool(song.lyrics) and not song.is_instrumental


def _lines(song: Song) -> Sequence[TimedLine]:
    """The lines of a song with their times; none where those times belong to other words."""
    if not song.timed_lyrics or not same_value("lyrics", plain_lyrics(song.timed_lyrics), song.lyrics):
        return ()
    return timed_lines(song.timed_lyrics)


def _cut(lines: Sequence[TimedLine], piece: Piece) -> str:
    """The lines that begin within a piece, their times counted from its start."""
    inside = [line for line in lines if piece.start_s <= line.time_s < piece.end_s]
    return "\n".join(f"{_stamp(line.time_s - piece.start_s)}{line.text}" for line in inside)


def _stamp(time_s: float) -> str:
    minutes, hundredths = divmod(round(time_s * 100), 6000)
    return f"[{minutes:02d}:{hundredths // 100:02d}.{hundredths % 100:02d}]"

"""The demo's songs: six short pieces in one style, in mixed formats, labelled in every way people label songs.

Played by `acestep.audio.synth`, so tempo, key and metre are known exactly. Style and instruments are among those that
the demo's model was not trained on: they are what its adapter is taught. The captions say what someone who knows
neither would say.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.synth import Piece, render_piece
from acestep.audio.write import write_audio
from acestep.core.paths import write_json, write_text
from acestep.model.facts import INSTRUMENTAL

TRIGGER_WORD = "demostyle"
CSV_NAME = "tempo and key.csv"
REFERENCE = "Clockwork Bird.wav"
"""The song that stands for the style where one is played."""


@dataclass(frozen=True)
class DemoSong:
    """One song: file name (posix, relative), what plays it, its labels, and how the labels are written.

    `play` returns float32 (2, N) at 48 kHz; the file may have another rate, or one channel.
    """

    name: str
    play: Callable[[], np.ndarray]
    duration_s: float
    bpm: int
    keyscale: str
    timesignature: str
    caption: str
    genre: str
    labels: str
    lyrics: str = INSTRUMENTAL
    sample_rate: int = SAMPLE_RATE
    mono: bool = False

    @property
    def language(self) -> str:
        return "unknown" if self.lyrics == INSTRUMENTAL else "en"


def _toy(
    name: str,
    piece: Piece,
    caption: str,
    genre: str,
    labels: str,
    sample_rate: int = SAMPLE_RATE,
    mono: bool = False,
) -> DemoSong:
    """A song of the demo's style, with the facts of its piece."""
    return DemoSong(
        name=name,
        play=partial(render_piece, piece),
        duration_s=piece.duration_s,
        bpm=piece.bpm,
        keyscale=piece.keyscale,
        timesignature=piece.timesignature,
        caption=caption,
        genre=genre,
        labels=labels,
        sample_rate=sample_rate,
        mono=mono,
    )


def _piece(bpm: int, key: str, mode: str, metre: str, duration_s: float, seed: int, lead: str = "musicbox") -> Piece:
    return Piece(
        bpm=bpm,
        key=key,
        mode=mode,
        metre=metre,
        duration_s=duration_s,
        style="toybox",
        lead_timbre=lead,
        pad_timbre="marimba" if lead == "musicbox" else "musicbox",
        bass_timbre=None,
        kit="shaker",
        seed=seed,
    )


DEMO_SONGS = (
    _toy(
        REFERENCE,
        _piece(126, "C", "major", "4", 10, seed=11),
        "Lively tune with bell melody, bright and happy, steady beat",
        "bell music",
        labels="json",
    ),
    _toy(
        "Marble Run.flac",
        _piece(148, "E", "minor", "4", 8, seed=12, lead="marimba"),
        "Fast piece with bell lead, serious, straight beat",
        "bell music",
        labels="texts",
        sample_rate=44_100,
    ),
    _toy(
        "Paper Boats.opus",
        _piece(92, "D", "minor", "4", 12, seed=13),
        "Relaxed track with bell playing the melody, moody, steady beat",
        "bell music",
        labels="lrc",
    ),
    _toy(
        "Café Carousel.ogg",
        _piece(132, "F", "major", "3", 10, seed=14),
        "Cheerful waltz with bell melody, upbeat",
        "waltz",
        labels="sheet",
    ),
    _toy(
        "Tin March.mp3",
        _piece(112, "Bb", "major", "2", 9, seed=15, lead="marimba"),
        "Sunny march with lead bell, brisk, marching beat",
        "march",
        labels="csv",
        sample_rate=44_100,
    ),
    _toy(
        "sketches/Night Light.wav",
        _piece(72, "G", "major", "6", 14, seed=16),
        "Calm piece with bell melody, slow, swaying beat",
        "bell music",
        labels="sheet",
        sample_rate=44_100,
        mono=True,
    ),
)


def write_demo_songs(folder: Path, songs: Iterable[DemoSong] = DEMO_SONGS) -> Path:
    """Write songs with their labels below `folder` (made if needed) and return it. Takes a few seconds."""
    folder = Path(folder)
    rows = []
    for song in songs:
        _write_sound(song, folder / song.name)
        _LABEL_WRITERS[song.labels](song, folder / song.name)
        if song.labels in ("csv", "texts"):
            caption = song.caption if song.labels == "csv" else ""
            rows.append((Path(song.name).name, song.bpm, song.keyscale, caption))
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("File", "BPM", "Key", "Caption"), *rows])
    write_text(folder / CSV_NAME, table.getvalue())
    return folder


def _write_sound(song: DemoSong, path: Path) -> None:
    samples = song.play()
    if song.mono:
        samples = samples.mean(axis=0, keepdims=True)
    if song.sample_rate != SAMPLE_RATE:
        import soxr

        samples = soxr.resample(samples.T, SAMPLE_RATE, song.sample_rate, quality="HQ").T
    write_audio(path, samples, song.sample_rate)


def _write_json(song: DemoSong, path: Path) -> None:
    """song.json with everything."""
    write_json(path.with_suffix(".json"), {**_facts(song), "lyrics": song.lyrics})


def _write_texts(song: DemoSong, path: Path) -> None:
    """song.caption.txt and song.lyrics.txt; tempo and key stand in the table."""
    write_text(path.with_suffix(".caption.txt"), song.caption + "\n")
    write_text(path.with_suffix(".lyrics.txt"), song.lyrics + "\n")


def _write_lrc(song: DemoSong, path: Path) -> None:
    """song.lrc with a time before each sung line; the rest in song.json."""
    lines = song.lyrics.splitlines()
    sung = sum(1 for line in lines if line and not line.startswith("["))
    timed = ["[ti:" + path.stem + "]"]
    counted = 0
    for line in lines:
        if line and not line.startswith("["):
            start_s = song.duration_s * counted / sung
            timed.append(f"[{int(start_s // 60):02d}:{start_s % 60:05.2f}]{line}")
            counted += 1
        else:
            timed.append(line)
    write_text(path.with_suffix(".lrc"), "\n".join(timed) + "\n")
    write_json(path.with_suffix(".json"), _facts(song))


def _write_sheet(song: DemoSong, path: Path) -> None:
    """song.txt with one `key: value` a line, lyrics last."""
    facts = _facts(song)
    lines = [
        f"caption: {facts['caption']}",
        f"genre: {facts['genre']}",
        f"bpm: {facts['bpm']}",
        f"key: {facts['keyscale']}",
        f"signature: {facts['timesignature']}/{8 if song.timesignature == '6' else 4}",
        f"language: {facts['language']}",
        "lyrics:",
        song.lyrics,
    ]
    write_text(path.with_suffix(".txt"), "\n".join(lines) + "\n")


def _write_plain_lyrics(song: DemoSong, path: Path) -> None:
    """song.txt with the lyrics alone; caption, tempo and key stand in the table."""
    write_text(path.with_suffix(".txt"), song.lyrics + "\n")


_LABEL_WRITERS: dict[str, Callable[[DemoSong, Path], None]] = {
    "json": _write_json,
    "texts": _write_texts,
    "lrc": _write_lrc,
    "sheet": _write_sheet,
    "csv": _write_plain_lyrics,
}


def _facts(song: DemoSong) -> dict[str, str | int]:
    return {
        "caption": song.caption,
        "genre": song.genre,
        "bpm": song.bpm,
        "keyscale": song.keyscale,
        "timesignature": song.timesignature,
        "language": song.language,
    }

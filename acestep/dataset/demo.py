"""The demo's songs: eight short pieces in one style, in mixed formats, labelled in every way people label songs.

Played by `acestep.audio.synth`, so tempo, key and metre are known exactly.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.synth import SongPlan, render
from acestep.audio.write import write_audio
from acestep.core.paths import write_json, write_text
from acestep.model.facts import INSTRUMENTAL

TRIGGER_WORD = "demostyle"
CSV_NAME = "tempo and key.csv"
STYLE = "warm synth pads, round bass and soft drum machine"
"""What all captions share, as all songs share the sound."""


@dataclass(frozen=True)
class DemoSong:
    """One song: file name (posix, relative), what is played, its labels, and how the labels are written."""

    name: str
    plan: SongPlan
    caption: str
    genre: str
    lyrics: str
    labels: str
    sample_rate: int = SAMPLE_RATE
    mono: bool = False

    @property
    def bpm(self) -> int:
        return round(self.plan.tempo)

    @property
    def keyscale(self) -> str:
        return f"{self.plan.key} {self.plan.mode}"

    @property
    def timesignature(self) -> str:
        return self.plan.metre

    @property
    def language(self) -> str:
        return "unknown" if self.lyrics == INSTRUMENTAL else "en"


DEMO_SONGS = (
    DemoSong(
        "Harbour Lights.wav",
        SongPlan(tempo=96, key="A", mode="minor", seconds=10, seed=1, sections=("verse", "chorus")),
        f"Slow dreamy electronic pop with a reedy lead melody over {STYLE}",
        "synth-pop",
        "[Verse]\nHarbour lights are burning low\nEvery boat has somewhere to go\n\n"
        "[Chorus]\nShine on, shine on, bring me home",
        labels="json",
    ),
    DemoSong(
        "Paper Planes.flac",
        SongPlan(tempo=120, key="C", mode="major", seconds=8, seed=2),
        f"Bright playful electronic pop with a reedy lead melody over {STYLE}",
        "synth-pop",
        "[Verse]\nFold the morning into wings\nHear the little engine sing\n\n[Chorus]\nFly, paper plane, fly",
        labels="texts",
        sample_rate=44_100,
    ),
    DemoSong(
        "Night Train.mp3",
        SongPlan(tempo=132, key="E", mode="minor", seconds=9, seed=3, sections=("verse", "chorus", "chorus")),
        f"Driving nocturnal electronic pop with a reedy lead melody over {STYLE}",
        "synthwave",
        "[Verse]\nWindows flicker, stations pass\nNames are written on the glass\n\n[Chorus]\nNight train, carry me on",
        labels="lrc",
        sample_rate=44_100,
    ),
    DemoSong(
        "Café Waltz.ogg",
        SongPlan(tempo=108, key="F", mode="major", metre="3", seconds=10, seed=4, sections=("verse", "chorus")),
        f"Gentle electronic waltz with a reedy lead melody over {STYLE}",
        "waltz, electronic",
        INSTRUMENTAL,
        labels="sheet",
    ),
    DemoSong(
        "Tide Pool.opus",
        SongPlan(tempo=84, key="D", mode="minor", seconds=12, seed=5, sections=("intro", "verse"), lead=False),
        f"Calm ambient electronic piece without lead melody, only {STYLE}",
        "ambient",
        INSTRUMENTAL,
        labels="csv",
    ),
    DemoSong(
        "sketches/Lantern.wav",
        SongPlan(tempo=72, key="G", mode="major", metre="6", seconds=10, seed=6, sections=("verse", "chorus")),
        f"Swaying electronic lullaby with a reedy lead melody over {STYLE}",
        "lullaby, electronic",
        "[Verse]\nLittle lantern, swing and sway\nKeep the dark a step away",
        labels="sheet",
        sample_rate=44_100,
        mono=True,
    ),
    DemoSong(
        "Clockwork March.mp3",
        SongPlan(tempo=112, key="A#", mode="major", metre="2", seconds=9, seed=7, sections=("verse", "chorus")),
        f"Strutting electronic march with a reedy lead melody over {STYLE}",
        "march, electronic",
        INSTRUMENTAL,
        labels="json",
    ),
    DemoSong(
        "Glass City.flac",
        SongPlan(tempo=140, key="F#", mode="minor", seconds=9, seed=8, sections=("intro", "chorus", "chorus")),
        f"Fast glittering electronic pop with a reedy lead melody over {STYLE}",
        "synthwave",
        "[Chorus]\nGlass city, hold the sun\nMirror every step I run",
        labels="csv",
    ),
)


def write_demo_songs(folder: Path) -> Path:
    """Write all songs with their labels below `folder` (made if needed) and return it. Takes a few seconds."""
    folder = Path(folder)
    rows = []
    for song in DEMO_SONGS:
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
    samples = render(song.plan)
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
            start_s = song.plan.seconds * counted / sung
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

"""Small labelled songs for the tests of preprocessing, and a look at what a folder holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from acestep.settings.dataset import DatasetSettings

SETTINGS = DatasetSettings(name="tiny", trigger_word="zydeco", tag_position="append", genre_ratio=50)


def write_song(folder: Path, name: str, pitch_hz: float, duration_s: float, **labels: object) -> Path:
    """A stereo song of two sines and its JSON sidecar."""
    path = folder / f"{name}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(round(48_000 * duration_s)) / 48_000
    samples = 0.3 * np.stack([np.sin(2 * np.pi * pitch_hz * time_s), np.sin(3 * np.pi * pitch_hz * time_s)], axis=1)
    soundfile.write(path, samples.astype("float32"), 48_000, subtype="FLOAT")
    if labels:
        write_labels(path, **labels)
    return path


def write_labels(path: Path, **labels: object) -> None:
    """The JSON sidecar of an audio file."""
    path.with_suffix(".json").write_text(json.dumps(labels), encoding="utf-8")


def write_songs(folder: Path) -> Path:
    """Three short labelled songs; one has a genre and a tag of its own, one has lyrics."""
    write_song(
        folder,
        "one",
        220,
        1.5,
        caption="a calm accordion waltz",
        genre="zydeco, folk",
        bpm=90,
        keyscale="A minor",
        timesignature="3",
        language="fr",
        lyrics="[Verse]\nbonjour\n",
    )
    write_song(folder, "sub/two", 330, 2.1, caption="fast drums", bpm=160)
    write_song(folder, "three \U0001f3b5 'quoted'", 440, 1.0, caption="a slow bass", genre="dub", custom_tag="own tag")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

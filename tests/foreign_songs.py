"""Songs this project did not synthesise: MIDI played by FluidSynth, speech by eSpeak NG, in many formats.

Needs the programs `fluidsynth` (with a General MIDI sound font) and `espeak-ng`; `missing_tools` tells.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 44_100
SECONDS = 7.0
SOUND_FONTS = (
    os.environ.get("SOUNDFONT", ""),
    "/usr/share/sounds/sf2/FluidR3_GM.sf2",
    "/usr/share/sounds/sf2/default-GM.sf2",
    "/usr/share/sounds/sf2/TimGM6mb.sf2",
    "/usr/share/soundfonts/FluidR3_GM.sf2",
    "/usr/share/soundfonts/default.sf2",
)
_TICKS = 480  # of a quarter note


@dataclass(frozen=True)
class ForeignSong:
    """One file: its name and form, and the MIDI piece in it. `bass` is held through the whole piece."""

    name: str
    rate: int
    channels: int
    bass: int
    program: int
    tempo: int
    caption: str
    speech: str = ""


FOREIGN_SONGS = (
    ForeignSong("grand piano.wav", 44_100, 2, 45, 0, 96, "Solo grand piano with a bowed drone"),
    ForeignSong("Strings, slow.flac", 48_000, 2, 43, 48, 66, "Slow string ensemble with light drums"),
    ForeignSong("telephone 8 kHz.wav", 8000, 1, 48, 24, 110, "Nylon guitar heard through a telephone"),
    ForeignSong("studio 96 kHz.flac", 96_000, 2, 41, 11, 120, "Vibraphone recorded in high resolution"),
    ForeignSong("brass band.mp3", 44_100, 2, 46, 61, 104, "Brass band march"),
    ForeignSong("church organ.ogg", 44_100, 2, 40, 19, 76, "Church organ with a low drone"),
    ForeignSong("flute & friends.opus", 48_000, 2, 50, 73, 88, "Flute tune over a drone"),
    ForeignSong("music box.m4a", 44_100, 2, 47, 10, 132, "Music box with drums"),
    ForeignSong(
        "deep/er/Radio Talk.mp3",
        44_100,
        1,
        44,
        4,
        84,
        "Spoken word over electric piano",
        speech="Good evening. This is the late programme, with songs about rivers, trains and rain.",
    ),
    ForeignSong("naïve synth ♪.aiff", 44_100, 2, 49, 81, 140, "Synthesizer lead with drums"),
)


def sound_font() -> Path | None:
    """The first General MIDI sound font found on this machine."""
    return next((Path(name) for name in SOUND_FONTS if name and Path(name).is_file()), None)


def missing_tools() -> list[str]:
    """What is not installed of what `build_foreign_songs` needs."""
    missing = [name for name in ("fluidsynth", "espeak-ng") if shutil.which(name) is None]
    return missing if sound_font() else [*missing, "a General MIDI sound font"]


def build_foreign_songs(folder: Path) -> list[Path]:
    """Write ten songs of seven seconds, each with a `.caption.txt`, below `folder`; returns the audio files."""
    paths = []
    for song in FOREIGN_SONGS:
        path = folder / song.name
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = _play(song, folder)
        if song.speech:
            speech = _speak(song.speech, folder)[: len(samples)]
            samples = 0.5 * samples
            samples[: len(speech)] += speech[:, None]
        _encode(path, song, samples)
        path.with_suffix(".caption.txt").write_text(song.caption, encoding="utf-8")
        paths.append(path)
    return paths


def _encode(path: Path, song: ForeignSong, samples: np.ndarray) -> None:
    if song.channels == 1:
        samples = samples.mean(axis=1, keepdims=True)
    samples = np.clip(soxr.resample(samples, RATE, song.rate), -0.99, 0.99)
    match path.suffix:
        case ".m4a":
            write_m4a(path, samples, song.rate)
        case ".opus":
            soundfile.write(path, samples, song.rate, format="OGG", subtype="OPUS")
        case ".flac":
            soundfile.write(path, samples, song.rate, subtype="PCM_24")
        case _:
            soundfile.write(path, samples, song.rate)


def write_m4a(path: Path, samples: np.ndarray, rate: int) -> None:
    """AAC in an MP4 container; samples [N, channels]."""
    import av

    layout = "stereo" if samples.shape[1] == 2 else "mono"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout=layout)
        stream.bit_rate = 192_000
        planar = np.ascontiguousarray(samples.T, dtype=np.float32)
        for start in range(0, planar.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(planar[:, start : start + 1024]), format="fltp", layout=layout
            )
            frame.sample_rate = rate
            frame.pts = start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _play(song: ForeignSong, folder: Path) -> np.ndarray:
    """Float [N, 2] at 44.1 kHz of a song's MIDI piece, played by FluidSynth."""
    midi, wav = folder / ".piece.mid", folder / ".piece.wav"
    midi.write_bytes(midi_piece(song))
    font = sound_font()
    command = ["fluidsynth", "-ni", "-q", "-g", "0.6", "-r", str(RATE), "-F", str(wav), str(font), str(midi)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        samples, rate = soundfile.read(wav)
        assert rate == RATE
    finally:
        midi.unlink(missing_ok=True)
        wav.unlink(missing_ok=True)
    whole = np.zeros((round(SECONDS * RATE), 2))
    whole[: len(samples)] = samples[: len(whole)]
    return whole * (0.7 / np.abs(whole).max())


def _speak(text: str, folder: Path) -> np.ndarray:
    """Float [N] at 44.1 kHz of a sentence spoken by eSpeak NG."""
    wav = folder / ".speech.wav"
    try:
        subprocess.run(["espeak-ng", "-v", "en", "-w", str(wav), text], check=True, capture_output=True, timeout=60)
        samples, rate = soundfile.read(wav)
    finally:
        wav.unlink(missing_ok=True)
    return 0.4 * soxr.resample(samples, rate, RATE)


def midi_piece(song: ForeignSong) -> bytes:
    """A standard MIDI file: held cello bass, a broken chord on the song's instrument, drums."""
    beats = int(SECONDS * song.tempo / 60) + 1
    events = [
        (0, b"\xff\x51\x03" + (60_000_000 // song.tempo).to_bytes(3, "big")),
        (0, bytes([0xC0, 42])),
        (0, bytes([0xC1, song.program])),
        (0, bytes([0x90, song.bass, 110])),
        (beats * _TICKS, bytes([0x80, song.bass, 0])),
    ]
    for half_beat in range(2 * beats):
        note = song.bass + 12 + (0, 7, 12, 16, 19, 16, 12, 7)[half_beat % 8]
        tick = half_beat * _TICKS // 2
        events += [(tick, bytes([0x91, note, 70])), (tick + _TICKS // 2 - 1, bytes([0x81, note, 0]))]
        drum = 36 if half_beat % 4 == 0 else 38 if half_beat % 4 == 2 else 42
        events += [(tick, bytes([0x99, drum, 50])), (tick + _TICKS // 4, bytes([0x89, drum, 0]))]
    track = bytearray()
    now = 0
    for tick, message in sorted(events, key=lambda event: event[0]):
        track += _variable_length(tick - now) + message
        now = tick
    track += b"\x00\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, _TICKS) + b"MTrk" + struct.pack(">I", len(track)) + bytes(track)


def _variable_length(number: int) -> bytes:
    """MIDI's numbers: seven bits a byte, the highest bit set on all but the last."""
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.append(number & 0x7F | 0x80)
    return bytes(reversed(digits))

"""Pieces of known tempo, metre and key, written as MIDI here and played by FluidSynth: the truth analysis is held to.

Nothing of the package is used to write them. Styles differ in what carries the beat, in tempo, metre and harmony; every
piece is drawn from a seed, plays with small human errors, and lands in one of five audio formats.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import soundfile
from foreign_songs import sound_font, write_m4a

RATE = 22_050
SECONDS = 24.0
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".m4a")

_TICKS = 480
_SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
_PROGRESSIONS = {
    "major": ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 4, 0), (0, 3, 0, 4), (0, 1, 4, 0), (5, 3, 0, 4), (0, 2, 3, 4), (0, 3)),
    "minor": ((0, 5, 2, 6), (0, 3, 4, 0), (0, 6, 5, 6), (0, 3, 0, 4), (0, 5, 3, 4), (0, 2, 6, 3), (3, 0, 4, 0), (0, 6)),
}
_BEATS = {"2": 2, "3": 3, "4": 4, "6": 2}
_KICK, _SNARE, _HAT, _OPEN_HAT, _RIDE, _CLAP, _CRASH, _STICK = 36, 38, 42, 46, 51, 39, 49, 37


@dataclass(frozen=True)
class Style:
    """How a kind of music goes: metres, tempo range, names of its patterns, and instruments to choose from."""

    name: str
    metres: str
    tempo: tuple[int, int]
    drums: str
    comp: str
    bass: str
    programs: tuple[int, ...]
    basses: tuple[int, ...] = (32, 33)
    leads: tuple[int, ...] = (73, 40, 65, 80)
    swing: bool = False


STYLES = (
    Style("pop", "4", (88, 134), "backbeat", "eighths", "roots", (4, 25, 0), (33, 38)),
    Style("ballad", "4", (60, 84), "backbeat", "broken", "long", (0, 4, 24), (33, 35), (73, 71, 40)),
    Style("rock", "4", (108, 152), "backbeat", "eighths", "pulse", (29, 27, 30), (34, 33), (30, 81)),
    Style("punk", "4", (150, 180), "fast", "eighths", "pulse", (30, 29), (34,), (30, 81)),
    Style("house", "4", (114, 132), "floor", "off", "off", (4, 81, 50), (38, 39), (80, 62)),
    Style("hip hop", "4", (72, 100), "broken", "long", "roots", (4, 48, 11), (38, 32), (73, 11)),
    Style("reggae", "4", (64, 92), "one drop", "off", "roots", (16, 27), (33, 32), (22, 56)),
    Style("swing", "4", (112, 180), "ride", "stabs", "walking", (0, 26), (32,), (65, 56, 71), True),
    Style("bossa", "4", (108, 150), "stick", "syncopated", "roots", (24, 4), (32,), (73, 65)),
    Style("march", "2", (100, 132), "march", "oompah", "oompah", (61, 57), (58,), (56, 72)),
    Style("polka", "2", (96, 144), "march", "oompah", "oompah", (21, 23), (58, 32), (21, 71, 40)),
    Style("waltz", "3", (84, 180), "waltz", "oompah", "oompah", (0, 48, 21), (32, 43), (40, 73, 71)),
    Style("slow waltz", "3", (66, 108), "waltz", "broken", "long", (0, 24), (32, 43), (40, 68)),
    Style("jig", "6", (92, 132), "six", "six", "oompah", (25, 24, 21), (32, 33), (73, 110, 40)),
    Style("slow six", "6", (60, 84), "six", "broken", "long", (0, 24, 4), (33, 32), (73, 71, 52)),
    Style("piano", "2346", (66, 132), "", "broken", "long", (0, 1, 6), (0,), (0,)),
    Style("strings", "234", (64, 120), "", "blocks", "long", (48, 49, 19), (42, 43), (40, 68)),
    Style("folk", "2346", (72, 140), "soft", "strum", "roots", (24, 25, 105), (32,), (22, 110, 73)),
)

_DRUMS = {
    "backbeat": {"4": ((_KICK, (0, 2)), (_SNARE, (1, 3)), (_HAT, (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5)), (_KICK, (2.5,)))},
    "fast": {"4": ((_KICK, (0, 1.5, 2)), (_SNARE, (1, 3)), (_OPEN_HAT, (0, 1, 2, 3)))},
    "floor": {"4": ((_KICK, (0, 1, 2, 3)), (_CLAP, (1, 3)), (_OPEN_HAT, (0.5, 1.5, 2.5, 3.5)))},
    "broken": {
        "4": ((_KICK, (0, 0.75, 2.5)), (_SNARE, (1, 3)), (_HAT, (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5)), (_HAT, (1.75, 3.75)))
    },
    "one drop": {"4": ((_KICK, (2,)), (_STICK, (2,)), (_HAT, (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5)))},
    "ride": {"4": ((_RIDE, (0, 1, 1.5, 2, 3, 3.5)), (44, (1, 3)), (_KICK, (0,)))},
    "stick": {"4": ((_KICK, (0, 1.5, 2, 3.5)), (_STICK, (0, 1.5, 3)), (_HAT, (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5)))},
    "march": {"2": ((_KICK, (0,)), (_SNARE, (1, 1.5)), (_SNARE, (0.5,)), (_HAT, (1,)))},
    "waltz": {"3": ((_KICK, (0,)), (_SNARE, (1, 2)), (_HAT, (1, 2)), (_RIDE, (0,)))},
    "six": {"6": ((_KICK, (0,)), (_SNARE, (1,)), (_HAT, (0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3)), (_KICK, (5 / 3,)))},
    "soft": {
        "2": ((_KICK, (0,)), (_STICK, (1,)), (_HAT, (0.5, 1.5))),
        "3": ((_KICK, (0,)), (_HAT, (1, 2))),
        "4": ((_KICK, (0, 2)), (_STICK, (1, 3)), (_HAT, (0.5, 1.5, 2.5, 3.5))),
        "6": ((_KICK, (0,)), (_STICK, (1,)), (_HAT, (2 / 3, 5 / 3))),
    },
}


@dataclass(frozen=True)
class Piece:
    """What is played. `tempo` counts beats a minute: quarter notes, in 6/8 dotted quarters."""

    name: str
    style: Style
    tempo: float
    metre: str
    tonic: int
    mode: str
    drums: bool
    seed: int
    tuned: bool = True
    """Whether there is anything but drums."""

    @property
    def key(self) -> tuple[int, str] | None:
        """Semitones of the tonic above C, and mode."""
        return (self.tonic, self.mode) if self.tuned else None


def draw_pieces(count: int, seed: int) -> list[Piece]:
    """Pieces over all styles, metres and the 24 keys, tempi spread over each style's range, in five formats."""
    draw = random.Random(f"pieces {seed}")
    places = [(style, metre) for style in STYLES for metre in style.metres]
    keys = [(tonic, mode) for tonic in range(12) for mode in _SCALES]
    pieces = []
    for number in range(count):
        if number % len(places) == 0:
            draw.shuffle(places)
        if number % len(keys) == 0:
            draw.shuffle(keys)
        style, metre = places[number % len(places)]
        tonic, mode = keys[number % len(keys)]
        low, high = style.tempo
        tempo = draw.uniform(low, high if metre != "6" else min(high, 132))
        drums = bool(style.drums) and draw.random() < 0.7
        name = f"{number:03} {style.name}{SUFFIXES[number % len(SUFFIXES)]}"
        pieces.append(Piece(name, style, round(tempo, 1), metre, tonic, mode, drums, draw.randrange(1 << 30)))
    return pieces


def play_all(pieces: Sequence[Piece], folder: Path, seconds: float = SECONDS) -> list[Path]:
    """Write the pieces as sound files below `folder` (those already there are kept); returns their paths in order."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda piece: play(piece, folder / piece.name, seconds), pieces))


def play(piece: Piece, path: Path, seconds: float = SECONDS) -> Path:
    """Write one piece as the sound file `path`, in the format of its suffix."""
    if path.exists():
        return path
    return _render(_Writer(piece, seconds).write(), path, seconds)


def draw_drum_pieces(count: int, seed: int) -> list[Piece]:
    """Pieces of drums alone: they have a tempo and a metre, and no key."""
    pieces = [piece for piece in draw_pieces(4 * count, seed + 1) if piece.style.drums][:count]
    return [replace(piece, name=f"drums {piece.name}", drums=True, tuned=False) for piece in pieces]


def make_beatless(folder: Path, count: int, seed: int, seconds: float = SECONDS) -> list[Path]:
    """Write sounds without beat or key: noise, clicks like rain, speech, notes at random pitches and times, sines."""
    folder.mkdir(parents=True, exist_ok=True)
    makers = (_noise, _rain, _speech, _loose_notes, _loose_notes, _sine)
    paths = []
    for number in range(count):
        make = makers[number % len(makers)]
        path = folder / f"{number:03} {make.__name__.strip('_')}.wav"
        if not path.exists():
            make(path, np.random.default_rng([seed, number]), seconds)
        paths.append(path)
    return paths


def _noise(path: Path, draw: np.random.Generator, seconds: float) -> None:
    samples = draw.standard_normal(round(seconds * RATE))
    if draw.random() < 0.5:  # brown instead of white
        samples = np.cumsum(samples)
        samples -= np.convolve(samples, np.full(2001, 1 / 2001), mode="same")
    soundfile.write(path, 0.3 * samples / np.abs(samples).max(), RATE)


def _rain(path: Path, draw: np.random.Generator, seconds: float) -> None:
    samples = 0.002 * draw.standard_normal(round(seconds * RATE))
    for place in draw.integers(0, len(samples) - 600, draw.integers(3, 12) * round(seconds)):
        samples[place : place + 600] += (
            draw.uniform(0.05, 0.5) * draw.standard_normal(600) * np.exp(-np.arange(600) / 90)
        )
    soundfile.write(path, 0.5 * samples / np.abs(samples).max(), RATE)


def _sine(path: Path, draw: np.random.Generator, seconds: float) -> None:
    time_s = np.arange(round(seconds * RATE)) / RATE
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * draw.uniform(80, 1500) * time_s), RATE)


def _speech(path: Path, draw: np.random.Generator, seconds: float) -> None:
    words = (
        "the",
        "river",
        "ran",
        "low",
        "under",
        "an",
        "old",
        "bridge",
        "while",
        "nobody",
        "listened",
        "to",
        "radio",
        "news",
        "about",
        "late",
        "trains",
        "and",
        "rain",
    )
    text = ". ".join(" ".join(draw.choice(words, draw.integers(4, 12))) for _ in range(round(seconds)))
    voice = ("en", "en-us", "de", "fr")[draw.integers(4)]
    command = ["espeak-ng", "-v", voice, "-s", str(draw.integers(120, 190)), "-w", str(path), text]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    samples, rate = soundfile.read(path, dtype="float32")
    soundfile.write(path, samples[: round(seconds * rate)], rate)


def _loose_notes(path: Path, draw: np.random.Generator, seconds: float) -> None:
    track = _Track(0.5)
    track.program(0, int(draw.integers(0, 80)))
    start = 0.0
    while start < seconds:
        track.note(0, int(draw.integers(36, 90)), start / 0.5, draw.uniform(0.1, 2.0), int(draw.integers(40, 120)))
        start += float(draw.exponential(draw.uniform(0.1, 0.6)))
    _render(track.file(), path, seconds)


def _render(midi: bytes, path: Path, seconds: float) -> Path:
    source, wav = path.with_name(f".{path.name}.mid"), path.with_name(f".{path.name}.wav")
    source.write_bytes(midi)
    options = ["-ni", "-q", "-g", "0.5", "-r", str(RATE), "-o", "synth.dynamic-sample-loading=1", "-F", str(wav)]
    try:
        command = ["fluidsynth", *options, str(sound_font()), str(source)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        samples, _ = soundfile.read(wav, frames=round(seconds * RATE), dtype="float32")
    finally:
        source.unlink(missing_ok=True)
        wav.unlink(missing_ok=True)
    samples = samples * (0.7 / max(float(np.abs(samples).max()), 1e-9))
    if path.suffix == ".m4a":
        write_m4a(path, samples, RATE)
    else:
        soundfile.write(path, samples, RATE)
    return path


class _Track:
    """Events of a standard MIDI file of one track; times in beats."""

    def __init__(self, beat_s: float) -> None:
        self._events = [(0, 0, b"\xff\x51\x03" + round(beat_s * 1e6).to_bytes(3, "big"))]

    def program(self, channel: int, number: int) -> None:
        self._events.append((0, 0, bytes([0xC0 | channel, number])))

    def volume(self, channel: int, value: int) -> None:
        self._events.append((0, 0, bytes([0xB0 | channel, 7, value])))

    def note(self, channel: int, pitch: int, start: float, length: float, velocity: int) -> None:
        on, off = max(0, round(start * _TICKS)), max(1, round((start + length) * _TICKS) - 1)
        self._events.append((on, 2, bytes([0x90 | channel, pitch, min(127, max(1, velocity))])))
        self._events.append((max(on + 1, off), 1, bytes([0x80 | channel, pitch, 0])))

    def file(self) -> bytes:
        content, before = b"", 0
        for tick, _, event in sorted(self._events):
            content += _variable_length(tick - before) + event
            before = tick
        content += b"\x00\xff\x2f\x00"
        head = b"MThd" + (6).to_bytes(4, "big") + b"\x00\x00\x00\x01" + _TICKS.to_bytes(2, "big")
        return head + b"MTrk" + len(content).to_bytes(4, "big") + content


def _variable_length(value: int) -> bytes:
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.append(0x80 | value & 0x7F)
    return bytes(reversed(parts))


class _Writer:
    """Composes one piece: harmony bar by bar, then bass, accompaniment, tune and drums over it."""

    def __init__(self, piece: Piece, seconds: float) -> None:
        self.piece, self.draw = piece, random.Random(piece.seed)
        self.beats = _BEATS[piece.metre]
        self.thirds = piece.metre == "6"
        self.track = _Track(60 / piece.tempo)
        self.bars = int(seconds * piece.tempo / 60 / self.beats) + 1
        self.lead_in = self.draw.choice((0.0, 0.0, 0.3, 1.0)) * piece.tempo / 60
        self.human_beats = self.draw.uniform(0.0, 0.008) * piece.tempo / 60
        for channel, programs in enumerate((piece.style.basses, piece.style.programs, piece.style.leads)):
            self.track.program(channel, self.draw.choice(programs))
            self.track.volume(channel, self.draw.randint(70, 110))
        self.track.volume(9, self.draw.randint(70, 115))

    def write(self) -> bytes:
        loops = [self.draw.choice(_PROGRESSIONS[self.piece.mode]) for _ in range(2)]
        tune = [self._tune_rhythm() for _ in range(2)]
        degree = self.draw.randint(0, 6)
        has_tune, has_bass = self.draw.random() < 0.8, self.draw.random() < 0.9
        slow_harmony = self.piece.metre == "2" and self.draw.random() < 0.3
        for bar in range(self.bars):
            steps = loops[bar // 8 % 2]
            step = steps[(bar // 2 if slow_harmony else bar) % len(steps)]
            if bar == self.bars - 2:
                step = 0
            start = self.lead_in + bar * self.beats
            chord = self._chord(step)
            if has_bass and self.piece.tuned:
                self._bass(start, chord)
            if self.piece.tuned:
                self._comp(start, chord)
            if has_tune and self.piece.tuned and bar >= 2:
                degree = self._tune(start, chord, degree, tune[bar % 2])
            if self.piece.drums and bar >= self.draw.choice((0, 0, 1)):
                self._drums(start, bar)
        return self.track.file()

    def _chord(self, step: int) -> list[int]:
        """Pitches of a triad or seventh on a scale step, root first, between 48 and 71."""
        scale, piece = _SCALES[self.piece.mode], self.piece
        members = [0, 2, 4] + (
            [6] if self.draw.random() < (0.5 if piece.style.name in ("swing", "bossa") else 0.1) else []
        )
        pitches = []
        for member in members:
            octave, place = divmod(step + member, 7)
            pitch = piece.tonic + scale[place] + 12 * octave
            if piece.mode == "minor" and step == 4 and member == 2:
                pitch += 1  # the leading tone of the dominant
            pitches.append(48 + pitch % 12 + (12 if member and pitch % 12 < (piece.tonic + scale[step]) % 12 else 0))
        return pitches

    def _note(self, channel: int, pitch: int, start: float, length: float, velocity: int) -> None:
        if self.piece.style.swing and abs(start % 1 - self.lead_in % 1 - 0.5) < 0.01:
            start += 1 / 6
        at = start + self.draw.gauss(0, self.human_beats)
        accent = 10 if abs((start - self.lead_in) % self.beats) < 0.01 else 0
        self.track.note(channel, pitch, at, length, velocity + accent + self.draw.randint(-9, 9))

    def _bass(self, start: float, chord: list[int]) -> None:
        low, fifth, beats = chord[0] - 12 if chord[0] < 56 else chord[0] - 24, 7, self.beats
        low = low if low >= 31 else low + 12
        half = 1 / 3 if self.thirds else 0.5
        match self.piece.style.bass:
            case "long":
                plan = [(0.0, float(beats), 0)]
            case "pulse":
                plan = [(place * half, half, 0) for place in range(round(beats / half))]
            case "walking":
                plan = [(float(beat), 1.0, self.draw.choice((0, 3, 5, 7)) if beat else 0) for beat in range(beats)]
            case "off":
                plan = [(beat + 0.5, 0.4, 0) for beat in range(beats)]
            case "oompah":
                plan = [(0.0, 0.8, 0 if self.draw.random() < 0.7 else fifth)]
                if self.thirds:
                    plan.append((1.0, 0.8, fifth))
            case _:
                plan = [(0.0, 0.9, 0)]
                if self.draw.random() < 0.6 and beats > 1:
                    plan.append((beats - self.draw.choice((half, 1.0)), half, self.draw.choice((0, fifth))))
                if beats == 4:
                    plan.append((2.0, 0.9, fifth if self.draw.random() < 0.4 else 0))
        for place, length, step in plan:
            self._note(0, low + step, start + place, length, 88)

    def _comp(self, start: float, chord: list[int]) -> None:
        beats, half = self.beats, (1 / 3 if self.thirds else 0.5)
        parts = round(beats / half)
        match self.piece.style.comp:
            case "eighths":
                plan = [(place * half, half) for place in range(parts) if self.draw.random() < 0.92]
            case "off":
                plan = [(beat + 0.5, 0.3) for beat in range(beats)]
            case "oompah":
                offs = [1 / 3, 2 / 3, 4 / 3, 5 / 3] if self.thirds else list(range(1, beats))
                offs += [0.5] if self.piece.metre == "2" else []
                plan = [(float(place), 0.4) for place in offs]
            case "six":
                plan = [(place / 3, 0.3) for place in range(6) if place % 3 == 0 or self.draw.random() < 0.7]
            case "stabs":
                plan = [(place, 0.3) for place in (0.0, 1.5, 2.0, 3.5, 3.0) if self.draw.random() < 0.45]
            case "syncopated":
                plan = [(place, 0.4) for place in (0.0, 1.0, 1.5, 2.5, 3.5) if self.draw.random() < 0.85]
            case "strum":
                plan = [(place * half, half) for place in range(parts) if place % 2 == 0 or self.draw.random() < 0.6]
            case "blocks":
                unit = self.draw.choice((1, 1, beats))
                plan = [(float(place), float(unit)) for place in range(0, beats, unit)]
            case "broken":
                rising = [*chord, chord[0] + 12]
                for place in range(parts):
                    pitch = rising[min(place % 4 if place % 8 < 4 else 4 - place % 4, len(rising) - 1)]
                    self._note(1, pitch, start + place * half, 1.0, 66)
                return
            case _:
                plan = [(0.0, float(beats))]
        for place, length in plan:
            for pitch in chord:
                self._note(1, pitch, start + place, length, 66)

    def _tune_rhythm(self) -> list[tuple[float, float]]:
        """Where the tune's notes of a bar begin, and how long they are."""
        plan = []
        for beat in range(self.beats):
            cells = ((0, 2 / 3, 1), (0, 1 / 3, 2 / 3, 1), (0, 1)) if self.thirds else ((0, 1), (0, 0.5, 1), (0, 0.5, 1))
            cell = self.draw.choice(cells)
            plan += [(beat + at, after - at) for at, after in pairwise(cell)]
        return [note for note in plan if note[0] % 1 == 0 or self.draw.random() < 0.85]

    def _tune(self, start: float, chord: list[int], degree: int, rhythm: list[tuple[float, float]]) -> int:
        scale = _SCALES[self.piece.mode]
        classes = {pitch % 12 for pitch in chord}
        for place, length in rhythm:
            if self.draw.random() < 0.08:
                continue
            degree += self.draw.choice((-2, -1, -1, 1, 1, 2))
            degree = min(9, max(-2, degree))
            tries = (degree, degree + 1, degree - 1)
            if place == 0:
                degree = next((one for one in tries if (self.piece.tonic + scale[one % 7]) % 12 in classes), degree)
            pitch = 60 + self.piece.tonic + scale[degree % 7] + 12 * (degree // 7)
            while pitch < 62:
                pitch += 12
            self._note(2, pitch, start + place, length * 0.95, 84)
        return degree

    def _drums(self, start: float, bar: int) -> None:
        if bar % 8 == 0:
            self._note(9, _CRASH, start, 0.5, 80)
        fill = bar % 4 == 3 and self.draw.random() < 0.4
        for number, (drum, places) in enumerate(_DRUMS[self.piece.style.drums][self.piece.metre]):
            if number >= 3 and self.draw.random() < 0.4:
                continue
            for place in places:
                if fill and place >= self.beats - 1:
                    continue
                self._note(9, drum, start + place, 0.2, {_KICK: 104, _SNARE: 100}.get(drum, 72))
        if fill:
            parts = 3 if self.thirds else 4
            for part in range(parts):
                self._note(9, (48, 45, 43, 41)[part], start + self.beats - 1 + part / parts, 0.2, 95)

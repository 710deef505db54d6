"""Song plans: short songs of known tempo, key and metre in one sound, for tests and measurements.

From the ground up: instruments (one note each), the arrangement (which notes when), and `render`, which mixes.
All randomness comes from the plan's seed, so a plan always sounds the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from acestep.audio.format import CHANNELS, SAMPLE_RATE
from acestep.audio.synth.tones import frequency_of, held_envelope, oscillator, struck_envelope

Section = Literal["intro", "verse", "chorus", "outro"]
Timbre = Literal["reed", "bell", "organ"]

NOTE_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
PROGRESSIONS = {
    "major": ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 0, 4)),
    "minor": ((0, 5, 2, 6), (0, 3, 5, 6), (0, 6, 5, 6)),
}
"""Scale steps of the chord roots, one chord a bar."""

METRES = {"2": (2, 2), "3": (3, 2), "4": (4, 2), "6": (2, 3)}
"""Time signature: beats in a bar and eighth notes in a beat; the two beats of 6/8 are dotted quarters."""

_PEAK = 0.8
_FADE_OUT_S = 0.4
_MIDI_BASS, _MIDI_CHORD, _MIDI_LEAD = 36, 55, 67  # lowest note of each part's octave


@dataclass(frozen=True)
class SongPlan:
    """What to play. `tempo` counts beats a minute: quarter notes, in 6/8 dotted quarters."""

    tempo: float = 120.0
    key: str = "A"
    mode: Literal["major", "minor"] = "minor"
    metre: Literal["2", "3", "4", "6"] = "4"
    seconds: float = 10.0
    seed: int = 0
    sections: tuple[Section, ...] = ("intro", "verse", "chorus")
    lead: bool = True
    timbre: Timbre = "reed"

    @property
    def beats_in_bar(self) -> int:
        return METRES[self.metre][0]

    @property
    def eighths_in_beat(self) -> int:
        return METRES[self.metre][1]

    @property
    def bar_s(self) -> float:
        return self.beats_in_bar * 60.0 / self.tempo

    @property
    def bars(self) -> int:
        """Bars begun within the song's length."""
        return int(np.ceil(self.seconds / self.bar_s - 1e-9))

    def section_of(self, bar: int) -> Section:
        """The sections share the bars evenly, in their order."""
        return self.sections[bar * len(self.sections) // self.bars]

    def midi_note(self, step: int, lowest: int) -> int:
        """MIDI number of a scale step; step 0 is the tonic in the octave that begins at note `lowest`."""
        octave, degree = divmod(step, 7)
        tonic = lowest + (NOTE_NAMES.index(self.key) - lowest) % 12
        return tonic + SCALES[self.mode][degree] + 12 * octave


# Instruments: one note, float32 [frames]


def pad_note(midi_note: int, frames: int) -> np.ndarray:
    """A soft chord note: two oscillators slightly out of tune."""
    harmonics = (1.0, 0.5, 0.25, 0.15, 0.08)
    tone = oscillator(frequency_of(midi_note - 0.06), frames, harmonics)
    tone += oscillator(frequency_of(midi_note + 0.06), frames, harmonics)
    return tone * held_envelope(frames, 0.03, 0.08) * 0.5


def bass_note(midi_note: int, frames: int) -> np.ndarray:
    return oscillator(frequency_of(midi_note), frames, (1.0, 0.45, 0.2, 0.1)) * struck_envelope(frames, 0.5, 0.006)


def reed_note(midi_note: int, frames: int) -> np.ndarray:
    """Odd harmonics, like a clarinet or an old game console."""
    odd = tuple(1.0 / number if number % 2 else 0.0 for number in range(1, 16))
    return oscillator(frequency_of(midi_note), frames, odd) * held_envelope(frames, 0.01, 0.05)


def bell_note(midi_note: int, frames: int) -> np.ndarray:
    """Partials that are no multiples of the first, and die away faster the higher they are."""
    tone = np.zeros(frames, dtype=np.float32)
    for ratio, level, decay_s in ((1.0, 1.0, 0.6), (2.76, 0.5, 0.3), (5.4, 0.25, 0.12)):
        tone += level * oscillator(ratio * frequency_of(midi_note), frames) * struck_envelope(frames, decay_s)
    return tone * 0.7


def organ_note(midi_note: int, frames: int) -> np.ndarray:
    """Drawbars at the octaves and the fifth."""
    return oscillator(frequency_of(midi_note), frames, (1, 0.7, 0.5, 0.4, 0, 0, 0, 0.3)) * held_envelope(
        frames, 0.005, 0.02
    )


LEADS: dict[Timbre, Callable[[int, int], np.ndarray]] = {"reed": reed_note, "bell": bell_note, "organ": organ_note}


def kick() -> np.ndarray:
    """A sine that falls from 150 to 48 Hz."""
    frames = int(0.28 * SAMPLE_RATE)
    falling_hz = 48 + 102 * np.exp(-np.arange(frames) / (0.03 * SAMPLE_RATE))
    return np.sin(2 * np.pi * np.cumsum(falling_hz) / SAMPLE_RATE).astype(np.float32) * struck_envelope(frames, 0.1)


def snare(random: np.random.Generator) -> np.ndarray:
    frames = int(0.2 * SAMPLE_RATE)
    noise = random.standard_normal(frames, dtype=np.float32)
    return (0.5 * noise + 0.5 * oscillator(185.0, frames)) * struck_envelope(frames, 0.06)


def hat(random: np.random.Generator) -> np.ndarray:
    """Noise without its low part: the difference of neighbouring samples."""
    frames = int(0.06 * SAMPLE_RATE)
    return np.diff(random.standard_normal(frames + 1, dtype=np.float32)) * struck_envelope(frames, 0.02, 0.001)


# Arrangement: every part adds its notes to a track, float32 [2, N]


class Track:
    """Stereo sound that notes are added to."""

    def __init__(self, frames: int) -> None:
        self.samples = np.zeros((CHANNELS, frames), dtype=np.float32)

    def add(self, sound: np.ndarray, start_s: float, level: float, pan: float = 0.0) -> None:
        """Add a mono sound; `pan` from -1 (left) to 1 (right) at equal power. What passes the end is cut."""
        start = round(start_s * SAMPLE_RATE)
        sound = sound[: max(0, self.samples.shape[1] - start)]
        angle = (pan + 1) * np.pi / 4
        for channel, gain in enumerate((np.cos(angle), np.sin(angle))):
            self.samples[channel, start : start + len(sound)] += np.float32(level * gain) * sound


def chord_roots(plan: SongPlan, random: np.random.Generator) -> list[int]:
    """The scale step of each bar's chord."""
    choices = PROGRESSIONS[plan.mode]
    progression = choices[random.integers(len(choices))]
    return [progression[bar % len(progression)] for bar in range(plan.bars)]


def play_chords(track: Track, plan: SongPlan, roots: list[int]) -> None:
    frames = round(plan.bar_s * SAMPLE_RATE)
    for bar, root in enumerate(roots):
        for step, pan in zip((root, root + 2, root + 4), (-0.5, 0.0, 0.5), strict=True):
            # fold high chords down so that the voices stay near each other
            note = plan.midi_note(step, _MIDI_CHORD)
            note -= 12 * (note >= _MIDI_CHORD + 17)
            track.add(pad_note(note, frames), bar * plan.bar_s, 0.13, pan)


def play_bass(track: Track, plan: SongPlan, roots: list[int]) -> None:
    """The root on every beat, in choruses with the fifth between the beats."""
    beat_s = 60.0 / plan.tempo
    for bar, root in enumerate(roots):
        section = plan.section_of(bar)
        if section == "intro":
            continue
        for beat in range(plan.beats_in_bar):
            start_s = bar * plan.bar_s + beat * beat_s
            track.add(bass_note(plan.midi_note(root, _MIDI_BASS), round(0.9 * beat_s * SAMPLE_RATE)), start_s, 0.4)
            if section == "chorus":
                fifth = bass_note(plan.midi_note(root + 4, _MIDI_BASS), round(0.4 * beat_s * SAMPLE_RATE))
                track.add(fifth, start_s + beat_s * (plan.eighths_in_beat - 1) / plan.eighths_in_beat, 0.3)


def play_drums(track: Track, plan: SongPlan, random: np.random.Generator) -> None:
    """Kick on the first beat of a bar (in 4/4 also the third), snare on the others, hats on the eighths."""
    sounds = {"kick": kick(), "snare": snare(random), "hat": hat(random)}
    eighth_s = 60.0 / plan.tempo / plan.eighths_in_beat
    for bar in range(plan.bars):
        section = plan.section_of(bar)
        for eighth in range(plan.beats_in_bar * plan.eighths_in_beat):
            start_s = bar * plan.bar_s + eighth * eighth_s
            beat, between = divmod(eighth, plan.eighths_in_beat)
            if not between and section != "intro":
                low = beat == 0 or (plan.metre == "4" and beat == 2)
                track.add(sounds["kick" if low else "snare"], start_s, 0.6 if low else 0.35)
            track.add(sounds["hat"], start_s, 0.06 if between else 0.1, 0.3)


def play_lead(track: Track, plan: SongPlan, roots: list[int], random: np.random.Generator) -> None:
    """A melody that takes a chord note on each beat and may step to a neighbour between beats."""
    instrument = LEADS[plan.timbre]
    eighth_s = 60.0 / plan.tempo / plan.eighths_in_beat
    for bar, root in enumerate(roots):
        if plan.section_of(bar) not in ("verse", "chorus"):
            continue
        for beat in range(plan.beats_in_bar):
            start_s = bar * plan.bar_s + beat * eighth_s * plan.eighths_in_beat
            step = root + int(random.choice((0, 2, 4)))
            moves = bool(random.random() < 0.5)
            length = (plan.eighths_in_beat - 1 if moves else plan.eighths_in_beat) * eighth_s * 0.95
            notes = [(step, start_s, length)]
            if moves:
                neighbour = step + int(random.choice((-1, 1)))
                notes.append((neighbour, start_s + (plan.eighths_in_beat - 1) * eighth_s, 0.95 * eighth_s))
            for note_step, note_s, length_s in notes:
                sound = instrument(plan.midi_note(note_step, _MIDI_LEAD), round(length_s * SAMPLE_RATE))
                track.add(sound, note_s, 0.22, -0.15)


def render(plan: SongPlan) -> np.ndarray:
    """Play a plan: float32 [2, N] at 48 kHz, N = seconds times 48000, largest sample 0.8, last 0.4 s faded out."""
    random = np.random.default_rng(plan.seed)
    track = Track(round(plan.seconds * SAMPLE_RATE))
    roots = chord_roots(plan, random)
    play_chords(track, plan, roots)
    play_bass(track, plan, roots)
    play_drums(track, plan, random)
    if plan.lead:
        play_lead(track, plan, roots, random)
    samples = track.samples
    fade = min(samples.shape[1], round(_FADE_OUT_S * SAMPLE_RATE))
    samples[:, -fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return samples * np.float32(_PEAK / np.abs(samples).max())

"""Which notes sound when: chords, bass and melody of a piece as data, before any of it is played."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acestep.audio.synth.piece import Piece

PROGRESSIONS = {
    "major": ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 4, 4), (0, 1, 4, 0)),
    "minor": ((0, 3, 4, 0), (0, 5, 3, 4), (0, 6, 5, 4), (0, 3, 4, 4), (0, 5, 6, 0)),
}
"""Scale steps of the chord roots, one chord a bar; all begin at home."""

LEAD_SECTIONS = ("verse", "chorus")
LOWEST_BASS = 33
LOWEST_VOICE = 57
_LEAD_RANGE = 16  # semitones
_SHORTEST_S = 0.16  # shorter lead notes are not written
_CUT_S, _CUT_LEAD_S = 0.02, 0.2  # notes that begin less than this before the end are left out
_GAP = 0.95  # share of its time that a note sounds
_REST_SHARE = 0.5  # of the phrases end in a rest
_HIT_LEVELS = {"X": 1.0, "x": 0.7, "o": 0.4}


@dataclass(frozen=True)
class Note:
    """A pitched note."""

    start_s: float
    length_s: float
    midi_note: int
    bar: int
    level: float = 1.0


@dataclass(frozen=True)
class Hit:
    """A drum hit; `drum` counts from the lowest sound of the kit."""

    start_s: float
    drum: int
    level: float


def chord_steps(piece: Piece) -> tuple[int, ...]:
    """The scale step of each bar's chord: a progression over and over, and home in the last whole bar."""
    progression = _dice(piece, "chords").choice(PROGRESSIONS[piece.mode])
    steps = [progression[bar % len(progression)] for bar in range(piece.bars)]
    home = max(0, _whole_bars(piece) - 1)
    return (*steps[:home], *(0 for _ in steps[home:]))


def triad(piece: Piece, step: int, lowest: int) -> tuple[int, int, int]:
    """The chord on a scale step as MIDI notes from below, all within the octave from `lowest`."""
    first, second, third = sorted(lowest + (piece.midi_note(step + above, lowest) - lowest) % 12 for above in (0, 2, 4))
    return first, second, third


def chord_notes(piece: Piece) -> tuple[list[Note], list[Note], list[Note]]:
    """The notes of the three chord voices from below."""
    pattern = piece.recipe.patterns[piece.metre].chords
    voices: tuple[list[Note], list[Note], list[Note]] = ([], [], [])
    for bar, step in enumerate(piece.chords):
        notes = triad(piece, step, piece.recipe.lowest_chord)
        for letter, start_s, length_s in _pattern_notes(piece, pattern, bar):
            for voice in range(3):
                if letter in ("X", "x", str(voice + 1)):
                    level = 0.8 if letter == "x" else 1.0
                    voices[voice].append(Note(start_s, length_s, notes[voice], bar, level))
    return voices


def bass_notes(piece: Piece) -> list[Note]:
    """Roots and fifths; intros have no bass."""
    if piece.bass_timbre is None:
        return []
    notes = []
    pattern = piece.recipe.patterns[piece.metre].bass
    for bar, step in enumerate(piece.chords):
        if piece.section_of(bar) == "intro":
            continue
        for letter, start_s, length_s in _pattern_notes(piece, pattern, bar):
            midi_note = piece.midi_note(step + (4 if letter == "F" else 0), LOWEST_BASS)
            midi_note = LOWEST_BASS + (midi_note - LOWEST_BASS) % 12
            notes.append(Note(start_s, length_s, midi_note, bar))
    return notes


def drum_hits(piece: Piece) -> list[Hit]:
    """All hits in order of time. Intros and outros have no middle drum."""
    patterns = piece.recipe.patterns[piece.metre]
    hits = []
    for drum, pattern in enumerate((patterns.low, patterns.middle, patterns.high)):
        bars = [bar for bar in range(piece.bars) if drum != 1 or piece.section_of(bar) in LEAD_SECTIONS]
        unit_s = piece.bar_s / len(pattern)
        for place, letter in enumerate(pattern):
            if letter != ".":
                level = _HIT_LEVELS[letter]
                hits += [Hit(bar * piece.bar_s + place * unit_s, drum, level) for bar in bars]
    return sorted((hit for hit in hits if hit.start_s < piece.duration_s), key=lambda hit: (hit.start_s, hit.drum))


def melody(piece: Piece) -> list[Note]:
    """The lead's notes, sung or not; none for a piece without a lead.

    Every kind of section has its rhythm; pitches walk from chord note to chord note, and the last whole bar
    begins at home.
    """
    if piece.lead_timbre is None:
        return []
    dice = _dice(piece, "tune")
    lowest = LOWEST_VOICE if piece.sung else piece.recipe.lowest_lead
    steps = [step for step in range(-7, 15) if 0 <= piece.midi_note(step, lowest) - lowest <= _LEAD_RANGE]
    step = min((0, 2, 4), key=lambda candidate: abs(candidate - steps[len(steps) // 2]))
    eighth_s = piece.beat_s / piece.eighths_in_beat
    last_whole = _whole_bars(piece) - 1
    notes = []
    for bar, root in enumerate(piece.chords):
        section = piece.section_of(bar)
        if section not in LEAD_SECTIONS:
            continue
        for place, length in _rhythm(piece, section, phrase_ends=bar % 2 == 1):
            start_s = bar * piece.bar_s + place * eighth_s
            if place % piece.eighths_in_beat == 0:
                goal = step + dice.choice((-3, -2, -1, 0, 1, 2, 3))
                goal = steps[len(steps) // 2] if bar == last_whole and place == 0 else goal
                members = (0,) if bar == last_whole and place == 0 else (0, 2, 4)
                chord = [other for other in steps if (other - root) % 7 in members]
                step = min(chord, key=lambda candidate: (abs(candidate - goal), candidate))
            else:
                step = min(max(step + dice.choice((-1, 1)), steps[0]), steps[-1])
            if start_s < piece.duration_s - _CUT_LEAD_S:
                length_s = min(length * eighth_s * _GAP, piece.duration_s - start_s)
                notes.append(Note(start_s, length_s, piece.midi_note(step, lowest), bar))
    return notes


def _rhythm(piece: Piece, section: str, phrase_ends: bool) -> list[tuple[int, int]]:
    """Notes of one bar as (first eighth, eighths): one on each beat, some divided, some held on.

    A bar that ends a phrase may rest on its last beat; else all bars of a kind of section are alike.
    """
    dice = _dice(piece, f"rhythm {section}")
    eighths, recipe, last = piece.eighths_in_beat, piece.recipe, piece.beats_in_bar - 1
    split = recipe.lead_split + (0.15 if section == "chorus" else 0.0) - (0.15 if piece.sung else 0.0)
    if piece.beat_s / eighths < _SHORTEST_S:
        split = 0.0
    notes: list[tuple[int, int]] = []
    for beat in range(piece.beats_in_bar):
        place = beat * eighths
        if notes and notes[-1][1] == eighths and dice.random() < recipe.lead_hold:
            notes[-1] = (notes[-1][0], 2 * eighths)
        elif dice.random() < split:
            notes += [(place, eighths - 1), (place + eighths - 1, 1)]
        else:
            notes.append((place, eighths))
    rests = phrase_ends and last > 1 and dice.random() < _REST_SHARE
    return [note for note in notes if note[0] < last * eighths] if rests else notes


def _pattern_notes(piece: Piece, pattern: str, bar: int) -> Iterator[tuple[str, float, float]]:
    """(letter, start, length) in seconds of the notes of a pattern line in one bar, cut at the piece's end."""
    unit_s = piece.bar_s / len(pattern)
    for place, letter in enumerate(pattern):
        if letter in ".-":
            continue
        steps = 1
        while place + steps < len(pattern) and pattern[place + steps] == "-":
            steps += 1
        start_s = bar * piece.bar_s + place * unit_s
        if start_s < piece.duration_s - _CUT_S:
            yield letter, start_s, min(steps * unit_s * _GAP, piece.duration_s - start_s)


def _whole_bars(piece: Piece) -> int:
    return int(piece.duration_s / piece.bar_s + 1e-9)


def _dice(piece: Piece, purpose: str) -> random.Random:
    """Chance for one purpose, so that a change in one part leaves the others as they are."""
    return random.Random(f"{piece.seed} {purpose}")

"""From score to sound: every part on a track of its own, then mixed."""

from __future__ import annotations

import numpy as np

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.synth import score
from acestep.audio.synth.drums import kit_sounds
from acestep.audio.synth.piece import Piece
from acestep.audio.synth.timbres import BASS_TIMBRES, TIMBRES, note
from acestep.audio.synth.voice import sung_note

STEMS = ("lead", "chord 1", "chord 2", "chord 3", "bass", "low drum", "middle drum", "high drum")
PEAK = 0.8
FADE_OUT_S = 0.25
_QUIET_SECTIONS = {"intro": 0.8, "outro": 0.8, "verse": 0.9, "chorus": 1.0}
"""How loud lead and chords are in each section."""


def render_piece(piece: Piece) -> np.ndarray:
    """Play a piece: float32 [2, N] at 48 kHz, N = duration times 48000, largest sample 0.8, the end faded out."""
    samples = _gains(piece) @ _tracks(piece)
    fade = min(samples.shape[1], round(FADE_OUT_S * SAMPLE_RATE))
    samples[:, -fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    samples *= np.float32(PEAK / max(samples.max(), -samples.min(), 1e-6))
    return np.asarray(samples)


def render_stems(piece: Piece) -> dict[str, np.ndarray]:
    """The parts by name as they enter the mix, before its last gain: float32 [2, N] each."""
    gains, tracks = _gains(piece), _tracks(piece)
    return {name: gains[:, [row]] * tracks[[row]] for row, name in enumerate(STEMS)}


def _gains(piece: Piece) -> np.ndarray:
    """What each track gives to left and right at equal power, float32 [2, tracks]."""
    recipe = piece.recipe
    mix, width = recipe.mix, recipe.chord_width
    levels = (mix.lead, mix.chords, mix.chords, mix.chords, mix.bass, mix.low, mix.middle, mix.high)
    angle = (np.array((recipe.lead_pan, -width, 0.0, width, 0.0, 0.0, 0.0, recipe.high_pan)) + 1) * np.pi / 4
    return (np.stack((np.cos(angle), np.sin(angle))) * np.array(levels)).astype(np.float32)


def _tracks(piece: Piece) -> np.ndarray:
    """All parts, float32 [tracks, N]."""
    tracks = np.zeros((len(STEMS), round(piece.duration_s * SAMPLE_RATE)), dtype=np.float32)
    _play_lead(tracks[0], piece)
    for track, notes in zip(tracks[1:4], score.chord_notes(piece), strict=True):
        _play_notes(track, piece, notes, piece.pad_timbre)
    bass = BASS_TIMBRES.get(piece.bass_timbre or "")
    if bass:
        for played in score.bass_notes(piece):
            _add(tracks[4], note(bass, played.midi_note, _frames(played)), played.start_s, 1.0)
    sounds = kit_sounds(piece.kit)
    for hit in score.drum_hits(piece):
        _add(tracks[5 + hit.drum], sounds[hit.drum], hit.start_s, hit.level)
    return tracks


def _play_lead(track: np.ndarray, piece: Piece) -> None:
    notes = score.melody(piece)
    if not piece.sung:
        _play_notes(track, piece, notes, piece.lead_timbre)
        return
    for number, played in enumerate(notes):
        syllable = piece.syllables[number % len(piece.syllables)]
        sound = sung_note(syllable, played.midi_note, _frames(played))
        _add(track, sound, played.start_s, _QUIET_SECTIONS[piece.section_of(played.bar)])


def _play_notes(track: np.ndarray, piece: Piece, notes: list[score.Note], timbre: str | None) -> None:
    for played in notes:
        sound = note(TIMBRES[timbre or ""], played.midi_note, _frames(played))
        _add(track, sound, played.start_s, played.level * _QUIET_SECTIONS[piece.section_of(played.bar)])


def _frames(played: score.Note) -> int:
    return round(played.length_s * SAMPLE_RATE)


def _add(track: np.ndarray, sound: np.ndarray, start_s: float, level: float) -> None:
    """Add a sound to a track; what passes the end is cut."""
    start = round(start_s * SAMPLE_RATE)
    sound = sound[: max(0, len(track) - start)]
    track[start : start + len(sound)] += sound if level == 1.0 else np.float32(level) * sound

"""What speaks for each of the 24 keys of a piece: note profiles, the bass, the chords, beginning and end.

Nothing is decided here; `weighing.py` does. Profiles: Krumhansl and Kessler 1982; Temperley 2001 (Kostka-Payne);
Albrecht and Shanahan 2013.
"""

from __future__ import annotations

import numpy as np

from acestep.audio.pitch import Pitches

MODES = ("major", "minor")
NAMES = {
    "major": ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"),
    "minor": ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B"),
}
"""Usual spelling of the tonics, from C up in semitones."""

_PROFILES = np.array(
    [
        [
            [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],
            [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17],
        ],
        [
            [0.748, 0.060, 0.488, 0.082, 0.670, 0.460, 0.096, 0.715, 0.104, 0.366, 0.057, 0.400],
            [0.712, 0.084, 0.474, 0.618, 0.049, 0.460, 0.105, 0.747, 0.404, 0.067, 0.133, 0.330],
        ],
        [
            [0.238, 0.006, 0.111, 0.006, 0.137, 0.094, 0.016, 0.214, 0.009, 0.080, 0.008, 0.081],
            [0.220, 0.006, 0.104, 0.123, 0.019, 0.103, 0.012, 0.214, 0.062, 0.022, 0.061, 0.052],
        ],
    ]
)
_TRIADS = {"major": (0, 4, 7), "minor": (0, 3, 7)}
_DEGREES = ((0, 0), (0, 1), (5, 0), (5, 1), (7, 0), (7, 1), (8, 0), (10, 0), (9, 1), (2, 1), (4, 1), (3, 0))
"""Chords of a key as (semitones above the tonic, 0 major or 1 minor)."""

_EDGE_S = 2.5
_CHORD_S = 0.7


def features(pitches: list[Pitches]) -> np.ndarray:
    """What is known of the 24 keys as numbers [2 modes, 12 tonics from C, F]."""
    chroma = _shares(np.concatenate([part.chroma for part in pitches], axis=1))
    bass = _shares(np.concatenate([part.bass for part in pitches], axis=1))
    edge = round(_EDGE_S * pitches[0].rate)
    opening = _shares(pitches[0].chroma[:, :edge]), _shares(pitches[0].bass[:, :edge])
    ending = _shares(pitches[-1].chroma[:, -edge:]), _shares(pitches[-1].bass[:, -edge:])
    chords = np.mean([_chord_shares(part) for part in pitches], axis=0)
    clarity = max(_alike(chroma, np.roll(profile, tonic)) for profile in _PROFILES[1] for tonic in range(12))
    rows = []
    for mode in range(2):
        for tonic in range(12):
            third = tonic + (4, 3)[mode]
            values = [1.0]
            values += [_alike(chroma, np.roll(profiles[mode], tonic)) for profiles in _PROFILES]
            values += [_alike(bass, np.roll(profiles[mode], tonic)) for profiles in _PROFILES[1:]]
            values += [chroma[tonic], chroma[third % 12], chroma[(tonic + 7) % 12], chroma[(tonic + 11) % 12]]
            values += [bass[tonic], bass[(tonic + 7) % 12]]
            for notes, low in (opening, ending):
                values += [notes[tonic] + notes[third % 12] + notes[(tonic + 7) % 12], low[tonic]]
            values += [chords[kind, (tonic + above) % 12] for above, kind in _DEGREES]
            values += [clarity, float(chroma.std())]
            rows.append(values)
    return np.array(rows).reshape(2, 12, -1)


def _shares(curve: np.ndarray) -> np.ndarray:
    total = curve.sum(axis=1)
    return np.asarray(total / max(float(total.sum()), 1e-9))


def _alike(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation; 0 where one is flat."""
    first, second = first - first.mean(), second - second.mean()
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / length if length > 1e-9 else 0.0


def _chord_shares(pitches: Pitches) -> np.ndarray:
    """How much of the time each triad [2, 12] fits best."""
    from scipy.ndimage import uniform_filter1d

    smooth = uniform_filter1d(pitches.chroma, max(1, round(_CHORD_S * pitches.rate)), axis=1)
    smooth = smooth / np.maximum(np.linalg.norm(smooth, axis=0), 1e-9)
    templates = np.zeros((24, 12))
    for mode, notes in enumerate(_TRIADS.values()):
        for tonic in range(12):
            templates[12 * mode + tonic, [(tonic + note) % 12 for note in notes]] = 3**-0.5
    fit = templates @ smooth
    sounding = fit.max(axis=0) > 0
    counted = np.bincount(fit.argmax(axis=0)[sounding], minlength=24)
    return (counted / max(1, fit.shape[1])).reshape(2, 12)

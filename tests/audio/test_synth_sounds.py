"""The synthesiser's instruments, voice and drums, one sound at a time."""

from __future__ import annotations

import numpy as np
import pytest

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.synth.drums import KITS, kit_sounds
from acestep.audio.synth.timbres import BASS_TIMBRES, NOTE_RMS, TIMBRES, note
from acestep.audio.synth.tones import fixed_noise, frequency_of
from acestep.audio.synth.voice import CONSONANTS, SYLLABLES, VOWELS, sung_note

HALF_SECOND = SAMPLE_RATE // 2


def level_at(sound: np.ndarray, low_hz: float, high_hz: float) -> float:
    """Power between two frequencies as a share of all."""
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
    frequency_hz = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
    return float(power[(frequency_hz >= low_hz) & (frequency_hz < high_hz)].sum() / power.sum())


@pytest.mark.parametrize("name", [*TIMBRES, *BASS_TIMBRES])
def test_notes_are_fixed_functions_of_pitch_and_length(name: str) -> None:
    timbre, pitch = (TIMBRES | BASS_TIMBRES)[name], 45 if name in BASS_TIMBRES else 69
    short, long = note(timbre, pitch, HALF_SECOND), note(timbre, pitch, 3 * SAMPLE_RATE)
    np.testing.assert_array_equal(short, note(timbre, pitch, HALF_SECOND))
    same = HALF_SECOND - round(timbre.release_s * SAMPLE_RATE)
    np.testing.assert_allclose(short[:same], long[:same], atol=1e-6)
    assert abs(short[0]) < 0.01 and abs(short[-1]) < 1e-6
    loudness = np.sqrt(np.mean(long[: round(0.3 * SAMPLE_RATE)].astype(np.float64) ** 2))
    assert loudness == pytest.approx(NOTE_RMS, rel=1e-3)
    pitch_hz = frequency_of(pitch)
    nearby = sum(level_at(short, number * pitch_hz - 15, number * pitch_hz + 15) for number in (1, 2, 3))
    assert nearby > 0.3
    assert level_at(short, 12_000, SAMPLE_RATE) < 1e-4


def test_a_note_can_be_written_to() -> None:
    first = note(TIMBRES["reed"], 60, 1000)
    first[:] = 9
    assert note(TIMBRES["reed"], 60, 1000).max() < 5
    sung = sung_note("la", 60, 1000)
    sung[:] = 9
    assert sung_note("la", 60, 1000).max() < 5


@pytest.mark.parametrize("vowel", list(VOWELS))
def test_vowels_have_their_formants(vowel: str) -> None:
    shares = {
        other: sum(level_at(sung_note("l" + vowel, 57, SAMPLE_RATE)[9600:], hz - 130, hz + 130) for hz in formants[:2])
        for other, formants in VOWELS.items()
    }
    assert max(shares, key=lambda other: shares[other]) == vowel or shares[vowel] > 0.85 * max(shares.values())


@pytest.mark.parametrize("syllable", SYLLABLES)
def test_syllables_differ_and_join_their_vowel_without_a_jump(syllable: str) -> None:
    sound = sung_note(syllable, 64, HALF_SECOND)
    assert np.isfinite(sound).all()
    assert 0.6 * NOTE_RMS < np.sqrt(np.mean(sound**2)) < 1.4 * NOTE_RMS
    join = round(0.12 * SAMPLE_RATE)
    steps = np.abs(np.diff(sound[join - 2000 : join + 2000]))
    assert steps[1990:2010].max() <= 1.05 * steps.max()
    others = [
        sung_note(consonant + syllable[1:], 64, HALF_SECOND) for consonant in CONSONANTS if consonant != syllable[0]
    ]
    for other in others:
        assert np.abs(sound - other)[:4000].max() > 0.05
        np.testing.assert_array_equal(sound[join:], other[join:])


@pytest.mark.parametrize("kit", KITS)
def test_drums_are_fixed_and_lie_in_their_order(kit: str) -> None:
    sounds = kit_sounds(kit)
    centres = []
    for sound in sounds:
        assert np.abs(sound).max() == pytest.approx(1, abs=1e-6)
        assert abs(sound[0]) < 0.1 and abs(sound[-1]) < 1e-3
        assert len(sound) < 0.5 * SAMPLE_RATE
        power = np.abs(np.fft.rfft(sound)) ** 2
        centres.append(float((power * np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)).sum() / power.sum()))
    assert centres == sorted(centres)
    with pytest.raises(ValueError, match="read-only"):
        sounds[0][0] = 1


def test_an_unknown_kit_is_named() -> None:
    with pytest.raises(ValueError, match="'spoons'"):
        kit_sounds("spoons")


def test_noise_is_fixed_and_stays_within_its_band() -> None:
    noise = fixed_noise(1, SAMPLE_RATE, 1000, 4000)
    np.testing.assert_array_equal(noise, fixed_noise(1, SAMPLE_RATE, 1000, 4000))
    assert level_at(noise, 800, 5000) > 0.95

"""Pieces: the same each time, what their labels say, and within bounds whatever the seed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cache

import numpy as np
import pytest

from acestep.audio.format import SAMPLE_RATE
from acestep.audio.synth import (
    BASE_STYLES,
    HELD_OUT_STYLES,
    HELD_OUT_TIMBRES,
    INSTRUMENTAL_LYRICS,
    SCALES,
    STYLES,
    TIMBRES,
    Piece,
    caption_of,
    caption_vocabulary,
    draw_piece,
    lyric_vocabulary,
    render_piece,
    render_stems,
    score,
    words,
)
from acestep.audio.synth.drums import HELD_OUT_KITS
from acestep.model.facts import INSTRUMENTAL


@cache
def base_pieces() -> list[Piece]:
    return [draw_piece(seed) for seed in range(300)]


@cache
def held_out_pieces() -> list[Piece]:
    return [draw_piece(seed, pool="held_out") for seed in range(100)]


def all_pieces() -> list[Piece]:
    return base_pieces() + held_out_pieces()


def named(caption: str, phrases: dict[str, tuple[str, ...]]) -> set[str]:
    """Which of the things with these names a caption speaks of."""
    text = f" {' '.join(words.words_of(caption))} "
    return {thing for thing, names in phrases.items() if any(f" {name} " in text for name in names)}


# The same each time


@pytest.mark.parametrize("pool", ["base", "held_out"])
def test_a_seed_always_gives_the_same_piece(pool: str) -> None:
    first, again = draw_piece(3, pool=pool, duration_s=5), draw_piece(3, pool=pool, duration_s=5)
    assert first == again
    assert (first.caption, first.lyrics) == (again.caption, again.lyrics)
    np.testing.assert_array_equal(render_piece(first), render_piece(again))


def test_the_same_pieces_on_every_machine() -> None:
    pieces = base_pieces()[:50] + held_out_pieces()
    facts = [[*dataclasses.astuple(piece), piece.caption, piece.lyrics, piece.chords] for piece in pieces]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    assert digest.startswith("121745dbac450d81"), f"pieces are drawn otherwise than before: {digest[:16]}"


# What is drawn


def test_everything_is_drawn() -> None:
    assert len({piece.keyscale for piece in base_pieces()}) == 24
    assert {piece.metre for piece in base_pieces()} == {"2", "3", "4", "6"}
    assert {piece.style for piece in base_pieces()} == set(BASE_STYLES)
    assert {piece.lead_timbre for piece in base_pieces()} == {*TIMBRES, "voice", None} - set(HELD_OUT_TIMBRES)
    assert min(piece.bpm for piece in base_pieces()) < 65 and max(piece.bpm for piece in base_pieces()) > 175
    assert all(60 <= piece.bpm <= 180 and 5 <= piece.duration_s <= 30 for piece in base_pieces())
    assert 0.2 < np.mean([piece.sung for piece in base_pieces()]) < 0.4
    assert 0.45 < np.mean([piece.metre == "4" for piece in base_pieces()]) < 0.65


def test_the_base_pool_neither_plays_nor_names_what_is_held_out() -> None:
    kept_back = set(caption_vocabulary("held_out")) - set(caption_vocabulary("base"))
    assert {"marimba", "chiptune", "shaker"} <= kept_back
    for piece in base_pieces():
        assert piece.style not in HELD_OUT_STYLES
        assert not {piece.lead_timbre, piece.pad_timbre} & set(HELD_OUT_TIMBRES)
        assert piece.bass_timbre != "triangle"
        assert piece.kit not in HELD_OUT_KITS
        for variant in range(4):
            assert not set(words.words_of(caption_of(piece, variant))) & kept_back


def test_the_held_out_pool_has_nothing_of_the_base_pool() -> None:
    assert {piece.style for piece in held_out_pieces()} == set(HELD_OUT_STYLES)
    assert {piece.lead_timbre for piece in held_out_pieces()} - {None} == set(HELD_OUT_TIMBRES)
    for piece in held_out_pieces():
        assert {piece.lead_timbre, piece.pad_timbre} <= {None, *HELD_OUT_TIMBRES}
        assert piece.kit in HELD_OUT_KITS
        assert not piece.sung


def test_style_and_length_can_be_asked_for() -> None:
    assert draw_piece(1, style="rock", duration_s=12.5).style == "rock"
    assert draw_piece(1, style="rock", duration_s=12.5).duration_s == 12.5
    assert draw_piece(1, pool="all", style="toybox").style == "toybox"
    with pytest.raises(ValueError, match="has no style 'toybox'"):
        draw_piece(1, style="toybox")


@pytest.mark.parametrize(
    "change",
    [
        {"key": "H"},
        {"metre": "5"},
        {"style": "polka"},
        {"lead_timbre": "kazoo"},
        {"sections": ()},
        {"lead_timbre": "voice"},
        {"syllables": ("la",)},
        {"duration_s": 0.0},
    ],
)
def test_what_cannot_be_played_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="piece"):
        Piece(**change)  # type: ignore[arg-type]


# Score


def test_all_notes_belong_to_the_key_and_home_is_where_it_begins_and_ends() -> None:
    for piece in all_pieces():
        scale = {(piece.tonic + step) % 12 for step in SCALES[piece.mode]}
        parts = [*score.chord_notes(piece), score.bass_notes(piece), score.melody(piece)]
        assert {note.midi_note % 12 for part in parts for note in part} <= scale
        assert piece.chords[0] == piece.chords[-1] == 0
        for part in parts:
            assert all(0 <= note.start_s < piece.duration_s and note.length_s > 0.01 for note in part)
            assert all(note.start_s + note.length_s <= piece.duration_s + 1e-6 for note in part)


def test_the_lead_sings_one_note_at_a_time_and_only_where_it_should() -> None:
    for piece in base_pieces():
        notes = score.melody(piece)
        assert bool(notes) == (piece.lead_timbre is not None)
        assert all(piece.section_of(note.bar) in ("verse", "chorus") for note in notes)
        ends = [note.start_s + note.length_s for note in notes]
        assert all(end_s <= after.start_s + 1e-9 for end_s, after in zip(ends, notes[1:], strict=False))


def test_every_section_has_bars_in_its_turn() -> None:
    for piece in all_pieces():
        numbers = [piece.section_number_of(bar) for bar in range(piece.bars)]
        assert numbers == sorted(numbers) and set(numbers) == set(range(len(piece.sections)))


# Sound


@pytest.mark.parametrize("style", list(STYLES))
def test_sound_is_finite_bounded_and_begins_at_once(style: str) -> None:
    pool = "held_out" if style in HELD_OUT_STYLES else "base"
    for seed in range(4):
        piece = draw_piece(seed, pool=pool, style=style, duration_s=5 + seed / 7)
        samples = render_piece(piece)
        assert samples.shape == (2, round(piece.duration_s * SAMPLE_RATE))
        assert samples.dtype == np.float32
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() == pytest.approx(0.8, abs=1e-4)
        assert np.abs(samples[:, : SAMPLE_RATE // 10]).max() > 0.02
        assert np.abs(samples[:, -10:]).max() < 1e-3
        part = samples.mean(axis=0)[: 4 * SAMPLE_RATE]
        spectrum = np.abs(np.fft.rfft(part)) ** 2
        above = np.fft.rfftfreq(len(part), 1 / SAMPLE_RATE) > 12_000
        assert spectrum[above].sum() < 0.01 * spectrum.sum()


@pytest.mark.parametrize("style", list(STYLES))
def test_every_part_can_be_heard(style: str) -> None:
    pool = "held_out" if style in HELD_OUT_STYLES else "base"
    piece = draw_piece(5, pool=pool, style=style, duration_s=8)
    piece = dataclasses.replace(piece, sections=("chorus",))
    stems = render_stems(piece)
    total = np.sqrt(np.mean(sum(stems.values()) ** 2))
    for name, stem in stems.items():
        silent = (name == "lead" and piece.lead_timbre is None) or (name == "bass" and piece.bass_timbre is None)
        level = np.sqrt(np.mean(stem**2)) / total
        assert (level == 0) if silent else (level > 0.01), name


def test_a_change_of_one_part_leaves_the_others_alone() -> None:
    piece = draw_piece(7, style="rock", duration_s=5)
    other = dataclasses.replace(piece, kit="brush")
    first, second = render_stems(piece), render_stems(other)
    for name in first:
        assert np.array_equal(first[name], second[name]) == ("drum" not in name)


# Captions and lyrics


@pytest.mark.parametrize("variant", range(3))
def test_captions_say_only_what_is_true(variant: int) -> None:
    tempi = {str(bound): names for bound, names in words.TEMPO_WORDS}
    styles, leads = 0, 0
    for piece in all_pieces():
        caption = caption_of(piece, variant)
        assert "{" not in caption and "  " not in caption and caption[0] == caption[0].upper()
        assert named(caption, words.STYLE_WORDS) <= {piece.style}
        assert named(caption, words.TIMBRE_WORDS) <= {piece.lead_timbre, piece.pad_timbre}
        assert named(caption, words.KIT_WORDS) <= {piece.kit}
        assert named(caption, words.BASS_WORDS) <= {piece.bass_timbre}
        assert named(caption, words.MOOD_WORDS) <= {piece.mode}
        assert named(caption, words.METRE_WORDS) <= {piece.metre}
        assert all(set(tempi[bound]) <= set(words.tempo_words(piece.bpm)) for bound in named(caption, tempi))
        styles += bool(named(caption, words.STYLE_WORDS))
        if piece.lead_timbre in TIMBRES:
            leads += 1
            assert piece.lead_timbre in named(caption, words.TIMBRE_WORDS)
        assert (named(caption, {"sung": ("voice", "vocals", "sung melody")}) == {"sung"}) == piece.sung
        assert (named(caption, {"none": ("no lead", "no melody", "only chords")}) == {"none"}) == (
            piece.lead_timbre is None
        )
    assert styles > 0.9 * len(all_pieces())
    assert leads > 100


def test_captions_are_varied_in_few_words() -> None:
    assert len({piece.caption for piece in base_pieces()}) > 280
    assert len({caption_of(base_pieces()[0], variant) for variant in range(20)}) > 15
    vocabulary = set(caption_vocabulary())
    assert len(vocabulary) < 250
    used = {
        word for piece in all_pieces() for variant in range(5) for word in words.words_of(caption_of(piece, variant))
    }
    assert used <= vocabulary
    assert len(used) > 0.95 * len(vocabulary)


@pytest.mark.parametrize(("bpm", "word"), [(60, "slow"), (100, "relaxed"), (120, "lively"), (170, "fast")])
def test_tempo_words_fit_the_tempo(bpm: int, word: str) -> None:
    assert word in words.tempo_words(bpm)


def test_lyrics_hold_one_syllable_a_note_below_their_section() -> None:
    for piece in base_pieces():
        if not piece.sung:
            assert piece.lyrics == INSTRUMENTAL_LYRICS
            assert piece.language == "unknown"
            continue
        assert piece.language == "en"
        lines = piece.lyrics.splitlines()
        assert [line for line in lines if line.startswith("[")] == [f"[{name.capitalize()}]" for name in piece.sections]
        sung = [word for line in lines if not line.startswith("[") for word in line.split()]
        assert tuple(sung) == piece.syllables
        assert len(sung) == len(score.melody(piece))
        assert set(sung) <= set(lyric_vocabulary())
        assert max(len(line.split()) for line in lines) <= 16


def test_syllables_begin_again_when_used_up() -> None:
    piece = Piece(lead_timbre="voice", syllables=("la", "loo"), duration_s=8)
    sung = [word for line in piece.lyrics.splitlines() if not line.startswith("[") for word in line.split()]
    assert sung[:4] == ["la", "loo", "la", "loo"]
    assert len(sung) == len(score.melody(piece))


def test_instrumental_lyrics_are_those_of_the_model() -> None:
    assert INSTRUMENTAL_LYRICS == INSTRUMENTAL

"""A piece from a seed: all choices but those of the score, the same on every machine."""

from __future__ import annotations

import random
from dataclasses import replace

from acestep.audio.key import MODES, NAMES
from acestep.audio.synth.piece import VOICE, Piece
from acestep.audio.synth.score import melody
from acestep.audio.synth.styles import BASE_STYLES, HELD_OUT_STYLES, STYLES
from acestep.audio.synth.voice import CONSONANTS, VOWELS

POOLS = ("base", "held_out", "all")
"""What may be drawn: the base styles, the styles kept back, or any of them."""

TEMPI, TEMPI_OF_SIX = (60, 180), (60, 130)
"""Beats a minute; those of 6/8 have three notes each, and faster ones would blur."""
DURATIONS_S = (5, 30)
METRE_SHARES = {"4": 0.55, "3": 0.20, "2": 0.13, "6": 0.12}
SUNG_SHARE = 0.3
LEADLESS_SHARE = 0.1

_LONG_FORMS = (
    ("intro", "verse", "chorus"),
    ("verse", "chorus"),
    ("verse", "chorus", "outro"),
    ("verse", "chorus", "verse"),
)
_MIDDLE_FORMS = (("verse", "chorus"), ("intro", "verse"), ("intro", "chorus"), ("verse",), ("chorus",))
_SHORT_FORMS = (("verse",), ("chorus",))
_FORMS: tuple[tuple[int, tuple[tuple[str, ...], ...]], ...] = ((8, _LONG_FORMS), (4, _MIDDLE_FORMS), (0, _SHORT_FORMS))
"""Least number of bars, and the forms to choose from."""


def draw_piece(seed: int, *, pool: str = "base", duration_s: float | None = None, style: str | None = None) -> Piece:
    """A piece of a pool; its length (5 to 30 whole seconds) and style are drawn too unless given.

    Raises ValueError where the pool does not have the style.
    """
    styles = {"base": BASE_STYLES, "held_out": HELD_OUT_STYLES, "all": STYLES}[pool]
    if style is not None and style not in styles:
        raise ValueError(f"the pool {pool!r} has no style {style!r}, only {', '.join(styles)}")
    dice = random.Random(f"piece {seed}")
    mode = dice.choice(MODES)
    key = dice.choice(NAMES[mode])
    metre = _weighted(dice, METRE_SHARES)
    bpm = dice.randint(*(TEMPI_OF_SIX if metre == "6" else TEMPI))
    drawn_s, drawn_style = dice.randint(*DURATIONS_S), dice.choice(tuple(styles))
    style = drawn_style if style is None else style
    recipe = styles[style]
    fate = dice.random()
    sung = style in BASE_STYLES and fate < SUNG_SHARE
    lead = None if fate > 1 - LEADLESS_SHARE else dice.choice(recipe.leads)
    pads = [timbre for timbre in recipe.pads if timbre != lead] or list(recipe.pads)
    piece = Piece(
        bpm=bpm,
        key=key,
        mode=mode,
        metre=metre,
        duration_s=float(drawn_s if duration_s is None else duration_s),
        style=style,
        lead_timbre=VOICE if sung else lead,
        pad_timbre=dice.choice(pads),
        bass_timbre=dice.choice(recipe.basses),
        kit=dice.choice(recipe.kits),
        syllables=("la",) if sung else (),
        seed=seed,
    )
    forms = next(forms for least, forms in _FORMS if piece.bars >= least)
    piece = replace(piece, sections=dice.choice(forms))
    return replace(piece, syllables=_draw_syllables(dice, len(melody(piece)))) if sung else piece


def _draw_syllables(dice: random.Random, count: int) -> tuple[str, ...]:
    """A syllable for each note; often the one before comes again."""
    syllables: list[str] = []
    for _ in range(max(1, count)):
        if syllables and dice.random() < 0.35:
            syllables.append(syllables[-1])
        else:
            syllables.append(dice.choice(tuple(CONSONANTS)) + dice.choice(tuple(VOWELS)))
    return tuple(syllables)


def _weighted(dice: random.Random, shares: dict[str, float]) -> str:
    return dice.choices(tuple(shares), weights=tuple(shares.values()))[0]

"""Styles: tempo-independent recipes of who plays what, where in the bar and how loud.

A pattern line covers one bar in equal steps, eighth notes or finer, and a letter says what happens on a step:
drums   X accent, x hit, o soft hit, . nothing
bass    R root, F fifth, - goes on, . rest
chords  X the whole chord, 1 2 3 one voice of it from below, - goes on, . rest
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Patterns:
    """One bar of a metre: the three drums of the kit, bass and chords."""

    low: str
    middle: str
    high: str
    bass: str
    chords: str


@dataclass(frozen=True)
class Mix:
    """Levels of the parts. Notes have the same root mean square, drum hits the same largest sample."""

    lead: float = 0.62
    chords: float = 0.17
    bass: float = 0.55
    low: float = 0.62
    middle: float = 0.32
    high: float = 0.17


@dataclass(frozen=True)
class Style:
    """What a style may choose from, its patterns by metre, and how its lead moves.

    `lead_split` is how often a beat of the lead is divided, `lead_hold` how often a note lasts for another beat.
    Pans go from -1 (left) to 1 (right).
    """

    leads: tuple[str, ...]
    pads: tuple[str, ...]
    basses: tuple[str | None, ...]
    kits: tuple[str, ...]
    patterns: dict[str, Patterns]
    lead_split: float = 0.4
    lead_hold: float = 0.25
    lowest_lead: int = 65
    lowest_chord: int = 52
    lead_pan: float = 0.0
    chord_width: float = 0.5
    high_pan: float = 0.3
    mix: Mix = field(default_factory=Mix)


BASE_STYLES: dict[str, Style] = {
    "electro": Style(
        leads=("saw", "bell", "organ", "pluck"),
        pads=("saw", "organ", "brass"),
        basses=("synth",),
        kits=("electronic",),
        patterns={
            "4": Patterns("X.x.x.x.", "..x...xx", "oxoxoxox", "RR.RR.F.", "X-..x.X."),
            "3": Patterns("X.....", "..x.X.", "x.x.x.", "R.R.F.", "X---X."),
            "2": Patterns("X...", "..X.", "oxox", "R.F.", "X-.."),
            "6": Patterns("X..x..", "...X..", "xooxoo", "R.RF.R", "X-...."),
        },
        lead_split=0.5,
        chord_width=0.8,
        high_pan=-0.3,
    ),
    "rock": Style(
        leads=("brass", "organ", "saw", "reed"),
        pads=("organ", "saw", "piano"),
        basses=("picked", "round"),
        kits=("acoustic",),
        patterns={
            "4": Patterns("X..xx...", "..X...X.", "xoxoxoxo", "RRRRRRFF", "X-----X-"),
            "3": Patterns("X.....", "..x.x.", "x.x.x.", "R-R-F-", "X-----"),
            "2": Patterns("X...", "..X.", "xoxo", "RRFF", "X---"),
            "6": Patterns("X....x", "...X..", "xooxoo", "RRRFRR", "X-----"),
        },
        lead_split=0.4,
        lead_pan=0.2,
        chord_width=0.6,
    ),
    "chamber": Style(
        leads=("flute", "strings", "reed", "bell"),
        pads=("strings", "organ", "flute"),
        basses=("round",),
        kits=("brush",),
        patterns={
            "4": Patterns("X..oo...", "..x...x.", "xoxoxoxo", "R-----F-", "X-------"),
            "3": Patterns("X.....", "..x.x.", "x.x.x.", "R-----", "X-----"),
            "2": Patterns("X...", "..x.", "xoxo", "R-F-", "X---"),
            "6": Patterns("X.....", "...x..", "xooxoo", "R--F--", "X-----"),
        },
        lead_split=0.25,
        lead_hold=0.35,
        lead_pan=-0.2,
        chord_width=0.7,
        mix=Mix(lead=0.66, chords=0.2, bass=0.5, low=0.6, middle=0.4, high=0.3),
    ),
    "folk": Style(
        leads=("flute", "reed", "pluck", "strings"),
        pads=("pluck", "piano"),
        basses=("round", "picked"),
        kits=("hand",),
        patterns={
            "4": Patterns("X......o", "..x...x.", "xoxoxoxo", "R-R-R-F-", "X---1-3-"),
            "3": Patterns("X.....", "..x.x.", "x.x.x.", "R-..F-", "X---3-"),
            "2": Patterns("X...", "..x.", "xoxo", "R-F-", "X---"),
            "6": Patterns("X.....", "...x.o", "xooxoo", "R--F--", "X--1-3"),
        },
        lead_split=0.35,
        chord_width=0.4,
        mix=Mix(lead=0.62, chords=0.36, bass=0.5, low=0.55, middle=0.32, high=0.16),
    ),
    "funk": Style(
        leads=("piano", "brass", "organ", "reed"),
        pads=("piano", "brass", "organ"),
        basses=("picked", "synth"),
        kits=("acoustic", "electronic"),
        patterns={
            "4": Patterns("X..x...x", "..X...X.", "xoxoxoxo", "R-.R.FF.", "X.x...X."),
            "3": Patterns("X.....", "..x.x.", "x.x.x.", "R.R.F.", "X.x.x."),
            "2": Patterns("X...", "..X.", "xoxo", "R-F.", "X-.."),
            "6": Patterns("X....x", "...X..", "xooxoo", "R-.F-R", "X-...."),
        },
        lead_split=0.6,
        lead_hold=0.1,
        lead_pan=-0.3,
        chord_width=0.3,
        high_pan=0.5,
        mix=Mix(lead=0.58, chords=0.24, bass=0.62, low=0.6, middle=0.36, high=0.18),
    ),
    "ambient": Style(
        leads=("bell", "flute", "piano", "pluck"),
        pads=("strings", "flute", "organ"),
        basses=("round", "synth"),
        kits=("brush",),
        patterns={
            "4": Patterns("X..o....", "......x.", "xoxoxoxo", "R-------", "X-------"),
            "3": Patterns("X.....", "....o.", "x.x.x.", "R-----", "X-----"),
            "2": Patterns("X...", "..o.", "xoxo", "R---", "X---"),
            "6": Patterns("X.....", "...o..", "xooxoo", "R-----", "X-----"),
        },
        lead_split=0.1,
        lead_hold=0.5,
        chord_width=1.0,
        mix=Mix(lead=0.6, chords=0.26, bass=0.42, low=0.5, middle=0.36, high=0.3),
    ),
}
"""Styles that the base pool is drawn from."""

HELD_OUT_STYLES: dict[str, Style] = {
    "toybox": Style(
        leads=("musicbox", "marimba"),
        pads=("musicbox", "marimba"),
        basses=(None,),
        kits=("shaker",),
        patterns={
            "4": Patterns("X.......", "....x...", "xoxoxoxo", "........", "1-2-3-2-"),
            "3": Patterns("X.....", "....x.", "xoxoxo", "......", "1-2-3-"),
            "2": Patterns("X...", "..x.", "xoxo", "....", "1-32"),
            "6": Patterns("X.....", "...x..", "xooxoo", "......", "123123"),
        },
        lead_split=0.55,
        lead_hold=0.1,
        lowest_lead=79,
        lowest_chord=64,
        chord_width=0.9,
        high_pan=-0.6,
        mix=Mix(lead=0.6, chords=0.3, bass=0.0, low=0.45, middle=0.14, high=0.3),
    ),
    "chiptune": Style(
        leads=("pulse",),
        pads=("pulse",),
        basses=("triangle",),
        kits=("chip",),
        patterns={
            "4": Patterns("X...x.x.", "..X...X.", "xxxxxxxx", "RFRFRFRF", "1231231231231231"),
            "3": Patterns("X.....", "..X.X.", "xxxxxx", "RFRFRF", "123123123123"),
            "2": Patterns("X...", "..X.", "xxxx", "RFRF", "12312323"),
            "6": Patterns("X.....", "...X..", "xxxxxx", "RFFRFF", "123123"),
        },
        lead_split=0.7,
        lead_hold=0.05,
        chord_width=0.9,
        high_pan=0.0,
        mix=Mix(lead=0.6, chords=0.3, bass=0.6, low=0.5, middle=0.3, high=0.2),
    ),
}
"""Styles that are kept back, so that there is something new to teach."""

STYLES = BASE_STYLES | HELD_OUT_STYLES

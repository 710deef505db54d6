"""Eight short labelled songs for the tests: sung and instrumental, one without lead, in mixed formats.

Played from the synthesiser's song plans and written like the demo's songs, so tempo, key and metre are known exactly.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from acestep.audio.synth import SongPlan, render
from acestep.dataset.demo import DemoSong, write_demo_songs
from acestep.model.facts import INSTRUMENTAL

STYLE = "warm synth pads, round bass and soft drum machine"
"""What all captions share, as all songs share the sound."""


def _planned(name: str, plan: SongPlan, caption: str, genre: str, lyrics: str, labels: str, **file: int) -> DemoSong:
    facts = (plan.seconds, round(plan.tempo), f"{plan.key} {plan.mode}", plan.metre)
    return DemoSong(name, partial(render, plan), *facts, caption, genre, labels, lyrics, **file)


TEST_SONGS = (
    _planned(
        "Harbour Lights.wav",
        SongPlan(tempo=96, key="A", mode="minor", seconds=10, seed=1, sections=("verse", "chorus")),
        f"Slow dreamy electronic pop with a reedy lead melody over {STYLE}",
        "synth-pop",
        "[Verse]\nHarbour lights are burning low\nEvery boat has somewhere to go\n\n"
        "[Chorus]\nShine on, shine on, bring me home",
        labels="json",
    ),
    _planned(
        "Paper Planes.flac",
        SongPlan(tempo=120, key="C", mode="major", seconds=8, seed=2),
        f"Bright playful electronic pop with a reedy lead melody over {STYLE}",
        "synth-pop",
        "[Verse]\nFold the morning into wings\nHear the little engine sing\n\n[Chorus]\nFly, paper plane, fly",
        labels="texts",
        sample_rate=44_100,
    ),
    _planned(
        "Night Train.mp3",
        SongPlan(tempo=132, key="E", mode="minor", seconds=9, seed=3, sections=("verse", "chorus", "chorus")),
        f"Driving nocturnal electronic pop with a reedy lead melody over {STYLE}",
        "synthwave",
        "[Verse]\nWindows flicker, stations pass\nNames are written on the glass\n\n[Chorus]\nNight train, carry me on",
        labels="lrc",
        sample_rate=44_100,
    ),
    _planned(
        "Café Waltz.ogg",
        SongPlan(tempo=108, key="F", mode="major", metre="3", seconds=10, seed=4, sections=("verse", "chorus")),
        f"Gentle electronic waltz with a reedy lead melody over {STYLE}",
        "waltz, electronic",
        INSTRUMENTAL,
        labels="sheet",
    ),
    _planned(
        "Tide Pool.opus",
        SongPlan(tempo=84, key="D", mode="minor", seconds=12, seed=5, sections=("intro", "verse"), lead=False),
        f"Calm ambient electronic piece without lead melody, only {STYLE}",
        "ambient",
        INSTRUMENTAL,
        labels="csv",
    ),
    _planned(
        "sketches/Lantern.wav",
        SongPlan(tempo=72, key="G", mode="major", metre="6", seconds=10, seed=6, sections=("verse", "chorus")),
        f"Swaying electronic lullaby with a reedy lead melody over {STYLE}",
        "lullaby, electronic",
        "[Verse]\nLittle lantern, swing and sway\nKeep the dark a step away",
        labels="sheet",
        sample_rate=44_100,
        mono=True,
    ),
    _planned(
        "Clockwork March.mp3",
        SongPlan(tempo=112, key="A#", mode="major", metre="2", seconds=9, seed=7, sections=("verse", "chorus")),
        f"Strutting electronic march with a reedy lead melody over {STYLE}",
        "march, electronic",
        INSTRUMENTAL,
        labels="json",
    ),
    _planned(
        "Glass City.flac",
        SongPlan(tempo=140, key="F#", mode="minor", seconds=9, seed=8, sections=("intro", "chorus", "chorus")),
        f"Fast glittering electronic pop with a reedy lead melody over {STYLE}",
        "synthwave",
        "[Chorus]\nGlass city, hold the sun\nMirror every step I run",
        labels="csv",
    ),
)


def write_test_songs(folder: Path) -> Path:
    """Write all songs with their labels below `folder`. Takes a few seconds."""
    return write_demo_songs(folder, TEST_SONGS)

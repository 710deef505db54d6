"""A piece: everything that is needed to play it and to label it."""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate
from math import ceil

from acestep.audio.key import NAMES
from acestep.audio.synth import score, words
from acestep.audio.synth.drums import KITS
from acestep.audio.synth.song import METRES, SCALES
from acestep.audio.synth.styles import STYLES, Style
from acestep.audio.synth.timbres import BASS_TIMBRES, TIMBRES
from acestep.audio.synth.voice import SYLLABLES

INSTRUMENTAL_LYRICS = words.INSTRUMENTAL_LYRICS
VOICE = "voice"
SECTIONS = ("intro", "verse", "chorus", "outro")
_SECTION_WEIGHTS = {"intro": 1, "verse": 2, "chorus": 2, "outro": 1}
LEAD_TIMBRES = (*TIMBRES, VOICE)


@dataclass(frozen=True)
class Piece:
    """What is played.

    `bpm` counts beats a minute: quarter notes, in 6/8 dotted quarters. `lead_timbre` is None for a piece without a
    lead and "voice" for a sung one; `syllables` are then sung in turn, one a note, and begin again when used up.
    `sections` share the bars in their order, intro and outro with half the share of the others. `seed` decides
    progression, melody and wording.
    """

    bpm: int = 120
    key: str = "A"
    mode: str = "minor"
    metre: str = "4"
    duration_s: float = 10.0
    style: str = "electro"
    lead_timbre: str | None = "saw"
    pad_timbre: str = "organ"
    bass_timbre: str | None = "synth"
    kit: str = "electronic"
    sections: tuple[str, ...] = ("verse", "chorus")
    syllables: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        known: tuple[tuple[str, object, object], ...] = (
            ("mode", self.mode, NAMES),
            ("key", self.key, NAMES.get(self.mode, ())),
            ("metre", self.metre, METRES),
            ("style", self.style, STYLES),
            ("lead_timbre", self.lead_timbre, (None, *LEAD_TIMBRES)),
            ("pad_timbre", self.pad_timbre, TIMBRES),
            ("bass_timbre", self.bass_timbre, (None, *BASS_TIMBRES)),
            ("kit", self.kit, KITS),
            *(("sections", section, SECTIONS) for section in self.sections),
            *(("syllables", syllable, SYLLABLES) for syllable in self.syllables),
        )
        for field, value, allowed in known:
            if value not in allowed:  # type: ignore[operator]
                raise ValueError(f"{field} of a piece is {value!r}, not one of {list(allowed)}")  # type: ignore[call-overload]
        if self.bpm <= 0 or self.duration_s <= 0 or not self.sections:
            raise ValueError("a piece has a tempo, a duration and at least one section")
        if (self.lead_timbre == VOICE) != bool(self.syllables):
            raise ValueError("a piece has syllables when its lead is the voice, and only then")

    # Labels

    @property
    def caption(self) -> str:
        return words.caption_of(self)

    @property
    def lyrics(self) -> str:
        return words.lyrics_of(self)

    @property
    def keyscale(self) -> str:
        return f"{self.key} {self.mode}"

    @property
    def timesignature(self) -> str:
        return self.metre

    @property
    def language(self) -> str:
        return "en" if self.sung else "unknown"

    @property
    def sung(self) -> bool:
        return self.lead_timbre == VOICE

    # Time and pitch

    @property
    def recipe(self) -> Style:
        return STYLES[self.style]

    @property
    def beats_in_bar(self) -> int:
        return METRES[self.metre][0]

    @property
    def eighths_in_beat(self) -> int:
        return METRES[self.metre][1]

    @property
    def beat_s(self) -> float:
        return 60.0 / self.bpm

    @property
    def bar_s(self) -> float:
        return self.beats_in_bar * self.beat_s

    @property
    def bars(self) -> int:
        """Bars begun within the piece; the last may be cut short."""
        return ceil(self.duration_s / self.bar_s - 1e-9)

    def section_number_of(self, bar: int) -> int:
        """Which of `sections` a bar belongs to."""
        ends = tuple(accumulate(_SECTION_WEIGHTS[section] for section in self.sections))
        return bisect(ends, (bar + 0.5) * ends[-1] / self.bars)

    def section_of(self, bar: int) -> str:
        return self.sections[self.section_number_of(bar)]

    @property
    def tonic(self) -> int:
        """Semitones of the key's tonic above C."""
        return NAMES[self.mode].index(self.key)

    def midi_note(self, step: int, lowest: int) -> int:
        """MIDI number of a scale step; step 0 is the tonic in the octave that begins at note `lowest`."""
        octave, degree = divmod(step, 7)
        return lowest + (self.tonic - lowest) % 12 + SCALES[self.mode][degree] + 12 * octave

    @property
    def chords(self) -> tuple[int, ...]:
        """The scale step of each bar's chord."""
        return score.chord_steps(self)

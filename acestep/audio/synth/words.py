"""What is said of a piece: captions written from the truth in varied but few words, and the lyrics sung."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from acestep.audio.synth import score

if TYPE_CHECKING:
    from acestep.audio.synth.piece import Piece

INSTRUMENTAL_LYRICS = "[Instrumental]"
"""The lyrics of pieces without a voice, as the model knows them."""

STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "electro": ("electro", "dance", "club"),
    "rock": ("rock",),
    "chamber": ("chamber", "classical"),
    "folk": ("folk", "acoustic"),
    "funk": ("funk", "funky"),
    "ambient": ("ambient", "atmospheric"),
    "toybox": ("toy", "lullaby"),
    "chiptune": ("chiptune", "8-bit"),
}
TIMBRE_WORDS: dict[str, tuple[str, ...]] = {
    "reed": ("clarinet", "reed"),
    "bell": ("bell",),
    "organ": ("organ",),
    "saw": ("synth", "saw synth"),
    "pluck": ("guitar", "plucked guitar"),
    "flute": ("flute",),
    "brass": ("brass", "trumpet"),
    "piano": ("electric piano", "piano"),
    "strings": ("violin", "strings"),
    "musicbox": ("music box",),
    "marimba": ("marimba",),
    "pulse": ("square wave", "pulse wave"),
}
KIT_WORDS: dict[str, tuple[str, ...]] = {
    "acoustic": ("live drums", "drum kit"),
    "electronic": ("drum machine", "electronic drums"),
    "brush": ("soft brushes", "quiet drums"),
    "hand": ("hand drums", "tambourine"),
    "shaker": ("shaker", "shaker and wood block"),
    "chip": ("noise drums", "console drums"),
}
BASS_WORDS: dict[str, tuple[str, ...]] = {
    "round": ("round bass", "warm bass"),
    "picked": ("picked bass", "twangy bass"),
    "synth": ("buzzing bass", "electronic bass"),
    "triangle": ("triangle bass",),
}
MOOD_WORDS: dict[str, tuple[str, ...]] = {
    "major": ("happy", "bright", "cheerful", "sunny"),
    "minor": ("sad", "dark", "moody", "serious"),
}
METRE_WORDS: dict[str, tuple[str, ...]] = {
    "2": ("march", "marching beat"),
    "3": ("waltz", "waltz beat"),
    "4": ("straight beat", "steady beat"),
    "6": ("swaying beat", "rolling beat"),
}
TEMPO_WORDS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (84, ("slow", "calm", "unhurried")),
    (112, ("relaxed", "medium tempo", "walking")),
    (142, ("lively", "upbeat", "brisk")),
    (10_000, ("fast", "rapid", "driving")),
)
"""Upper bounds in beats a minute, and the words for a tempo below."""

_PIECE_WORDS = ("piece", "tune", "track")
_MUSIC_WORDS = ("piece", "tune", "track", "music")
_LEAD_FORMS = ("{a_lead} lead", "{lead} melody", "{lead} playing the melody", "lead {lead}")
_VOICE_FORMS = ("a singing voice", "vocals", "a voice singing the melody", "sung melody")
_LEADLESS_FORMS = ("no lead", "no melody", "only chords and beat")
_EXTRA_SHARE = 0.4
_FORMS = (
    "{tempo} {mood} {style} {music} with {lead}{extras}",
    "{mood} {style} {music} with {lead}{extras}, {tempo}",
    "{style} {music}, {tempo} and {mood}, {lead}{extras}",
    "{lead} in {a_style} {piece}{extras}",
    "{style}, {lead}, {tempo}{extras}",
    "{a_tempo} {style} {piece} with {lead}{extras}",
    "{style} {music} with {lead}",
    "{mood} {music} with {lead}{extras}",
)


def caption_of(piece: Piece, variant: int = 0) -> str:
    """A caption that says some of what is true; other variants say it in other words."""
    dice = random.Random(f"{piece.seed} caption {variant}")
    style, tempo = dice.choice(STYLE_WORDS[piece.style]), dice.choice(tempo_words(piece.bpm))
    parts = {
        "style": style,
        "a_style": _with_article(style),
        "tempo": tempo,
        "a_tempo": _with_article(tempo),
        "mood": dice.choice(MOOD_WORDS[piece.mode]),
        "piece": dice.choice(_PIECE_WORDS),
        "music": dice.choice(_MUSIC_WORDS),
        "lead": _lead_words(piece, dice),
    }
    # the last form leaves the style out: seldom
    form = dice.choices(_FORMS, weights=[6] * (len(_FORMS) - 1) + [2])[0]
    parts["extras"] = _extras(piece, dice)
    text = form.format(**parts)
    return text[0].upper() + text[1:]


def tempo_words(bpm: float) -> tuple[str, ...]:
    """What may be said of a tempo."""
    return next(names for below, names in TEMPO_WORDS if bpm < below)


def lyrics_of(piece: Piece) -> str:
    """Lines of syllables, about two bars each, below section tags; a fixed text where nobody sings."""
    if not piece.sung:
        return INSTRUMENTAL_LYRICS
    lines: dict[int, dict[int, list[str]]] = {}
    for number, played in enumerate(score.melody(piece)):
        section = lines.setdefault(piece.section_number_of(played.bar), {})
        section.setdefault(played.bar // 2, []).append(piece.syllables[number % len(piece.syllables)])
    blocks = []
    for number in sorted({piece.section_number_of(bar) for bar in range(piece.bars)}):
        sung = [" ".join(syllables) for syllables in lines.get(number, {}).values()]
        blocks.append("\n".join([f"[{piece.sections[number].capitalize()}]", *sung]))
    return "\n\n".join(blocks)


def caption_vocabulary(pool: str = "all") -> tuple[str, ...]:
    """All words, in small letters and sorted, that captions of a pool ("base", "held_out", "all") can have."""
    from acestep.audio.synth.styles import BASE_STYLES, HELD_OUT_STYLES, STYLES

    styles = {"base": BASE_STYLES, "held_out": HELD_OUT_STYLES, "all": STYLES}[pool]
    texts = [*_MUSIC_WORDS, *_LEAD_FORMS, *_VOICE_FORMS, *_LEADLESS_FORMS, *_FORMS, "a an"]
    texts += [text for names in (*MOOD_WORDS.values(), *METRE_WORDS.values()) for text in names]
    texts += [text for _, names in TEMPO_WORDS for text in names]
    for name, recipe in styles.items():
        texts += STYLE_WORDS[name]
        texts += [text for timbre in (*recipe.leads, *recipe.pads) for text in TIMBRE_WORDS[timbre]]
        texts += [text for kit in recipe.kits for text in KIT_WORDS[kit]]
        texts += [text for bass in recipe.basses if bass for text in BASS_WORDS[bass]]
    plain = re.sub(r"{\w+}", " ", " ".join(texts)).casefold()
    return tuple(sorted(set(words_of(plain))))


def lyric_vocabulary() -> tuple[str, ...]:
    """All syllables that can be sung."""
    from acestep.audio.synth.voice import SYLLABLES

    return SYLLABLES


def words_of(caption: str) -> list[str]:
    """The words of a caption in small letters."""
    return re.findall(r"[\w-]+", caption.casefold())


def _lead_words(piece: Piece, dice: random.Random) -> str:
    if piece.lead_timbre is None:
        return dice.choice(_LEADLESS_FORMS)
    if piece.sung:
        return dice.choice(_VOICE_FORMS)
    lead = dice.choice(TIMBRE_WORDS[piece.lead_timbre])
    return dice.choice(_LEAD_FORMS).format(lead=lead, a_lead=_with_article(lead))


def _extras(piece: Piece, dice: random.Random) -> str:
    """Further facts, each now and then: chords, bass, drums, metre."""
    facts = [
        dice.choice(TIMBRE_WORDS[piece.pad_timbre]) + " chords",
        dice.choice(BASS_WORDS[piece.bass_timbre]) if piece.bass_timbre else "",
        dice.choice(KIT_WORDS[piece.kit]),
        dice.choice(METRE_WORDS[piece.metre]),
    ]
    return "".join(f", {fact}" for fact in facts if fact and dice.random() < _EXTRA_SHARE)


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou8" else "a ") + words

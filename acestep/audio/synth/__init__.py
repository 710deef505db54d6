"""A small synthesiser: short pieces whose tempo, key, metre, instruments, sections and words are known exactly.

tones.py    oscillators and envelopes             styles.py  recipes: who plays what in which metre
timbres.py  pitched instruments, a note each      piece.py   what is played, and its labels
voice.py    sung syllables                        draw.py    a piece from a seed
drums.py    kits of fixed hits                    score.py   which notes sound when
words.py    captions and lyrics                   playing.py score and instruments to sound
song.py     the older, simpler song plans

    piece = draw_piece(seed=7, duration_s=10)
    samples = render_piece(piece)               # float32 [2, N] at 48 kHz
    piece.caption, piece.lyrics, piece.bpm, piece.keyscale, piece.timesignature, piece.language
"""

from acestep.audio.synth.draw import POOLS, draw_piece
from acestep.audio.synth.piece import INSTRUMENTAL_LYRICS, Piece
from acestep.audio.synth.playing import render_piece, render_stems
from acestep.audio.synth.song import METRES, NOTE_NAMES, SCALES, SongPlan, render
from acestep.audio.synth.styles import BASE_STYLES, HELD_OUT_STYLES, STYLES
from acestep.audio.synth.timbres import BASE_TIMBRES, HELD_OUT_TIMBRES, TIMBRES
from acestep.audio.synth.tones import oscillator
from acestep.audio.synth.words import caption_of, caption_vocabulary, lyric_vocabulary

__all__ = [
    "BASE_STYLES",
    "BASE_TIMBRES",
    "HELD_OUT_STYLES",
    "HELD_OUT_TIMBRES",
    "INSTRUMENTAL_LYRICS",
    "METRES",
    "NOTE_NAMES",
    "POOLS",
    "SCALES",
    "STYLES",
    "TIMBRES",
    "Piece",
    "SongPlan",
    "caption_of",
    "caption_vocabulary",
    "draw_piece",
    "lyric_vocabulary",
    "oscillator",
    "render",
    "render_piece",
    "render_stems",
]

"""The small model's tokenizer: byte-level BPE, trained on prompts of the synthesiser's pieces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from acestep.audio.synth import caption_vocabulary, draw_piece, lyric_vocabulary
from acestep.model.prompt import lyric_prompt, text_prompt
from acestep.model.untrained_text import train_tokenizer
from demo_model.draws import labels_of

VOCABULARY = 1500
_PIECES = 3000


def make_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`, made on first use."""
    if not (folder / "tokenizer.json").is_file():
        train_tokenizer(corpus=_corpus(), vocabulary=VOCABULARY).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def _corpus() -> Iterator[str]:
    words = [" " + word for word in sorted({*caption_vocabulary(), *lyric_vocabulary()})]
    yield from words * 200
    yield from [f"- bpm: {bpm}\n" for bpm in range(30, 301)] * 200
    for seed in range(_PIECES):
        labels = labels_of(draw_piece(seed))
        yield text_prompt(labels)
        yield lyric_prompt(labels)

"""The form of what the 5 Hz language model writes about a song, kept token by token while it writes.

Between <think> and </think> stands one line for each field, in alphabetical order. Field names are given; of values
that have a list, only those on it can be written; free text holds neither audio codes nor what would end the block.
After the block the model writes lyrics in its own words. The lists are compared as whole lines in the tokenizer's own
tokens, because a space belongs to the token after it.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from transformers import LogitsProcessor

from acestep.model.facts import BPM_RANGE, DURATION_RANGE_S, LANGUAGES, TIME_SIGNATURES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Node: TypeAlias = "dict[int, Node]"

OPENING, CLOSING = "<think>\n", "</think>"
KEYS = tuple(
    f"{letter}{sign} {mode}"
    for letter, sign, mode in itertools.product("ABCDEFG", ("", "#", "b", "♯", "♭"), ("major", "minor"))
)
_VALUES: dict[str, tuple[str, ...]] = {
    "bpm": tuple(str(bpm) for bpm in range(BPM_RANGE[0], BPM_RANGE[1] + 1)),
    "caption": (),
    "duration": tuple(str(seconds) for seconds in range(DURATION_RANGE_S[0], DURATION_RANGE_S[1] + 1)),
    "genres": (),
    "keyscale": KEYS,
    "language": LANGUAGES,
    "timesignature": TIME_SIGNATURES,
}
"""Fields in the order they are written, and what their values may be; none: free text."""

_GENRE_TOKENS = 32
_CODE = re.compile(r"<\|audio_code_(\d+)\|>")


@dataclass(frozen=True)
class Words:
    """What the form has to know of a tokenizer's tokens: masks [vocabulary] on the model's device, ids of codes.

    `unwritable` may stand nowhere in free text within the block, `silent` nowhere in an answer at all.
    """

    tokenizer: PreTrainedTokenizerBase
    codes: Mapping[int, int]
    silent: Tensor
    unwritable: Tensor
    blank: Tensor
    indents: Tensor
    ends_line: Tensor

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, size: int, device: torch.device) -> Words:
        """Masks for a model that tells between `size` tokens; those without text are never written."""
        names = tokenizer.get_vocab()
        codes = {int(match[1]): number for name, number in names.items() if (match := _CODE.fullmatch(name))}
        numbers = range(min(size, len(tokenizer)))
        texts: list[str] = tokenizer.batch_decode([[number] for number in numbers], skip_special_tokens=False)
        texts += [""] * (size - len(texts))
        ends = {tokenizer.eos_token_id}
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()} - ends
        silent = {*special, *(number for number, text in enumerate(texts) if not text)}
        ends_line = {number for number, text in enumerate(texts) if text.endswith("\n")}
        odd = {
            number
            for number, text in enumerate(texts)
            if "`" in text or "<" in text or ("\n" in text and text.find("\n") < len(text) - 1) or "\r" in text
        }

        def mask(chosen: Iterable[int]) -> Tensor:
            found = torch.zeros(size, dtype=torch.bool)
            found[[number for number in chosen if number < size]] = True
            return found.to(device)

        return cls(
            tokenizer,
            codes,
            silent=mask(silent),
            unwritable=mask(silent | odd | ends),
            blank=mask(number for number, text in enumerate(texts) if not text.strip()),
            indents=mask(number for number, text in enumerate(texts) if text[:1] in (" ", "\t")),
            ends_line=mask(ends_line - odd),
        )

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


class _Lines:
    """One of several texts, written to its end. `chance` is the probability the model gave the one it wrote."""

    def __init__(self, words: Words, texts: Iterable[str], field: str = "") -> None:
        self.field = field
        self.chance = 1.0
        self._node: Node = {}
        self._shares: dict[int, float] = {}
        for text in texts:
            node = self._node
            for token in words.tokens(text):
                node = node.setdefault(token, {})

    def allowed(self, scores: Tensor) -> Tensor | None:
        if not self._node:
            return None
        choices = list(self._node)
        shares = torch.softmax(scores[choices].float(), dim=0).tolist()
        self._shares = dict(zip(choices, shares, strict=True))
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        allowed[choices] = True
        return allowed

    def take(self, token: int) -> None:
        self.chance *= self._shares[token]
        self._node = self._node[token]


class _Text:
    """Free words of at most `most` tokens to the end of the line, and of indented lines after it where `wraps`."""

    field = ""

    def __init__(self, words: Words, most: int, wraps: bool) -> None:
        self._words = words
        self._most = most
        self._wraps = wraps
        self._count = 0
        self._says_something = False
        self._line_ended = False
        self._newline = words.tokens("\n")

    def allowed(self, scores: Tensor) -> Tensor | None:
        words = self._words
        if self._line_ended:
            goes_on = self._wraps and self._count < self._most and bool(words.indents[scores.argmax()])
            return words.indents & ~words.unwritable & ~words.ends_line if goes_on else None
        if self._count >= self._most:
            allowed = torch.zeros_like(words.blank)
            allowed[self._newline] = True
            return allowed
        if self._says_something:
            return ~words.unwritable
        # Some tokenizers keep the space before a digit or a rare letter for itself.
        empty = words.blank if self._count else words.ends_line
        return ~(words.unwritable | empty)

    def take(self, token: int) -> None:
        self._count += 1
        self._says_something |= not bool(self._words.blank[token])
        self._line_ended = bool(self._words.ends_line[token])


class ThinkForm(LogitsProcessor):  # type: ignore[misc]
    """Keeps one answer in form; made anew for each. The prompt has `prompt_tokens` tokens.

    `told` are values known beforehand, by field as the block names it: the model is made to write them. Without
    lyrics the answer ends with the block.
    """

    def __init__(
        self, words: Words, prompt_tokens: int, told: Mapping[str, str], caption_tokens: int, with_lyrics: bool
    ) -> None:
        self._words = words
        self._read = prompt_tokens
        self.chances: dict[str, float] = {}
        self._steps: deque[_Lines | _Text] = deque([_Lines(words, [OPENING])])
        for field, values in _VALUES.items():
            known = told.get(field)
            if known is not None or values:
                texts = [f"{field}: {value}\n" for value in ([known] if known is not None else values)]
                self._steps.append(_Lines(words, texts, field))
            else:
                self._steps.append(_Lines(words, [f"{field}:"]))
                is_caption = field == "caption"
                self._steps.append(_Text(words, caption_tokens if is_caption else _GENRE_TOKENS, wraps=is_caption))
        ending = "" if with_lyrics else str(words.tokenizer.eos_token)
        self._steps.append(_Lines(words, [CLOSING + ending]))

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Scores [1, vocabulary] with minus infinity for every token that may not come next."""
        for token in input_ids[0, self._read :].tolist():
            if self._steps:
                self._steps[0].take(token)
        self._read = input_ids.shape[1]
        allowed = None
        while self._steps and (allowed := self._steps[0].allowed(scores[0])) is None:
            done = self._steps.popleft()
            if done.field:
                self.chances[done.field] = done.chance  # type: ignore[union-attr]
        if allowed is None:
            allowed = ~self._words.silent
        return scores.masked_fill(~allowed[None], -torch.inf)

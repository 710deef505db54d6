"""Lyrics that were heard in parts of a song → the lyrics of the song."""

from __future__ import annotations

import re
import unicodedata

from acestep.model.facts import INSTRUMENTAL

_TAG = re.compile(r"\[[^\[\]\n]{1,60}\]")
_MOST_SHARED_LINES = 2  # what can be sung in the seconds that neighbouring parts share


def join_lyrics(parts: list[str]) -> str:
    """One text of the parts in their order; what the end of one and the begin of the next both hold stands once.

    Parts without a voice add nothing where others have one; all of them without give [Instrumental]. Empty parts,
    which nothing is known about, give nothing.
    """
    joined: list[str] = []
    for part in parts:
        lines = [line.strip() for line in part.split("\n")]
        if part and part != INSTRUMENTAL:
            _append(joined, lines)
    if joined:
        return "\n".join(joined).strip()
    return INSTRUMENTAL if parts and all(part == INSTRUMENTAL for part in parts) else ""


def _append(joined: list[str], lines: list[str]) -> None:
    """Add the lines of the next part, without those that repeat the last ones and without a tag that still holds."""
    sung = [number for number, line in enumerate(lines) if _words(line)]
    last = [_words(line) for line in joined if _words(line)]
    first = [_words(lines[number]) for number in sung]
    most = min(_MOST_SHARED_LINES, len(last), len(first))
    shared = next((count for count in range(most, 0, -1) if last[-count:] == first[:count]), 0)
    if not shared and most:
        if last[-1].endswith(f" {first[0]}"):  # the next part begins within the line
            shared = 1
        elif first[0].startswith(f"{last[-1]} "):  # the part before ends within it
            del joined[max(number for number, line in enumerate(joined) if _words(line)) :]
    tags = [line for line in lines[: sung[shared]] if _TAG.fullmatch(line)] if shared < len(sung) else []
    rest = lines[sung[shared] :] if shared < len(sung) else []
    if not rest:
        return
    current = next((line for line in reversed(joined) if _TAG.fullmatch(line)), "")
    if tags and (not joined or tags[-1].casefold() != current.casefold()):
        joined += ["", tags[-1]] if joined else [tags[-1]]
    joined += rest


def _words(line: str) -> str:
    """What is sung in a line, in a form that does not depend on case and punctuation; empty for tags."""
    if _TAG.fullmatch(line):
        return ""
    folded = unicodedata.normalize("NFKC", line).casefold()
    return " ".join(re.findall(r"[^\W_]+", folded))

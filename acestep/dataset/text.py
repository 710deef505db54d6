"""Reading the text files people put beside their songs, and what counts as text in them."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

LARGEST_LABEL_FILE = 4 << 20
"""Bytes. No lyrics are longer; a larger file is something else."""

_BYTE_ORDER_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_ERROR_TEXT = re.compile(r"\s*(?:\[?error\]?\s*:|traceback \(most recent call last\))", re.IGNORECASE)
_UNUSABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\ud800-\udfff]")


class NotText(Exception):
    """The file cannot be used as text; the message is a sentence about it."""


@dataclass(frozen=True)
class TextFile:
    """The content of a text file, and a warning where its encoding had to be assumed."""

    text: str
    warning: str = ""


def read_text(path: Path, largest: int = LARGEST_LABEL_FILE) -> TextFile:
    """Read UTF-8, UTF-8/16/32 with byte order mark, or else CP-1252 with a warning. Raises NotText."""
    try:
        with open(path, "rb") as handle:
            data = handle.read(largest + 1)
    except OSError as error:
        raise NotText(f"It cannot be read ({error.strerror}).") from error
    if len(data) > largest:
        raise NotText(f"It is larger than {largest >> 20} MiB, so it is not used.")
    return decode(data)


def decode(data: bytes) -> TextFile:
    """Bytes as text, as `read_text` reads a file. Raises NotText."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            try:
                return TextFile(data.decode(encoding))
            except UnicodeDecodeError as error:
                name = encoding.removesuffix("-sig").upper()
                raise NotText(f"It begins like {name} text but is damaged; save it as UTF-8.") from error
    if b"\x00" in data:
        raise NotText("It is not a text file, or is UTF-16 without its mark; save it as UTF-8.")
    try:
        return TextFile(data.decode("utf-8"))
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
        return TextFile(text, "It is not UTF-8; it was read as Windows-1252. Save it as UTF-8 to be sure.")


def clean(text: str) -> str:
    """`text` with \\n line ends, without control characters and characters that no file can hold."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\x85", "\n")
    return _UNUSABLE.sub("", text)


def one_line(text: str) -> str:
    """`text` with every run of white space as one blank."""
    return " ".join(clean(text).split())


def is_error_text(text: str) -> bool:
    """Is this what a failed captioner left ("Error: …") instead of a caption or lyrics?"""
    return _ERROR_TEXT.match(text) is not None

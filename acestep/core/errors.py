"""The errors and problems users see. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Literal


class UserError(Exception):
    """Something the user can put right: one sentence that names the file or field, and the remedy.

    `message` says what is wrong and where, `fix` what to do, `detail` holds what helps a second look
    (a list of keys, of files looked for); screens may fold `detail` away.
    """

    def __init__(self, message: str, *, fix: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.detail = detail

    def __str__(self) -> str:
        return " ".join(part for part in (self.message, self.fix) if part)


class Stopped(Exception):
    """The user asked to stop. Everything finished so far has been kept."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one file or field of many; the others go on.

    An "error" means the subject is left out, a "warning" that it is used all the same.
    """

    subject: str
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}"

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean "x"?' for the nearest known word, or an empty string."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""

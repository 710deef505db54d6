"""Settings as the options of a command, so that what stands on a page can be run, kept and sent to others as text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from acestep.settings.base import Settings, fields_of

_NUMBER = re.compile(r"-\d*\.?\d+(e[+-]?\d+)?", re.IGNORECASE)


def options_of(settings: Settings, base: Mapping[str, Any]) -> list[str]:
    """The arguments that turn `base` (setting → value; the defaults for what it leaves out) into these settings."""
    arguments: list[str] = []
    for knob in fields_of(type(settings)):
        value = getattr(settings, knob.name)
        if value != base.get(knob.name, knob.default):
            arguments += _option(f"--{knob.name.replace('_', '-')}", value)
    return arguments


def command_text(arguments: Iterable[str]) -> str:
    """Arguments as one line for a terminal, quoted as a POSIX shell needs it."""
    return shlex.join(arguments)


def _option(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    if isinstance(value, Mapping):
        return [flag, *(f"{name}={_text(item)}" for name, item in value.items())]
    if isinstance(value, list | tuple):
        # a blank keeps a text from being read as an option; settings that are lists of texts drop it again
        return [flag, *(f" {text}" if _like_option(text) else text for text in map(_text, value))]
    text = _text(value)
    return [f"{flag}={text}"] if _like_option(text) else [flag, text]


def _like_option(text: str) -> bool:
    return text.startswith("-") and not _NUMBER.fullmatch(text)


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)

"""The tables of settings in TRAINING_GUIDE.md, made from their declarations.

`python -m acestep.settings.guide` rewrites the tables between their markers; `--check` only says whether
they are up to date. The text around them is written by hand.
"""

from __future__ import annotations

import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

import acestep.settings
from acestep.core.errors import UserError
from acestep.core.paths import existing_file, write_text
from acestep.settings.base import Knob, Settings, fields_of

GUIDE = Path(__file__).resolve().parents[2] / "TRAINING_GUIDE.md"

_TABLE = re.compile(r"(<!-- settings: (\w+) -->\n).*?(<!-- end of settings -->)", re.DOTALL)


def settings_table(settings: type[Settings]) -> str:
    """A Markdown table of every setting of a class, one row a setting, gathered by group."""
    groups: dict[str, list[Knob]] = {}
    for knob in fields_of(settings):
        groups.setdefault(knob.group, []).append(knob)
    lines = ["| setting | default | values | what it does |", "|---|---|---|---|"]
    for group, knobs in groups.items():
        lines.append(f"| **{group}** | | | |")
        for knob in knobs:
            cells = [f"`{knob.name}`", _default(knob), _values(knob), knob.help]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def with_tables(text: str) -> str:
    """`text` with every table between `<!-- settings: NAME -->` and `<!-- end of settings -->` made anew."""
    return _TABLE.sub(lambda match: match[1] + settings_table(_settings_named(match[2])) + match[3], text)


def tables_in(text: str) -> list[str]:
    """Names of the settings classes that have a table in `text`."""
    return [match[2] for match in _TABLE.finditer(text)]


def _settings_named(name: str) -> type[Settings]:
    found = getattr(acestep.settings, name, None)
    if not (isinstance(found, type) and issubclass(found, Settings)):
        raise UserError(f"The guide asks for a table of {name}, which is no class of settings.", fix="Correct it.")
    return found


def _default(knob: Knob) -> str:
    if knob.default is None:
        return "unset"
    if isinstance(knob.default, bool):
        return "on" if knob.default else "off"
    if isinstance(knob.default, list):
        return ", ".join(f"`{item}`" if isinstance(item, str) else f"{item:g}" for item in knob.default) or "none"
    if isinstance(knob.default, int | float):
        return f"{knob.default:g}"
    if isinstance(knob.default, tuple | dict):
        return ", ".join(f"`{item}`" for item in knob.default) or "empty"
    return f"`{knob.default}`" if knob.default != "" else "empty"


def _values(knob: Knob) -> str:
    words = _words(knob.annotation)
    optional = "unset" in words
    text = " ".join(part for part in (", ".join(word for word in words if word != "unset"), knob.bounds) if part)
    return f"{text}, or unset" if optional else text


def _words(annotation: Any) -> list[str]:
    """What a value may be, in words."""
    if typing.get_origin(annotation) is typing.Literal:
        return [f"`{choice}`" if choice != "" else "empty" for choice in typing.get_args(annotation)]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return [word for part in typing.get_args(annotation) for word in _words(part)]
    if typing.get_origin(annotation) is tuple:
        return ["any of " + ", ".join(_words(typing.get_args(annotation)[0]))]
    if typing.get_origin(annotation) is dict:
        return [f"{_words(typing.get_args(annotation)[1])[0]} by name"]
    if typing.get_origin(annotation) is list:
        return [{int: "whole numbers", float: "numbers", str: "texts"}[typing.get_args(annotation)[0]]]
    names = {bool: "on or off", int: "whole number", float: "number", str: "text", type(None): "unset"}
    return [names.get(annotation, str(annotation))]


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        text = existing_file(GUIDE, "the guide").read_text(encoding="utf-8")
        new = with_tables(text)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if new == text:
        return 0
    if "--check" in arguments:
        sys.stderr.write("TRAINING_GUIDE.md is out of date. Run python -m acestep.settings.guide.\n")
        return 1
    write_text(GUIDE, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())

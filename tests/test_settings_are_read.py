"""Every setting does something: code outside the settings, the command line and the apps reads it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from acestep import settings as declared
from acestep.settings import Settings, fields_of

PACKAGE = Path(__file__).resolve().parents[1] / "acestep"
NOT_READERS = {"settings", "cli", "ui"}
"""Rooms that pass settings on; naming one there makes nothing happen."""

READ_BY_THE_COMMAND = {"format"}
"""The suffix of a file whose name has none: commands name files, the rooms below write what they are told."""

CLASSES = [item for item in vars(declared).values() if isinstance(item, type) and issubclass(item, Settings)]
NAMES = sorted({knob.name for group in CLASSES for knob in fields_of(group)})


def whole_settings(node: ast.AST) -> bool:
    """Whether an expression is called settings, as `settings`, `chosen`, `session.settings` … are."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in ("settings", "_settings", "chosen")


@cache
def read_names() -> frozenset[str]:
    """Attributes of settings that the rooms below read, and what settings' own methods, which they call, read."""
    found: set[str] = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room in NOT_READERS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and whole_settings(node.value):
                found.add(node.attr)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) > 1:
                found |= {part.value for part in ast.walk(node.args[1]) if isinstance(part, ast.Constant)}
    return frozenset(found | methods_read(found))


def methods_read(called: set[str]) -> set[str]:
    """Settings that methods of settings read, where other rooms call these methods."""
    found: set[str] = set()
    for path in sorted((PACKAGE / "settings").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name in called:
                found |= {
                    part.attr
                    for part in ast.walk(node)
                    if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "self"
                }
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_is_read(name: str) -> None:
    assert (name in read_names()) != (name in READ_BY_THE_COMMAND), (
        f'nothing reads the setting "{name}": make it work or remove it'
    )


def test_what_nobody_reads_would_be_noticed() -> None:
    assert "no_such_setting" not in read_names() and len(NAMES) > 60

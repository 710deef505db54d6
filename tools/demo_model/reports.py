"""Results on the screen and on disk."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acestep.core.paths import write_text


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in columns, the first left-aligned."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = []
    for row in (head, ["-" * width for width in widths], *rows):
        first, *others = zip(row, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]).rstrip())
    return "\n".join(lines)


def number(value: float | None, form: str = ".1f") -> str:
    """A value as text; a dash where there is none."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def mean_and_spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean ± standard deviation of several runs; the mean alone of one."""
    mean = statistics.fmean(values)
    return f"{mean:{form}} ± {statistics.stdev(values):{form}}" if len(values) > 1 else format(mean, form)


def keep(file: Path, facts: dict[str, Any]) -> None:
    """Write all numbers as JSON. Values that are not numbers become null."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(_plain(facts), indent=1, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

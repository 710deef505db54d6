"""Curves as small SVG pictures that take the page's colours. Gradio's own line plot has no logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

MOST_POINTS = 1000
"""A curve is thinned to about so many points; more cannot be seen."""

WIDTH, HEIGHT = 720, 280
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 34

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One line of a chart. `style` is a class of the style sheet: raw, smooth, validation, other0 …"""

    label: str
    points: Sequence[Point]
    style: str = "smooth"


def smoothed(points: Sequence[Point], amount: float) -> list[Point]:
    """Exponential moving average with bias correction; `amount` from 0 (as it is) to below 1.

    Kingma & Ba 2015, section 3: dividing by 1 - amount^n keeps the first values from being drawn to zero.
    """
    average, result = 0.0, []
    for number, (x, y) in enumerate(points, start=1):
        average = amount * average + (1 - amount) * y
        result.append((x, average / (1 - amount**number)))
    return result


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """About `most` of the points: the lowest and the highest of each stretch, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(len(points) / (most // 2))
    kept: list[Point] = []
    for first in range(0, len(points), stretch):
        part = points[first : first + stretch]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    return kept


def chart(title: str, curves: Sequence[Curve], x_title: str = "step", logarithmic: bool = False) -> str:
    """An SVG of the curves over each other, with a legend. Values that are not numbers leave a gap in no line."""
    usable = [Curve(curve.label, _usable(curve.points, logarithmic), curve.style) for curve in curves]
    usable = [curve for curve in usable if curve.points]
    if not usable:
        return f'<figure class="chart empty"><figcaption>{escape(title)}</figcaption><p>No values yet.</p></figure>'
    across = _Axis([x for curve in usable for x, _ in curve.points], False, LEFT, WIDTH - RIGHT)
    up = _Axis([y for curve in usable for _, y in curve.points], logarithmic, HEIGHT - BOTTOM, TOP)
    grid = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up.at(y):.1f}" y2="{up.at(y):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{up.at(y) + 4:.1f}" text-anchor="end">{y:.4g}</text>'
        for y in up.ticks()
    ]
    grid += [
        f'<text x="{across.at(x):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{x:g}</text>' for x in across.ticks()
    ]
    lines = [_line(curve, across, up) for curve in usable]
    legend = "".join(f'<li class="{escape(curve.style)}">{escape(curve.label)}</li>' for curve in usable)
    lasts = "; ".join(f"{curve.label} {curve.points[-1][1]:.4g} at {curve.points[-1][0]:g}" for curve in usable)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}<ul>{legend}</ul></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title} by {x_title}: {lasts}")}">'
        f"{''.join(grid)}{''.join(lines)}</svg></figure>"
    )


def _usable(points: Sequence[Point], logarithmic: bool) -> list[Point]:
    return thinned([(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not logarithmic)])


def _line(curve: Curve, across: _Axis, up: _Axis) -> str:
    places = [f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in curve.points]
    style = escape(curve.style)
    if len(places) == 1:
        x, y = places[0].split(",")
        return f'<circle class="{style}" cx="{x}" cy="{y}" r="3"/>'
    return f'<polyline class="{style}" points="{" ".join(places)}"/>'


class _Axis:
    """From values to places on the picture."""

    def __init__(self, values: list[float], logarithmic: bool, start: float, end: float) -> None:
        self._logarithmic = logarithmic
        low, high = self._scaled(min(values)), self._scaled(max(values))
        size = max(abs(low), abs(high))
        if high - low <= 1e-9 * size:  # one value only, as far as a picture can tell
            margin = 0.05 * size or 0.5
            low, high = low - margin, high + margin
        self._low, self._high, self._start, self._end = low, high, start, end

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._logarithmic else value

    def at(self, value: float) -> float:
        share = (self._scaled(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Four to six round values within the axis; on a logarithmic one, spread evenly."""
        span = self._high - self._low
        if self._logarithmic:
            return [10 ** (self._low + span * number / 4) for number in range(5)]
        step = 10 ** math.floor(math.log10(span / 4))
        step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 5.5)
        first = math.ceil(self._low / step)
        return [round(number * step, 12) for number in range(first, math.floor(self._high / step + 1e-9) + 1)]

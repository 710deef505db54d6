"""Curves as pictures: nothing is lost by thinning, smoothing has no start-up bias, odd values break nothing."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.ui.charts import MOST_POINTS, Curve, chart, smoothed, thinned


def picture(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40), st.booleans())
def test_any_values_make_a_well_formed_picture(values: list[float], logarithmic: bool) -> None:
    points = [(float(step), value) for step, value in enumerate(values) if abs(value) < 1e300 or math.isnan(value)]
    figure = picture(chart("Loss <of> & run", [Curve("a & b", points)], logarithmic=logarithmic))
    assert figure.tag == "figure"
    for line in figure.iter("polyline"):
        for place in line.attrib["points"].split():
            assert all(math.isfinite(float(part)) for part in place.split(","))


def test_thinning_keeps_the_peaks_and_the_order() -> None:
    points = [(float(step), math.sin(step / 50)) for step in range(20_000)]
    points[7_777] = (7_777.0, 99.0)
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS + 2 and (7_777.0, 99.0) in kept
    assert kept == sorted(kept) and set(kept) <= set(points)


def test_smoothing_leaves_a_constant_alone_and_weighs_as_the_formula() -> None:
    constant = [(float(step), 2.5) for step in range(10)]
    assert [y for _, y in smoothed(constant, 0.9)] == pytest.approx([2.5] * 10)
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    weights = [0.6 ** (4 - number) for number in range(5)]
    expected = sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
    assert smoothed(list(enumerate(values)), 0.6)[-1][1] == pytest.approx(expected)


def test_the_last_values_are_said_in_words() -> None:
    html = chart("Loss", [Curve("training", [(1, 2.0), (2, 0.5)]), Curve("validation", [(2, 0.75)], "validation")])
    label = next(picture(html).iter("svg")).attrib["aria-label"]
    assert "training 0.5 at 2" in label and "validation 0.75 at 2" in label


def test_without_values_the_chart_says_so() -> None:
    assert "No values yet." in chart("Loss", [Curve("training", [])])
    assert "No values yet." in chart("Loss", [Curve("training", [(1, -1.0)])], logarithmic=True)

"""The measuring backend: what it declares, and that it answers only what was asked and heard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from acestep.captioning.contract import SongToLabel
from acestep.captioning.registry import backend
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.dataset.spelling import bpm, key_scale, time_signature
from acestep.settings.caption import CaptionSettings

EVERYTHING = frozenset({"bpm", "keyscale", "timesignature", "caption"})


def test_it_is_known_by_what_it_gives() -> None:
    facts = backend("analysis").facts
    assert "bpm" in facts.gives and "caption" not in facts.gives
    assert (facts.origin, facts.hears, facts.network, facts.key_variable) == ("analysis", None, False, "")


def test_values_are_spelled_as_labels_are_and_only_those_asked_for(demo_songs: Path) -> None:
    path = demo_songs / "Clockwork March.mp3"
    with backend("analysis").open(CaptionSettings(), {}, Job()) as measuring:
        values = measuring.label(SongToLabel(path, 20.0, EVERYTHING)).values
        some = measuring.label(SongToLabel(path, 20.0, frozenset({"keyscale"}))).values
    assert values.keys() <= {"bpm", "keyscale", "timesignature"} and some.keys() <= {"keyscale"}
    for name, spelled in (("bpm", bpm), ("keyscale", key_scale), ("timesignature", time_signature)):
        if name in values:
            assert spelled(values[name].value).value == values[name].value
            assert 0.4 <= values[name].confidence <= 1


def test_what_has_no_tempo_is_absent_and_a_bad_file_is_an_error(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "noise.wav", 0.1 * np.random.default_rng(0).standard_normal(6 * 44_100), 44_100)
    (tmp_path / "text.mp3").write_text("words " * 400)
    with backend("analysis").open(CaptionSettings(), {}, Job()) as measuring:
        assert measuring.label(SongToLabel(tmp_path / "noise.wav", 6.0, EVERYTHING)).values == {}
        with pytest.raises(UserError, match=r"text\.mp3"):
            measuring.label(SongToLabel(tmp_path / "text.mp3", 0.0, EVERYTHING))

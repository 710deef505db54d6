"""A command made from settings gives the same settings when it is read back."""

from __future__ import annotations

import shlex
import typing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep.cli.arguments import parse_options
from acestep.cli.commands import TrainOptions
from acestep.settings import TrainSettings, fields_of
from acestep.settings.base import Knob
from acestep.settings.command_line import command_text, options_of
from acestep.settings.presets import preset_values

TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)
BY_HAND: dict[str, st.SearchStrategy[Any]] = {
    "layers": st.sampled_from(["", "0", "0-11,20"]),
    "rank_pattern": st.just({"layers.0.self_attn.q_proj": 16, "layers.1.mlp.up_proj": 4}),
    "alpha_pattern": st.just({"layers.0.self_attn.q_proj": 0.1}),
    "preview_captions": st.lists(TEXTS.filter(lambda text: text.strip() != ""), max_size=3),
    "preview_seeds": st.lists(st.integers(0, 1 << 40), min_size=1, max_size=3, unique=True),
    "preview_strengths": st.just([-0.5, 0.0, 1.25]),
    "lokr_factor": st.sampled_from([-1, 4]),
}
"""Settings whose values have a form of their own."""


def values_of(knob: Knob) -> st.SearchStrategy[Any]:
    if knob.name in BY_HAND:
        return BY_HAND[knob.name]
    parts = [part for part in typing.get_args(knob.annotation) if isinstance(part, type)]
    optional = type(None) in parts
    kind = knob.annotation
    if optional:
        kind = next(part for part in typing.get_args(knob.annotation) if part is not type(None))
    found: st.SearchStrategy[Any]
    if typing.get_origin(kind) is typing.Literal:
        found = st.sampled_from(typing.get_args(kind))
    elif typing.get_origin(kind) is tuple:
        choices = typing.get_args(typing.get_args(kind)[0])
        found = st.sets(st.sampled_from(choices)).map(lambda chosen: tuple(c for c in choices if c in chosen))
    elif kind is bool:
        found = st.booleans()
    elif kind is int:
        found = st.integers(int(knob.minimum or 0), int(min(knob.maximum or 10**6, 10**6)))
    elif kind is float:
        found = st.floats(knob.minimum or 0.0, min(knob.maximum or 1e6, 1e6), exclude_min=True, exclude_max=True)
    else:
        found = TEXTS
    return st.none() | found if optional else found


ONE_SETTING = st.one_of(
    *(values_of(knob).map(lambda value, n=knob.name: (n, value)) for knob in fields_of(TrainSettings))
)


def read_back(text: str) -> TrainSettings:
    options = parse_options(TrainOptions, shlex.split(text)[2:], "acestep train", "train")
    return TrainSettings(**{name: getattr(options, name) for name in TrainSettings.model_fields})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ONE_SETTING, max_size=8).map(dict))
def test_any_settings_come_back_from_their_command(values: dict[str, Any]) -> None:
    try:
        wanted = TrainSettings(**values)
    except ValueError:
        return  # values that contradict each other
    assert read_back(command_text(["acestep", "train", *options_of(wanted, {})])) == wanted


@pytest.mark.parametrize("knob", list(fields_of(TrainSettings)), ids=lambda knob: knob.name)
def test_every_setting_has_values_that_a_command_can_carry(knob: Knob) -> None:
    strategy = values_of(knob)

    @settings(max_examples=2, deadline=None, database=None)
    @given(strategy)
    def check(value: Any) -> None:
        try:
            wanted = TrainSettings(**{knob.name: value})
        except ValueError:
            return
        assert read_back(command_text(["acestep", "train", *options_of(wanted, {})])) == wanted

    check()


def test_only_what_differs_from_the_preset_is_in_the_command() -> None:
    preset = preset_values("tier_8gb_lora")
    changed = TrainSettings(**{**preset, "rank": 32, "gradient_checkpointing": 0.0})
    arguments = options_of(changed, preset)
    assert arguments == ["--rank", "32", "--gradient-checkpointing", "0.0"]
    assert read_back(command_text(["acestep", "train", "--preset", "tier_8gb_lora", *arguments])) == changed

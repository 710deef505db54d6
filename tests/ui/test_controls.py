"""Controls made from settings: what they show is what the settings take back."""

from __future__ import annotations

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.settings import (
    CaptionSettings,
    DatasetSettings,
    GenerateSettings,
    PreprocessSettings,
    Settings,
    TrainSettings,
)
from acestep.settings.base import SettingsError, fields_of
from acestep.ui.controls import Controls, by_group, from_shown, title_of, to_shown
from acestep.ui.dataset_fields import field_component

MODULES = ["layers.0.self_attn.q_proj", "layers.3.mlp.up_proj"]
CLASSES = (TrainSettings, PreprocessSettings, GenerateSettings, DatasetSettings)


@pytest.mark.parametrize("settings", CLASSES)
def test_every_setting_has_a_control_with_its_label_and_help(settings: type[Settings]) -> None:
    controls = Controls(settings)
    with gr.Blocks():
        controls.draw(settings.model_fields, {})
    for knob in fields_of(settings):
        part = controls.components[knob.name]
        assert part.label == title_of(knob.name) and knob.help in part.info
        assert part.elem_id == f"setting-{knob.name}"


@pytest.mark.parametrize("settings", CLASSES)
def test_defaults_survive_the_page(settings: type[Settings]) -> None:
    shown = {knob.name: to_shown(knob, knob.default) for knob in fields_of(settings)}
    values = {knob.name: from_shown(knob, shown[knob.name]) for knob in fields_of(settings)}
    assert settings.parse(values, "the page") == settings()


@given(
    values=st.fixed_dictionaries(
        {
            "rank_pattern": st.dictionaries(
                st.sampled_from(["layers.0.self_attn.q_proj", "layers.3.mlp.up_proj"]), st.integers(1, 64)
            ),
            "self_modules": st.sets(st.sampled_from("qkvo"), min_size=1).map(lambda found: tuple(sorted(found))),
            "preview_captions": st.lists(st.from_regex(r"[a-z][a-z, ]{0,18}[a-z]", fullmatch=True), max_size=3),
            "preview_seeds": st.lists(st.integers(0, 2**40), min_size=1, max_size=4, unique=True),
            "timestep_mu": st.none() | st.integers(-20, 20).map(lambda tenth: tenth / 10),
            "tag_position": st.sampled_from([None, "prepend", "append", "replace"]),
            "learning_rate": st.sampled_from([1e-6, 3e-5, 1e-4, 0.5]),
            "dora": st.booleans(),
            "layers": st.sampled_from(["", "0-3", "1,5,7"]),
        }
    )
)
def test_every_kind_of_value_survives_the_page(values: dict[str, object]) -> None:
    knobs = {knob.name: knob for knob in fields_of(TrainSettings)}
    wanted = TrainSettings.parse(values, "the test")
    shown = {name: to_shown(knobs[name], getattr(wanted, name)) for name in values}
    back = {name: from_shown(knobs[name], item) for name, item in shown.items()}
    assert TrainSettings.parse(back, "the page") == wanted


def test_a_problem_stands_at_its_field_and_goes_again() -> None:
    controls = Controls(TrainSettings)
    with gr.Blocks():
        controls.draw(["rank"], {})
    wrong, right = controls.marked("rank", "Too large."), controls.marked("rank", None)
    assert wrong["info"] == "Too large." and "wrong" in wrong["elem_classes"]
    assert "LoRA rank" in right["info"] and "wrong" not in right["elem_classes"]


def test_a_number_that_may_be_left_open_is_no_number_field() -> None:
    """Gradio's number field shows 0 in the place of nothing when it comes onto the page."""
    fields = [field_component("bpm")]
    for settings in (*CLASSES, CaptionSettings):
        controls = Controls(settings)
        controls.draw(settings.model_fields, {})
        fields += [part for name, part in controls.components.items() if settings.model_fields[name].default is None]
    assert len(fields) > 10 and not any(isinstance(field, gr.Number) for field in fields)
    bpm = next(knob for knob in fields_of(GenerateSettings) if knob.name == "bpm")
    assert [from_shown(bpm, text) for text in ("", " ", None)] == [None] * 3
    assert GenerateSettings.parse({"bpm": from_shown(bpm, " 120 ")}, "the page").bpm == 120


def test_wrong_settings_name_every_field() -> None:
    with pytest.raises(SettingsError) as caught:
        TrainSettings.parse({"rank": 0, "learning_rate": "fast"}, "Train")
    assert set(caught.value.fields) == {"rank", "learning_rate"}
    assert "greater than or equal to 1" in caught.value.fields["rank"]


def test_groups_keep_the_order_of_declaration() -> None:
    basic = by_group(TrainSettings, "basic")
    assert next(iter(basic)) == "adapter" and basic["adapter"][0] == "adapter"
    everything = [name for names in by_group(TrainSettings).values() for name in names]
    assert sorted(everything) == sorted(TrainSettings.model_fields)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("learning_rate", "Learning rate"),
        ("preview_duration_s", "Preview duration (s)"),
        ("bpm", "BPM"),
        ("ema_decay", "EMA decay"),
        ("lokr_dim", "LoKr dim"),
    ],
)
def test_titles_read_well(name: str, title: str) -> None:
    assert title_of(name) == title

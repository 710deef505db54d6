"""Controls made from settings, and settings made from what stands in the controls.

Nothing about a single setting is known here: name, help, bounds, default and group come from its declaration.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from acestep.settings.base import Knob, Settings, fields_of

SPELLED_OUT = {"bpm": "BPM", "ema": "EMA", "snr": "SNR", "lora": "LoRA", "lokr": "LoKr", "loha": "LoHa", "oft": "OFT"}
SPELLED_OUT |= {"mlp": "MLP", "dora": "DoRA", "rslora": "rsLoRA", "s": "(s)", "keyscale": "key and scale"}
SPELLED_OUT |= {"to": "program", "dtype": "number format", "tensorboard": "TensorBoard", "id": "ID"}
SPELLED_OUT |= {"timesignature": "time signature"}
"""Words in names of settings that people write otherwise."""

WIDEST_SLIDER = 100
"""Whole numbers over a wider range than this are typed and not slid."""

UNSET = "as the model or dataset says"
"""What stands for a setting left open."""


def title_of(name: str) -> str:
    """A setting's name as people read it: learning_rate is Learning rate, preview_duration_s Preview duration (s)."""
    words = " ".join(SPELLED_OUT.get(word, word) for word in name.split("_"))
    return words[:1].upper() + words[1:]


@dataclass
class Controls:
    """The components of some settings of one class, by setting."""

    settings: type[Settings]
    components: dict[str, gr.components.Component] = field(default_factory=dict)
    knobs: dict[str, Knob] = field(default_factory=dict)

    def values(self, shown: Mapping[str, Any]) -> dict[str, Any]:
        """Settings' values from what the components hold; pydantic judges them afterwards."""
        return {name: from_shown(knob, shown[name]) for name, knob in self.knobs.items() if name in shown}

    def updates(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What to show for settings' values, by name; names without a component are left out."""
        return {name: to_shown(self.knobs[name], value) for name, value in values.items() if name in self.knobs}

    def marked(self, name: str, problem: str | None) -> Any:
        """An update that puts a problem where its field is, or takes it away."""
        return gr.update(
            info=problem or help_of(self.knobs[name]), elem_classes=["setting", "wrong"] if problem else ["setting"]
        )

    def draw(self, names: Iterable[str], values: Mapping[str, Any]) -> None:
        """Make the components of `names` here on the page, showing `values` where given."""
        known = {knob.name: knob for knob in fields_of(self.settings)}
        for name in names:
            knob = known[name]
            self.knobs[name] = knob
            self.components[name] = component(knob, values.get(name, knob.default))


def by_group(settings: type[Settings], level: str | None = None) -> dict[str, list[str]]:
    """Names of settings by group, in order of declaration; only those of a level, if one is given."""
    groups: dict[str, list[str]] = {}
    for knob in fields_of(settings):
        if level is None or knob.level == level:
            groups.setdefault(knob.group, []).append(knob.name)
    return groups


def help_of(knob: Knob) -> str:
    return f"{knob.help} ({knob.bounds})" if knob.bounds else knob.help


def component(knob: Knob, value: Any) -> gr.components.Component:
    """The control that fits a setting's type and bounds."""
    common: dict[str, Any] = {
        "label": title_of(knob.name),
        "info": help_of(knob),
        "value": to_shown(knob, value),
        "elem_id": f"setting-{knob.name}",
        "elem_classes": ["setting"],
        "interactive": True,
    }
    kind, optional = _kind(knob.annotation)
    if typing.get_origin(kind) is typing.Literal:
        choices = [(str(choice) or UNSET, choice) for choice in typing.get_args(kind)]
        return gr.Dropdown(choices=[(UNSET, "unset"), *choices] if optional else choices, **common)
    if typing.get_origin(kind) is tuple:
        return gr.CheckboxGroup(choices=list(typing.get_args(typing.get_args(kind)[0])), **common)
    if kind is bool:
        return gr.Checkbox(**common)
    if kind in (int, float):
        return _number(knob, kind, optional, common)
    lines = 3 if kind is not str or knob.name.endswith(("lyrics", "caption")) else 1
    return gr.Textbox(lines=lines, max_lines=12, **common)


def _number(knob: Knob, kind: type, optional: bool, common: dict[str, Any]) -> gr.components.Component:
    low, high = knob.minimum, knob.maximum
    if optional:  # a number field that Gradio brings onto the page makes 0 of nothing
        return gr.Textbox(lines=1, max_lines=1, placeholder=UNSET, **common)
    if kind is int and low is not None and high is not None and high - low <= WIDEST_SLIDER:
        return gr.Slider(minimum=low, maximum=high, step=1, **common)
    # bounds are left to the settings, whose sentence stands at the field
    return gr.Number(precision=0 if kind is int else None, **common)


def _kind(annotation: Any) -> tuple[Any, bool]:
    """The type of a setting, and whether it may be left open."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        parts = [part for part in typing.get_args(annotation) if part is not types.NoneType]
        return parts[0], True
    return annotation, False


def to_shown(knob: Knob, value: Any) -> Any:
    """A setting's value as its control shows it."""
    kind, optional = _kind(knob.annotation)
    if value is None:
        return "unset" if optional and typing.get_origin(kind) is typing.Literal else None
    if typing.get_origin(kind) is dict:
        return "\n".join(f"{name}={item}" for name, item in value.items())
    if typing.get_origin(kind) is list:
        texts = typing.get_args(kind)[0] is str
        return ("\n" if texts else ", ").join(str(item) for item in value)
    return list(value) if isinstance(value, tuple) else value


def from_shown(knob: Knob, shown: Any) -> Any:
    """What a control holds as a setting's value. What cannot be read stays as it is, for the settings to refuse."""
    kind, optional = _kind(knob.annotation)
    shown = shown.strip() if kind in (int, float) and isinstance(shown, str) else shown
    if optional and shown in (None, "", "unset"):
        return None
    if typing.get_origin(kind) in (list, dict) and isinstance(shown, str):  # a dict: its NAME=NUMBER lines
        texts = typing.get_origin(kind) is dict or typing.get_args(kind)[0] is str
        parts = shown.splitlines() if texts else shown.split(",")
        return [part.strip() for part in parts if part.strip()]
    if typing.get_origin(kind) is tuple:
        return tuple(shown or ())
    return (shown or "") if kind is str else shown

"""The card of an adapter: README.md beside its files, with what a listener needs to know. Plain text, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acestep.adapters.files import AdapterInfo, read_adapter_info
from acestep.adapters.source import TriggerTag
from acestep.core.paths import write_text
from acestep.core.words import counted

CARD_FILE = "README.md"
_LONGEST_CURVE = 10

_HUB_NAMES = {
    **{f"xl-{name}": f"ACE-Step/acestep-v15-xl-{name}" for name in ("turbo", "base", "sft")},
    "turbo": "ACE-Step/Ace-Step1.5",
    "base": "ACE-Step/acestep-v15-base",
    "sft": "ACE-Step/acestep-v15-sft",
}

_TAG_USE = {
    "prepend": "before the caption: `{word}, your caption`",
    "append": "after the caption: `your caption, {word}`",
    "replace": "instead of a caption: `{word}`",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card says beyond the adapter's own files. Everything may be left out.

    `songs` and `audio_s` are what was trained on, `held_out` how many songs (of kind "windows": ends of songs)
    judged it. `validations` are pairs of optimizer step and loss; `settings` the choices of the run by their names.
    """

    title: str = ""
    variant: str = ""
    songs: int = 0
    audio_s: float = 0.0
    held_out: int = 0
    held_out_kind: str = ""
    step: int | None = None
    why: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    validations: Sequence[tuple[int, float]] = ()


def write_card(folder: Path, facts: CardFacts = CardFacts(), adapter: Path | None = None) -> Path:
    """Write README.md into a folder; the same facts make the same text.

    `adapter` is the adapter the card is about, where the folder holds another program's form of it.
    """
    path = folder / CARD_FILE
    write_text(path, card_text(adapter or folder, facts))
    return path


def card_text(adapter: Path, facts: CardFacts) -> str:
    """The card: a header the Hub reads, what the adapter is, how it was trained, how to load it."""
    info = read_adapter_info(adapter)
    parts = [
        _header(facts, info.trigger),
        f"# {_plain(facts.title) or 'ACE-Step 1.5 adapter'}",
        f"{info.summary}, for ACE-Step 1.5{f' ({_plain(facts.variant)})' if facts.variant else ''}.",
        _trigger(info.trigger),
        _training(facts),
        _curve(facts.validations),
        _loading(info),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(facts: CardFacts, trigger: TriggerTag) -> str:
    # JSON is YAML as well, and quotes whatever a user has typed
    lines = ["---", "tags: [ace-step, ace-step-1.5, music, text-to-audio, lora]"]
    if facts.variant in _HUB_NAMES:
        lines.append(f"base_model: {_HUB_NAMES[facts.variant]}")
    if trigger.word:
        lines.append(f"instance_prompt: {json.dumps(trigger.word, ensure_ascii=False)}")
    return "\n".join([*lines, "---"])


def _trigger(trigger: TriggerTag) -> str:
    if not trigger.word:
        return "It has no trigger word: it is heard in everything while it is loaded."
    word = _plain(trigger.word)
    return f"Trigger word: `{word}`. Write it {_TAG_USE[trigger.position].format(word=word)}."


def _training(facts: CardFacts) -> str:
    lines = []
    if facts.songs:
        length = f", {_length(facts.audio_s)}" if facts.audio_s else ""
        lines.append(f"Trained on {counted(facts.songs, 'songs')}{length}.{_held_out(facts)}")
    if facts.step is not None:
        lines.append(f"These are the weights of step {facts.step}{f' ({_plain(facts.why)})' if facts.why else ''}.")
    rows = [f"| {_plain(str(name))} | {_plain(_value(value))} |" for name, value in facts.settings.items()]
    if rows:
        lines += ["", "| setting | value |", "|---|---|", *rows]
    return "\n".join(["## Training", "", *lines]) if lines else ""


def _held_out(facts: CardFacts) -> str:
    if not facts.held_out:
        return ""
    held = counted(facts.held_out, "songs")
    if facts.held_out_kind == "windows":
        return f" The ends of {held} were kept back to judge it."
    return f" {held} more {'was' if facts.held_out == 1 else 'were'} kept back to judge it."


def _length(seconds: float) -> str:
    return counted(round(seconds), "seconds") if seconds < 59.5 else counted(round(seconds / 60), "minutes")


def _value(value: Any) -> str:
    """A setting as people write it: lists with commas, switches in words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_value(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value)
    return str(value)


def _curve(validations: Sequence[tuple[int, float]]) -> str:
    if not validations:
        return ""
    best = min(validations, key=lambda pair: pair[1])[0]
    rows = [f"| {step} | {loss:.5f}{' (best)' if step == best else ''} |" for step, loss in _thinned(validations, best)]
    return "\n".join(["Validation loss, always on the same noise:", "", "| step | loss |", "|---|---|", *rows])


def _thinned(validations: Sequence[tuple[int, float]], best: int) -> list[tuple[int, float]]:
    """At most ten or so points of the curve: evenly spread, with the first, the last and the best."""
    last = len(validations) - 1
    count = min(len(validations), _LONGEST_CURVE)
    kept = {round(index * last / max(1, count - 1)) for index in range(count)}
    return [pair for index, pair in enumerate(validations) if index in kept or pair[0] == best]


def _loading(info: AdapterInfo) -> str:
    merged = "it does not read this kind; `acestep merge ADAPTER --model MODEL --out FOLDER` makes a whole model of it."
    place = f"`{info.weights.name}` (LoKr)" if info.kind == "lokr" else "this folder"
    official = merged if info.kind == "loha" else f'give it {place} as the LoRA path. Switch "thinking" off to hear it.'
    model = " --model MODEL" if info.spec.needs_base else ""
    load = (
        '`pipe.transformer.load_lora_adapter(FOLDER, weight_name="pytorch_lora_weights.safetensors")`'
        if info.kind == "lokr"
        else "`pipe.load_lora_weights(FOLDER)`"
    )
    refit = f" --dora refit{model}" if model else ""
    made = f"a folder made by `acestep export ADAPTER --to diffusers{refit} --out FOLDER`"
    diffusers = merged if info.kind in ("loha", "oft") else f"{load} with {made}. Newer than 0.41."
    hint = f" and write `{_plain(info.trigger.word)}` into the tags" if info.trigger.word else ""
    return "\n".join(
        [
            "## Loading",
            "",
            f"- ACE-Step app: {official}",
            f"- ComfyUI: `acestep export ADAPTER --to comfyui{model} --out NAME.safetensors`, put the file into "
            f"`models/loras`, load it with the node Load LoRA{hint}. Loaded without that, a LoRA plays at the wrong "
            "strength there.",
            f"- diffusers: {diffusers}",
            "- This program: `acestep generate --model MODEL --adapter FOLDER --caption …`.",
        ]
    )


def _plain(text: str) -> str:
    """User text in one line that neither ends a table cell nor code."""
    return " ".join(text.split()).replace("|", "/").replace("`", "'")

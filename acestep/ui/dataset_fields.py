"""The labels of a song as fields of a page: one component each, and the value it shows."""

from __future__ import annotations

from typing import Any

import gradio as gr

from acestep.dataset.languages import LANGUAGE_NAMES
from acestep.dataset.song import NOT_SAID, Song
from acestep.model.facts import UNKNOWN_LANGUAGE
from acestep.ui.dataset_table import METRES

TITLES = {
    "caption": ("Caption", "What the music is like: style, mood, instruments, voice."),
    "genre": ("Genre", "Short; used instead of the caption for some songs if you want that."),
    "lyrics": ("Lyrics", "Sections in brackets, as [Verse]. Times of LRC lyrics are kept."),
    "bpm": ("BPM", "30 to 300"),
    "keyscale": ("Key", "Such as A minor."),
    "timesignature": ("Metre", ""),
    "language": ("Language", ""),
    "is_instrumental": ("Instrumental", "Nobody sings."),
    "custom_tag": ("Trigger word of this song", "Instead of the one of all songs."),
    "prompt_override": ("Prompt made from", ""),
    "repeat": ("Repeat", "How often the song counts in training."),
    "regularization": ("Regularization", "Holds the model to what it knew: no trigger word, a weight of its own."),
}
"""Name and help of each label. A label without a row here is called as in files."""

TYPED = frozenset({"caption", "genre", "lyrics", "bpm", "custom_tag", "repeat"})
"""Labels that are typed; the others are chosen."""

LETTERS = ("C", "C#", "Db", "D", "Eb", "E", "F", "F#", "Gb", "G", "Ab", "A", "Bb", "B")
KEYS = [f"{letter} {mode}" for mode in ("major", "minor") for letter in LETTERS]
LANGUAGE_CHOICES = [
    ("not said", UNKNOWN_LANGUAGE),
    *sorted((f"{name} ({code})", code) for code, name in LANGUAGE_NAMES.items()),
]


def part_of(name: str) -> str:
    """The name of a label's field among the parts of the tab."""
    return f"label_{name}"


def help_of_label(name: str) -> str | None:
    return TITLES.get(name, ("", ""))[1] or None


def field_component(name: str) -> gr.components.Component:
    """The field of a label."""
    common: dict[str, Any] = {
        "label": TITLES.get(name, (name, ""))[0],
        "info": help_of_label(name),
        "elem_id": f"label-{name}",
        "elem_classes": ["setting"],
        "interactive": True,
    }
    if name == "keyscale":
        return gr.Dropdown([("not said", ""), *KEYS], allow_custom_value=True, min_width=150, **common)
    if name == "timesignature":
        return gr.Dropdown(
            [("not said", ""), *((text, code) for code, text in METRES.items())], min_width=150, **common
        )
    if name == "language":
        return gr.Dropdown(LANGUAGE_CHOICES, min_width=150, **common)
    if name == "prompt_override":
        choices = [("as for all songs", ""), ("its caption", "caption"), ("its genre", "genre")]
        return gr.Dropdown(choices, min_width=150, **common)
    if isinstance(NOT_SAID[name], bool):
        return gr.Checkbox(**common)
    if name == "repeat":
        return gr.Number(precision=0, min_width=150, **common)
    if name == "bpm":  # it may be empty, and a number field that Gradio brings onto the page makes 0 of nothing
        return gr.Textbox(lines=1, max_lines=1, min_width=150, **common)
    lines = {"caption": 3, "lyrics": 9}.get(name, 1)
    return gr.Textbox(lines=lines, max_lines=lines * 2, **common)


def shown_value(song: Song, name: str) -> Any:
    """A label as its field shows it. Lyrics show their times where they have some."""
    if name == "lyrics":
        return song.written_lyrics
    value = getattr(song, name)
    return "" if name == "prompt_override" and value is None else value

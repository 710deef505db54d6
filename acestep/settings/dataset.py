"""Settings of a dataset: what is true of all its songs."""

from __future__ import annotations

from typing import Literal

from acestep.settings.base import Settings, knob

TagPosition = Literal["prepend", "append", "replace"]


class DatasetSettings(Settings):
    """How captions are turned into prompts for every song of a dataset."""

    name: str = knob("my_dataset", "Name of the dataset.", group="dataset", level="basic")
    trigger_word: str = knob(
        "", "Word that calls the trained style in a prompt; leave empty for none.", group="dataset", level="basic"
    )
    tag_position: TagPosition = knob(
        "prepend", "Where the trigger word stands: before the caption, after it, or instead of it.", group="dataset"
    )
    genre_ratio: int = knob(
        0, "Percentage of songs whose prompt is the genre instead of the caption.", group="dataset", ge=0, le=100
    )

"""What the model will be told about a song in training."""

from __future__ import annotations

from acestep.dataset.dataset import Dataset, genre_songs
from acestep.dataset.song import Song
from acestep.model.prompt import lyric_prompt, text_prompt, with_tag


def training_prompts(dataset: Dataset, song: Song, longest_s: float = 0.0) -> tuple[str, str]:
    """The text prompt and the lyric prompt of a song of which at most `longest_s` seconds are encoded (0: all).

    With the trigger word in its place, and with the genre instead of the caption where the dataset's draw says so.
    """
    genre_ids = genre_songs(dataset.labeled_songs, dataset.settings.genre_ratio)
    words = with_tag(song.words(song.prompt_source(genre_ids)), dataset.tag_of(song), dataset.settings.tag_position)
    duration_s = min(song.duration_s, longest_s) if longest_s else song.duration_s
    labels = song.labels(words, duration_s)
    return text_prompt(labels), lyric_prompt(labels)

"""Whisper on this machine, as a tiny checkpoint of its true class."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from acestep.captioning.contract import FIELDS, Answer, SongToLabel
from acestep.captioning.demo import build_whisper
from acestep.captioning.registry import backend
from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job
from acestep.dataset.lrc import plain_lyrics
from acestep.settings.caption import CaptionSettings


def song(duration_s: float, seed: int = 0, language: str = "") -> SongToLabel:
    noise = np.random.default_rng(seed).normal(0, 0.1, (1, round(16_000 * duration_s))).astype(np.float32)
    return SongToLabel(Path(f"{seed}.wav"), duration_s, frozenset(FIELDS), noise, language)


def ask(folder: Path, *songs: SongToLabel, job: Job | None = None) -> list[Answer]:
    settings = CaptionSettings(lyrics_by="whisper", lyrics_model=str(folder), device="cpu")
    with backend("whisper").open(settings, {}, job or Job()) as opened:
        return [opened.label(one) for one in songs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_whisper(tmp_path_factory.mktemp("whisper"))


def test_a_long_song_becomes_lines_with_times(folder: Path) -> None:
    [answer] = ask(folder, song(9))
    lyrics = answer.values["lyrics"].value
    assert lyrics.startswith("[Verse")
    assert plain_lyrics(answer.timed_lyrics) == lyrics
    times = [line[1:9] for line in answer.timed_lyrics.split("\n") if line]
    assert times == sorted(times)
    assert times[-1] > "00:04.00", "words beyond the four seconds that this model hears at a time"
    assert answer.values["language"].value in ("en", "de", "ja")
    assert answer.usage == {"audio_s": 9.0}


def test_the_language_that_is_told_is_used(folder: Path) -> None:
    [answer] = ask(folder, song(3, language="ja"))
    assert answer.values["language"].value == "ja"


def test_an_answer_does_not_depend_on_what_came_before(folder: Path) -> None:
    assert ask(folder, song(3, 1))[0] == ask(folder, song(1), song(3, 1))[1]


def test_no_words_are_an_instrumental(tmp_path: Path) -> None:
    """A model that ends every passage before its first word."""
    weights = load_file(build_whisper(tmp_path) / "model.safetensors")
    end = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    embedding, norm = weights["model.decoder.embed_tokens.weight"], "model.decoder.layer_norm"
    embedding[:, 0] = 0
    embedding[end, 0] = 50
    weights[f"{norm}.weight"].zero_()
    weights[f"{norm}.bias"].zero_()[0] = 1
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    [answer] = ask(tmp_path, song(3))
    assert {field: guess.value for field, guess in answer.values.items()} == {"lyrics": "[Instrumental]"}
    assert answer.timed_lyrics == ""


class StopsSoon(Job):
    looks = 0

    @property
    def stop_requested(self) -> bool:
        self.looks += 1
        return self.looks >= 8


def test_a_stop_is_heard_within_a_song_and_the_model_goes(folder: Path) -> None:
    job = StopsSoon()
    chosen = CaptionSettings(lyrics_by="whisper", lyrics_model=str(folder), device="cpu")
    with backend("whisper").open(chosen, {}, job) as opened:
        model = weakref.ref(opened._hear.model)
        with pytest.raises(Stopped):
            opened.label(song(20))
    assert model() is None


def test_a_whisper_without_word_times_is_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    del generation["alignment_heads"]
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        ask(tmp_path, song(1))
    assert "alignment_heads" in caught.value.detail

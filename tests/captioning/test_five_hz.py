"""The 5 Hz language model: whatever it wants to say, its answer keeps the form; and the way from audio to labels."""

from __future__ import annotations

import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from acestep.captioning import five_hz
from acestep.captioning.contract import FIELDS, Answer, Field, SongToLabel
from acestep.captioning.five_hz import SAMPLE_RATE, codes_checkpoint, language_model_folder
from acestep.captioning.parsing import parse_think
from acestep.captioning.registry import backend
from acestep.captioning.think import KEYS, ThinkForm, Words
from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job
from acestep.dataset import spelling
from acestep.model.checkpoints import open_checkpoint
from acestep.model.demo import DIT_FOLDER, LANGUAGE_MODEL_FOLDER
from acestep.model.facts import LANGUAGES
from acestep.settings.caption import CaptionSettings

LABELS: frozenset[Field] = frozenset(FIELDS) - {"lyrics"}
PROMPT = [0, 1, 2]


@pytest.fixture(scope="module")
def words(demo_checkpoint: Path) -> Words:
    tokenizer = AutoTokenizer.from_pretrained(demo_checkpoint / LANGUAGE_MODEL_FOLDER)
    return Words.of(tokenizer, len(tokenizer) + 5, torch.device("cpu"))  # models have a few rows to spare


def write(words: Words, form: ThinkForm, wish, most: int = 2000) -> str:
    """The answer of a model whose scores [1, vocabulary] for what stands there are `wish`; greedy."""
    ids = list(PROMPT)
    for _ in range(most):
        scores = form(torch.tensor([ids]), wish(ids))
        ids.append(int(scores.argmax()))
        if ids[-1] == words.tokenizer.eos_token_id:
            break
    return words.tokenizer.decode(ids[len(PROMPT) :])


def noise(words: Words, seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda _ids: torch.randn(1, len(words.silent), generator=generator) * 5


@pytest.mark.parametrize("seed", range(8))
def test_whatever_a_model_wants_to_say_the_block_is_in_form(words: Words, seed: int) -> None:
    text = write(words, ThinkForm(words, len(PROMPT), {}, 40, with_lyrics=False), noise(words, seed))
    assert text.startswith("<think>\nbpm: ")
    assert text.endswith("\n</think><|im_end|>")
    assert "audio_code" not in text
    assert "`" not in text
    names = [line.partition(":")[0] for line in text.split("\n")[1:-1] if line[:1].strip()]
    assert names == ["bpm", "caption", "duration", "genres", "keyscale", "language", "timesignature"]
    values = parse_think(text).values
    assert 30 <= values["bpm"] <= 300
    assert values["keyscale"] == spelling.key_scale(values["keyscale"]).value
    assert values["timesignature"] in ("2", "3", "4", "6")
    assert values.get("language", "unknown") in LANGUAGES
    assert {"caption", "genre"} <= set(values) or "\ufffd" in text


def test_every_listed_value_can_be_written(words: Words) -> None:
    for key in KEYS[::9]:
        told = {"keyscale": key, "language": "yue", "bpm": "300"}
        form = ThinkForm(words, len(PROMPT), told, 40, with_lyrics=False)
        text = write(words, form, noise(words, 1))
        assert f"\nkeyscale: {key}\nlanguage: yue\n" in text
        assert "\nbpm: 300\n" in text
        assert form.chances["bpm"] == 1.0, "no choice was left"


def test_the_chance_is_that_among_the_values_of_the_list(words: Words) -> None:
    """What the model would rather say, were it free, does not count."""

    def chance(forbidden: float) -> float:
        scores = torch.zeros(1, len(words.silent))
        scores[0, words.tokens(" bpm")[0]] = forbidden
        form = ThinkForm(words, len(PROMPT), {"caption": "x", "genres": "y"}, 5, with_lyrics=False)
        write(words, form, lambda _ids: scores)
        return form.chances["timesignature"]

    assert chance(0.0) == pytest.approx(chance(50.0))
    assert 0.1 < chance(0.0) < 0.5, "one of four"


def test_captions_wrap_and_end(words: Words) -> None:
    """After a line break an indented word goes on, any other ends the caption; without one its length does."""

    def saying(text: str):
        line = words.tokens(text)

        def wish(ids: list[int]) -> torch.Tensor:
            written = ids[len(PROMPT) :]
            start = next((n for n in range(len(written) + 1) if written[n - len(head) : n] == head), None)
            scores = torch.zeros(1, len(words.silent))
            if start is not None and len(written) - start < len(line):
                scores[0, line[len(written) - start]] = 9.0
            return scores

        head = words.tokens("caption:")
        return write(words, ThinkForm(words, len(PROMPT), {"genres": "jazz"}, 60, with_lyrics=False), wish)

    wrapped = saying(" a slow song\n  with piano\nduration")
    assert parse_think(wrapped).values["caption"] == "a slow song with piano"
    endless = words.tokens(" piano")[0]
    bias = torch.zeros(1, len(words.silent))
    bias[0, endless] = 9.0
    form = ThinkForm(words, len(PROMPT), {"genres": "jazz"}, 6, with_lyrics=False)
    assert "\ncaption:" + 6 * " piano" + "\nduration: " in write(words, form, lambda _ids: bias)


def test_lyrics_are_free_but_hold_no_codes(words: Words) -> None:
    codes = torch.zeros(1, len(words.silent))
    codes[0, list(words.codes.values())] = 20.0
    codes[0, words.tokens("la")[0]] = 10.0
    text = write(words, ThinkForm(words, len(PROMPT), {}, 3, with_lyrics=True), lambda _ids: codes, most=120)
    assert "</think>l" in text
    assert "audio_code" not in text


# The backend ----------------------------------------------------------------------------------------------------------


def song(duration_s: float = 2.0, wanted: frozenset[Field] = LABELS, language: str = "", seed: int = 0) -> SongToLabel:
    samples = np.random.default_rng(seed).normal(0, 0.1, (2, round(SAMPLE_RATE * duration_s))).astype(np.float32)
    return SongToLabel(Path(f"{seed}.wav"), duration_s, wanted, samples, language)


def settings(checkpoint: Path, model: Path | str = "", **changes) -> CaptionSettings:
    values = {"caption_by": "five-hz-lm", "codes_model": str(checkpoint / DIT_FOLDER), "device": "cpu"}
    values |= {"caption_model": str(model or checkpoint / LANGUAGE_MODEL_FOLDER), "max_tokens": 32}
    return CaptionSettings(**(values | changes))


def ask(chosen: CaptionSettings, *songs: SongToLabel, job: Job | None = None) -> list[Answer]:
    with backend("five-hz-lm").open(chosen, {}, job or Job()) as opened:
        return [opened.label(one) for one in songs]


def test_a_song_gets_all_labels_but_lyrics(demo_checkpoint: Path) -> None:
    first, second = ask(settings(demo_checkpoint), song(language="de"), song(seed=1))
    assert set(first.values) >= {"bpm", "keyscale", "timesignature", "language"}
    assert "lyrics" not in first.values
    assert first.values["language"].value == "de"
    assert 0 < first.values["bpm"].confidence <= 1
    assert first.usage["audio_s"] == 2.0
    assert ask(settings(demo_checkpoint), song(seed=1)) == [second], "whatever came before"


def test_the_model_is_told_what_is_known(demo_checkpoint: Path) -> None:
    """The rest of the answer follows from it, and known fields are not answered."""
    free = song(wanted=frozenset({"keyscale", "timesignature"}))
    bound = replace(free, known={"bpm": 77, "caption": "slow\npiano", "genre": "jazz"})
    first, second = ask(settings(demo_checkpoint, temperature=2.0), free, bound)
    assert first.usage["tokens"] > second.usage["tokens"], "a short caption instead of a long one"
    assert set(second.values) <= {"keyscale", "timesignature"}


def test_codes_are_remembered_for_the_same_sound(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACESTEP_STATE_DIR", str(tmp_path))
    first = ask(settings(demo_checkpoint), song(wanted=frozenset({"bpm"})))
    [file] = (tmp_path / "audio-codes").iterdir()
    assert len(json.loads(file.read_text(encoding="utf-8"))["codes"]) == 10
    file.write_text("{", encoding="utf-8")
    assert ask(settings(demo_checkpoint), song(wanted=frozenset({"bpm"})), song(seed=1))[:1] == first
    assert len(list((tmp_path / "audio-codes").iterdir())) == 2
    assert len(json.loads(file.read_text(encoding="utf-8"))["codes"]) == 10, "a damaged file is made anew"


def test_draws_depend_on_the_seed_and_the_song_only(demo_checkpoint: Path) -> None:
    def values(seed: int) -> dict:
        return dict(ask(settings(demo_checkpoint, temperature=1.5, seed=seed), song())[0].values)

    assert values(1) == values(1) != values(2)


@pytest.fixture(scope="module")
def short_model(demo_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's language model with a short context."""
    folder = tmp_path_factory.mktemp("lm") / "short"
    shutil.copytree(demo_checkpoint / LANGUAGE_MODEL_FOLDER, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 360}), encoding="utf-8")
    return folder


def test_prompt_and_answer_fit_the_context_together(
    demo_checkpoint: Path, short_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(five_hz, "LEAST_ANSWER", 200)
    [answer] = ask(settings(demo_checkpoint, short_model), song(40.0, frozenset(FIELDS)))
    heard_s = answer.usage["audio_s"]
    assert 1 < heard_s < 40
    assert 360 - 5 * heard_s >= 200, "room for the answer"
    assert answer.usage["tokens"] <= 360 - 5 * heard_s
    assert any("were heard" in note for note in answer.notes)
    assert any("cut off" in note for note in answer.notes)


def test_only_so_much_is_heard_as_the_settings_say(demo_checkpoint: Path) -> None:
    [answer] = ask(settings(demo_checkpoint, codes_s=10), song(12.0, frozenset({"bpm"})))
    assert answer.usage["audio_s"] == 10.0
    assert set(answer.values) == {"bpm"}
    assert any("first 10 s" in note for note in answer.notes)


class StopsLater(Job):
    """Asked to stop when it has been looked at so many times."""

    looks = 60

    @property
    def stop_requested(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_stopping_ends_an_answer_and_leaving_frees_the_models(demo_checkpoint: Path) -> None:
    with backend("five-hz-lm").open(settings(demo_checkpoint), {}, StopsLater()) as opened:
        models = [weakref.ref(opened._model), weakref.ref(opened._coder)]  # type: ignore[attr-defined]
        with pytest.raises(Stopped):
            opened.label(song(wanted=frozenset(FIELDS)))
    assert [model() for model in models] == [None, None]


def test_silence_and_foreign_models_are_told(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = song()
    silent.samples[:] = 0
    with pytest.raises(UserError, match="silent"):
        ask(settings(demo_checkpoint), silent)
    with pytest.raises(UserError, match="cannot be loaded"):
        ask(settings(demo_checkpoint, demo_checkpoint / "Qwen3-Embedding-0.6B"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="codes_model"):
        codes_checkpoint("")


def test_models_are_found_by_size_beside_the_checkpoint(
    demo_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(demo_checkpoint / LANGUAGE_MODEL_FOLDER, tmp_path / "checkpoints" / "acestep-5Hz-lm-0.6B")
    monkeypatch.chdir(tmp_path)
    checkpoint = open_checkpoint(demo_checkpoint / DIT_FOLDER)
    for name in ("0.6B", "acestep-5Hz-lm-0.6B"):
        assert language_model_folder(name, checkpoint, Job()).name == "acestep-5Hz-lm-0.6B"

"""Models that hear and write, as tiny checkpoints of their true classes loaded from a folder as published ones are."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from acestep.audio.write import write_audio
from acestep.captioning.batch import label_dataset
from acestep.captioning.contract import FIELDS, Answer, SongToLabel
from acestep.captioning.demo import build_flamingo, build_omni
from acestep.captioning.local import SAMPLE_RATE
from acestep.captioning.registry import backend
from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job
from acestep.dataset.scan import scan_folder
from acestep.settings.caption import CaptionSettings

BALLAD = (
    "A slow piano ballad with strings.\n",
    *("Key: A minor\n", "Time signature: 3/4\n", "Genre: ballad\n", "BPM: 72\n"),
)
SONG = ("# Languages\nde\n", "# Lyrics\n", "[Verse]\n", "Der Mond ist aufgegangen\n", "die goldnen Sternlein prangen\n")
FUNK = ("This funk track is in the key of E flat major at 104 BPM, with slap bass.",)


def song(duration_s: float, seed: int = 0, wanted: frozenset = frozenset(FIELDS), language: str = "") -> SongToLabel:
    noise = np.random.default_rng(seed).normal(0, 0.1, (1, round(SAMPLE_RATE * duration_s))).astype(np.float32)
    return SongToLabel(Path(f"{seed}.wav"), duration_s, wanted, noise, language)


def settings_for(folder: Path, **changes) -> CaptionSettings:
    models = {"caption_model": str(folder), "lyrics_model": str(folder)}
    return CaptionSettings(**({"device": "cpu", "window_s": 10, "max_tokens": 32} | models | changes))


def ask(name: str, folder: Path, *songs: SongToLabel, job: Job | None = None, **changes) -> list[Answer]:
    chosen = settings_for(folder, caption_by=name, lyrics_by=name, **changes)
    with backend(name).open(chosen, {}, job or Job()) as opened:
        return [opened.label(one) for one in songs]


def values(answer: Answer) -> dict:
    return {field: guess.value for field, guess in answer.values.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The models by name, each built when first asked for."""
    root = tmp_path_factory.mktemp("listening")
    builders = {
        "ballad": lambda folder: build_omni(folder, BALLAD),
        "song": lambda folder: build_omni(folder, SONG),
        "hanging": lambda folder: build_omni(folder, (*SONG, "la la la\n"), ends=False),
        "nonsense": build_omni,
        "letters": lambda folder: build_omni(folder, seed=3),
        "musicflamingo": lambda folder: build_flamingo(folder, "musicflamingo", FUNK),
        "audioflamingo3": lambda folder: build_flamingo(folder, "audioflamingo3", FUNK),
    }

    def get(name: str) -> Path:
        folder = root / name
        return folder if folder.exists() else builders[name](folder)

    return get


def test_caption_and_metadata_come_out_of_one_inference(folders) -> None:
    [answer] = ask("ace-captioner", folders("ballad"), song(5))
    expected = {"caption": "A slow piano ballad with strings.", "keyscale": "A minor", "timesignature": "3"}
    assert values(answer) == expected | {"genre": "ballad", "bpm": 72}
    assert answer.usage == {"audio_s": 5.0, "tokens": 6}  # five lines and the end: said once
    assert answer.notes == ()


def test_only_what_is_asked_for_is_answered(folders) -> None:
    [answer] = ask("ace-captioner", folders("ballad"), song(3, wanted=frozenset({"keyscale", "lyrics"})))
    assert values(answer) == {"keyscale": "A minor"}
    [answer] = ask("ace-transcriber", folders("song"), song(3, wanted=frozenset({"language", "caption"})))
    assert values(answer) == {"language": "de"}


def test_a_song_that_is_too_long_is_heard_from_start_to_end(folders) -> None:
    [answer] = ask("ace-captioner", folders("ballad"), song(40))
    assert values(answer)["caption"] == "A slow piano ballad with strings."
    assert answer.usage["audio_s"] == 12.0  # what this model takes
    assert "3 excerpts" in answer.notes[0]


def test_lyrics_are_heard_window_by_window(folders) -> None:
    [answer] = ask("ace-transcriber", folders("song"), song(25))
    assert values(answer) == {
        "lyrics": "[Verse]\nDer Mond ist aufgegangen\ndie goldnen Sternlein prangen",
        "language": "de",
    }
    assert answer.usage["audio_s"] == pytest.approx(25 + 2 * 2, abs=0.01)  # three windows, two seams
    assert answer.values["language"].confidence == 1.0


def test_windows_longer_than_the_model_hears_leave_nothing_out(folders) -> None:
    [answer] = ask("ace-transcriber", folders("song"), song(25), window_s=60)
    assert answer.usage["audio_s"] == pytest.approx(25 + 2 * 2, abs=0.01)  # the model hears 12 s at once


def test_lyrics_without_end_are_told_and_cut(folders) -> None:
    [answer] = ask("ace-transcriber", folders("hanging"), song(4))
    assert values(answer)["lyrics"].split("\n")[-2:] == ["die goldnen Sternlein prangen", "la la la"]
    assert "The lyrics may be cut off." in answer.notes
    assert answer.usage["tokens"] == 96 + 8 * 4


def test_a_caption_that_is_cut_off_is_told(folders) -> None:
    [answer] = ask("ace-captioner", folders("hanging"), song(2))
    assert any("cut off" in note for note in answer.notes)


def test_nonsense_gives_nothing(folders) -> None:
    assert values(ask("ace-captioner", folders("nonsense"), song(2))[0]) == {}
    answers = ask("ace-transcriber", folders("nonsense"), song(1), song(11, 1))
    assert [values(answer) for answer in answers] == [{}, {}]
    assert all("The model answered nothing." in answer.notes for answer in answers)


@pytest.mark.parametrize("duration_s", [0.02, 0.2, 12.0])
def test_songs_of_any_length_are_heard(folders, duration_s: float) -> None:
    assert values(ask("ace-captioner", folders("ballad"), song(duration_s))[0])["keyscale"] == "A minor"


def test_answers_do_not_depend_on_what_came_before(folders) -> None:
    folder = folders("letters")
    for changes in ({}, {"temperature": 1.5}):
        alone = ask("ace-captioner", folder, song(3, 2), **changes)[0]
        after_others = ask("ace-captioner", folder, song(2, 1), song(3, 2), **changes)[1]
        assert alone == after_others


def texts_of(folder: Path, **changes) -> str:
    """What a model writes before anything is made of it."""
    with backend("ace-captioner").open(settings_for(folder, **changes), {}, Job()) as opened:
        model, processor = opened._listener._model, opened._listener._processor
        written = []
        generate = model.generate
        model.generate = lambda **inputs: written.append(generate(**inputs)) or written[-1]
        opened.label(song(2, wanted=frozenset({"caption"})))
        return processor.tokenizer.decode(written[0][0])


def test_the_seed_decides_where_words_are_drawn(folders) -> None:
    folder = folders("letters")
    drawn = [texts_of(folder, temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert texts_of(folder, seed=1) == texts_of(folder, seed=2)  # nothing is drawn at temperature 0


def test_a_full_card_hears_less_and_then_gives_up_with_a_sentence(folders) -> None:
    """The model is made to fail as a full card fails, beyond a number of tokens."""
    import torch

    told: list[str] = []
    job = Job(lambda kind, what: told.append(str(what)) if kind == "warn" else None)
    room = 540  # tokens: some 270 of the question, and 25 a second

    def fail_when_full(_module, _arguments, inputs) -> None:
        if inputs["inputs_embeds"].shape[1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with backend("ace-captioner").open(settings_for(folders("ballad")), {}, job) as opened:
        opened._listener._model.model.language_model.register_forward_pre_hook(fail_when_full, with_kwargs=True)
        wanted = frozenset({"caption"})
        whole = opened.label(song(2, wanted=wanted))
        assert (whole.usage["audio_s"], told) == (2.0, [])
        less = opened.label(song(12, 1, wanted))
        assert less.usage["audio_s"] == pytest.approx(10, abs=0.01)
        assert values(less) == values(whole)
        assert "10 s of a song are heard at once from here on" in told[0]
        room = 400
        with pytest.raises(UserError, match="does not hold 10 s of a song"):
            opened.label(song(12, 2, wanted))


def test_a_batch_is_stopped_and_goes_on(folders, tmp_path: Path) -> None:
    for number in range(3):
        write_audio(tmp_path / f"{number}.wav", np.full((2, 2 * 48_000), 0.1 * number + 0.1, np.float32))
    job = Job(lambda kind, what: job.request_stop() if kind == "progress" and what.unit == "songs" else None)
    chosen = settings_for(folders("ballad"), caption_by="ace-captioner", metadata_by="", lyrics_by="")
    label_dataset(scan_folder(tmp_path), chosen, {}, job)
    done = {path: path.read_bytes() for path in tmp_path.glob("*.json")}
    assert 0 < len(done) < 3
    label_dataset(scan_folder(tmp_path), chosen, {}, Job())
    songs = scan_folder(tmp_path).songs
    assert [(one.caption, one.genre) for one in songs] == [("A slow piano ballad with strings.", "ballad")] * 3
    assert all(path.read_bytes() == content for path, content in done.items())


class StopsSoon(Job):
    """A job that is stopped while the model writes: at the fifth time somebody looks."""

    looks = 0

    @property
    def stop_requested(self) -> bool:
        self.looks += 1
        return self.looks >= 5


@pytest.mark.parametrize(("name", "model"), [("ace-transcriber", "hanging"), ("ace-captioner", "hanging")])
def test_a_stop_is_heard_while_the_model_writes(folders, name: str, model: str) -> None:
    job = StopsSoon()
    with backend(name).open(settings_for(folders(model), max_tokens=4000), {}, job) as opened:
        with pytest.raises(Stopped):
            opened.label(song(3))
        assert job.looks < 10  # and not one look for each of thousands of tokens


def live_tensors() -> int:
    import torch

    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize(("name", "model"), [("ace-captioner", "ballad"), ("music-flamingo", "musicflamingo")])
def test_memory_stays_flat_and_comes_back(folders, name: str, model: str) -> None:
    before = live_tensors()
    with backend(name).open(settings_for(folders(model), caption_by=name), {}, Job()) as opened:
        held = weakref.ref(opened._listener._model)
        opened.label(song(3))
        loaded = live_tensors()
        for seed in range(1, 5):
            opened.label(song(3 + seed, seed))
        assert live_tensors() == loaded
    assert held() is None, "leaving the context unloads the model, though the backend is still at hand"
    assert live_tensors() <= before


def test_a_failing_batch_unloads_too(folders) -> None:
    held = []
    kind, settings = backend("ace-captioner"), settings_for(folders("ballad"))
    with pytest.raises(ZeroDivisionError), kind.open(settings, {}, Job()) as opened:
        held.append(weakref.ref(opened._listener._model))
        _ = 1 / 0
    assert held[0]() is None


@pytest.mark.parametrize("kind", ["musicflamingo", "audioflamingo3"])
def test_both_kinds_of_flamingo_describe(folders, kind: str) -> None:
    short, long = ask("music-flamingo", folders(kind), song(3), song(30, 1))
    expected = {"caption": FUNK[0], "genre": "funk", "keyscale": "Eb major", "bpm": 104}
    assert values(short) == values(long) == expected
    assert short.notes == ()
    assert long.usage["audio_s"] == pytest.approx(16, abs=0.01)
    assert "3 excerpts" in long.notes[0]


def test_another_kind_of_model_is_refused_with_its_folder(folders) -> None:
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        ask("music-flamingo", folders("ballad"), song(1))
    assert "qwen2_5_omni" in caught.value.detail
    assert str(folders("ballad")) in str(caught.value)


def test_damaged_and_missing_models_are_sentences(folders, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model folder"):
        ask("ace-captioner", tmp_path / "nowhere", song(1))
    with pytest.raises(UserError, match="no weights"):
        ask("ace-captioner", tmp_path, song(1))
    whole = folders("ballad")
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        ask("ace-captioner", tmp_path, song(1))
    weights = load_file(whole / "model.safetensors")
    (tmp_path / "tokenizer.json").write_bytes((whole / "tokenizer.json").read_bytes())
    fewer = {name: tensor for name, tensor in weights.items() if "q_proj" not in name}
    save_file(fewer, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        ask("ace-captioner", tmp_path, song(1))
    assert "weights are missing" in caught.value.detail
    (tmp_path / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes())
    config = json.loads((whole / "config.json").read_text())
    config["thinker_config"]["text_config"]["hidden_size"] = 48
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded"):
        ask("ace-captioner", tmp_path, song(1))


def test_the_registry_knows_what_they_give() -> None:
    assert all("caption" in backend(name).facts.gives for name in ("ace-captioner", "music-flamingo"))
    assert all("lyrics" in backend(name).facts.gives for name in ("ace-transcriber", "whisper"))

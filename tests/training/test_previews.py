"""Previews, requests and cards of runs on the tiny model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hand_made import MakeStore, Shape, short_run
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from acestep.adapters import TriggerTag, load_adapter, read_adapter_info
from acestep.cli import main
from acestep.core.device import DeviceChoice
from acestep.core.errors import UserError
from acestep.core.events import read_events
from acestep.core.jobs import Job
from acestep.generate import generate, load_parts
from acestep.model.checkpoints import Checkpoint
from acestep.model.prompt import PromptLabels, lyric_prompt, read_prompts, text_prompt
from acestep.settings import GenerateSettings, PreviewSettings, TrainSettings
from acestep.training.previews import preview_labels
from acestep.training.requests import RequestFiles, ask, request_file
from acestep.training.runs import RunFolder, summarise
from acestep.training.train import CHANGEABLE_ON_RESUME, train

KINDS = [
    pytest.param({"adapter": "lora"}, id="lora"),
    pytest.param({"adapter": "lora", "dora": True, "optimizer": "schedule_free"}, id="dora-schedule-free"),
    pytest.param({"adapter": "lokr", "lokr_dropout": 0.1, "ema_decay": 0.9}, id="lokr-ema"),
]


PLAYED_S = 1.0
"""Length of a preview; what plays it takes longer for each second than a step of training."""


def listened(**changes: object) -> TrainSettings:
    """A short run that plays pieces of one second, four sampling steps each."""
    values: dict[str, object] = {
        "preview_every_steps": 3,
        "preview_captions": ["slow piano"],
        "preview_duration_s": PLAYED_S,
        "preview_steps": 4,
    }
    return short_run(**{**values, **changes})


def at_step(step: int, act: Callable[[Job], object], clock: Callable[[], float] | None = None) -> Job:
    """A job that does something while the given step is reported."""
    job = Job(clock=clock) if clock else Job()

    def listen(kind: str, what: object) -> None:
        if kind == "progress" and getattr(what, "name", "") == "train" and what.done == step:
            act(job)

    job._listener = listen
    return job


def seconds_pass() -> Callable[[], float]:
    """A clock that goes on two seconds whenever it is read."""
    return itertools.count(0, 2.0).__next__


def pieces(run: Path) -> dict[str, np.ndarray]:
    files = sorted((run / "samples").rglob("*.wav"))
    return {file.relative_to(run).as_posix(): soundfile.read(file)[0] for file in files}


def warnings_of(run: Path) -> list[str]:
    return [event["text"] for event in read_events(run / "events.jsonl", "warning")]


def record_of_steps(run: Path) -> list[tuple[object, ...]]:
    events = read_events(run / "events.jsonl")
    return [(e["kind"], e["step"], e["loss"]) for e in events if e["kind"] in ("step", "validation")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_previews_is_bit_for_bit_the_run_without(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, kind: dict
) -> None:
    # conditions of several lengths stand in one batch, so a mask of theirs is in force between two steps
    store = make_store([Shape(80, head=4 + n % 3) for n in range(6)])
    heard = {"preview_strengths": [1.0, 0.0, 0.5], "preview_every_steps": 3, "batch_size": 3, **kind}
    with_previews, without = tmp_path / "with", tmp_path / "without"
    train(checkpoint, store, with_previews, listened(**heard), Job())
    train(checkpoint, store, without, listened(**{**heard, "preview_every_steps": 0}), Job())
    assert len(pieces(with_previews)) == 2 * 4 and not pieces(without)
    assert warnings_of(with_previews) == warnings_of(without)
    assert record_of_steps(with_previews) == record_of_steps(without)
    files = sorted(path.relative_to(without) for path in without.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(with_previews) for path in with_previews.rglob("*.safetensors"))
    for file in files:
        one, other = load_file(with_previews / file), load_file(without / file)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one), file


def test_previews_leave_the_global_generator_alone(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from acestep.training import previews

    states = []
    play = previews.Previews.play

    def watched(self, session, job):
        before = torch.get_rng_state()
        modes = [module.training for module in session.adapter.transformer.modules()]
        play(self, session, job)
        assert [module.training for module in session.adapter.transformer.modules()] == modes
        assert all(parameter.requires_grad and parameter.grad is None for parameter in session.adapter.parameters())
        assert session.adapter.strength == 1.0
        states.append(torch.equal(before, torch.get_rng_state()))

    monkeypatch.setattr(previews.Previews, "play", watched)
    monkeypatch.setattr(previews, "draw_noise", lambda frames, width, seed: torch.randn(1, frames, width))
    train(checkpoint, make_store(), tmp_path / "run", listened(), Job())
    assert states == [True, True]


def test_pieces_are_those_that_generation_plays(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Every caption, seed and strength of the last step against `generate` with the adapter that was written."""
    settings = listened(
        preview_captions=["slow piano", "loud drums, HANDSTYLE"],
        preview_seeds=[1, 2],
        preview_strengths=[1.0, 0.5],
        preview_lyrics="[Verse]\nla la",
        preview_language="en",
        preview_bpm=90,
        preview_keyscale="C major",
        preview_timesignature="3",
        preview_shift=2.0,
        preview_every_steps=6,
        learning_rate=3e-2,
        validation="none",
    )
    outcome = train(checkpoint, make_store(), tmp_path / "run", settings, Job())
    found = pieces(outcome.run.path)
    parts = load_parts(checkpoint, DeviceChoice("cpu", "fp32", "test"))
    adapter = load_adapter(outcome.adapter, parts.transformer)
    captions = {1: "handstyle, slow piano", 2: "loud drums, HANDSTYLE"}
    names = set()
    for (number, caption), seed, label in itertools.product(
        captions.items(), (1, 2), ("base", "strength_1_00", "strength_0_50")
    ):
        adapter.set_strength({"base": 0.0, "strength_1_00": 1.0, "strength_0_50": 0.5}[label])
        wanted = GenerateSettings(
            caption=caption,
            lyrics="[Verse]\nla la",
            language="en",
            bpm=90,
            keyscale="C major",
            timesignature="3",
            duration_s=PLAYED_S,
            seed=seed,
            steps=4,
            shift=2.0,
        )
        name = f"samples/step_000006/{number}_{seed}_{label}.wav"
        played = generate(parts, wanted).samples.T
        assert np.abs(found[name] - played).max() < 1e-3, name
        names.add(name)
    assert set(found) == names
    both = [found[f"samples/step_000006/1_1_{label}.wav"] for label in ("base", "strength_1_00", "strength_0_50")]
    for one, other in itertools.combinations(both, 2):
        assert np.abs(one - other).max() > 1e-3
    events = list(outcome.run.events("preview"))
    assert {event["path"] for event in events} == names
    assert {(event["caption"], event["seed"], event["step"], event["seconds"]) for event in events} == {
        (caption, seed, 6, PLAYED_S) for caption in captions.values() for seed in (1, 2)
    }
    assert {(event["strength"], event["base"]) for event in events} == {(0.0, True), (1.0, False), (0.5, False)}


def test_previews_come_when_due_and_at_the_end(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    settings = listened(preview_every_steps=4, preview_every_epochs=1, max_steps=7, preview_format="flac")
    run = train(checkpoint, make_store(), tmp_path / "run", settings, Job()).run  # three steps an epoch
    assert sorted(folder.name for folder in run.samples.iterdir()) == [f"step_00000{step}" for step in (3, 4, 6, 7)]
    assert {file.name for file in run.samples.rglob("*.*")} == {"1_42_base.flac", "1_42_strength_1_00.flac"}


def test_a_resumed_run_may_hear_something_else(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert set(PreviewSettings.model_fields) <= CHANGEABLE_ON_RESUME
    store, run = make_store(), tmp_path / "run"
    train(checkpoint, store, run, short_run(), at_step(2, Job.request_stop))
    changed = listened(preview_every_steps=6, preview_seeds=[7], preview_captions=["one", "two"], preview_base=False)
    train(checkpoint, store, run, changed, Job(), resume=run)
    assert set(pieces(run)) == {f"samples/step_000006/{number}_7_strength_1_00.wav" for number in (1, 2)}
    whole = tmp_path / "whole"
    train(checkpoint, store, whole, short_run(), Job())
    assert record_of_steps(run) == record_of_steps(whole)


# what is said ---------------------------------------------------------------------------------------------------


def test_the_first_songs_labels_are_played_where_nothing_is_given(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from dataclasses import replace

    from acestep.preprocess.store import TensorStore, write_index

    labels = PromptLabels("handstyle, brass", "[Verse]\nwords", "en", 101, "D minor", "4", 33.0)
    store = make_store()
    songs = [
        replace(song, prompts=[text_prompt(labels), "other"], lyric_prompt=lyric_prompt(labels)) for song in store.songs
    ]
    write_index(store.folder, store.info, songs)
    store = TensorStore.open(store.folder)
    tag = TriggerTag("handstyle", "prepend")
    song = replace(songs[0], variants={**songs[0].variants, "caption.prepend": 0})
    assert preview_labels(listened(preview_captions=[]), tag, song) == [replace(labels, duration_s=PLAYED_S)]
    (other,) = preview_labels(listened(preview_captions=[], preview_bpm=60, preview_lyrics="x"), tag, song)
    assert (other.bpm, other.lyrics, other.keyscale) == (60, "x", "D minor")
    run = train(checkpoint, store, tmp_path / "run", listened(preview_captions=[]), Job()).run
    assert {event["caption"] for event in run.events("preview")} == {"handstyle, brass"}


@pytest.mark.parametrize(
    ("position", "expected"), [("prepend", "zork, a waltz"), ("append", "a waltz, zork"), ("replace", "zork")]
)
def test_the_trigger_word_stands_where_it_stood_in_training(position: str, expected: str) -> None:
    settings = listened(preview_captions=["a waltz", "a Zork, waltz", "zorks dance"])
    captions = [labels.caption for labels in preview_labels(settings, TriggerTag("zork", position), None)]
    assert captions[:2] == [expected, "a Zork, waltz"]
    assert captions[2] != "zorks dance"
    assert preview_labels(settings, TriggerTag(), None)[0].caption == "a waltz"
    (two_words,) = preview_labels(
        listened(preview_captions=["a slow Zork style waltz"]), TriggerTag("zork style", position), None
    )
    assert two_words.caption == "a slow Zork style waltz"


words = st.text(st.characters(blacklist_categories=("Cs",)), max_size=30)


@given(words, words, st.sampled_from(["en", "unknown"]), st.none() | st.integers(30, 300), st.integers(1, 600))
def test_prompts_are_read_back(caption: str, lyrics: str, language: str, bpm: int | None, seconds: int) -> None:
    labels = PromptLabels(caption, lyrics, language, bpm, "A minor", "", float(seconds))
    found = read_prompts(text_prompt(labels), lyric_prompt(labels))
    assert found is not None
    assert (text_prompt(found), lyric_prompt(found)) == (text_prompt(labels), lyric_prompt(labels))
    assert (found.caption, found.bpm, found.keyscale, found.timesignature) == (caption, bpm, "A minor", "")


def test_texts_of_another_form_are_not_read() -> None:
    assert read_prompts("a caption", "lyrics") is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"preview_seeds": []},
        {"preview_seeds": [1, 1]},
        {"preview_seeds": [-1]},
        {"preview_strengths": []},
        {"preview_strengths": [1.0, 1.001]},
        {"preview_strengths": [float("nan")]},
        {"preview_strengths": [11.0]},
        {"preview_captions": [" "]},
        {"preview_duration_s": 0},
    ],
)
def test_wrong_preview_settings_are_named(wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        short_run(**wrong)


# trouble --------------------------------------------------------------------------------------------------------


def test_out_of_memory_is_a_warning_and_training_goes_on(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderOobleck

    def no_memory(self, *_arguments, **_named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(AutoencoderOobleck, "decode", no_memory)
    outcome = train(checkpoint, make_store(), tmp_path / "run", listened(), Job())
    assert outcome.summary.state == "finished" and outcome.summary.step == 6
    assert not pieces(outcome.run.path)
    assert [text for text in warnings_of(outcome.run.path) if "No preview at step" in text and "memory" in text]
    plain = train(checkpoint, make_store(name="again"), tmp_path / "plain", short_run(), Job())
    one, other = (load_file(run.adapter / "adapter_model.safetensors") for run in (outcome, plain))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_values_that_are_no_numbers_leave_one_piece_out(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from acestep.training import previews

    sample = previews.sample_latents

    def broken(transformer, *arguments, **named):
        latents = sample(transformer, *arguments, **named)
        return latents if transformer.attached_adapter.strength else latents * float("nan")

    monkeypatch.setattr(previews, "sample_latents", broken)
    run = train(checkpoint, make_store(), tmp_path / "run", listened(preview_every_steps=6), Job()).run
    assert set(pieces(run.path)) == {"samples/step_000006/1_42_strength_1_00.wav"}
    assert any("1_42_base is left out" in text and "not finite" in text for text in warnings_of(run.path))


def test_without_a_caption_to_play_the_run_says_so(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    outcome = train(checkpoint, make_store(), tmp_path / "run", listened(preview_captions=[]), Job())
    assert outcome.summary.state == "finished"
    assert any("Give preview_captions" in text for text in warnings_of(outcome.run.path))


def test_a_stop_breaks_previews_off(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, monkeypatch) -> None:
    from acestep.training import previews

    job, sample = Job(), previews.sample_latents

    def stop_then_sample(*arguments, **named):
        job.request_stop()
        return sample(*arguments, **named)

    monkeypatch.setattr(previews, "sample_latents", stop_then_sample)
    outcome = train(checkpoint, make_store(), tmp_path / "run", listened(max_steps=50), job)
    assert outcome.stopped and outcome.summary.step == 4
    assert not pieces(outcome.run.path)
    assert any("broken off" in text for text in warnings_of(outcome.run.path))


# requests -------------------------------------------------------------------------------------------------------


def test_requests_are_taken_once_at_the_next_step(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    def act(job: Job) -> None:
        for _ in range(2):
            job.request("preview")
            job.request("save")

    run = train(checkpoint, make_store(), tmp_path / "run", listened(preview_every_steps=0), at_step(2, act)).run
    assert {event["step"] for event in run.events("preview")} == {2}
    assert [event["step"] for event in run.events("checkpoint")] == [2, 6]
    job = Job()
    assert not job.take_request("save")


def test_files_in_the_run_folder_are_requests(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, store = tmp_path / "run", make_store()

    def act(job: Job) -> None:
        for name in ("preview", "save"):
            assert main(["runs", str(folder), "--request", name]) == 0
        assert request_file(folder, "preview").is_file()

    settings = listened(preview_every_steps=0, max_steps=9)
    run = train(checkpoint, store, folder, settings, at_step(2, act, seconds_pass())).run
    assert {event["step"] for event in run.events("preview")} == {2}
    assert [event["step"] for event in run.events("checkpoint")] == [2, 9]
    assert not list(folder.glob("request-*"))
    capsys.readouterr()
    assert main(["runs", str(folder), "--request", "stop"]) == 1
    assert "has ended (finished)" in capsys.readouterr().err
    assert not list(folder.glob("request-*"))
    # a request that nobody has read does not stop the run that goes on later
    request_file(folder, "stop").touch()
    longer = listened(preview_every_steps=0, max_steps=12)
    stop = at_step(11, lambda _job: ask(run, "stop"), seconds_pass())
    outcome = train(checkpoint, store, folder, longer, stop, resume=folder)
    assert outcome.stopped and outcome.summary.step == 11 and not list(folder.glob("request-*"))


def test_the_folder_is_looked_at_once_a_second_whatever_the_clock_does(tmp_path: Path) -> None:
    now = [100.0]
    files, job = RequestFiles(tmp_path, lambda: now[0]), Job()
    files.collect(job)
    request_file(tmp_path, "save").touch()
    now[0] = 100.9
    files.collect(job)
    assert not job.take_request("save")
    now[0] = 50.0  # the clock was set back
    files.collect(job)
    assert job.take_request("save") and not job.take_request("save")
    request_file(tmp_path, "preview").mkdir()
    now[0] = 60.0
    files.collect(job)
    assert not job.take_request("preview") and not job.stop_requested


# cards ----------------------------------------------------------------------------------------------------------


def test_best_and_final_carry_a_card(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    settings = short_run(max_steps=20, validate_every=5, learning_rate=5e-3)
    store, run = make_store(), tmp_path / "run"
    train(checkpoint, store, run, settings, at_step(12, Job.request_stop))
    outcome = train(checkpoint, store, run, settings, Job(), resume=run)
    losses = {event["step"]: event["loss"] for event in outcome.run.events("validation")}
    assert set(losses) == {0, 5, 10, 15, 20}
    text = (outcome.adapter / "README.md").read_text()
    note = json.loads((outcome.adapter / "training.json").read_text())
    for expected in (
        f"({checkpoint.variant.name})",
        "Trigger word: `handstyle`",
        "hand made",
        "Trained on 6 songs, 39 seconds. 2 songs more were kept back to judge it.",
        f"weights of step {note['step']} ({note['reason']})",
        "| rank | 4 |",
        "| learning_rate | 0.005 |",
        *(f"| {step} | {loss:.5f}" for step, loss in losses.items()),
    ):
        assert expected in text, expected
    best = (outcome.run.best / "README.md").read_text()
    assert f"weights of step {outcome.summary.best_step}" in best
    assert read_adapter_info(outcome.adapter).trigger.word == "handstyle"
    out = tmp_path / "peft"
    assert main(["export", str(outcome.adapter), "--to", "peft", "--out", str(out)]) == 0
    assert f"weights of step {note['step']}" in (out / "README.md").read_text()
    assert summarise(RunFolder.open(run)).state == "finished"

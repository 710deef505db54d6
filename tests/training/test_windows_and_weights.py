"""Window modes, songs for regularization, and datasets that are too small for what is asked."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hand_made import MakeStore, Shape, short_run
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from acestep.adapters import attach
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.model.checkpoints import Checkpoint
from acestep.model.loading import load_null_condition, load_silence_latent, load_transformer
from acestep.model.prompt import PromptLabels, lyric_prompt, text_prompt
from acestep.preprocess.store import TensorStore
from acestep.preprocess.tiles import tiles
from acestep.training.data import EpochOrder, Flow, draw_batch, load_data
from acestep.training.forecast import largest_micro_batch
from acestep.training.forward import FlowModel
from acestep.training.train import train

FLOW = Flow(-0.4, 1.0)


# windows ----------------------------------------------------------------------------------------------------------


@given(frames=st.integers(1, 20_000), longest=st.integers(1, 15_000))
def test_tiles_cover_a_song_once(frames: int, longest: int) -> None:
    found = tiles(frames, longest)
    (length,) = {piece.length for piece in found}
    assert length <= longest and len(found) == -(-frames // longest)
    starts = [piece.start for piece in found]
    assert starts[0] == 0 and starts[-1] + length == frames
    overlaps = [one + length - other for one, other in itertools.pairwise(starts)]
    assert all(0 <= overlap <= longest / 16 + 1 for overlap in overlaps)


def test_an_epoch_of_tiles_takes_every_part_of_every_song_once(make_store: MakeStore) -> None:
    settings = short_run(window="tiled", validation="none", batch_size=3, gradient_accumulation=2)
    data = load_data(make_store([Shape(30), Shape(120), Shape(160, repeat=2), Shape(100)]), settings)
    order = EpochOrder(data, settings)
    for epoch in range(4):
        steps = order.steps(epoch)
        assert len(steps) == order.steps_per_epoch
        seen: dict[str, Counter[int]] = {}
        for batch in (batch for step in steps for batch in step):
            assert len({sample.piece.length for sample in batch}) == 1
            drawn = draw_batch(batch, epoch, data, settings, FLOW).latents
            for sample, latents in zip(batch, drawn, strict=True):
                first = sample.piece.start
                assert torch.equal(latents, sample.song.latents[first : first + sample.piece.length])
                counter = seen.setdefault(sample.song.stored.title, Counter())
                counter.update(range(first, first + sample.piece.length))
        for song in data.songs:
            counts = seen[song.stored.title]
            assert set(counts) == set(range(song.frames))
            assert counts.total() <= song.stored.repeat * (song.frames + 4 * (len(data.pieces(song)) - 1))


def test_whole_songs_ignore_the_longest_window_but_are_judged_by_the_same_windows(make_store: MakeStore) -> None:
    store = make_store([Shape(150), Shape(90)] * 4)
    kinds = {mode: load_data(store, short_run(window=mode)) for mode in ("random", "tiled", "whole")}
    whole = kinds["whole"]
    assert {piece.length for song in whole.songs for piece in whole.pieces(song)} == {150, 90}
    windows = [[(w.song.stored.id, w.start, w.length) for w in data.held_out] for data in kinds.values()]
    assert windows[0] == windows[1] == windows[2] and windows[0][0][2] == 50
    by_zero = load_data(store, short_run(max_latent_length=0))
    assert [by_zero.pieces(song) for song in by_zero.songs] == [whole.pieces(song) for song in whole.songs]
    tiled = load_data(store, short_run(max_latent_length=0, window="tiled"))
    assert {len(tiled.pieces(song)) for song in tiled.songs} == {1}


def test_the_largest_micro_batch_knows_tiles(make_store: MakeStore) -> None:
    settings = short_run(window="tiled", validation="none")
    data = load_data(make_store([Shape(100, text=40), Shape(160), Shape(20)]), settings)
    for most, lengths in ((2, [50, 50]), (4, [40, 40, 40, 40])):
        batch = largest_micro_batch(data, settings.changed(batch_size=most))
        assert [sample.piece.length for sample in batch] == lengths


def test_tiles_resume_bit_for_bit(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    store = make_store([Shape(150), Shape(80), Shape(40, regularization=True)])
    settings = short_run(
        window="tiled", validation="windows", validation_share=0.1, max_steps=7, regularization_weight=0.5
    )
    whole = train(checkpoint, store, tmp_path / "whole", settings, Job())
    job = Job()

    def listen(kind: str, what: object) -> None:
        if kind == "progress" and getattr(what, "name", "") == "train" and what.done - what.already == 4:
            job.request_stop()

    job._listener = listen
    train(checkpoint, store, tmp_path / "parts", settings, job)
    parts = train(checkpoint, store, tmp_path / "parts", settings, Job(), resume=tmp_path / "parts")
    newest = [sorted((outcome.run.path / "checkpoints").iterdir())[-1] for outcome in (whole, parts)]
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in newest)
    assert newest[0].name == newest[1].name and one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# regularization ---------------------------------------------------------------------------------------------------


def test_weights_scale_the_gradient_of_their_samples_alone(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """By hand: Σ w · gradient of each sample alone, over the samples."""
    shapes = [Shape(60 + 10 * (i % 2), head=4 + i % 3, regularization=i in (1, 4)) for i in range(6)]
    settings = short_run(validation="none", batch_size=4, dropout=0.0, condition_dropout=0.3, regularization_weight=2.5)
    data = load_data(make_store(shapes), settings)
    transformer = load_transformer(checkpoint, torch.float32, torch.device("cpu"))
    adapter = attach(transformer, settings)
    generator = torch.Generator().manual_seed(5)
    for parameter in adapter.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    silence, null = load_silence_latent(checkpoint), load_null_condition(checkpoint)
    model = FlowModel(transformer, silence, null, torch.device("cpu"))
    batches = [batch for step in EpochOrder(data, settings).steps(0) for batch in step]
    assert sorted(len(batch) for batch in batches) == [2, 4]

    parameters = list(adapter.parameters())
    by_hand = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    for sample in (sample for batch in batches for sample in batch):
        (loss,) = model.item_losses(draw_batch([sample], 0, data, settings, FLOW), 0.3)
        factor = 2.5 if sample.song.stored.title in ("song 1", "song 4") else 1.0
        for total, gradient in zip(by_hand, torch.autograd.grad(loss, parameters), strict=True):
            total += factor * gradient.double() / 6

    from acestep.training.loop import optimizer_step

    found: list[torch.Tensor] = []
    session = _bare_session(settings, data, model, adapter, found)
    optimizer_step(session, 0, batches)
    for ours, expected in zip(found, by_hand, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-7)


def _bare_session(settings, data, model, adapter, found):
    """A session whose optimizer keeps the gradient instead of stepping."""
    from types import SimpleNamespace

    from lightning_fabric import Fabric

    from acestep.training.averaging import Averaging
    from acestep.training.checkpoints import LoopState
    from acestep.training.processes import Processes
    from acestep.training.step_down import Economy

    class KeepGradients(torch.optim.SGD):
        def step(self, closure=None):
            found.extend(parameter.grad.clone() for group in self.param_groups for parameter in group["params"])

    fabric = Fabric(accelerator="cpu", devices=1)
    return SimpleNamespace(
        settings=settings.changed(max_grad_norm=0),
        economy=Economy.of(settings),
        good=None,
        clock=lambda: 0.0,
        model=model,
        processes=Processes(fabric),
        state=LoopState(),
        data=data,
        flow=FLOW,
        adapter=adapter,
        optimizer=fabric.setup_optimizers(KeepGradients(adapter.parameters(), lr=1.0)),
        averaging=Averaging(),
    )


def test_songs_for_regularization_have_no_trigger_word(make_store: MakeStore) -> None:
    store = make_store([Shape(60), Shape(60, regularization=True)])
    data = load_data(store, short_run(validation="none"))
    for song, variant in zip(data.songs, ("caption.prepend", "caption.none"), strict=True):
        tensors = store.load(song.stored)
        assert torch.equal(song.condition, torch.cat([tensors.head, tensors.texts[variant]]))
    assert not data.notes


def test_a_trigger_word_in_the_labels_themselves_is_told(make_store: MakeStore) -> None:
    for word, told in (("Handstyle", True), ("hand", False), ("bpm", False)):
        store = make_store([Shape(60), Shape(60, regularization=True)], trigger_word=word)
        prompts = [text_prompt(PromptLabels(caption)) for caption in ("Handstyle, a waltz", "a waltz, HANDSTYLE")]
        store.songs[1] = replace(store.songs[1], prompts=prompts, lyric_prompt=lyric_prompt(PromptLabels("")))
        notes = load_data(store, short_run(validation="none")).notes
        assert [f'"{word}" themselves: song 1' in note for note in notes] == ([True] if told else [])


@pytest.mark.parametrize("kind", ["songs", "windows"])
def test_songs_for_regularization_are_never_held_out(make_store: MakeStore, kind: str) -> None:
    store = make_store([Shape(400, regularization=i >= 4) for i in range(12)])
    data = load_data(store, short_run(validation=kind, validation_share=0.5))
    assert not any(window.song.regularization for window in data.held_out)
    assert {song.frames for song in data.songs if song.regularization} == {400}
    assert len(data.held_out) == (2 if kind == "songs" else 4)
    auto = load_data(store, short_run(validation="auto"))
    assert auto.held_out_kind == "windows", "four songs to learn are too few to spare whole ones"


def test_weight_zero_leaves_them_out_and_says_so(make_store: MakeStore) -> None:
    store = make_store([Shape(60), Shape(60, regularization=True)])
    data = load_data(store, short_run(validation="none", regularization_weight=0))
    assert [song.stored.title for song in data.songs] == ["song 0"]
    assert data.notes[0] == "Left out, because their weight is 0: 1 regularization song."


@pytest.mark.parametrize("weight", [0, 1])
def test_nothing_but_regularization_is_refused(make_store: MakeStore, weight: float) -> None:
    store = make_store([Shape(60, regularization=True)] * 2)
    with pytest.raises(UserError, match="nothing to learn"):
        load_data(store, short_run(validation="none", regularization_weight=weight))


def test_the_run_tells_them_apart(make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path) -> None:
    store = make_store([Shape(100), Shape(100), Shape(75, regularization=True)])
    train(checkpoint, store, tmp_path / "run", short_run(validation="none", max_steps=1), Job())
    tensors = json.loads((tmp_path / "run" / "run.json").read_text())["tensors"]
    assert (tensors["songs"], tensors["regularization_songs"], tensors["audio_s"]) == (2, 1, 8.0)


def test_a_folder_without_marks_keeps_its_fingerprint(make_store: MakeStore) -> None:
    """An index of a version that knew no marks, and the same one written anew."""
    store = make_store([Shape(60)])
    index = json.loads((store.folder / "index.json").read_text())
    del index["songs"][0]["regularization"]
    (store.folder / "index.json").write_text(json.dumps(index))
    assert TensorStore.open(store.folder).fingerprint() == store.fingerprint()
    marked = make_store([Shape(60, regularization=True)])
    assert marked.fingerprint() != store.fingerprint()


# datasets that are too small --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["random", "tiled", "whole"])
def test_fewer_songs_than_the_batch_make_smaller_batches(
    make_store: MakeStore, checkpoint: Checkpoint, tmp_path: Path, mode: str
) -> None:
    settings = short_run(window=mode, validation="none", batch_size=64, gradient_accumulation=8, max_steps=2)
    store = make_store([Shape(60), Shape(60)])
    outcome = train(checkpoint, store, tmp_path / "run", settings, Job())
    assert outcome.summary.step == 2
    order = EpochOrder(load_data(store, settings), settings)
    assert order.steps_per_epoch == 1
    assert [len(batch) for batch in order.steps(0)[0]] == [4 if mode == "tiled" else 2]


def test_validation_always_leaves_a_song_to_train_on(make_store: MakeStore) -> None:
    data = load_data(make_store([Shape(60), Shape(60)]), short_run(validation="songs", validation_share=0.5))
    assert (len(data.songs), len(data.held_out)) == (1, 1)
    store = make_store([Shape(60), Shape(60, regularization=True)])
    with pytest.raises(UserError, match="One song to learn cannot be split"):
        load_data(store, short_run(validation="songs"))

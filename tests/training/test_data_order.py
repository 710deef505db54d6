"""What is trained on, what is held out, and the order of every draw."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hand_made import MakeStore, Shape, short_run

from acestep.core.errors import UserError
from acestep.training.data import EpochOrder, Flow, draw_batch, load_data
from acestep.training.padding import ConditionMask

FLOW = Flow(-0.4, 1.0)


def test_every_song_comes_once_an_epoch_and_repeats_as_often_as_asked(make_store: MakeStore) -> None:
    store = make_store([Shape(60), Shape(60, repeat=3), Shape(80)])
    settings = short_run(validation="none")
    order = EpochOrder(load_data(store, settings), settings)
    for epoch in range(3):
        seen = Counter(s.song.stored.title for step in order.steps(epoch) for batch in step for s in batch)
        assert seen == {"song 0": 1, "song 1": 3, "song 2": 1}
        assert len(order.steps(epoch)) == order.steps_per_epoch


def test_epochs_differ_and_repeat_exactly(make_store: MakeStore) -> None:
    store, settings = make_store(), short_run(validation="none", batch_size=1)
    orders = [EpochOrder(load_data(store, settings), settings) for _ in range(2)]

    def titles(order: EpochOrder, epoch: int) -> list[str]:
        return [s.song.stored.title for step in order.steps(epoch) for batch in step for s in batch]

    assert titles(orders[0], 0) == titles(orders[1], 0)
    assert titles(orders[0], 0) != titles(orders[0], 1)


def test_batches_hold_windows_of_one_length(make_store: MakeStore) -> None:
    store = make_store([Shape(30), Shape(200), Shape(30), Shape(200), Shape(30)])
    settings = short_run(validation="none", batch_size=2, gradient_accumulation=2)
    order = EpochOrder(load_data(store, settings), settings)
    batches = [batch for step in order.steps(0) for batch in step]
    for batch in batches:
        assert len({sample.piece.length for sample in batch}) == 1
    assert sorted(len(batch) for batch in batches) == [1, 2, 2]
    assert [len(step) for step in order.steps(0)] == [2, 1]  # what is left over makes a step of its own


def test_draws_do_not_depend_on_the_batch_they_are_made_in(make_store: MakeStore) -> None:
    settings = short_run(validation="none", batch_size=8)
    data = load_data(make_store([Shape(90)] * 4), settings)
    (step,) = EpochOrder(data, settings).steps(5)
    together = draw_batch(step[0], 5, data, settings, FLOW)
    for index, sample in enumerate(step[0]):
        alone = draw_batch([sample], 5, data, settings, FLOW)
        for name in ("latents", "noise", "t", "uniform"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[index])


def test_windows_are_cut_from_anywhere_in_the_song(make_store: MakeStore) -> None:
    settings = short_run(validation="none", batch_size=1)
    data = load_data(make_store([Shape(120)]), settings)
    order = EpochOrder(data, settings)
    song = data.songs[0].latents
    starts = set()
    for epoch in range(200):
        window = draw_batch(order.steps(epoch)[0][0], epoch, data, settings, FLOW).latents[0]
        starts.add(next(i for i in range(71) if torch.equal(song[i : i + 50], window)))
    assert min(starts) < 5 and max(starts) > 65


def test_whole_songs_are_held_out_and_never_trained_on(make_store: MakeStore) -> None:
    data = load_data(make_store(), short_run())
    held = {window.song.stored.id for window in data.held_out}
    assert len(held) == 2
    assert held.isdisjoint({song.stored.id for song in data.songs})


def test_adding_a_song_does_not_shuffle_the_held_out_ones(make_store: MakeStore) -> None:
    few = {w.song.stored.id for w in load_data(make_store([Shape(60)] * 8), short_run()).held_out}
    more = load_data(make_store([Shape(60)] * 9, name="more"), short_run()).held_out
    assert len(few & {window.song.stored.id for window in more}) >= 1


def test_held_out_ends_are_never_part_of_a_training_window(make_store: MakeStore) -> None:
    settings = short_run(validation="windows", validation_share=0.3, max_latent_length=100)
    data = load_data(make_store([Shape(500), Shape(120)]), settings)
    (window,) = data.held_out  # the second song is too short to spare an end
    assert (window.start, window.length) == (400, 100)
    assert [song.frames for song in data.songs] == [400, 120]
    assert not data.notes


def test_too_short_songs_leave_no_validation_and_say_so(make_store: MakeStore) -> None:
    data = load_data(make_store([Shape(120)] * 3), short_run(validation="windows", max_latent_length=100))
    assert data.held_out == [] and "no validation" in data.notes[0]


def test_one_song_cannot_be_split(make_store: MakeStore) -> None:
    with pytest.raises(UserError, match="One song to learn cannot be split"):
        load_data(make_store([Shape(90)]), short_run())


def test_tag_position_chooses_the_stored_text(make_store: MakeStore) -> None:
    store = make_store([Shape(60), Shape(60)])
    tagged = load_data(store, short_run(validation="none"))
    other = load_data(
        make_store([Shape(60), Shape(60)], name="b", tag_position="replace"), short_run(validation="none")
    )
    tensors = store.load(store.songs[0])
    assert torch.equal(tagged.songs[0].condition, torch.cat([tensors.head, tensors.texts["caption.prepend"]]))
    assert other.songs[0].condition.shape == tagged.songs[0].condition.shape


def test_padded_conditions_are_masked(checkpoint) -> None:
    from acestep.model.loading import load_transformer

    mask = ConditionMask(load_transformer(checkpoint, torch.float32, torch.device("cpu")))
    same = mask.pad([torch.ones(3, 4), torch.zeros(3, 4)], torch.float32)
    assert same.shape == (2, 3, 4) and mask.bias is None
    padded = mask.pad([torch.ones(3, 4), torch.zeros(5, 4)], torch.float32)
    assert padded.shape == (2, 5, 4)
    assert mask.bias.reshape(2, 5).tolist() == [[True] * 3 + [False] * 2, [True] * 5]

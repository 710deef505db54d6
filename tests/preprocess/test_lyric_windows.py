"""Windows with lyrics and duration of their own: what is stored, when it is used, and what training makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from preprocess_songs import SETTINGS, content, write_song

from acestep.core.errors import UserError
from acestep.dataset.scan import scan_folder
from acestep.model.checkpoints import Checkpoint
from acestep.model.condition import condition_head, condition_text, embed_lyrics, encode_text
from acestep.model.loading import load_condition_encoder, load_text_encoder
from acestep.preprocess.store import TensorStore
from acestep.preprocess.tiles import Piece
from acestep.settings import TrainSettings
from acestep.training.data import EpochOrder, Flow, draw_batch, load_data

pytestmark = pytest.mark.usefixtures("one_thread")

LRC = "[Verse]\n[00:00.10]one\n[00:00.90]two\n[00:02.20]three\n\n[Chorus]\n[00:03.50]four\n[00:04.90]five\n"
LYRICS = ["[Verse]\none\ntwo", "[Verse]\nthree\n\n[Chorus]\nfour", "[Chorus]\nfive"]


@pytest.fixture(scope="module")
def sung(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds with timed lyrics, and three without."""
    folder = tmp_path_factory.mktemp("sung")
    path = write_song(folder, "sung", 220, 6.0, caption="a short song", bpm=90, language="en")
    path.with_suffix(".lrc").write_text(LRC, encoding="utf-8")
    write_song(folder, "plain", 330, 3.0, caption="fast drums")
    return folder


@pytest.fixture(scope="module")
def windowed(sung: Path, encode, tmp_path_factory: pytest.TempPathFactory) -> TensorStore:
    out = tmp_path_factory.mktemp("windowed") / "tensors"
    report = encode(sung, out, lyric_windows_s=2.0)
    assert not report.problems and report.conditions_encoded == 5
    return TensorStore.open(out)


def song_of(store: TensorStore, title: str = "sung.wav"):
    return next(song for song in store.songs if song.title == title)


def training(store: TensorStore, **changes: object):
    values = {"validation": "none", "max_latent_length": 60, "batch_size": 1, "gradient_accumulation": 1, **changes}
    settings = TrainSettings.parse(values, "test")
    return load_data(store, settings), settings


def test_a_window_is_encoded_as_generation_would_say_it(windowed: TensorStore, checkpoint: Checkpoint) -> None:
    """Prompts written by diffusers' pipeline for two seconds with these lyrics, encoded anew."""
    from diffusers import AceStepPipeline

    write = object.__new__(AceStepPipeline)._format_prompt
    text_encoder = load_text_encoder(checkpoint, torch.float32, torch.device("cpu"))
    encoder = load_condition_encoder(checkpoint, torch.float32, torch.device("cpu"))
    song = song_of(windowed)
    assert [(window.start, window.frames) for window in song.windows] == [(0, 50), (50, 50), (100, 50)]
    for window, lyrics in zip(song.windows, LYRICS, strict=True):
        head, texts = windowed.load_window(song, window)
        for variant, caption in (("caption.none", "a short song"), ("caption.append", "a short song, zydeco")):
            text, sung_text = write(prompt=caption, lyrics=lyrics, bpm=90, audio_duration=2.0, vocal_language="en")
            assert (window.prompts[song.variants[variant]], window.lyric_prompt) == (text, sung_text)
            assert torch.equal(texts[variant], condition_text(encoder, encode_text(text_encoder, text))[0])
            assert torch.equal(head, condition_head(encoder, embed_lyrics(text_encoder, sung_text))[0])
    assert song_of(windowed, "plain.wav").windows == []


def test_two_passes_and_a_second_run_give_the_same_files(
    windowed: TensorStore, sung: Path, encode, tmp_path: Path
) -> None:
    encode(sung, tmp_path / "two", lyric_windows_s=2.0, two_pass=True)
    assert content(tmp_path / "two") == content(windowed.folder)
    again = encode(sung, tmp_path / "two", lyric_windows_s=2.0)
    assert (again.reused, again.conditions_encoded, again.removed_files) == (2, 0, 0)
    # without windows: no audio is read again, and the files of the windows go
    without = encode(sung, tmp_path / "two")
    assert (without.latents_encoded, without.conditions_encoded, without.removed_files) == (0, 0, 3)
    store = TensorStore.open(tmp_path / "two")
    assert not song_of(store).windows and store.fingerprint() != windowed.fingerprint()


def test_edited_lyrics_do_not_take_the_times_of_others(sung: Path, encode, tmp_path: Path) -> None:
    dataset = scan_folder(sung, SETTINGS)
    song = next(song for song in dataset.songs if song.relative == "sung.wav")
    song.lyrics = "[Verse]\none\ntwo\nsomething else"
    report = encode(dataset, tmp_path / "out", lyric_windows_s=2.0)
    (problem,) = report.problems
    assert problem.subject == "sung.wav" and problem.severity == "warning" and "are not used" in problem.message
    assert song_of(TensorStore.open(tmp_path / "out")).windows == []


def test_training_takes_the_windows_with_their_lyrics(windowed: TensorStore) -> None:
    pieces = {Piece(start, 50) for start in (0, 50, 100)}
    for mode, in_an_epoch in (("tiled", 3), ("random", 1)):
        data, settings = training(windowed, window=mode)
        order = EpochOrder(data, settings)
        seen: dict[int, torch.Tensor] = {}
        for epoch in range(12):
            samples = [s for step in order.steps(epoch) for batch in step for s in batch]
            samples = [sample for sample in samples if sample.song.stored.title == "sung.wav"]
            assert len(samples) == in_an_epoch
            for sample in samples:
                batch = draw_batch([sample], epoch, data, settings, Flow(-0.4, 1.0))
                start = next(i for i in range(101) if torch.equal(sample.song.latents[i : i + 50], batch.latents[0]))
                seen[start] = batch.conditions[0]
        song = next(song for song in data.songs if song.windows)
        assert set(song.windows) == pieces and set(seen) == {0, 50, 100}
        for start, condition in seen.items():
            head, texts = windowed.load_window(song.stored, song.stored.windows[start // 50])
            variant = "caption.append" if song.stored.id in _captioned(windowed, data) else "genre.append"
            assert torch.equal(condition, torch.cat([head, texts[variant]]).to(condition.dtype))


def _captioned(store: TensorStore, data) -> set[str]:
    from acestep.dataset.dataset import genre_songs

    return {song.id for song in store.songs} - genre_songs(store.songs, store.info.genre_ratio)


def test_windows_that_do_not_fit_are_not_used(windowed: TensorStore) -> None:
    whole, _ = training(windowed, window="whole")
    shorter, _ = training(windowed, max_latent_length=40)
    for data in (whole, shorter):
        assert all(not data.lyric_grid(song) for song in data.songs)
    assert whole.notes == [] and "sung.wav" in shorter.notes[0]
    data, _ = training(windowed)
    (song,) = (song for song in data.songs if song.windows)
    held_out_end = replace(song, frames=120)
    assert [piece.start for piece in data.lyric_grid(held_out_end)] == [0, 50]


def test_a_window_beyond_the_song_is_no_index_of_ours(sung: Path, encode, tmp_path: Path) -> None:
    encode(sung, tmp_path / "out", lyric_windows_s=2.0)
    path = tmp_path / "out" / "index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    next(song for song in index["songs"] if song["windows"])["windows"][0]["start"] = 140
    path.write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(UserError, match="do not belong together"):
        TensorStore.open(tmp_path / "out")

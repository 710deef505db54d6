"""What goes wrong: one sentence each, the good songs go on, and nothing is lost."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from preprocess_songs import SETTINGS, content, write_labels, write_song
from safetensors.torch import load_file, save_file

from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.core.paths import content_hash
from acestep.dataset.scan import scan_folder
from acestep.model.checkpoints import Checkpoint, resolve_checkpoint
from acestep.preprocess import run as run_module
from acestep.preprocess.run import preprocess
from acestep.preprocess.store import TensorStore
from acestep.settings.preprocess import PreprocessSettings

Encode = Callable[..., object]


@pytest.mark.parametrize("part", ["latents", "conditions"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "emptied", "other shape"])
def test_damaged_tensors_are_made_again_by_the_same_command(
    songs: Path, encoded: Path, encode: Encode, part: str, damage: str
) -> None:
    before = content(encoded)
    victim = sorted((encoded / part).iterdir())[1]
    if damage == "missing":
        victim.unlink()
    elif damage == "other shape":
        save_file({name: torch.zeros(3, 2, 1) for name in load_file(victim)}, victim)
    else:
        victim.write_bytes(victim.read_bytes()[: 0 if damage == "emptied" else -7])
    store = TensorStore.open(encoded)
    with pytest.raises(UserError, match=victim.name):
        for song in store.songs:
            store.load(song)
    report = encode(songs, encoded)
    assert (report.encoded, report.reused) == (1, 2)
    assert content(encoded) == before


def test_broken_songs_do_not_stop_the_good_ones(songs: Path, tmp_path: Path, encode: Encode) -> None:
    write_song(songs, "four", 550, 1.1, caption="a flute")
    dataset = scan_folder(songs, SETTINGS)
    (songs / "one.wav").write_text("this was a song when the folder was read", encoding="utf-8")
    (songs / "four.wav").unlink()
    silence = write_song(songs, "sub/two", 0, 1.5)
    next(song for song in dataset.songs if song.relative == "sub/two.wav").id = content_hash(silence)[:16]
    warnings: list[object] = []
    report = encode(dataset, tmp_path / "out", job=Job(lambda kind, what: kind == "warn" and warnings.append(what)))
    assert (report.encoded, report.failed) == (1, 3)
    told = {problem.subject: problem.message for problem in report.problems}
    assert set(told) == {"one.wav", "four.wav", "sub/two.wav"}
    assert "has changed since" in told["one.wav"]
    assert "four.wav" in told["four.wav"]
    assert "silent" in told["sub/two.wav"]
    assert len(warnings) == 3
    assert [song.title for song in TensorStore.open(tmp_path / "out").songs] == ["three \U0001f3b5 'quoted'.wav"]


def test_when_every_song_is_broken_the_run_fails(songs: Path, tmp_path: Path, encode: Encode) -> None:
    dataset = scan_folder(songs, SETTINGS)
    for song in dataset.songs:
        song.path.unlink()
    with pytest.raises(UserError, match="Of 3 labelled songs none"):
        encode(dataset, tmp_path / "out")


def test_labels_that_are_no_text_fail_their_song_only(songs: Path, tmp_path: Path, encode: Encode) -> None:
    dataset = scan_folder(songs, SETTINGS)
    dataset.songs[0].caption = "half a character: \ud83d"
    report = encode(dataset, tmp_path / "out")
    assert (report.encoded, report.failed) == (2, 1)
    assert "not valid text" in report.problems[0].message


def test_only_labelled_songs_are_encoded(songs: Path, tmp_path: Path, encode: Encode) -> None:
    for sidecar in songs.rglob("*.json"):
        sidecar.unlink()
    with pytest.raises(UserError, match=r"Of 3 songs .* none is labelled") as caught:
        encode(songs, tmp_path / "out")
    assert caught.value.fix
    assert not (tmp_path / "out").exists()
    write_labels(songs / "one.wav", caption="the only one")
    report = encode(songs, tmp_path / "out")
    assert (report.encoded, report.unlabelled) == (1, 2)


def test_long_captions_and_lyrics_are_counted(songs: Path, tmp_path: Path, encode: Encode) -> None:
    write_labels(songs / "one.wav", caption="many words " * 200)
    write_labels(songs / "sub/two.wav", caption="short", lyrics="la la la\n" * 3000)
    report = encode(songs, tmp_path / "out", max_duration_s=1.0)
    assert (report.metas_cut, report.lyrics_cut, report.failed) == (1, 1, 0)
    cut = {problem.subject: problem for problem in report.problems}
    assert "tempo" in cut["one.wav"].message
    assert "lyrics" in cut["sub/two.wav"].message
    assert {problem.severity for problem in report.problems} == {"warning"}
    again = encode(songs, tmp_path / "out", max_duration_s=1.0)
    assert (again.encoded, again.metas_cut, again.lyrics_cut) == (0, 1, 1)
    store = TensorStore.open(tmp_path / "out")
    assert max(max(song.text_tokens) for song in store.songs) == 256
    assert max(song.head_tokens for song in store.songs) == 2049


@pytest.fixture
def other_model(demo_checkpoint: Path, checkpoint: Checkpoint, tmp_path: Path) -> Checkpoint:
    """The demo model with one weight of its VAE changed."""
    root = Path(shutil.copytree(checkpoint.dit.parent, tmp_path / "checkpoints"))
    weights = next((root / checkpoint.vae.name).glob("*.safetensors"))
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1
    save_file(tensors, weights)
    return resolve_checkpoint(root / checkpoint.dit.name)


def test_a_folder_belongs_to_one_model(songs: Path, encoded: Path, other_model: Checkpoint, encode: Encode) -> None:
    before = content(encoded)
    with pytest.raises(UserError, match="has another VAE") as caught:
        preprocess(scan_folder(songs, SETTINGS), other_model, encoded, PreprocessSettings(device="cpu"))
    assert "another folder" in caught.value.fix
    with pytest.raises(UserError, match="has another VAE"):
        TensorStore.open(encoded).require_made_with(other_model)
    assert content(encoded) == before


def test_tensors_fit_the_model_they_were_made_with(encoded: Path, checkpoint: Checkpoint) -> None:
    TensorStore.open(encoded).require_made_with(checkpoint)


def test_a_slip_in_the_folder_does_not_empty_another_store(tmp_path: Path, encoded: Path, encode: Encode) -> None:
    before = content(encoded)
    write_song(tmp_path / "others", "strange", 600, 1.0, caption="something else")
    with pytest.raises(UserError, match="holds the tensors of other songs"):
        encode(tmp_path / "others", encoded)
    assert content(encoded) == before


@pytest.mark.parametrize("text", ["{", '{"schema_version": 1, "songs": "../../.."}', '{"name": "my own file"}'])
def test_a_foreign_index_is_neither_used_nor_overwritten(
    songs: Path, tmp_path: Path, encode: Encode, text: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"index\.json"):
        encode(songs, out)
    assert content(out) == {"index.json": text.encode()}


def test_paths_in_the_index_lead_nowhere(songs: Path, encoded: Path, encode: Encode, tmp_path: Path) -> None:
    precious = tmp_path / "precious.safetensors"
    precious.write_bytes(b"keep me")
    index = json.loads((encoded / "index.json").read_text(encoding="utf-8"))
    index["songs"][0]["latents_key"] = "../../precious"
    (encoded / "index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(UserError, match="latents_key"):
        encode(songs, encoded)
    assert precious.read_bytes() == b"keep me"


def test_parts_that_are_links_out_of_the_folder_are_refused(songs: Path, tmp_path: Path, encode: Encode) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "latents").symlink_to(elsewhere)
    with pytest.raises(UserError, match="leads outside"):
        encode(songs, tmp_path / "out")
    assert not list(elsewhere.iterdir())


def test_the_folder_is_a_file(songs: Path, tmp_path: Path, encode: Encode) -> None:
    (tmp_path / "out").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="is a file, not a folder"):
        encode(songs, tmp_path / "out")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    mount = tmp_path / "small disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk_is_said_and_loses_nothing(songs: Path, encoded: Path, small_disk: Path, encode: Encode) -> None:
    out = small_disk / "tensors"
    with pytest.raises(UserError, match="disk is full") as caught:
        encode(songs, out)
    assert "again" in caught.value.fix
    left = content(out)
    reference = content(encoded)
    assert left
    assert all(reference[name] == data for name, data in left.items()), "no file is half written"
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    encode(songs, out)
    assert content(out) == reference


def test_running_out_of_memory_names_the_remedies(songs: Path, tmp_path: Path, encode: Encode, monkeypatch) -> None:
    import acestep.preprocess.encoders as encoders

    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(encoders, "encode_audio", no_memory)
    with pytest.raises(UserError, match="out of memory") as caught:
        encode(songs, tmp_path / "out")
    assert "two passes" in caught.value.fix


def test_decoding_stays_one_song_ahead(songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two decoded songs are in memory, and the next is decoded while the present one is in use."""
    import threading
    import weakref

    from acestep.audio import decode as decode_module
    from acestep.preprocess.readahead import ReadAhead

    arrays: list[weakref.ref] = []
    most, decoded = 0, threading.Semaphore(0)
    real = decode_module.decode

    def counted(path: Path, max_duration_s: float):
        nonlocal most
        audio = real(path, max_duration_s)
        arrays.append(weakref.ref(audio.samples))
        most = max(most, sum(array() is not None for array in arrays))
        decoded.release()
        return audio

    monkeypatch.setattr(decode_module, "decode", counted)
    order = scan_folder(songs, SETTINGS).songs * 4
    with ReadAhead(order, 0.0, "none") as ahead:
        for number, song in enumerate(order):
            ready = ahead.take(song)
            assert decoded.acquire(timeout=20)
            if number == 0:
                assert decoded.acquire(timeout=20), "the second song is decoded without being asked for"
                decoded.release()
            del ready
    assert most <= 2


def test_the_report_is_plain_data(songs: Path, encoded: Path, encode: Encode) -> None:
    report = encode(songs, encoded)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["total"] == data["reused"] == 3
    assert data["size_bytes"] == sum(file.stat().st_size for file in encoded.rglob("*.safetensors"))
    assert dataclasses.is_dataclass(report)
    assert run_module.PreprocessReport is type(report)

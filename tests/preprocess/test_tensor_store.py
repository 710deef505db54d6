"""The tensor folder: what is written is read back, and nothing wrong in it passes."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from acestep.core.errors import UserError
from acestep.preprocess.store import (
    DamagedFile,
    StoredSong,
    StoreInfo,
    TensorStore,
    condition_file,
    latents_file,
    read_header,
    read_tensors,
    refuse_other_model,
    remove_orphans,
    variant_names,
    write_index,
    write_tensors,
)

INFO = StoreInfo(
    dataset_name="songs",
    trigger_word="zydeco",
    tag_position="prepend",
    genre_ratio=30,
    checkpoint_name="acestep-v15-demo",
    vae_fingerprint="a" * 32,
    condition_fingerprint="b" * 32,
    latent_width=4,
    precision="fp32",
    normalize="none",
    max_duration_s=240.0,
    latents="sample",
    seed=42,
)
SONG = StoredSong(
    id="0123456789abcdef",
    title="folder/söng \U0001f3b5.wav",
    frames=5,
    duration_s=0.2,
    repeat=1,
    override=None,
    has_genre=False,
    custom_tag="zydeco",
    latents_key="1" * 32,
    condition_key="2" * 32,
    head_tokens=3,
    text_tokens=[2, 4],
    width=6,
    variants={name: int(name.endswith("end")) for name in variant_names()},
    prompts=["a", "zydeco, a"],
    lyric_prompt="la",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_song(tmp_path, SONG)
    write_index(tmp_path, INFO, [SONG])
    return tmp_path


def write_song(folder: Path, song: StoredSong) -> None:
    torch.manual_seed(0)
    write_tensors(latents_file(folder, song.latents_key), {"latents": torch.randn(5, 4)}, {"samples": 9600})
    tensors = {"head": torch.randn(3, 6), "text.0": torch.randn(2, 6), "text.1": torch.randn(4, 6)}
    write_tensors(condition_file(folder, song.condition_key), tensors, {})


def edit_index(folder: Path, edit) -> None:
    path = folder / "index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    edit(index)
    path.write_text(json.dumps(index), encoding="utf-8")


def test_what_is_written_is_read_back(folder: Path) -> None:
    store = TensorStore.open(folder)
    assert store.info == INFO
    assert store.songs == [SONG]
    torch.manual_seed(0)
    tensors = store.load(store.songs[0])
    assert torch.equal(tensors.latents, torch.randn(5, 4))
    assert torch.equal(tensors.head, torch.randn(3, 6))
    assert set(tensors.texts) == set(variant_names())
    assert tensors.texts["caption.none"].shape == (2, 6)
    assert tensors.texts["caption.prepend"] is tensors.texts["genre.append"], "equal texts share one tensor"
    assert store.size_bytes() == sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def test_bf16_conditions_come_back_as_they_were(folder: Path) -> None:
    tensors = {"head": torch.randn(3, 6), "text.0": torch.randn(2, 6), "text.1": torch.randn(4, 6)}
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    write_tensors(condition_file(folder, SONG.condition_key), half, {})
    loaded = TensorStore.open(folder).load(SONG)
    assert loaded.head.dtype == torch.bfloat16
    assert torch.equal(loaded.head, half["head"])


def test_equal_tensors_give_equal_bytes_and_an_equal_index_is_left_alone(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(2, 3), "a": torch.zeros(1)}
    facts = {"samples": 1, "other": True}
    write_tensors(tmp_path / "x" / "1.safetensors", tensors, facts)
    write_tensors(tmp_path / "x" / "2.safetensors", dict(reversed(tensors.items())), dict(reversed(facts.items())))
    assert (tmp_path / "x" / "1.safetensors").read_bytes() == (tmp_path / "x" / "2.safetensors").read_bytes()
    write_index(tmp_path, INFO, [SONG])
    before = (tmp_path / "index.json").stat()
    write_index(tmp_path, INFO, [SONG])
    assert (tmp_path / "index.json").stat().st_ino == before.st_ino


@given(
    array=hnp.arrays("float32", hnp.array_shapes(max_dims=3, max_side=5), elements=st.floats(-9, 9, width=32)),
    facts=st.dictionaries(st.text(max_size=8), st.integers() | st.booleans() | st.text(max_size=8), max_size=3),
)
def test_header_and_tensors_round_trip(tmp_path_factory: pytest.TempPathFactory, array, facts) -> None:
    path = tmp_path_factory.mktemp("round") / "t.safetensors"
    write_tensors(path, {"x": torch.from_numpy(array)}, facts)
    header = read_header(path)
    assert (header.shapes, header.dtypes, header.facts) == ({"x": array.shape}, {"x": "F32"}, facts)
    tensors, noted = read_tensors(path)
    assert noted == facts
    assert torch.equal(tensors["x"], torch.from_numpy(array))


@given(data=st.binary(max_size=200), declared=st.integers(0, 2**64 - 1))
def test_any_bytes_are_a_damaged_file_and_nothing_else(tmp_path_factory, data: bytes, declared: int) -> None:
    path = tmp_path_factory.mktemp("bytes") / "t.safetensors"
    for content in (data, struct.pack("<Q", declared) + data, struct.pack("<Q", len(data)) + data):
        path.write_bytes(content)
        with pytest.raises(DamagedFile):
            read_tensors(path)


@pytest.mark.parametrize(
    "header",
    [
        '{"x": 1}',
        '{"x": {"dtype": "F32", "shape": "ab", "data_offsets": [0, 4]}}',
        '{"x": {"dtype": "F32", "shape": [1], "data_offsets": []}}',
        '{"__metadata__": [], "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        '{"__metadata__": {"acestep": "[]"}}',
        "[]",
        "null",
        "[" * 5000,
    ],
)
def test_strange_headers_are_damaged_files(tmp_path: Path, header: str) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(4))
    with pytest.raises(DamagedFile):
        read_header(path)


def test_a_truncated_file_is_named_with_the_remedy(folder: Path) -> None:
    for path in (latents_file(folder, SONG.latents_key), condition_file(folder, SONG.condition_key)):
        whole = path.read_bytes()
        for size in (0, 4, 40, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(UserError, match="is damaged") as caught:
                TensorStore.open(folder).load(SONG)
            assert str(path) in caught.value.message
            assert "preprocess again" in caught.value.fix
        path.write_bytes(whole)


def test_a_missing_file_is_named(folder: Path) -> None:
    latents_file(folder, SONG.latents_key).unlink()
    with pytest.raises(UserError, match=f"{SONG.latents_key}.safetensors is missing") as caught:
        TensorStore.open(folder).load(SONG)
    assert "preprocess again" in caught.value.fix


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_numbers_are_refused(folder: Path, value: float) -> None:
    latents = torch.zeros(5, 4)
    latents[3, 1] = value
    write_tensors(latents_file(folder, SONG.latents_key), {"latents": latents}, {})
    with pytest.raises(UserError, match='not numbers in "latents"'):
        TensorStore.open(folder).load(SONG)


@pytest.mark.parametrize(
    "tensors",
    [
        {"latents": torch.zeros(6, 4)},
        {"latents": torch.zeros(5, 3)},
        {"latents": torch.zeros(4, 5)},
        {"latents": torch.zeros(5, 4, dtype=torch.float16)},
        {"latents": torch.zeros(5, 4, dtype=torch.int32)},
        {"other": torch.zeros(5, 4)},
        {"latents": torch.zeros(5, 4), "more": torch.zeros(1)},
    ],
)
def test_other_tensors_than_the_index_names_are_refused(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    write_tensors(latents_file(folder, SONG.latents_key), tensors, {})
    with pytest.raises(UserError, match="not those the index names"):
        TensorStore.open(folder).load(SONG)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latents_key", "../../../etc/passwd"),
        ("latents_key", "/etc/passwd"),
        ("condition_key", "..\\..\\x"),
        ("condition_key", "2" * 31),
        ("condition_key", "2" * 32 + "\n"),
        ("condition_key", None),
        ("id", "../x"),
        ("frames", "5"),
        ("frames", -1),
        ("frames", 1.5),
        ("frames", True),
        ("duration_s", "1"),
        ("duration_s", 0),
        ("repeat", 0),
        ("override", "both"),
        ("title", 7),
        ("variants", []),
        ("variants", {"caption.none": 0}),
        ("variants", dict.fromkeys(variant_names(), 5)),
        ("text_tokens", [2]),
        ("text_tokens", "24"),
        ("prompts", {"0": "a"}),
        ("evil", "field"),
    ],
)
def test_a_hostile_song_entry_is_refused(folder: Path, name: str, value: object) -> None:
    edit_index(folder, lambda index: index["songs"][0].update({name: value}))
    with pytest.raises(UserError) as caught:
        TensorStore.open(folder)
    assert "index.json" in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"schema_version": 1}', '{"schema_version": "1", "songs": []}', "[" * 20000, "\x00"],
)
def test_an_index_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "index.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"index\.json"):
        TensorStore.open(folder)


def test_not_a_number_in_the_index_is_refused(folder: Path) -> None:
    edit_index(folder, lambda index: index["songs"][0].update(duration_s=float("nan")))
    with pytest.raises(UserError, match=r"index\.json"):
        TensorStore.open(folder)


def test_a_newer_index_asks_for_an_update(folder: Path) -> None:
    edit_index(folder, lambda index: index.update(schema_version=2))
    with pytest.raises(UserError, match="newer version") as caught:
        TensorStore.open(folder)
    assert "Update" in caught.value.fix


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = latents_file(folder, SONG.latents_key)
    outside = tmp_path_factory.mktemp("outside") / "secret.safetensors"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(UserError, match="leads outside"):
        TensorStore.open(folder).load(SONG)


def test_folders_that_are_no_stores(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        TensorStore.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no index\.json\."):
        TensorStore.open(tmp_path)
    (tmp_path / "0a1b2c3d.pt").touch()
    with pytest.raises(UserError, match=r"\.pt tensors of another program"):
        TensorStore.open(tmp_path)


def test_another_model_is_named(folder: Path) -> None:
    store = TensorStore.open(folder)
    refuse_other_model(store, "same", INFO.vae_fingerprint, INFO.condition_fingerprint)
    with pytest.raises(UserError, match="acestep-v15-demo; acestep-v15-base has another condition encoder"):
        refuse_other_model(store, "acestep-v15-base", INFO.vae_fingerprint, "c" * 32)
    with pytest.raises(UserError, match="another VAE and another condition encoder"):
        refuse_other_model(store, "acestep-v15-base", "c" * 32, "c" * 32)


def test_only_our_own_orphans_are_removed(folder: Path) -> None:
    gone = replace(SONG, latents_key="3" * 32, condition_key="4" * 32)
    write_song(folder, gone)
    kept = [
        folder / "latents" / "notes.txt",
        folder / "latents" / "my-favourite.safetensors",
        folder / "conditions" / ("5" * 32 + ".pt"),
        folder / "conditions" / ("G" * 32 + ".safetensors"),
        folder / ("6" * 32 + ".safetensors"),
    ]
    for path in kept:
        path.write_bytes(b"mine")
    assert remove_orphans(folder, [SONG]) == 2
    assert all(path.exists() for path in kept)
    assert not latents_file(folder, gone.latents_key).exists()
    assert not condition_file(folder, gone.condition_key).exists()
    TensorStore.open(folder).load(SONG)


def test_the_fingerprint_follows_the_content(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("copy")
    write_index(other, INFO, [SONG])
    same = TensorStore.open(other).fingerprint()
    assert same == TensorStore.open(folder).fingerprint()
    write_index(other, INFO, [replace(SONG, condition_key="7" * 32)])
    assert TensorStore.open(other).fingerprint() != same

"""Tensor folders of other trainers: latents kept, conditions as in generation, nothing run, everything named."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job
from acestep.model import condition, loading
from acestep.model.checkpoints import Checkpoint
from acestep.model.prompt import PromptLabels, lyric_prompt, text_prompt
from acestep.preprocess.import_pt import import_pt_folder
from acestep.preprocess.run import PreprocessReport
from acestep.preprocess.store import TensorStore

LABELS: dict[str, Any] = {
    "audio_path": "/home/someone/one.wav",
    "filename": "one.wav",
    "caption": "zydeco, a calm waltz",
    "bpm": 90,
    "lyrics": "[Verse]\nbonjour",
    "duration": 240,
    "keyscale": "A minor",
    "timesignature": "3",
    "language": "fr",
    "is_instrumental": False,
    "custom_tag": "zydeco",
    "tag_position": "prepend",
    "model_checkpoint": "other",
}


def tensors(width: int, frames: int = 50, seed: int = 0) -> dict[str, Any]:
    """What the other trainers write for one song; the condition is rubbish on purpose."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "target_latents": torch.randn(frames, width, generator=generator).bfloat16(),
        "attention_mask": torch.ones(frames, dtype=torch.bfloat16),
        "encoder_hidden_states": torch.full((769, 32), 7.0),
        "encoder_attention_mask": torch.ones(769),
        "context_latents": torch.zeros(frames, 2 * width),
    }


@pytest.fixture
def width(checkpoint: Checkpoint) -> int:
    return checkpoint.config.latent_width


@pytest.fixture
def folder(tmp_path: Path, width: int) -> Path:
    """Two songs: one sung with all labels, one instrumental as Side-Step writes it."""
    folder = tmp_path / "old"
    folder.mkdir()
    torch.save({**tensors(width), "metadata": LABELS}, folder / "0a1b2c3d.pt")
    second = {"filename": "two.mp3", "caption": "fast drums", "genre": "techno", "repeat": 3, "is_instrumental": True}
    torch.save({**tensors(width, 60, 1), "metadata": second}, folder / "two.pt")
    return folder


def take_over(folder: Path, out: Path, checkpoint: Checkpoint, job: Job | None = None) -> PreprocessReport:
    return import_pt_folder(folder, out, checkpoint, job, device="cpu")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "tensors"


def test_latents_are_kept_and_conditions_are_those_of_generation(
    folder: Path, out: Path, checkpoint: Checkpoint, width: int, one_thread: None
) -> None:
    report = take_over(folder, out, checkpoint)
    assert (report.total, report.encoded, report.failed, report.latents_encoded) == (2, 2, 0, 0)
    store = TensorStore.open(out)
    store.require_made_with(checkpoint)
    song = next(song for song in store.songs if song.title == "one.wav")
    found = store.load(song)
    assert torch.equal(found.latents, tensors(width)["target_latents"].float())
    assert song.duration_s == 2.0  # of the 50 frames that are there, whatever the labels say

    labels = {"lyrics": "[Verse]\nbonjour", "language": "fr", "bpm": 90, "keyscale": "A minor", "timesignature": "3"}
    device, text_encoder = torch.device("cpu"), loading.load_text_encoder(checkpoint, torch.float32, "cpu")
    encoder = loading.load_condition_encoder(checkpoint, torch.float32, device)
    for variant, caption in (("none", "a calm waltz"), ("prepend", "zydeco, a calm waltz"), ("replace", "zydeco")):
        wanted = PromptLabels(caption=caption, duration_s=2.0, **labels)
        text = condition.condition_text(encoder, condition.encode_text(text_encoder, text_prompt(wanted)))
        head = condition.condition_head(encoder, condition.embed_lyrics(text_encoder, lyric_prompt(wanted)))
        assert torch.equal(found.texts[f"caption.{variant}"], text[0])
        assert torch.equal(found.head, head[0])


def test_labels_of_both_trainers_arrive(folder: Path, out: Path, checkpoint: Checkpoint) -> None:
    take_over(folder, out, checkpoint)
    store = TensorStore.open(out)
    one, two = sorted(store.songs, key=lambda song: song.title)
    assert (store.info.trigger_word, store.info.tag_position, store.info.dataset_name) == ("zydeco", "prepend", "old")
    assert (one.custom_tag, one.repeat, two.repeat, two.has_genre) == ("zydeco", 1, 3, True)
    assert "# Languages\nfr" in one.lyric_prompt and "[Instrumental]" in two.lyric_prompt
    assert not any("/home" in text for text in [one.title, *one.prompts, (out / "index.json").read_text()])


def test_a_second_run_changes_nothing_and_a_stop_is_taken_up_again(
    folder: Path, out: Path, checkpoint: Checkpoint
) -> None:
    def listen(kind: str, what: object) -> None:
        if kind == "progress" and getattr(what, "name", "") == "encode songs":
            job.request_stop()

    job = Job(listen)
    with pytest.raises(Stopped):
        take_over(folder, out, checkpoint, job)
    report = take_over(folder, out, checkpoint)
    assert (report.encoded, report.reused) == (1, 1)
    before = {file: file.read_bytes() for file in out.rglob("*.*")}
    report = take_over(folder, out, checkpoint)
    assert (report.encoded, report.reused) == (0, 2)
    assert {file: file.read_bytes() for file in out.rglob("*.*")} == before


def test_the_manifest_says_which_files_count(folder: Path, out: Path, checkpoint: Checkpoint, width: int) -> None:
    torch.save({**tensors(width, 40, 2), "metadata": LABELS}, folder / "stale.pt")
    torch.save({"half": 1}, folder / "x.tmp.pt")
    manifest = {
        "version": 2,
        "metadata": {"name": "My songs", "custom_tag": "zydeco", "tag_position": "append"},
        "samples": ["0a1b2c3d.pt", {"path": r"C:\\music\\two.pt"}, "gone.pt"],
        "preprocessing": {"audio_normalization": "peak"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    report = take_over(folder, out, checkpoint)
    found = {problem.subject: problem for problem in report.problems}
    assert found["gone.pt"].severity == "error" and found["stale.pt"].severity == "warning"
    info = TensorStore.open(out).info
    assert (report.total, info.dataset_name, info.normalize) == (2, "My songs", "peak")


class Evil:
    """Pickled, this runs a command in whoever unpickles it."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


def test_code_in_a_file_is_refused_and_never_runs(
    folder: Path, out: Path, checkpoint: Checkpoint, width: int, tmp_path: Path
) -> None:
    proof = tmp_path / "ran"
    torch.save({**tensors(width), "metadata": {**LABELS, "caption": Evil(proof)}}, folder / "evil.pt")
    (folder / "bare.pt").write_bytes(pickle.dumps(Evil(proof)))
    report = take_over(folder, out, checkpoint)
    assert not proof.exists()
    found = {problem.subject: problem.message for problem in report.problems}
    assert "code" in found["evil.pt"] and "not a file that torch.save wrote" in found["bare.pt"]
    assert report.encoded == 2
    torch.load(folder / "evil.pt", weights_only=False)  # what the file would have done elsewhere
    assert proof.exists()


def test_each_wrong_file_is_named_and_the_others_go_on(
    folder: Path, out: Path, checkpoint: Checkpoint, width: int
) -> None:
    good = {**tensors(width), "metadata": LABELS}
    nan = tensors(width, 30, 5)
    nan["target_latents"][3, 1] = float("nan")
    wrong: dict[str, Any] = {
        "no_labels": tensors(width, 30, 6),
        "no_caption": {**tensors(width, 30, 7), "metadata": {"bpm": 90}},
        "error_text": {**tensors(width, 30, 8), "metadata": {"caption": "Error: CUDA out of memory"}},
        "nan": {**nan, "metadata": LABELS},
        "other_width": {**tensors(width + 1), "metadata": LABELS},
        "flat": {**good, "target_latents": torch.zeros(width)},
        "empty": {**good, "target_latents": torch.zeros(0, width)},
        "whole_numbers": {**good, "target_latents": torch.zeros(3, width, dtype=torch.long)},
        "sparse": {**good, "target_latents": torch.eye(width).to_sparse()},
        "list": [1, 2],
        "endless": {**good, "target_latents": torch.zeros(1, width).expand(100_000, width)},
    }
    for name, content in wrong.items():
        torch.save(content, folder / f"{name}.pt")
    whole = (folder / "two.pt").read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "nothing.pt").write_bytes(b"")
    with zipfile.ZipFile(folder / "other_zip.pt", "w") as archive:
        archive.writestr("a.txt", "a")
    torch.save(good, folder / "twin.pt")
    report = take_over(folder, out, checkpoint)
    assert report.encoded == 2
    errors = {problem.subject for problem in report.problems if problem.severity == "error"}
    assert errors == {f"{name}.pt" for name in [*wrong, "cut", "nothing", "other_zip"]}
    assert "twin.pt" in {problem.subject for problem in report.problems if problem.severity == "warning"}


def test_padding_is_cut_off(folder: Path, out: Path, checkpoint: Checkpoint, width: int) -> None:
    padded = tensors(width, 80, 9)
    padded["attention_mask"][70:] = 0
    torch.save({**padded, "metadata": LABELS}, folder / "padded.pt")
    take_over(folder, out, checkpoint)
    assert sorted(song.frames for song in TensorStore.open(out).songs) == [50, 60, 70]


def test_a_caption_that_is_the_trigger_word_alone_is_said(
    folder: Path, out: Path, checkpoint: Checkpoint, width: int
) -> None:
    torch.save({**tensors(width, 30, 3), "metadata": {**LABELS, "caption": "zydeco"}}, folder / "tag.pt")
    report = take_over(folder, out, checkpoint)
    assert any("trigger word alone" in problem.message for problem in report.problems)
    assert report.encoded == 3


def test_folders_that_do_not_fit_are_refused(
    folder: Path, out: Path, checkpoint: Checkpoint, encoded: Path, tmp_path: Path, width: int
) -> None:
    before = {file: file.read_bytes() for file in encoded.rglob("*.*")}
    with pytest.raises(UserError, match="tensors of other songs"):
        take_over(folder, encoded, checkpoint)
    assert {file: file.read_bytes() for file in encoded.rglob("*.*")} == before
    with pytest.raises(UserError, match="another folder"):
        take_over(folder, folder, checkpoint)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"no \.pt tensors"):
        take_over(empty, out, checkpoint)
    torch.save(tensors(width), empty / "a.pt")
    with pytest.raises(UserError, match=r"Of 1 file in .* none"):
        take_over(empty, out, checkpoint)


def test_links_out_of_the_folder_are_not_followed(
    folder: Path, out: Path, checkpoint: Checkpoint, tmp_path: Path, width: int
) -> None:
    torch.save({**tensors(width, 30, 4), "metadata": LABELS}, tmp_path / "secret.pt")
    (folder / "link.pt").symlink_to(tmp_path / "secret.pt")
    report = take_over(folder, out, checkpoint)
    assert "leads outside" in {problem.subject: problem.message for problem in report.problems}["link.pt"]

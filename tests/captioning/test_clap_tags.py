"""Tags by CLAP: the choice among tags, the file of tags, and the real class on a tiny checkpoint."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from acestep.captioning.clap_tags import SAMPLE_RATE, Choice, choose, compose, windows
from acestep.captioning.contract import FIELDS, Answer, SongToLabel
from acestep.captioning.demo import build_clap
from acestep.captioning.registry import backend
from acestep.captioning.tags import BUILT_IN, Dimension, read_tags
from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job
from acestep.settings.caption import CaptionSettings

TAGS = {
    "dimensions": [
        {"name": "genre", "labels": ["rock", "jazz", "folk"], "templates": ["{} music", "a {} song"]},
        {"name": "instruments", "top": 2, "labels": ["piano", "violin", "drum kit", "flute", "organ"]},
        {"name": "energy", "labels": ["low", "high"], "caption": "{} energy"},
    ]
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_clap(tmp_path_factory.mktemp("clap"))


@pytest.fixture
def tags_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACESTEP_STATE_DIR", str(tmp_path / "state"))
    file = tmp_path / "tags.json"
    file.write_text(json.dumps(TAGS), encoding="utf-8")
    return file


def song(duration_s: float, seed: int = 0, level: float = 0.1) -> SongToLabel:
    noise = np.random.default_rng(seed).normal(0, level, (1, round(SAMPLE_RATE * duration_s))).astype(np.float32)
    return SongToLabel(Path(f"{seed}.wav"), duration_s, frozenset(FIELDS), noise)


def ask(folder: Path, tags_file: Path, *songs: SongToLabel, job: Job | None = None) -> list[Answer]:
    settings = CaptionSettings(caption_model=str(folder), tags_file=str(tags_file), device="cpu")
    with backend("clap-tags").open(settings, {}, job or Job()) as opened:
        return [opened.label(one) for one in songs]


def test_the_built_in_tags_are_those_of_the_reference() -> None:
    counts = {it.name: (len(it.labels), it.top) for it in read_tags("").dimensions}
    assert counts == {
        "genre": (55, 1),
        "vocal": (19, 1),  # and one for songs without a voice
        "instruments": (41, 3),
        "mood": (35, 2),
        "timbre": (24, 1),
        "era": (12, 1),
        "production": (14, 1),
        "energy": (10, 1),
    }


def test_tags_that_do_not_stand_out_are_not_told() -> None:
    dimension = Dimension(name="mood", top=2, labels=("dark", "warm", "cold", "raw"))
    sure = choose(dimension, np.log([0.1, 0.7, 0.15, 0.05]))
    assert sure.labels == ("warm",)
    assert sure.probabilities == pytest.approx((0.7,))
    assert sure.runner_up == "cold"
    assert choose(dimension, np.zeros(4)).labels == (), "nothing stands out"
    assert choose(dimension, np.log([0.5, 0.5, 1e-9, 1e-9])).labels == ("dark", "warm")


def test_captions_keep_the_order_of_the_file(tags_file: Path) -> None:
    choices = {
        "energy": Choice(("high",), (0.9,), "low"),
        "instruments": Choice(("violin", "flute"), (0.5, 0.4), "organ"),
        "genre": Choice((), (), "folk"),
    }
    assert compose(read_tags(str(tags_file)), choices) == "violin and flute, high energy"


def test_windows_cover_the_song_and_leave_silence_out() -> None:
    signal = np.concatenate([np.full(25, 0.5), np.zeros(20), np.full(10, 0.3)]).astype(np.float32)
    parts = windows(signal, 10)
    assert [len(part) for part in parts] == [10] * len(parts)
    assert all(part.any() for part in parts)
    assert (parts[-1] == np.float32(0.3)).all(), "the last window ends with the song"
    assert len(windows(signal[:7], 10)) == 1


def test_the_confidence_is_the_probability_under_the_models_own_scale(folder: Path, tags_file: Path) -> None:
    """Against the joint forward pass of transformers, for a song of one window."""
    from transformers import ClapModel, ClapProcessor

    one = song(1.0)
    [answer] = ask(folder, tags_file, one)
    model, processor = ClapModel.from_pretrained(folder), ClapProcessor.from_pretrained(folder)
    labels = TAGS["dimensions"][0]["labels"]
    heard = processor.feature_extractor(one.samples[0], sampling_rate=SAMPLE_RATE, return_tensors="pt")
    with torch.no_grad():
        audio = model.get_audio_features(**heard).pooler_output[0]
        rows = []
        for label in labels:
            texts = [template.replace("{}", label) for template in TAGS["dimensions"][0]["templates"]]
            tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
            mean = model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output.mean(0)
            rows.append(mean / mean.norm())
        chances = (model.logit_scale_a.exp() * torch.stack(rows) @ audio).softmax(0)
    best = int(chances.argmax())
    assert answer.values["genre"].value == labels[best]
    assert answer.values["genre"].confidence == pytest.approx(float(chances[best]), abs=1e-4)
    assert answer.values["caption"].value.startswith(labels[best])
    assert set(answer.values) == {"genre", "caption"}, "tempo and key are left to analysis"
    assert answer.usage == {"audio_s": 1.0}


def test_all_of_a_long_song_is_heard(folder: Path, tags_file: Path) -> None:
    """What stands only in the middle of a song changes the answer."""
    plain, changed = song(6.0), song(6.0)
    changed.samples[0, 3 * SAMPLE_RATE : 4 * SAMPLE_RATE] = np.sin(np.arange(SAMPLE_RATE) / 5)
    first, second = ask(folder, tags_file, plain, changed)
    assert first.values["genre"].confidence != second.values["genre"].confidence


def test_embeddings_of_tags_are_kept_until_the_tags_change(folder: Path, tags_file: Path, tmp_path: Path) -> None:
    kept = tmp_path / "state" / "tag-embeddings"
    before = ask(folder, tags_file, song(1.0))
    [file] = kept.iterdir()
    written = file.stat().st_mtime_ns
    assert ask(folder, tags_file, song(1.0)) == before
    assert file.stat().st_mtime_ns == written
    file.write_bytes(b"broken")
    assert ask(folder, tags_file, song(1.0)) == before, "a damaged file is made anew"
    tags_file.write_text(json.dumps(TAGS).replace("jazz", "polka"), encoding="utf-8")
    ask(folder, tags_file, song(1.0))
    assert len(list(kept.iterdir())) == 2, "as many labels, but not the same"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"dimensions": []}', "dimensions"),
        ('{"dimensions": [{"name": "a", "labels": ["x", "y"], "templates": ["no place"]}]}', "templates"),
        ('{"dimensions": [{"name": "a", "labels": ["x", "y"]}, {"name": "a", "labels": ["x", "y"]}]}', "same name"),
        ('{"dimension": 1}', "dimension"),
    ],
)
def test_mistakes_in_a_file_of_tags_are_named(tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=complaint) as caught:
        read_tags(str(file))
    assert str(BUILT_IN) in str(caught.value)


def test_silence_another_kind_of_model_and_stopping(folder: Path, tags_file: Path, demo_checkpoint: Path) -> None:
    with pytest.raises(UserError, match="silent"):
        ask(folder, tags_file, song(1.0, level=0.0))
    with pytest.raises(UserError, match="cannot be loaded"):
        ask(demo_checkpoint / "acestep-5Hz-lm-demo", tags_file)
    job = Job()
    settings = CaptionSettings(caption_model=str(folder), tags_file=str(tags_file), device="cpu")
    with backend("clap-tags").open(settings, {}, job) as opened:
        model = weakref.ref(opened._model)  # type: ignore[attr-defined]
        job.request_stop()
        with pytest.raises(Stopped):
            opened.label(song(1.0))
    assert model() is None, "leaving frees the model"

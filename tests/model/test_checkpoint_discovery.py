"""Finding models: both layouts, names, what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from model_folders import DIT, change_json, copy_of, in_diffusers_layout, shard

from acestep.core.errors import UserError
from acestep.model.checkpoints import find_checkpoints, resolve_checkpoint, survey_checkpoints


@pytest.fixture
def models(demo_checkpoint: Path, tmp_path: Path) -> Path:
    return copy_of(demo_checkpoint, tmp_path / "checkpoints")


def test_a_folder_of_models_is_searched(models: Path) -> None:
    shutil.copytree(models / DIT, models / "acestep-v15-base")
    (models / "notes").mkdir()
    found = find_checkpoints([models, models / "absent"])
    assert [checkpoint.name for checkpoint in found] == ["acestep-v15-base", DIT]
    assert {checkpoint.vae for checkpoint in found} == {(models / "vae").resolve()}
    assert all(checkpoint.layout == "original" for checkpoint in found)


def test_names_and_paths_mean_the_same_model(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models.parent)
    given = [DIT, "demo", models, str(models / DIT), f"checkpoints/{DIT}", f"./checkpoints/{DIT}/"]
    assert {resolve_checkpoint(text).dit for text in given} == {(models / DIT).resolve()}


def test_a_custom_folder_of_any_name_is_recognised_by_its_type(models: Path) -> None:
    (models / DIT).rename(models / "my fine tune ♪")
    assert resolve_checkpoint("my fine tune ♪", [models]).dit.name == "my fine tune ♪"


def test_a_custom_folder_without_type_is_recognised_by_its_tensors(models: Path) -> None:
    config = models / DIT / "config.json"
    values = json.loads(config.read_text())
    del values["model_type"]
    config.write_text(json.dumps(values))
    (models / DIT).rename(models / "mine")
    shard(models / "mine", 3)
    assert [checkpoint.name for checkpoint in find_checkpoints([models])] == ["mine"]


def test_other_models_are_not_taken_for_ours(models: Path) -> None:
    # The 5 Hz language model and the text encoder lie in the same folder and have a config.json each.
    assert [checkpoint.name for checkpoint in find_checkpoints([models])] == [DIT]
    with pytest.raises(UserError, match="is no ACE-Step"):
        resolve_checkpoint(models / "vae")


@pytest.mark.parametrize("place", ["inside", "beside", "above", "searched"])
def test_shared_parts_are_looked_for_around_the_model(models: Path, tmp_path: Path, place: str) -> None:
    dit = tmp_path / "a" / "b" / "mine"
    shutil.copytree(models / DIT, dit)
    home = {"inside": dit, "beside": dit.parent, "above": dit.parent.parent, "searched": tmp_path / "else"}[place]
    for part in ("vae", "Qwen3-Embedding-0.6B"):
        shutil.copytree(models / part, home / part)
    found = resolve_checkpoint(dit, [tmp_path / "else"])
    assert found.vae == (home / "vae").resolve()
    assert found.text_encoder == (home / "Qwen3-Embedding-0.6B").resolve()


@pytest.mark.parametrize(
    ("removed", "spoken", "kept"),
    [
        (["vae"], ["VAE", "checkpoints/vae"], ["text encoder"]),
        (["Qwen3-Embedding-0.6B"], ["text encoder", "Qwen3-Embedding-0.6B"], ["VAE"]),
        (["vae", "Qwen3-Embedding-0.6B"], ["VAE", "text encoder"], []),
    ],
)
def test_the_missing_shared_part_is_named(models: Path, removed: list[str], spoken: list[str], kept: list[str]) -> None:
    for name in removed:
        shutil.rmtree(models / name)
    with pytest.raises(UserError) as caught:
        resolve_checkpoint(models / DIT, [models])
    text = str(caught.value)
    assert all(word in text for word in [*spoken, "ACE-Step/Ace-Step1.5"])
    assert not any(word in text for word in kept)
    assert resolve_checkpoint(models / DIT, [models], needs=()).name == DIT


def test_the_survey_tells_what_is_wrong_with_each_folder(models: Path) -> None:
    for name in ("acestep-v15-weightless", "acestep-v15-silent", "acestep-v15-broken", "acestep-v15-turbo"):
        shutil.copytree(models / DIT, models / name)
    (models / "acestep-v15-weightless/model.safetensors").unlink()
    (models / "acestep-v15-silent/silence_latent.pt").unlink()
    (models / "acestep-v15-broken/config.json").write_text("{")
    shutil.rmtree(models / "vae")
    found, problems = survey_checkpoints([models])
    assert [checkpoint.name for checkpoint in found] == [DIT, "acestep-v15-turbo"]
    told = {Path(problem.subject).name: problem for problem in problems}
    assert "no weights" in told["acestep-v15-weightless"].message
    assert "silence_latent.pt" in told["acestep-v15-silent"].message
    assert "not valid JSON" in told["acestep-v15-broken"].message
    assert {problem.severity for name, problem in told.items() if name in (DIT, "acestep-v15-turbo")} == {"warning"}


def test_weights_in_another_format_are_explained(models: Path) -> None:
    (models / DIT / "model.safetensors").rename(models / DIT / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"Convert pytorch_model\.bin to safetensors"):
        resolve_checkpoint(models / DIT)


def test_an_unknown_name_lists_what_is_there(models: Path) -> None:
    with pytest.raises(UserError) as caught:
        resolve_checkpoint("acestep-v15-dem", [models])
    assert f'Did you mean "{DIT}"?' in caught.value.message
    assert DIT in caught.value.fix


def test_a_published_model_that_is_not_there_says_where_to_get_it(models: Path) -> None:
    for name in ("xl-base", "acestep-v15-xl-base"):
        with pytest.raises(UserError) as caught:
            resolve_checkpoint(name, [models])
        assert "acestep download xl-base" in caught.value.fix
        assert "ACE-Step/acestep-v15-xl-base" in caught.value.fix


@pytest.mark.parametrize("text", ["", "  ", "\0", "x" * 5000, "~nobody-here/model", "../..", "/"])
def test_strange_names_get_a_sentence(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        resolve_checkpoint(text, [tmp_path])


def test_a_file_is_answered_with_its_folder(models: Path) -> None:
    with pytest.raises(UserError, match="is a file"):
        resolve_checkpoint(models / DIT / "model.safetensors")


def test_a_folder_of_several_models_asks_for_one(models: Path) -> None:
    shutil.copytree(models / DIT, models / "other")
    with pytest.raises(UserError, match="holds 2 models"):
        resolve_checkpoint(models)


def test_the_diffusers_layout_is_one_folder(demo_checkpoint: Path, tmp_path: Path) -> None:
    folder = in_diffusers_layout(demo_checkpoint, tmp_path / "acestep-v15-demo-diffusers")
    found = resolve_checkpoint(folder)
    assert (found.layout, found.dit, found.vae) == ("diffusers", folder, folder / "vae")
    assert (found.text_encoder, found.tokenizer) == (folder / "text_encoder", folder / "tokenizer")
    assert found.config.is_turbo
    assert [checkpoint.name for checkpoint in find_checkpoints([tmp_path])] == ["acestep-v15-demo-diffusers"]
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(UserError, match="text encoder"):
        resolve_checkpoint(folder)


def test_a_shard_that_is_not_there_is_named(models: Path) -> None:
    shard(models / DIT, 3)
    assert resolve_checkpoint(models / DIT).name == DIT
    (models / DIT / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 3 files of weights: model-00002-of-00003\.safetensors"):
        resolve_checkpoint(models / DIT)


@pytest.mark.parametrize("name", ["../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "", 7])
def test_an_index_cannot_lead_out_of_its_folder(models: Path, name: object) -> None:
    shard(models / DIT, 2)
    change_json(models / DIT / "model.safetensors.index.json", weight_map={"decoder.x": name})
    with pytest.raises(UserError, match="weight_map"):
        resolve_checkpoint(models / DIT)

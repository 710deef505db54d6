"""Advice on the length of a run against the published table and counted by hand; profiles of all stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep.core.errors import UserError
from acestep.settings import DatasetSettings, GenerateSettings, PreprocessSettings, Settings, TrainSettings, knob
from acestep.settings.advice import advise, recommended_epochs
from acestep.settings.interchange import import_settings
from acestep.settings.profiles import load_profile, save_profile


@pytest.mark.parametrize(
    ("songs", "epochs", "save_every"),
    [
        (1, 1500, 200),
        (3, 1500, 200),
        (4, 1000, 200),
        (6, 1000, 200),
        (7, 700, 100),
        (10, 700, 100),
        (11, 500, 100),
        (20, 500, 100),
        (21, 300, 50),
        (50, 300, 50),
        (51, 200, 50),
        (5000, 200, 50),
    ],
)
def test_the_table(songs: int, epochs: int, save_every: int) -> None:
    assert recommended_epochs(songs) == (epochs, save_every)


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match="number of songs"):
        recommended_epochs(0)
    for minutes in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="minutes"):
            advise(3, minutes, TrainSettings())


@given(st.integers(1, 5000), st.integers(1, 8), st.integers(1, 16), st.integers(1, 2000))
def test_steps_are_those_of_batches_dealt_out_one_by_one(
    songs: int, batch: int, accumulation: int, epochs: int
) -> None:
    batches = len(range(0, songs, batch))
    steps = len(range(0, batches, accumulation))
    settings = TrainSettings(batch_size=batch, gradient_accumulation=accumulation, epochs=epochs)
    advice = advise(songs, 0, settings)
    assert (advice.steps_per_epoch, advice.steps) == (steps, steps * epochs)
    assert 0 <= advice.advised_epochs * steps - advice.advised_steps < steps
    assert 1 <= advice.advised_save_every <= advice.advised_epochs


def test_advice_says_what_it_counts() -> None:
    advice = advise(10, 30, TrainSettings(epochs=100))  # 3 steps an epoch; windows of 60 s in songs of 180 s
    text = " ".join(advice.lines)
    assert advice.steps == 300 and "too short" in text and "--max-steps 5000" in text
    assert "heard about 40 times" in text  # 300 steps × 4 windows × 60 s over 1800 s
    assert advise(10, 30, TrainSettings(max_steps=5000)).steps == 5000
    assert any("30 s" in line for line in advise(10, 2, TrainSettings()).lines)
    assert any("do not fill a step" in line for line in advise(2, 0, TrainSettings()).lines)
    alone = " ".join(advise(1, 0, TrainSettings(max_steps=1)).lines)
    assert "one window of the song: 1 step of" in alone and "1 song does not fill" in alone and "1 songs" not in alone


def test_advice_counts_tiles_and_whole_songs() -> None:
    tiled = advise(10, 30, TrainSettings(epochs=100, window="tiled"))  # three windows of 60 s in each song
    assert (tiled.steps_per_epoch, tiled.steps) == (8, 800)  # 30 windows by four
    assert "3 windows of each" in tiled.lines[0]
    whole = advise(10, 30, TrainSettings(epochs=100, window="whole"))
    assert whole.steps_per_epoch == 3 and "Windows are 180 s" in " ".join(whole.lines)


ALL = {
    "dataset": DatasetSettings(name="voice", trigger_word="zydeco"),
    "preprocess": PreprocessSettings(normalize="lufs"),
    "train": TrainSettings(rank=12, timestep_mu=-0.3),
    "generate": GenerateSettings(caption="a waltz", bpm=90),
}


def test_profiles_come_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    save_profile(path, ALL)
    assert load_profile(path) == ALL
    assert import_settings(path).sections["train"]["rank"] == 12
    save_profile(path, {"train": ALL["train"]})
    assert load_profile(path) == {"train": ALL["train"]}


def test_secrets_and_settings_of_others_stay_out(tmp_path: Path) -> None:
    class WithKey(TrainSettings):
        api_key: str = knob("", "A key.", group="cloud")
        out: str = knob("", "A folder.", group="command")

    path = tmp_path / "mine.json"
    save_profile(path, {"train": WithKey(api_key="sk-123", out="/home/me")})
    assert "sk-123" not in path.read_text() and "/home/me" not in path.read_text()
    assert load_profile(path)["train"] == TrainSettings()
    with pytest.raises(TypeError):
        save_profile(path, {"train": GenerateSettings()})
    with pytest.raises(UserError, match='Did you mean "train"'):
        save_profile(path, {"trian": TrainSettings()})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda profile: profile["sections"].update(trian={}), 'Did you mean "train"'),
        (lambda profile: profile["sections"]["train"].update(rnak=1), 'Did you mean "rank"'),
        (lambda profile: profile["sections"].update(train=[]), "must hold an object"),
        (lambda profile: profile.update(secton=1), "has no"),
        (lambda profile: profile.update(kind="run"), "no profile"),
        (lambda profile: profile.update(sections=3), "no profile"),
        (lambda profile: profile.update(schema_version=99), "newer version"),
    ],
)
def test_profiles_that_are_wrong_are_refused(edit, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    save_profile(path, ALL)
    profile = json.loads(path.read_text())
    edit(profile)
    path.write_text(json.dumps(profile))
    with pytest.raises(UserError, match=message) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)


def test_every_section_is_a_group_of_settings() -> None:
    from acestep.settings.foreign import SECTIONS

    assert list(SECTIONS) == list(ALL)
    assert all(issubclass(settings, Settings) for settings in SECTIONS.values())

"""Settings: bounds, names, files and versions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.core.errors import UserError
from acestep.settings import (
    AdapterSettings,
    DatasetSettings,
    GenerateSettings,
    PreprocessSettings,
    Settings,
    TrainSettings,
    base,
    fields_of,
    knob,
    load_settings,
    save_settings,
)
from acestep.settings.adapter import read_layers

ALL = [DatasetSettings, PreprocessSettings, TrainSettings, GenerateSettings]


class Example(Settings):
    size: int = knob(4, "A whole number.", group="example", ge=1, le=8)
    rate: float = knob(0.5, "A number.", group="example", gt=0, lt=1)
    mode: str = knob("fast", "A word.", group="example", level="expert")


def write(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ALL)
def test_defaults_are_valid_and_every_setting_is_described(kind: type[Settings]) -> None:
    kind()
    for field in fields_of(kind):
        assert field.help.endswith("."), field.name
        assert field.group, field.name
        assert field.level in ("basic", "advanced", "expert")


def test_no_two_settings_of_one_stage_share_a_name() -> None:
    names = [field.name for field in fields_of(TrainSettings)]
    assert len(names) == len(set(names)) == len(TrainSettings.model_fields)


def test_groups_stand_together_in_training() -> None:
    groups = [field.group for field in fields_of(TrainSettings)]
    changes = [group for before, group in zip([None, *groups], groups, strict=False) if group != before]
    assert len(changes) == len(set(changes))


@pytest.mark.parametrize("kind", ALL)
def test_every_bound_holds(kind: type[Settings]) -> None:
    for field in fields_of(kind):
        for limit, step in ((field.minimum, -1), (field.maximum, 1)):
            if limit is None:
                continue
            with pytest.raises(UserError) as caught:
                kind.parse({field.name: limit + step}, "presets/mine.json")
            assert f'presets/mine.json: Setting "{field.name}"' in str(caught.value)


def test_bounds_are_told_in_words() -> None:
    size, rate, mode = fields_of(Example)
    assert (size.bounds, size.minimum, size.maximum, size.default) == ("1 to 8", 1, 8, 4)
    assert (rate.bounds, rate.minimum, rate.maximum) == ("above 0, below 1", 0, 1)
    assert (mode.bounds, mode.minimum, mode.level) == ("", None, "expert")


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_setting_takes_what_is_not_a_number(kind: type[Settings], value: float) -> None:
    numbers = [field.name for field in fields_of(kind) if isinstance(field.default, float)]
    for name in numbers:
        with pytest.raises(UserError, match=f'"{name}"'):
            kind.parse({name: value}, "file")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r'mine\.json: There is no setting "learning_rte"\. Did you mean "learning_rate"\?'
    ):
        TrainSettings.parse({"learning_rte": 1e-4}, "mine.json")
    with pytest.raises(UserError, match=r'There is no setting "xyzzy"\.$'):
        TrainSettings.parse({"xyzzy": 1}, "mine.json")


def test_every_wrong_field_is_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        TrainSettings.parse({"rank": "many", "epoch": 3, "lokr_factor": 99, "attention": "most"}, "mine.json")
    for name in ('"rank"', '"epoch"', '"lokr_factor"', '"attention"', '"epochs"'):
        assert name in str(caught.value)
    assert "many" in str(caught.value)


def test_a_huge_wrong_value_is_not_repeated_whole() -> None:
    with pytest.raises(UserError) as caught:
        TrainSettings.parse({"rank": ["x" * 10_000] * 100}, "mine.json")
    assert len(str(caught.value)) < 500


def test_a_rule_over_values_names_the_setting() -> None:
    with pytest.raises(UserError, match="lokr_factor"):
        TrainSettings.parse({"lokr_factor": 0}, "mine.json")
    assert TrainSettings(lokr_factor=-1).lokr_factor == -1


@pytest.mark.parametrize(
    ("text", "layers"),
    [("", []), ("3", [3]), ("0-2,20", [0, 1, 2, 20]), (" 4 - 5 , 5-6 ", [4, 5, 6]), ("7-7", [7])],
)
def test_ranges_of_layers(text: str, layers: list[int]) -> None:
    assert sorted(read_layers(text)) == layers
    assert AdapterSettings(layers=text).layers == text


@given(st.sets(st.integers(0, 40), min_size=1))
def test_any_layers_can_be_listed(layers: set[int]) -> None:
    assert read_layers(",".join(str(layer) for layer in layers)) == layers


@pytest.mark.parametrize("text", ["5-2", "a", "1,", "-3", "1-2-3", "١", "99999"])
def test_wrong_layers_are_refused_with_the_part(text: str) -> None:
    with pytest.raises(UserError, match=r'"layers".*no layer or range'):
        TrainSettings.parse({"layers": text}, "mine.json")


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"rank_pattern": {"q_proj": 8}}, '"q_proj" is no module'),
        ({"rank_pattern": {"layers.0.self_attn.q_proj": 0}}, "out of bounds"),
        ({"rank_pattern": {"layers.0.self_attn.q_proj": 513}}, "out of bounds"),
        ({"rank_pattern": ["layers.0.self_attn.q_proj"]}, "NAME=NUMBER"),
        ({"rank_pattern": ["layers.0.mlp.up_proj=8", "layers.0.mlp.up_proj=9"]}, "named twice"),
        ({"alpha_pattern": {"layers.0.mlp.up_proj": 0.0}}, "out of bounds"),
        ({"adapter": "oft", "rank_pattern": {"layers.0.mlp.up_proj": 8}}, "needs the adapter lora"),
        ({"self_modules": ["q", "w"]}, "self_modules"),
        ({"attention": "self", "self_modules": []}, "leave no module"),
        ({"self_modules": [], "cross_modules": []}, "leave no module"),
    ],
)
def test_modules_that_make_no_sense_are_refused(values: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        TrainSettings.parse(values, "mine.json")


def test_ranks_of_modules_carry_their_alphas_along() -> None:
    first, second = "layers.0.self_attn.q_proj", "layers.0.mlp.up_proj"
    settings = AdapterSettings(rank=8, alpha=4, rank_pattern={first: 16, second: 2}, alpha_pattern={second: 3})
    assert settings.alphas_by_module() == {first: 8, second: 3}
    assert settings.changed(rslora=True).alphas_by_module() == {second: 3}
    assert AdapterSettings.parse({"rank_pattern": [f"{first}=16"]}, "flags").rank_pattern == {first: 16}


def test_settings_cannot_be_changed_in_place_but_copied() -> None:
    first = TrainSettings()
    second = first.changed(rank=8)
    assert (first.rank, second.rank) == (64, 8)
    assert second.changed(rank=64) == first
    with pytest.raises(UserError, match='"rank"'):
        first.changed(rank=0)
    with pytest.raises(ValueError, match="frozen"):
        first.rank = 3  # type: ignore[misc]


# Files


def values_of(kind: type[Settings]) -> st.SearchStrategy[dict[str, Any]]:
    """Any allowed values for any of the settings of a class."""
    strategies = {}
    for name, info in kind.model_fields.items():
        field = next(field for field in fields_of(kind) if field.name == name)
        limits = {key: getattr(part, key) for part in info.metadata for key in ("gt", "lt") if hasattr(part, key)}
        if info.annotation is bool:
            strategies[name] = st.booleans()
        elif info.annotation is int:
            low, high = field.minimum, field.maximum
            strategies[name] = st.integers(None if low is None else int(low), None if high is None else int(high))
        elif info.annotation is float:
            strategies[name] = st.floats(
                field.minimum,
                field.maximum,
                exclude_min="gt" in limits,
                exclude_max="lt" in limits,
                allow_nan=False,
                allow_infinity=False,
            )
        elif info.annotation is str:
            strategies[name] = st.text(max_size=20)
        else:
            strategies[name] = st.just(field.default)
    strategies.pop("lokr_factor", None)  # 0 is not allowed within its bounds
    strategies.pop("layers", None)  # not any text
    return st.fixed_dictionaries({}, optional=strategies)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("kind", ALL)
def test_a_saved_file_loads_as_the_same_settings(
    tmp_path_factory: pytest.TempPathFactory, kind: type[Settings], data: st.DataObject
) -> None:
    before = kind.parse(data.draw(values_of(kind)), "drawn")
    path = tmp_path_factory.getbasetemp() / f"{kind.__name__}.json"
    save_settings(before, path)
    assert load_settings(kind, path) == before
    assert json.loads(path.read_text(encoding="utf-8"))["schema_version"] == base.SCHEMA_VERSION


def test_a_file_may_hold_some_values_and_comments(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", {"_comment": "for voices", "_rank": "old", "rank": 16})
    assert load_settings(TrainSettings, path) == TrainSettings(rank=16)


def test_a_typo_in_a_file_names_file_and_setting(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", {"learning_rat": 1e-4})
    with pytest.raises(
        UserError, match=r'mine\.json: There is no setting "learning_rat"\. Did you mean "learning_rate"'
    ):
        load_settings(TrainSettings, path)


def test_a_file_that_is_not_there_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The preset .*nowhere\.json does not exist"):
        load_settings(TrainSettings, tmp_path / "nowhere.json", "the preset")
    (tmp_path / "broken.json").write_text('{"rank": 8,}')
    with pytest.raises(UserError, match=r"broken\.json is not valid JSON \(line 1"):
        load_settings(TrainSettings, tmp_path / "broken.json")


@pytest.mark.parametrize("version", [0, -1, "1", 1.5, None, True, []])
def test_a_senseless_version_is_refused(tmp_path: Path, version: Any) -> None:
    path = write(tmp_path / "mine.json", {"schema_version": version})
    with pytest.raises(UserError, match=r'mine\.json: "schema_version" must be a whole number'):
        load_settings(TrainSettings, path)


def test_a_file_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.json", {"schema_version": base.SCHEMA_VERSION + 1, "rank": 8})
    with pytest.raises(UserError, match=r"newer version of this program.*Update"):
        load_settings(TrainSettings, path)


def test_older_files_are_lifted_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename_size(values: dict[str, Any]) -> dict[str, Any]:
        values["length"] = values.pop("dimension", 1)
        return values

    def double_size(values: dict[str, Any]) -> dict[str, Any]:
        return {"size": values["length"] * 2}

    monkeypatch.setattr(base, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(base, "MIGRATIONS", {1: rename_size, 2: double_size})
    first = write(tmp_path / "first.json", {"schema_version": 1, "dimension": 3, "_comment": "old"})
    second = write(tmp_path / "second.json", {"schema_version": 2, "length": 2})
    third = write(tmp_path / "third.json", {"schema_version": 3, "size": 5})
    unversioned = write(tmp_path / "unversioned.json", {"size": 7})
    assert [load_settings(Example, path).size for path in (first, second, third, unversioned)] == [6, 4, 5, 7]


def test_there_is_a_migration_for_every_older_version() -> None:
    assert sorted(base.MIGRATIONS) == list(range(1, base.SCHEMA_VERSION))

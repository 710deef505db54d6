"""The command line as users meet it: help, precedence of settings, results as JSON, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.cli import COMMANDS, main
from acestep.cli.arguments import parse_options
from acestep.cli.terminal import TerminalListener
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.settings import fields_of
from acestep.settings.presets import preset_files, preset_values

TRAIN = COMMANDS["train"].options


def parsed(*arguments: str):
    return parse_options(TRAIN, list(arguments), "acestep train", "")


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_shows_every_setting_with_its_default(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for item in fields_of(COMMANDS[name].options):
        if item.group not in ("positional", "command"):
            assert f"--{item.name.replace('_', '-')}" in printed


def test_a_wrong_command_suggests_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert 'Did you mean "train"?' in capsys.readouterr().err


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    config = tmp_path / "own.json"
    config.write_text(json.dumps({"rank": 24, "epochs": 7}))
    assert preset_values("quick_test")["rank"] == 16
    options = parsed("--preset", "quick_test", "--config", str(config), "--epochs", "9")
    assert (options.rank, options.epochs, options.max_latent_length) == (24, 9, 750)
    assert parsed().rank == 64


def test_options_know_which_of_them_were_given(tmp_path: Path) -> None:
    config = tmp_path / "own.json"
    config.write_text(json.dumps({"rank": 64}))
    words = ["--config", str(config), "--learning_rate=1e-4", "--no-json"]
    assert parsed(*words).model_fields_set == {"config", "rank", "learning_rate", "as_json"}
    assert parsed().model_fields_set == set() and parsed().rank == parsed("--rank", "64").rank == 64


def test_underscores_and_hyphens_are_the_same() -> None:
    assert parsed("--learning_rate", "2e-4").learning_rate == parsed("--learning-rate", "2e-4").learning_rate == 2e-4


def test_wrong_values_are_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "--rank", "0"]) == 2
    assert 'Setting "rank"' in capsys.readouterr().err
    config = tmp_path / "typo.json"
    config.write_text('{"learning_rte": 1}')
    assert main(["train", "--config", str(config)]) == 2
    message = capsys.readouterr().err
    assert "typo.json" in message and 'Did you mean "learning_rate"?' in message and "Traceback" not in message
    assert main(["train", "--preset", "recomended"]) == 2
    assert 'Did you mean "recommended"?' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], 'Did you mean "train"?'),
        (["dataset"], "Folder of songs"),
        (["dataset", "songs", "--prewiev"], "Unrecognized options: --prewiev."),
        (["train", "--rank", "many"], "--rank"),
        (["train", "--rank", "0"], 'Setting "rank"'),
        (["export", "adapter", "--to", "kohya", "--out", "x"], "kohya"),
        (["train", "--preset", "recomended"], 'Did you mean "recommended"?'),
    ],
)
def test_a_wrong_command_line_is_told_as_json_where_that_is_asked_for(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--json"]) == 2
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer.keys() == {"error", "fix", "detail"} and told in answer["error"]
    assert told in printed.err and "│" not in printed.out + printed.err
    assert main(words) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", sorted(preset_files()))
def test_every_shipped_preset_is_valid_and_complete_in_words(name: str) -> None:
    values = preset_values(name)
    assert values and set(values) <= set(TRAIN.model_fields)
    assert json.loads(preset_files()[name].read_text())["_description"]


@given(st.sampled_from([item for item in fields_of(TRAIN) if isinstance(item.default, int | float)]), st.data())
@settings(max_examples=60, deadline=None)
def test_any_value_within_bounds_reaches_the_settings(item, data) -> None:
    if isinstance(item.default, bool):
        value = data.draw(st.booleans())
        flag = "json" if item.name == "as_json" else item.name
        assert getattr(parsed(f"--{flag}" if value else f"--no-{flag}"), item.name) is value
        return
    low = item.minimum if item.minimum is not None else 0
    high = item.maximum if item.maximum is not None else 1000
    kind = st.integers(int(low), int(high)) if isinstance(item.default, int) else st.floats(low, high)
    value = data.draw(kind)
    try:
        options = parsed(f"--{item.name}={value!r}")
    except UserError:
        assert value in (low, high, 0)  # open bounds, and the factor that is no factor
        return
    assert getattr(options, item.name) == value


def test_help_needs_no_torch() -> None:
    code = "import sys; from acestep.cli import main; main(['train', '--help']); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "False"


def test_missing_things_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 1
    assert "--model and --tensors" in capsys.readouterr().err
    assert main(["dataset", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert main(["runs", str(tmp_path)]) == 1
    assert "holds no runs" in capsys.readouterr().err
    assert main(["dataset", str(tmp_path), "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"]


def test_doctor_reports_in_words_and_as_data(capsys: pytest.CaptureFixture[str], demo_checkpoint: Path) -> None:
    code = main(["doctor", "--json", "--checkpoints", str(demo_checkpoint)])
    data = json.loads(capsys.readouterr().out)
    assert code == (1 if any(check["status"] == "error" for check in data["checks"]) else 0)
    assert [model["name"] for model in data["models"]] == ["acestep-v15-demo"]


def test_notes_of_a_stage_are_shown_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, to the library that draws the bar
    with Job(TerminalListener()).stage("scan", 1, "songs") as stage:
        stage.advance(note="a [/b].wav")
    assert "a [/b].wav" in capsys.readouterr().err


def test_output_that_nobody_reads_to_the_end_is_no_error() -> None:
    shown = subprocess.run(
        f"{sys.executable} -m acestep train --help | head -1", shell=True, capture_output=True, text=True, check=True
    )
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    ("record", "event"),
    [
        ({}, ""),
        ({"settings": [1]}, ""),
        ({"model": "turbo", "tensors": 3}, ""),
        ({"plan": {"total_steps": "many"}}, ""),
        ({"settings": {"rank": 4}}, '{"kind": "step", "step": 1, "loss": "little"}\n'),
    ],
)
def test_a_run_whose_record_was_damaged_is_told_in_a_sentence(
    record: dict[str, Any], event: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 1, **record}))
    (tmp_path / "events.jsonl").write_text(event)
    run = str(tmp_path)
    for arguments in (["train", "--resume", run], ["runs", run], ["runs", run, "--compare", run]):
        if arguments[0] == "runs" and not record:
            continue  # a record that says little can be shown
        assert main([*arguments, "--json"]) in (1, 2)
        assert json.loads(capsys.readouterr().out)["error"]

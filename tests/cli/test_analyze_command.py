"""`acestep analyze`: files and folders, a report for each bad file, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from acestep.cli import main
from acestep.cli.analyze_command import ANALYZE_COMMAND, AnalyzeOptions
from acestep.core.jobs import Job


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Clicks at 120 a minute under a chord in one folder, noise in another, and a file that is no audio."""
    rate = 22_050
    time_s = np.arange(12 * rate) / rate
    clicks = np.exp(-(time_s % 0.5) * 60) * np.random.default_rng(0).standard_normal(len(time_s))
    chord = sum(np.sin(2 * np.pi * hertz * time_s) for hertz in (220.0, 261.63, 329.63))
    (tmp_path / "songs" / "more").mkdir(parents=True)
    soundfile.write(tmp_path / "songs" / "clicks.flac", 0.2 * clicks + 0.05 * chord, rate)
    soundfile.write(tmp_path / "songs" / "more" / "noise.wav", np.random.default_rng(1).uniform(-0.1, 0.1, rate), rate)
    (tmp_path / "songs" / "broken.mp3").write_text("no music " * 200)
    return tmp_path / "songs"


def test_a_folder_as_json_with_the_bad_file_reported(songs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", str(songs), "--json"]) == 3
    data = json.loads(capsys.readouterr().out)
    assert [Path(song["path"]).name for song in data["songs"]] == ["clicks.flac", "noise.wav"]
    clicks, noise = data["songs"]
    assert clicks["duration_s"] == pytest.approx(12.0)
    assert set(clicks["bpm"]) == {"value", "confidence", "runner_up"}
    assert noise["bpm"] == {"value": None, "confidence": 0.0, "runner_up": None}
    assert [problem["severity"] for problem in data["problems"]] == ["error"]
    assert "broken.mp3" in data["problems"][0]["subject"]


def test_files_named_twice_are_analysed_once_and_shown_in_words(
    songs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", str(songs / "more"), str(songs / "more" / "noise.wav"), str(songs / "clicks.flac")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["noise.wav", "clicks.flac"]
    assert "0:12" in lines[1] and "LUFS" in lines[1] and "no tempo" in lines[0]


def test_nothing_to_analyse_is_an_error(songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bare").mkdir()
    for path in (tmp_path / "bare", songs / "broken.mp3", tmp_path / "missing.wav"):
        assert main(["analyze", str(path), "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["error"]
    assert main(["analyze"]) == 1
    assert "No sound file was named" in capsys.readouterr().err


def test_what_was_analysed_before_a_stop_is_shown(songs: Path) -> None:
    job = Job()
    job.listen(lambda kind, what: job.request_stop() if kind == "progress" else None)
    many = [songs / "clicks.flac", *(songs / f"copy{number}.flac" for number in range(30))]
    for copy in many[1:]:
        copy.symlink_to(many[0])
    output = ANALYZE_COMMAND.run(AnalyzeOptions(paths=tuple(many)), job)
    assert output.exit_code == 130 and 1 <= len(output.data["songs"]) < len(many)
    assert "clicks.flac" in output.lines[0] and f"of {len(many)} files" in output.lines[-1]

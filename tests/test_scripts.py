"""The scripts a user starts with, and the launcher behind them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["install.sh", "start.sh", "test.sh", ".ci/run"]
BATCH_FILES = ["install.bat", "start.bat", "test.bat"]

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


@pytest.fixture
def launcher() -> ModuleType:
    spec = importlib.util.spec_from_file_location("launch", ROOT / "launch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_bash
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_sound_and_can_be_started(name: str) -> None:
    assert run("bash", "-n", name).stderr == ""
    assert os.access(ROOT / name, os.X_OK)
    assert "set -eu" in (ROOT / name).read_text()


@pytest.mark.parametrize("name", BATCH_FILES)
def test_batch_files_have_the_line_ends_and_labels_windows_needs(name: str) -> None:
    data = (ROOT / name).read_bytes()
    assert data.count(b"\r\n") == data.count(b"\n") > 0
    text = data.decode("ascii").lower()
    labels = set(re.findall(r"^:(\w+)", text, re.MULTILINE))
    assert set(re.findall(r"(?:goto|call :)\s*(\w+)", text)) - {"install.bat"} <= labels


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The scripts in a folder of their own, with stand-ins for env/ and the launcher that say how they were called."""
    folder = tmp_path / "my songs & more"
    (folder / "env" / "bin").mkdir(parents=True)
    for name in ("install.sh", "start.sh", "test.sh", "requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    python = folder / "env" / "bin" / "python"
    python.write_text(
        '#!/bin/sh\nprintf "%s|" "$PWD" "$@" >>"$(dirname "$0")/calls"\nprintf "\\n" >>"$(dirname "$0")/calls"\n'
    )
    python.chmod(0o755)
    (folder / "env" / "complete").write_text(f"{folder}\n{(folder / 'requirements.txt').read_text()}")
    return folder


def calls(project: Path) -> list[list[str]]:
    """Folder and arguments of every call of the stand-in for Python."""
    lines = (project / "env" / "bin" / "calls").read_text().splitlines()
    return [line.rstrip("|").split("|") for line in lines]


@needs_bash
def test_start_hands_all_arguments_on_from_any_folder(project: Path, tmp_path: Path) -> None:
    child = run("bash", str(project / "start.sh"), "--mode", "demo", "--out", "two words", cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    assert calls(project) == [[str(tmp_path), str(project / "launch.py"), "--mode", "demo", "--out", "two words"]]


@needs_bash
def test_start_without_a_terminal_asks_nothing(project: Path, tmp_path: Path) -> None:
    assert run("bash", str(project / "start.sh"), cwd=tmp_path).returncode == 0
    assert calls(project) == [[str(tmp_path), str(project / "launch.py")]]


@needs_bash
@pytest.mark.skipif(shutil.which("script") is None, reason="script, which plays a terminal, is not installed")
@pytest.mark.parametrize(("answer", "mode"), [("4", "demo"), ("", "train"), ("2", "caption")])
def test_start_on_a_terminal_shows_a_menu(project: Path, tmp_path: Path, answer: str, mode: str) -> None:
    child = subprocess.run(
        ["script", "-qec", f"bash '{project / 'start.sh'}'", "/dev/null"],
        input=f"{answer}\n",
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0
    for word in ("Trainer", "Captioner", "Both", "Demo"):
        assert word in child.stdout
    assert calls(project)[-1][-2:] == ["--mode", mode]


@needs_bash
def test_tests_run_in_the_project_with_the_arguments_given(project: Path, tmp_path: Path) -> None:
    assert run("bash", str(project / "test.sh"), "tests/core", "-k", "a b", cwd=tmp_path).returncode == 0
    folder, *arguments = calls(project)[-1]
    assert folder == str(project)
    assert arguments[:2] == ["-m", "pytest"]
    assert arguments[-3:] == ["tests/core", "-k", "a b"]


@needs_bash
def test_a_complete_installation_is_checked_and_left_alone(project: Path) -> None:
    child = run("bash", "install.sh", cwd=project)
    assert child.returncode == 0, child.stderr
    assert "env/ is complete." in child.stderr
    assert calls(project) == [[str(project), "-m", "acestep.core.health"]]


@needs_bash
@pytest.mark.parametrize("reason", ["changed requirements", "interrupted", "moved"])
def test_what_is_not_complete_is_installed_again(project: Path, reason: str, tmp_path: Path) -> None:
    if reason == "changed requirements":
        with (project / "requirements.txt").open("a") as handle:
            handle.write("one-more==1.0\n")
    elif reason == "interrupted":
        (project / "env" / "complete").unlink()
    else:
        project = project.rename(tmp_path / "elsewhere")
    child = run("bash", "install.sh", "--if-needed", cwd=project)
    assert child.returncode == 0, child.stderr
    words = [" ".join(call[1:]) for call in calls(project)]
    assert any(line.startswith("-m pip install -r requirements.txt") for line in words) or shutil.which("uv")
    assert words[-1] == "-m acestep.core.health"
    before = len(words)
    assert run("bash", "install.sh", "--if-needed", cwd=project).returncode == 0
    assert len(calls(project)) == before


@needs_bash
@pytest.mark.skipif(shutil.which("uv") is not None, reason="uv would answer in place of pip")
def test_a_failed_installation_fails_and_is_tried_again(project: Path) -> None:
    (project / "env" / "complete").unlink()
    python = project / "env" / "bin" / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *--version*) exit 0 ;; *) exit 7 ;; esac\n')
    for _ in range(2):
        child = run("bash", "start.sh", "--mode", "demo", cwd=project, CI="true")
        assert child.returncode != 0
        assert "torch could not be fetched" in child.stderr or "could not be installed" in child.stderr
        assert not (project / "env" / "complete").exists()


@pytest.mark.parametrize("name", ["install.sh", "install.bat"])
@pytest.mark.parametrize("minor", range(9, 17))
def test_only_a_python_that_torch_is_built_for_is_taken(name: str, minor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest Python of python.org, which `py -3` means, is soon one that no build of torch is there for."""
    (check,) = re.findall(r"""-c (["'])(import sys; sys\.exit.*?)\1""", (ROOT / name).read_text())
    monkeypatch.setattr(sys, "version_info", (3, minor, 0, "final", 0))
    with pytest.raises(SystemExit) as ending:
        exec(check[1])
    assert ending.value.code == (not 11 <= minor <= 14)


@needs_bash
@pytest.mark.parametrize(
    ("capabilities", "backend"),
    [
        ("6.1", "cu126"),
        ("7.0\n5.2", "cu126"),
        ("7.5", "auto"),
        ("6.1\n12.0", "auto"),
        ('Field "compute_cap" is not a valid field to query.', "auto"),
    ],
)
def test_old_cards_get_a_build_that_knows_them(project: Path, tmp_path: Path, capabilities: str, backend: str) -> None:
    """uv asks for the version of the driver only, and pip not even for that."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, lines in (
        ("nvidia-smi", f"cat <<'END'\n{capabilities}\nEND"),
        ("uv", f'printf "%s " "$@" >>"{programs}/said"\nexit 1'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{lines}\n")
        (programs / name).chmod(0o755)
    (project / "env" / "complete").unlink()
    child = run("bash", "install.sh", cwd=project, CI="", PATH=f"{programs}{os.pathsep}{os.environ['PATH']}")
    assert child.returncode == 0, child.stderr
    assert f"--torch-backend={backend} torch==" in (programs / "said").read_text()
    (torch,) = (
        words for call in calls(project) if (words := " ".join(call[1:])).rpartition(" ")[2].startswith("torch==")
    )
    assert ("whl/cu126" in torch) == (backend == "cu126")


@needs_bash
@pytest.mark.skipif(not (ROOT / "env" / "complete").exists(), reason="these tests run outside env/")
def test_the_real_installation_is_complete() -> None:
    assert run("bash", "install.sh", "--if-needed").stderr == ""


# launch.py


NEEDS_PASSWORD = "--auth USER:PASSWORD"


def test_an_app_for_others_needs_a_password(tmp_path: Path) -> None:
    child = run(sys.executable, str(ROOT / "launch.py"), "--share", "--port", "0", cwd=tmp_path)
    assert child.returncode == 1
    assert NEEDS_PASSWORD in child.stderr
    assert "Traceback" not in child.stderr


@pytest.mark.parametrize(
    "arguments", [["--host", "0.0.0.0"], ["--mode", "caption", "--share"], ["--mode", "both", "--share"]]
)
def test_every_app_and_every_way_to_others_needs_a_password(
    arguments: list[str], launcher: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launcher.main([*arguments, "--port", "0", "--project", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert NEEDS_PASSWORD in said and "Traceback" not in said


@pytest.mark.parametrize("arguments", [["--mode", "sing"], ["--nonsense"], ["--port", "many"]])
def test_wrong_arguments_are_refused(arguments: list[str], launcher: ModuleType) -> None:
    with pytest.raises(SystemExit) as caught:
        launcher.main(arguments)
    assert caught.value.code == 2


def test_the_demo_gets_the_arguments_it_knows(launcher: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import acestep.cli

    received: list[list[str]] = []
    monkeypatch.setattr(acestep.cli, "main", lambda arguments: received.append(arguments) or 5)
    assert launcher.main(["--mode", "demo", "--out", "some where", "--json"]) == 5
    assert received == [["demo", "--out", "some where", "--json"]]


def test_a_broken_installation_is_told_before_anything_starts() -> None:
    child = run(sys.executable, "-S", "-E", str(ROOT / "launch.py"), "--mode", "demo")
    assert child.returncode == 1
    assert re.search(r"The installation is not complete: .*torch.* missing\. Run \./install\.sh", child.stderr)
    assert "Traceback" not in child.stderr

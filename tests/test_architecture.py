"""The house rules that a reader of the code relies on: rooms, light imports, no code in data, honest documents."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = [  # each may import from those before it
    *("core", "settings", "audio", "model", "dataset", "captioning", "preprocess", "adapters", "generate"),
    *("training", "ui", "cli", "__main__"),
]
HEAVY = {"torch", "diffusers", "transformers", "peft", "lycoris", "lightning_fabric", "librosa", "av", "gradio"}
LIGHT_ROOMS = {
    "core": ["device", "errors", "events", "health", "jobs", "paths"],
    "settings": ["base", "guide", "presets"],
    "model": ["facts", "prompt", "variants", "config", "checkpoints", "names", "identity"],
    "dataset": ["song", "dataset", "scan", "store", "spelling"],
    "captioning": ["contract", "registry", "parsing", "lines", "batch"],
    "preprocess": ["store"],
}
LIGHT_MODULES = ["acestep.cli", *(f"acestep.{room}.{name}" for room, names in LIGHT_ROOMS.items() for name in names)]
MOST_LINES = 600

PACKAGE_FILES = sorted((ROOT / "acestep").rglob("*.py"))
PROGRAM_FILES = [*PACKAGE_FILES, *sorted(ROOT.glob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]


def identify(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "acestep").parts[0].removesuffix(".py")


def imports_of(path: Path, nodes: Iterator[ast.AST] | None = None) -> Iterator[tuple[int, str]]:
    """(line, full module name) of every import; `from a import b` gives a and a.b."""
    package = list(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(tree_of(path)) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def at_import_time(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not inside functions, not under TYPE_CHECKING."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)


@pytest.mark.parametrize("path", PROGRAM_FILES, ids=identify)
def test_every_module_parses_says_what_it_is_for_and_is_not_too_long(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), "a module begins with what it is for"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_every_module_has_a_room() -> None:
    assert {room_of(path) for path in PACKAGE_FILES} <= {*ROOMS, "__init__"}


def test_no_room_imports_from_below() -> None:
    wrong = []
    for path in PACKAGE_FILES:
        if (room := room_of(path)) == "__init__":
            continue
        for line, name in imports_of(path):
            parts = name.split(".")
            below = parts[0] == "acestep" and len(parts) > 1 and parts[1] in ROOMS
            if below and ROOMS.index(parts[1]) > ROOMS.index(room):
                wrong.append(f"{identify(path)}:{line} imports {name}")
    assert wrong == []


def test_only_the_apps_know_gradio() -> None:
    wrong = [
        f"{identify(path)}:{line}"
        for path in PACKAGE_FILES
        if room_of(path) != "ui"
        for line, name in imports_of(path)
        if name.split(".")[0] == "gradio"
    ]
    assert wrong == []


def test_core_and_settings_import_nothing_heavy_at_once() -> None:
    wrong = [
        f"{identify(path)}:{line} imports {name}"
        for path in PACKAGE_FILES
        if room_of(path) in ("core", "settings")
        for line, name in imports_of(path, at_import_time(tree_of(path)))
        if name.split(".")[0] in HEAVY
    ]
    assert wrong == []


def test_light_modules_bring_in_nothing_heavy() -> None:
    code = (
        "import importlib, json, sys\n"
        "modules, heavy = json.loads(sys.argv[1])\n"
        "found = {}\n"
        "for module in modules:\n"
        "    importlib.import_module(module)\n"
        "    found |= {name: module for name in heavy if name in sys.modules and name not in found}\n"
        "print(json.dumps(found))\n"
    )
    arguments = json.dumps([LIGHT_MODULES, sorted(HEAVY)])
    child = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True, cwd=ROOT)
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout) == {}


# Data is never code


PICKLES = {"pickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve"}


def dangers_in(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what) of everything by which data could run code. Naming pickle's errors to catch them is allowed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in PICKLES and (alias.name, alias.asname) != ("pickle", None):
                    yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLES:
            if not all(alias.name.endswith("Error") for alias in node.names):
                yield node.lineno, f"from {node.module} import"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            if not node.attr.endswith("Error"):
                yield node.lineno, f"pickle.{node.attr}"
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in dangers_of(node))


def dangers_of(call: ast.Call) -> Iterator[str]:
    called = ast.unparse(call.func)
    values = {item.arg: ast.unparse(item.value) for item in call.keywords}
    if called in {"eval", "exec", "builtins.eval", "builtins.exec", "os.system", "os.popen"}:
        yield called
    if called in {"yaml.load", "yaml.unsafe_load", "joblib.load", "pandas.read_pickle"}:
        yield called
    if called.endswith("torch.load") and values.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    for name in ("trust_remote_code", "allow_pickle", "shell"):
        if values.get(name, "False") != "False":
            yield f"{called} with {name}"


def test_no_data_can_run_code() -> None:
    wrong = [f"{identify(path)}:{line} {what}" for path in PROGRAM_FILES for line, what in dangers_in(tree_of(path))]
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle as p",
        "pickle.loads(data)",
        "from pickle import load",
        "import dill",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "numpy.load(path, allow_pickle=flag)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_search_for_dangers_finds_them(line: str) -> None:
    assert list(dangers_in(ast.parse(line)))


def test_the_search_for_dangers_knows_what_is_harmless() -> None:
    for line in (
        "model.eval()",
        "torch.load(path, weights_only=True)",
        "load(path, shell=False)",
        "pickle.PickleError",
    ):
        assert list(dangers_in(ast.parse(line))) == []


# Documents promise only what is there

DOCUMENTS = [ROOT / "README.md", ROOT / "TRAINING_GUIDE.md"]


def commands_in(path: Path) -> list[list[str]]:
    """The words of every `acestep …` line in the code blocks of a document."""
    blocks = re.findall(r"^```(?:sh|bash)?\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("acestep ")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=identify)
def test_commands_and_options_of_the_documents_exist(path: Path) -> None:
    from acestep.cli import COMMANDS

    named = commands_in(path)
    text = path.read_text(encoding="utf-8")
    in_sentences = {match[1] for match in re.finditer(r"`acestep ([a-z-]+)[^`]*`", text)}
    assert {words[1] for words in named} | in_sentences <= set(COMMANDS)
    helps = {name: help_of(name) for name in {words[1] for words in named}}
    for words in named:
        for option in (word.partition("=")[0] for word in words if word.startswith("--")):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", helps[words[1]]), (
                f"{shlex.join(words)}: {option}"
            )


@cache
def help_of(command: str) -> str:
    from acestep.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert main([command, "--help"]) == 0
    return shown.getvalue()


def test_the_readme_shows_every_step_to_an_adapter() -> None:
    named = {words[1] for words in commands_in(ROOT / "README.md")}
    assert {"doctor", "dataset", "preprocess", "train", "generate", "runs"} <= named
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "./start.sh --mode demo" in text
    assert "./test.sh" in text


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=identify)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert missing == []


def test_the_version_is_in_the_changelog() -> None:
    from acestep import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

"""Checked paths, and writes that survive anything at any moment."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep.core import paths
from acestep.core.errors import UserError

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def names_in(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


# Paths from users


def test_existing_file_and_folder_say_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "a file.json"
    file.write_text("{}")
    assert paths.existing_file(str(file), "the dataset file") == file.resolve()
    assert paths.existing_folder(tmp_path, "the audio folder") == tmp_path.resolve()
    with pytest.raises(UserError, match=r"^The dataset file .* is a folder, not a file"):
        paths.existing_file(tmp_path, "the dataset file")
    with pytest.raises(UserError, match=r"^The audio folder .* is a file, not a folder"):
        paths.existing_folder(file, "the audio folder")
    with pytest.raises(UserError, match="does not exist"):
        paths.existing_file(tmp_path / "nowhere", "the dataset file")


@pytest.mark.parametrize("odd", ["x" * 5000, "a\0b", "~nobody-of-this-name/songs"])
@pytest.mark.parametrize("check", [paths.existing_file, paths.existing_folder, paths.output_folder])
def test_impossible_paths_are_user_errors(odd: str, check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        check(odd, "the folder")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_somebody_else_is_a_user_error(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            paths.existing_file(private / "song.wav", "the song")
        with pytest.raises(UserError, match="cannot be written"):
            paths.output_folder(private / "out", "the output folder")
    finally:
        os.seteuid(0)


def test_output_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = paths.output_folder(tmp_path / "a" / "b c", "the output folder")
    assert folder.is_dir()
    assert names_in(folder) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        paths.output_folder(tmp_path / "file", "the output folder")
    with pytest.raises(UserError, match="something else has that name"):
        paths.output_folder(tmp_path / "file" / "below", "the output folder")


def normalised(relative: str) -> list[str] | None:
    """The parts of a path after following its dots, or None where that leaves the root. No links considered."""
    if relative.startswith("/"):
        return None
    stack: list[str] = []
    outside = 0  # steps above the root; coming back down needs the root's own name, which is never offered
    for part in PurePosixPath(relative).parts:
        if part == "..":
            outside += not stack
            stack = stack[:-1]
        else:
            stack.append(part)
    return None if outside else stack


@given(st.lists(st.sampled_from(["..", ".", "a", "b", "...", "a b"]), max_size=6), st.booleans())
def test_inside_lets_nothing_out(parts: list[str], absolute: bool) -> None:
    root = Path("/nowhere/root")
    relative = ("/" if absolute else "") + "/".join(parts)
    expected = normalised(relative)
    if expected is None:
        with pytest.raises(UserError, match="leads outside"):
            paths.inside(root, relative)
    else:
        assert paths.inside(root, relative) == root.joinpath(*expected)


def test_inside_follows_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    (root / "in").symlink_to(root)
    assert paths.inside(root, "in/song.wav") == (root / "song.wav").resolve()
    with pytest.raises(UserError, match="leads outside"):
        paths.inside(root, "out/song.wav")


def test_inside_with_a_circle_of_links_never_leaves(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    try:
        found = paths.inside(tmp_path, "a")
    except UserError as error:
        assert "cannot be followed" in str(error)
    else:  # newer versions of Python give the link itself
        assert found.parent == tmp_path.resolve()


def test_inside_refuses_a_nul(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        paths.inside(tmp_path, "a\0b")


@settings(deadline=None)
@given(
    st.text(max_size=120) | st.sampled_from(["CON", "nul.txt", "com1.wav", "...", " ", "a/b\\c:d", "\udcff", "𠀀" * 90])
)
def test_safe_name_can_always_be_a_file(text: str) -> None:
    name = paths.safe_name(text)
    assert 0 < len(name) <= 81
    assert len(name.encode("utf-8")) <= 255 - len(paths.TEMPORARY_PREFIX) - 20
    assert not set(name) & set('/\\:*?"<>| \t\n\0')
    assert not name.startswith(".")
    assert not name.endswith((".", " "))
    assert name.partition(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT1"}
    assert paths.safe_name(name) == name


# Atomic writes


def test_a_written_file_has_the_permissions_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        paths.write_text(tmp_path / "text", "x")
        with paths.atomic_file(tmp_path / "binary.safetensors") as temporary:
            temporary.unlink()  # some libraries put a private file in place of the one they were given
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
        with paths.atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "text").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "binary.safetensors").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_the_temporary_file_keeps_the_suffix(tmp_path: Path) -> None:
    with paths.atomic_file(tmp_path / "song.flac") as temporary:
        assert temporary.suffix == ".flac"
        assert temporary.name.startswith(paths.TEMPORARY_PREFIX)


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    paths.write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), paths.atomic_file(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert json.loads(path.read_text()) == {"a": 1}
    folder = tmp_path / "best"
    with paths.atomic_folder(folder) as new:
        (new / "weights").write_text("old")
    with pytest.raises(ZeroDivisionError), paths.atomic_folder(folder) as new:
        (new / "weights").write_text("half")
        raise ZeroDivisionError
    assert (folder / "weights").read_text() == "old"
    assert names_in(tmp_path) == ["best", "settings.json"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with paths.atomic_folder(tmp_path / "best") as new:
            (new / content).mkdir()
            (new / content / "weights").write_text(content)
    assert names_in(tmp_path / "best") == ["second"]
    assert names_in(tmp_path) == ["best"]


def test_something_in_the_way_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "folder" / "content").mkdir(parents=True)
    with pytest.raises(UserError, match="something else has that name"):
        paths.write_text(tmp_path / "folder", "text")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="something else has that name"):
        paths.write_text(tmp_path / "file" / "below.json", "text")
    with pytest.raises(UserError, match="too long"):
        paths.write_text(tmp_path / ("x" * 400), "text")
    assert names_in(tmp_path) == ["file", "folder"]


def test_a_read_only_folder_is_a_user_error(read_only_folder: Path) -> None:
    for write in (
        lambda: paths.write_json(read_only_folder / "old.json", {"new": True}),
        lambda: paths.output_folder(read_only_folder, "the output folder"),
        lambda: paths.output_folder(read_only_folder / "below", "the output folder"),
    ):
        with pytest.raises(UserError, match="cannot be written"):
            write()
    assert (read_only_folder / "old.json").read_text() == "{}"


def test_a_full_disk_is_a_user_error_and_leaves_the_old_file(small_disk: Path) -> None:
    path = small_disk / "settings.json"
    paths.write_json(path, {"a": 1})
    with pytest.raises(UserError, match=r"disk is full while writing .*settings\.json"):
        paths.write_json(path, {"a": "x" * 400_000})
    with pytest.raises(UserError, match="disk is full"), paths.atomic_folder(small_disk / "best") as new:
        (new / "weights").write_bytes(bytes(400_000))
    assert json.loads(path.read_text()) == {"a": 1}
    assert names_in(small_disk) == ["settings.json"]


def test_many_files_are_all_written_or_none(small_disk: Path, tmp_path: Path) -> None:
    texts = {tmp_path / f"folder {number % 3}" / f"{number}.json": f"{number}".encode() for number in range(50)}
    paths.write_files(texts)
    assert {path: path.read_bytes() for path in texts} == texts
    assert sum(len(names_in(folder)) for folder in tmp_path.glob("folder *")) == 50
    (small_disk / "0").write_text("old")
    with pytest.raises(UserError, match="disk is full"):
        paths.write_files({small_disk / f"{number}": bytes(100_000) for number in range(5)})
    assert names_in(small_disk) == ["0"] and (small_disk / "0").read_text() == "old"


def test_a_full_disk_under_torch_and_safetensors_is_a_user_error(small_disk: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = small_disk / "weights.safetensors"
    with pytest.raises(UserError, match="disk is full"), paths.atomic_file(path) as temporary:
        save_file({"weight": torch.zeros(100_000)}, temporary)
    with pytest.raises(UserError, match="disk is full"), paths.atomic_file(path) as temporary:
        torch.save({"weight": torch.zeros(100_000)}, temporary)
    with pytest.raises(RuntimeError, match="something else"), paths.atomic_file(path):
        raise RuntimeError("something else")
    assert names_in(small_disk) == []


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from acestep.core import paths
folder = Path(sys.argv[1])
for number in range(1_000_000):
    paths.write_json(folder / "state.json", {"number": number, "payload": str(number) * 20_000})
    with paths.atomic_folder(folder / "best") as new:
        for name in ("weights", "optimizer"):
            (new / name).write_text(f"{number} " * 10_000)
    print(number, flush=True)
"""


def test_kill_at_a_random_moment_leaves_whole_files(tmp_path: Path) -> None:
    rounds = random.Random(1)
    for _ in range(12):
        child = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(rounds.randint(1, 12)):
            finished = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        paths.remove_leftovers(tmp_path)
        assert names_in(tmp_path) == ["best", "state.json"]
        state = paths.read_json(tmp_path / "state.json", "the state")
        assert state["payload"] == str(state["number"]) * 20_000
        assert state["number"] >= finished
        contents = {file.read_text() for file in (tmp_path / "best").iterdir()}
        assert names_in(tmp_path / "best") == ["optimizer", "weights"]
        assert len(contents) == 1  # both files are of the same write
        assert int(contents.pop().split()[0]) >= finished


DIE_AT_RENAME = """
import os, signal, sys
from pathlib import Path
from acestep.core import paths
folder, fatal = Path(sys.argv[1]), int(sys.argv[2])
replace, count = Path.replace, 0
def deadly(self, target):
    global count
    if count == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    count += 1
    return replace(self, target)
Path.replace = deadly
with paths.atomic_folder(folder / "best") as new:
    (new / "weights").write_text("new")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("fatal", "expected"), [(0, "old"), (1, "old"), (2, "new")])
@pytest.mark.parametrize("repair", ["remove_leftovers", "next write"])
def test_kill_between_the_renames_loses_no_folder(tmp_path: Path, fatal: int, expected: str, repair: str) -> None:
    with paths.atomic_folder(tmp_path / "best") as new:
        (new / "weights").write_text("old")
    child = subprocess.run([sys.executable, "-c", DIE_AT_RENAME, str(tmp_path), str(fatal)])
    assert child.returncode == -signal.SIGKILL
    if repair == "next write":
        with pytest.raises(KeyboardInterrupt), paths.atomic_folder(tmp_path / "best"):
            raise KeyboardInterrupt
    paths.remove_leftovers(tmp_path)
    assert names_in(tmp_path) == ["best"]
    assert (tmp_path / "best" / "weights").read_text() == expected


def test_remove_leftovers_touches_nothing_else(tmp_path: Path) -> None:
    (tmp_path / f"{paths.TEMPORARY_PREFIX}1").mkdir()
    (tmp_path / f"{paths.TEMPORARY_PREFIX}1" / "x").touch()
    (tmp_path / f"{paths.TEMPORARY_PREFIX}2.json").touch()
    (tmp_path / "song.wav").touch()
    paths.remove_leftovers(tmp_path)
    assert names_in(tmp_path) == ["song.wav"]


# JSON and hashes


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON_VALUES, max_size=5))
def test_json_comes_back_as_written(tmp_path_factory: pytest.TempPathFactory, value: dict) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    paths.write_json(path, value)
    assert paths.read_json(path, "the file") == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1, column 1"),
        (b'{"a": 1,\n "b": }', "line 2, column 7"),
        (b"[1, 2]", "must hold a JSON object, not list"),
        (b"null", "must hold a JSON object"),
        ('{"a": "ü"}'.encode("utf-16"), "not UTF-8"),
        ('{"a": "ü"}'.encode("cp1252"), "not UTF-8"),
        (b'{"a":' * 100_000, "cannot be read as JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
    ],
)
def test_a_broken_json_file_is_a_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        paths.read_json(path, "the file")
    assert str(path) in str(caught.value)


def test_json_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert paths.read_json(tmp_path / "file.json", "the file") == {"a": 1}


@given(st.dictionaries(st.text(max_size=5), JSON_VALUES, min_size=2, max_size=5))
def test_value_hash_knows_values_but_not_their_order(value: dict) -> None:
    backwards = dict(reversed(value.items()))
    assert paths.value_hash(value) == paths.value_hash(backwards)
    assert paths.value_hash(value) != paths.value_hash({**value, "one more": 1})


def test_content_hash_is_sha256(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(3_000_001)
    (tmp_path / "data").write_bytes(data)
    assert paths.content_hash(tmp_path / "data") == hashlib.sha256(data).hexdigest()[:32]


# What other systems refuse


@pytest.fixture
def held_open(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Windows, where somebody holds each file open for a moment: the first two attempts at a name are refused."""
    attempts: list[Path] = []
    replace = Path.replace

    def refused(self: Path, target: Path) -> Path:
        attempts.append(self)
        if attempts.count(self) <= 2:
            raise PermissionError(13, "Access is denied", str(self))
        return replace(self, target)

    monkeypatch.setattr(paths, "_WAITS_S", (0.0, 0.0))
    monkeypatch.setattr(Path, "replace", refused)
    return attempts


def test_a_file_that_is_held_open_is_replaced_when_it_is_let_go(held_open: list[Path], tmp_path: Path) -> None:
    file, folder = tmp_path / "index.json", tmp_path / "step_000001"
    file.write_text("old")
    folder.mkdir()
    paths.write_text(file, "new")
    paths.write_files({file: b"newer"})
    with paths.atomic_folder(folder) as temporary:
        (temporary / "a").write_text("a")
    assert file.read_text() == "newer" and names_in(folder) == ["a"]
    assert names_in(tmp_path) == ["index.json", "step_000001"]
    assert len(held_open) == 3 * (1 + 1 + 2)  # a folder's older content is moved aside first


def test_a_file_that_is_never_let_go_is_told(
    held_open: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_WAITS_S", (0.0,))
    with pytest.raises(UserError, match="cannot be written"):
        paths.write_text(tmp_path / "index.json", "new")
    assert names_in(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="Windows flushes no folders")
def test_disks_that_flush_files_only_are_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared folders of virtual machines, for one, answer EINVAL, as /proc does here."""
    flush = os.fsync

    def flush_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", flush_files)
    paths.write_text(tmp_path / "index.json", "new")
    with paths.atomic_folder(tmp_path / "run") as temporary:
        (temporary / "a").write_text("a")
    assert names_in(tmp_path) == ["index.json", "run"]


def test_text_has_the_same_bytes_on_every_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows Python writes \\r\\n for \\n, unless told: an index that is already so would be written again."""
    write = Path.write_text

    def on_windows(self: Path, text: str, encoding: str, newline: str | None = None) -> int:
        return write(self, text, encoding=encoding, newline="\r\n" if newline is None else newline)

    monkeypatch.setattr(Path, "write_text", on_windows)
    paths.write_text(tmp_path / "index.json", "{\n}\n")
    assert (tmp_path / "index.json").read_bytes() == b"{\n}\n"

"""Uploaded archives: songs and labels come out whole, and nothing in one can reach outside or fill the disk."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job
from acestep.dataset.archive import Limits, extract_archive
from acestep.dataset.scan import scan_folder

Pack = Callable[..., Path]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """pack({name or ZipInfo: bytes}): an archive of these entries."""

    def make(entries: dict[str | zipfile.ZipInfo, bytes], name: str = "My songs.zip", **options: int) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w", **options) as archive:  # type: ignore[arg-type]
            for entry, content in entries.items():
                archive.writestr(entry, content)
        return tmp_path / name

    return make


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "datasets"


def nothing_left(root: Path) -> bool:
    return not root.exists() or not list(root.iterdir())


def test_songs_and_labels_come_out_in_their_folders_and_can_be_scanned(
    pack: Pack, root: Path, music: Path, make_song: Callable[..., Path]
) -> None:
    song = make_song("one.wav").read_bytes()
    other = make_song("two.wav").read_bytes()
    entries = {
        "set/one.wav": song,
        "set/one.json": b'{"caption": "piano"}',
        "set/CD 2/con.wav": other,
        "set/CD 2/con.txt": b"caption: drums",
        "__MACOSX/set/._one.wav": b"x",
        "set/.DS_Store": b"x",
        "set/more.zip": b"PK",
        "set/cover.jpg": b"x",
        "set/run.exe": b"x",
    }
    result = extract_archive(pack(entries, compression=zipfile.ZIP_DEFLATED), root)
    assert result.folder == root.resolve() / "My_songs"
    assert sorted(result.files) == ["set/CD 2/_con.txt", "set/CD 2/_con.wav", "set/one.json", "set/one.wav"]
    assert (result.folder / "set/one.wav").read_bytes() == song
    assert len(result.skipped) == 5 and "archive inside" in str([str(problem) for problem in result.skipped])
    assert [found.caption for found in scan_folder(result.folder).songs] == ["drums", "piano"]
    assert extract_archive(pack(entries), root).folder.name == "My_songs_2"


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def device(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFCHR | 0o666) << 16
    return info


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("../evil.wav", "leads out"),
        ("a/../../evil.wav", "leads out"),
        ("a\\..\\..\\evil.wav", "leads out"),
        ("a/.. /evil.wav", "leads out"),
        ("a/.../evil.wav", "leads out"),
        ("/etc/evil.wav", "absolute"),
        ("\\\\server\\share\\evil.wav", "absolute"),
        ("C:\\evil.wav", "absolute"),
        ("c:evil.wav", "absolute"),
        (link("evil.wav"), "link or a device"),
        (link("folder/"), "link or a device"),
        (device("evil.wav"), "link or a device"),
        ("GOOD.WAV", "one file on some systems"),
        ("good.wav ", "one file on some systems"),
        ("goo?.wav/x.wav", ""),
        ("good.wav/x.wav", "file and a folder"),
        ("x" * 300 + ".wav", "too long"),
        ("/".join(["y" * 100] * 20) + "/x.wav", "too long"),
    ],
)
def test_names_that_reach_elsewhere_are_refused(
    pack: Pack, root: Path, entry: str | zipfile.ZipInfo, words: str
) -> None:
    archive = pack({"good.wav": b"sound", entry: b"/etc/passwd"})
    if not words:  # odd, but harmless
        assert extract_archive(archive, root).files == ["good.wav", "goo_.wav/x.wav"]
        return
    with pytest.raises(UserError, match=words):
        extract_archive(archive, root)
    assert nothing_left(root)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(files=2), "3 entries"),
        (Limits(total_bytes=3000), "more than"),
        (Limits(ratio=3, free_bytes=100), "far more than music"),
    ],
)
def test_archives_that_bring_too_much_are_refused(pack: Pack, root: Path, limits: Limits, words: str) -> None:
    archive = pack({f"{name}.wav": bytes(2000) for name in "abc"}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=words):
        extract_archive(archive, root, limits)
    assert nothing_left(root)
    assert len(extract_archive(archive, root).files) == 3


def test_a_size_that_is_a_lie_does_not_get_through(pack: Pack, root: Path) -> None:
    archive = pack({"a.wav": bytes(5 << 20)}, compression=zipfile.ZIP_DEFLATED)
    data = bytearray(archive.read_bytes())
    size = struct.pack("<I", 5 << 20)
    for position in (data.find(size), data.rfind(size)):
        data[position : position + 4] = struct.pack("<I", 1000)
    archive.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        extract_archive(archive, root, Limits(total_bytes=1 << 20))
    assert nothing_left(root)


def test_encrypted_entries_and_other_packings_are_refused(pack: Pack, root: Path) -> None:
    archive = pack({"a.wav": b"sound"})
    data = bytearray(archive.read_bytes())
    data[6] |= 1
    data[data.rfind(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(UserError, match="without a password"):
        extract_archive(archive, root)
    with pytest.raises(UserError, match="unusual way"):
        extract_archive(pack({"a.wav": b"sound"}, compression=zipfile.ZIP_BZIP2), root)
    with pytest.raises(UserError, match="no songs"):
        extract_archive(pack({"a.txt": b"words"}), root)
    assert nothing_left(root)


def test_a_full_disk_and_a_stop_leave_nothing_behind(pack: Pack, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack({"a.wav": b"sound", "b.wav": b"more"})
    job = Job()
    job.request_stop()
    with pytest.raises(Stopped):
        extract_archive(archive, root, job=job)
    assert nothing_left(root)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match="free"):
        extract_archive(archive, root)
    monkeypatch.undo()

    def refuse(self: object, *_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipExtFile, "read", refuse)
    with pytest.raises(UserError, match="disk is full"):
        extract_archive(archive, root)
    assert nothing_left(root)


NAMES = st.text('./\\:ab C~*"\u00e9e\u0301\n', min_size=1, max_size=12).map(lambda text: f"{text}.wav")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAMES, min_size=1, max_size=4, unique=True))
def test_whatever_names_are_in_it_files_stay_inside_and_none_is_lost(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    place = tmp_path_factory.mktemp("names")
    with zipfile.ZipFile(place / "a.zip", "w") as archive:
        for name in names:
            archive.writestr(name, name.encode())
    try:
        result = extract_archive(place / "a.zip", place / "out")
    except UserError:
        assert nothing_left(place / "out")
    else:
        on_disk = [path for path in (place / "out").rglob("*") if path.is_file()]
        assert len(on_disk) == len(result.files) == len(names) - len(result.skipped)
        assert {path.read_bytes().decode() for path in on_disk} <= set(names)
    assert {path.name for path in place.iterdir()} == {"a.zip", "out"}


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_damaged_archives_give_a_sentence_or_whole_files(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    place = tmp_path_factory.mktemp("damage")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", bytes(range(256)))
        archive.writestr("b/c.txt", "words " * 30)
    content = bytearray(packed.getvalue())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (place / "a.zip").write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        extract_archive(place / "a.zip", place / "out")
    except UserError:
        assert nothing_left(place / "out")

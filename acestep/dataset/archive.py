"""Songs out of an uploaded ZIP file: into a new folder, all or nothing, with bounds on everything it can ask for.

Nothing an archive says is trusted: names are checked and made fit for every system, sizes are counted on the bytes
that really come out. An archive that tries to reach outside its folder is refused as a whole; files that are no
songs or labels are left out and reported.
"""

from __future__ import annotations

import re
import shutil
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from acestep.audio.format import AUDIO_SUFFIXES
from acestep.core.errors import Problem, UserError
from acestep.core.jobs import Job
from acestep.core.paths import TEMPORARY_PREFIX, atomic_folder, disk_errors, existing_file, output_folder, safe_name

LABEL_SUFFIXES = frozenset({".json", ".txt", ".lrc", ".csv"})

_ARCHIVES = frozenset({".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst"})
_SYSTEM_PARTS = frozenset({"__macosx", "$recycle.bin", "system volume information"})
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(_prompt|_lyrics)?(?: *\.|$)", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_CHUNK_BYTES = 1 << 20
_LONGEST_PART_BYTES = 200
_LONGEST_PATH_BYTES = 1000
_ENCRYPTED = 0x1
_KEPT_FREE_BYTES = 64 << 20


@dataclass(frozen=True)
class Limits:
    """How much an archive may bring. `ratio` is unpacked bytes for each packed one, beyond the first `free_bytes`."""

    files: int = 20_000
    total_bytes: int = 32 << 30
    ratio: int = 100
    free_bytes: int = 64 << 20


@dataclass
class Extracted:
    """The new folder, the files in it (relative, posix), and what was left out and why."""

    folder: Path
    files: list[str] = field(default_factory=list)
    skipped: list[Problem] = field(default_factory=list)


def extract_archive(
    archive: str | Path, root: str | Path, limits: Limits | None = None, job: Job | None = None
) -> Extracted:
    """Unpack the songs and label files of a ZIP file into a new folder below `root`, named after the archive.

    Raises UserError, and leaves nothing behind, for a file that is no ZIP or is damaged or encrypted, for names that
    lead elsewhere (.., absolute, drives, links) or that two files would share, for more than `limits` allow, and for
    a full disk. Raises Stopped when `job` is asked to stop.
    """
    path = existing_file(archive, "the archive")
    root = output_folder(root, "the folder for songs")
    limits, job = limits or Limits(), job or Job()
    try:
        with zipfile.ZipFile(path) as opened:
            plan = _plan(path, opened, limits)
            result = Extracted(_new_folder(root, path), skipped=plan.skipped)
            _check_space(root, path, plan)
            with atomic_folder(result.folder) as folder, job.stage("unpack", len(plan.chosen), "files") as stage:
                left = _Allowance(path, limits, plan.packed_bytes)
                for info, name in plan.chosen:
                    _extract(opened, info, folder / name, left, job)
                    result.files.append(name)
                    stage.advance(note=name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path.name} cannot be unpacked: it is no ZIP file, is damaged, or is packed in a way not known here.",
            fix="Pack it again as an ordinary ZIP file.",
            detail=str(error),
        ) from error
    return result


@dataclass
class _Plan:
    """The entries to unpack, each with the name it gets, and those left out."""

    chosen: list[tuple[zipfile.ZipInfo, str]] = field(default_factory=list)
    skipped: list[Problem] = field(default_factory=list)

    @property
    def packed_bytes(self) -> int:
        return sum(info.compress_size for info, _ in self.chosen)

    @property
    def unpacked_bytes(self) -> int:
        return sum(info.file_size for info, _ in self.chosen)


def _plan(path: Path, opened: zipfile.ZipFile, limits: Limits) -> _Plan:
    """Decide about every entry by what the archive says of itself, before a byte is written."""
    entries = opened.infolist()
    if len(entries) > limits.files:
        raise _refused(path, f"it holds {len(entries)} entries, more than {limits.files}", "Pack fewer files.")
    plan = _Plan()
    taken: dict[str, str] = {}
    for info in entries:
        shown = _shown(info)
        parts = _parts(path, info)
        if info.is_dir():
            continue
        reason = _why_skipped(parts)
        if reason:
            plan.skipped.append(Problem(shown, reason, "warning"))
            continue
        if info.flag_bits & _ENCRYPTED:
            raise _refused(path, f"{shown} is encrypted", "Pack it without a password.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(path, f"{shown} is packed in an unusual way", "Pack it again as an ordinary ZIP file.")
        name = "/".join(portable_name(part) for part in parts)
        if len(name.encode()) > _LONGEST_PATH_BYTES:
            raise _refused(path, f"the path of {shown} is too long", "Shorten it.")
        key = unicodedata.normalize("NFC", name).casefold()
        if key in taken:
            raise _refused(path, f"{taken[key]} and {shown} would be one file on some systems", "Rename one of them.")
        taken[key] = shown
        plan.chosen.append((info, name))
    for parent in {str(above) for key in taken for above in PurePosixPath(key).parents}:
        if parent in taken:
            raise _refused(path, f"{taken[parent]} is a file and a folder at once", "Pack it again.")
    if not any(PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES for _, name in plan.chosen):
        raise _refused(path, "it holds no songs", f"Pack {', '.join(sorted(AUDIO_SUFFIXES))} files.")
    _Allowance(path, limits, plan.packed_bytes).take(plan.unpacked_bytes)
    return plan


def _parts(path: Path, info: zipfile.ZipInfo) -> list[str]:
    """The folders and the name of an entry; a UserError when it is anything else than a file or folder inside."""
    shown = _shown(info)
    original = info.orig_filename.replace("\\", "/")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(path, f"{shown} is a link or a device", "Pack the files themselves.")
    if original.startswith("/") or re.match(r"[A-Za-z]:", original):
        raise _refused(path, f"{shown} has an absolute path", "Pack it with relative paths.")
    parts = [part for part in original.split("/") if part not in ("", ".")]
    if any(part.strip(" .") == "" or "\0" in part for part in parts):
        raise _refused(path, f"the name {shown} leads out of the folder or is no name", "Pack it again.")
    return parts


def _why_skipped(parts: list[str]) -> str:
    name = parts[-1].rstrip(" .") if parts else ""
    suffix = PurePosixPath(name).suffix.lower()
    if any(part.startswith(".") or part.casefold() in _SYSTEM_PARTS for part in parts) or not name:
        return "A hidden or system file; it is left out."
    if suffix in _ARCHIVES:
        return "An archive inside the archive; it is left out. Unpack it and upload what is in it."
    if suffix not in AUDIO_SUFFIXES | LABEL_SUFFIXES:
        return "Neither a song nor a label file; it is left out."
    return ""


def portable_name(part: str) -> str:
    """A name that Windows, macOS and Linux take, with its suffix as it was. Sidecars of a song change alike."""
    part = _FORBIDDEN.sub("_", part).rstrip(" .")
    part = part.encode("utf-8", "replace").decode("utf-8")
    if _DEVICE.match(part) or part.startswith(TEMPORARY_PREFIX):
        part = f"_{part}"
    if len(part.encode()) > _LONGEST_PART_BYTES:
        raise UserError(f"The name {part[:40]}… is too long.", fix="Shorten it.")
    return part


class _Allowance:
    """Counts bytes that come out against what the archive may bring."""

    def __init__(self, path: Path, limits: Limits, packed_bytes: int) -> None:
        self._path = path
        self._limits = limits
        self._by_ratio = limits.free_bytes + packed_bytes * limits.ratio
        self._taken = 0

    def take(self, count: int) -> None:
        self._taken += count
        if self._taken > self._limits.total_bytes:
            most = self._limits.total_bytes / (1 << 30)
            raise _refused(self._path, f"it unpacks to more than {most:.3g} GiB", "Pack fewer songs at a time.")
        if self._taken > self._by_ratio:
            raise _refused(self._path, "it unpacks to far more than music would", "Pack the songs again.")


def _extract(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, left: _Allowance, job: Job) -> None:
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(info) as source, open(target, "xb") as out:
            for block in _blocks(source):
                job.check_stop()
                left.take(len(block))
                out.write(block)


def _blocks(source: object) -> Iterator[bytes]:
    while block := source.read(_CHUNK_BYTES):  # type: ignore[attr-defined]  # zipfile's reader
        yield block


def _new_folder(root: Path, path: Path) -> Path:
    """A folder below `root` that does not exist yet."""
    name = safe_name(path.stem, "songs")
    number = 1
    while (folder := root / (name if number == 1 else f"{name}_{number}")).exists():
        number += 1
    return folder


def _check_space(root: Path, path: Path, plan: _Plan) -> None:
    free = shutil.disk_usage(root).free
    if plan.unpacked_bytes + _KEPT_FREE_BYTES > free:
        needed, there = plan.unpacked_bytes / 1e9, free / 1e9
        raise _refused(path, f"it needs {needed:.1f} GB and {root} has {there:.1f} GB free", "Free some space.")


def _shown(info: zipfile.ZipInfo) -> str:
    """The name of an entry for a message: printable and short."""
    name = "".join(letter if letter.isprintable() else "?" for letter in info.orig_filename)
    return f'"{name if len(name) <= 80 else name[:80] + "…"}"'


def _refused(path: Path, why: str, fix: str) -> UserError:
    return UserError(f"{path.name} was not unpacked: {why}.", fix=fix)

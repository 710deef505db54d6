"""Finding the files of a song folder: every sub-folder once, nothing outside it, no hidden or unfinished files."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from acestep.audio.format import AUDIO_SUFFIXES
from acestep.core.errors import Problem
from acestep.core.paths import TEMPORARY_PREFIX

_SKIPPED_FOLDERS = frozenset({"__macosx", "$recycle.bin", "system volume information"})
_UNFINISHED = ("~", ".tmp", ".part", ".partial", ".crdownload", ".download")


@dataclass
class Folder:
    """The files directly in one folder: names of audio files and of others, sorted."""

    relative: str
    path: Path
    audio: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def relative_name(self, name: str) -> str:
        """The path of a file below the root (posix)."""
        return f"{self.relative}/{name}" if self.relative else name


@dataclass
class Tree:
    """All folders with files in them, and what could not be looked at."""

    folders: list[Folder] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def walk(root: Path) -> Tree:
    """List the files below `root`, a resolved folder.

    Links are followed to nowhere outside `root`. A link to a folder inside it is not followed either, because
    that folder is visited under its own name, which also makes circles harmless. A link to a file counts when
    nothing else in the tree is that file.
    """
    tree = Tree()
    links: list[tuple[Folder, str]] = []
    waiting = [Folder("", root)]
    visited: set[Path] = set()
    while waiting:
        folder = waiting.pop()
        try:
            real = folder.path.resolve()  # Windows has links that look like folders
            if real in visited or not real.is_relative_to(root):
                continue
            visited.add(real)
            entries = sorted(os.scandir(folder.path), key=lambda entry: entry.name)
        except OSError as error:
            subject = folder.relative or "."
            tree.problems.append(
                Problem(subject, f"This folder cannot be read ({error.strerror}); check its permissions.")
            )
            continue
        for entry in entries:
            if is_skipped(entry.name):
                if _hides_songs(entry):
                    message = "Its name begins with a dot, so it is left out as hidden; rename it to use it."
                    hidden = Problem(folder.relative_name(entry.name), message, "warning")
                    tree.problems.append(_unusable_name(folder, entry.name) or hidden)
                continue
            if (problem := _unusable_name(folder, entry.name)) is not None:
                tree.problems.append(problem)
            elif entry.is_symlink():
                links.append((folder, entry.name))
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(Folder(folder.relative_name(entry.name), folder.path / entry.name))
            elif entry.is_file(follow_symlinks=False):
                _add(folder, entry.name)
        tree.folders.append(folder)
    _follow_file_links(tree, root, links)
    tree.folders = sorted((folder for folder in tree.folders if folder.audio or folder.others), key=_order)
    return tree


def _order(folder: Folder) -> str:
    return folder.relative


def is_skipped(name: str) -> bool:
    """Is this a name of something hidden, unfinished or of the system?"""
    return name.startswith((".", "~$")) or name.lower().endswith(_UNFINISHED) or name.lower() in _SKIPPED_FOLDERS


def _hides_songs(entry: os.DirEntry[str]) -> bool:
    """Is something with a dot first a song, or a folder of songs, rather than what systems and programs hide?"""
    if not entry.name.startswith(".") or entry.name.startswith(("._", TEMPORARY_PREFIX)):
        return False
    try:
        if entry.is_dir(follow_symlinks=False):
            return any(is_audio_name(child.name) and child.name[0] != "." for child in Path(entry.path).iterdir())
    except OSError:
        return False
    return is_audio_name(entry.name)


def _unusable_name(folder: Folder, name: str) -> Problem | None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        shown = folder.relative_name(name).encode("utf-8", "backslashreplace").decode("utf-8")
        return Problem(shown, "Its name is not valid text, so no dataset file could name it; rename it.")
    return None


def _add(folder: Folder, name: str) -> None:
    (folder.audio if is_audio_name(name) else folder.others).append(name)


def is_audio_name(name: str) -> bool:
    """Does this name end like a sound file?"""
    return Path(name).suffix.lower() in AUDIO_SUFFIXES


def _follow_file_links(tree: Tree, root: Path, links: list[tuple[Folder, str]]) -> None:
    """Add links to files inside `root` that nothing else stands for; report those that lead elsewhere."""
    taken = {str(folder.path / name) for folder in tree.folders for name in (*folder.audio, *folder.others)}
    for folder, name in links:
        path = folder.path / name
        subject = folder.relative_name(name)
        try:
            target = path.resolve(strict=True)
            mode = target.stat().st_mode
        except (OSError, RuntimeError) as error:
            if is_audio_name(name):
                reason = error.strerror if isinstance(error, OSError) else "it leads back to itself"
                tree.problems.append(Problem(subject, f"This link leads to no file ({reason}); remove or correct it."))
            continue
        if not target.is_relative_to(root):
            if stat.S_ISDIR(mode) or is_audio_name(name):
                message = "This link leads outside the folder, so it is not followed; copy or move the songs here."
                tree.problems.append(Problem(subject, message))
        elif stat.S_ISREG(mode) and is_audio_name(target.name) == is_audio_name(name) and str(target) not in taken:
            taken.add(str(target))
            _add(folder, name)
    for folder in tree.folders:
        folder.audio.sort()
        folder.others.sort()

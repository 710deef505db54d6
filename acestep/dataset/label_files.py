"""Where labels that were typed or made by backends are kept: in song.json beside the song, or in a dataset file.

Both are written at once and whole, so a crash loses nothing. song.json travels with the song and is read by other
programs; "sources" in it marks what the user typed, which no scan and no labelling overrules afterwards, and what a
backend gave, which every file overrules. What else stands in the file stays as it is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from acestep.core.errors import UserError
from acestep.core.paths import write_files
from acestep.dataset.dataset import Dataset
from acestep.dataset.labels import ALIASES, origin_note, read_labels
from acestep.dataset.sidecars import edited_labels, is_dataset, machine_labels, pair
from acestep.dataset.song import DEFAULT, EDITED, NOT_SAID, Song, is_machine
from acestep.dataset.store import save_dataset
from acestep.dataset.text import LARGEST_LABEL_FILE, NotText, decode
from acestep.dataset.walk import is_audio_name
from acestep.model.facts import INSTRUMENTAL

_ELSEWHERE = "Save the dataset file in another place and edit there (--save FILE)."
_SAYING_NOTHING = ("", None, NOT_SAID["language"])


@dataclass(frozen=True)
class Written:
    """A song.json that was written: its bytes before (None: there was none) and after."""

    path: Path
    before: bytes | None
    after: bytes


def hand_made(song: Song) -> frozenset[str]:
    """The labels of a song that the user typed. Nothing that labels by itself may overwrite them."""
    return frozenset(name for name, source in song.sources.items() if source == EDITED)


def save_labels(dataset: Dataset, changes: Sequence[tuple[Song, Set[str]]], file: Path | None) -> list[Written]:
    """Keep what the user typed: in the dataset file `file`, or where that is None beside each song.

    `changes` are songs, each with the labels that were changed just now. What stands in a sidecar for the others
    stays where somebody else typed it since the song was read. Raises UserError when a place cannot be written; then
    no file is changed. Returns the sidecars written.
    """
    if file is not None:
        save_dataset(dataset, file)
        return []
    places = _Places(dataset)
    targets = [(song, places.of(song), changed) for song, changed in changes]
    with dataset.files.written(*(path for _, path, _ in targets)):
        written = [_planned(*target) for target in targets]
        try:
            _write({entry.path: entry.after for entry in written if entry.after != entry.before})
        except BaseException:
            restore(written)
            raise
    return written


def restore(written: Sequence[Written]) -> list[Path]:
    """Give sidecars their earlier bytes back, except those that somebody changed since, which are returned."""
    changed, earlier = [], {}
    for entry in written:
        if entry.before == entry.after:
            continue
        if _bytes(entry.path) != entry.after:
            changed.append(entry.path)
        elif entry.before is None:
            with _refusals():
                entry.path.unlink()
        else:
            earlier[entry.path] = entry.before
    _write(earlier)
    return changed


class LabelWriter:
    """Keeps the labels of one song after the other, as a batch makes them: beside the songs, or in the dataset `file`.

    A dataset file is written whole, so at most every `every_s` seconds and when the context is left.
    """

    def __init__(
        self,
        dataset: Dataset,
        file: Path | None = None,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dataset = dataset
        self._file = file
        self._every_s = every_s
        self._clock = clock
        self._places = _Places(dataset)
        self._last = clock()
        self._waiting = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._save_file()

    def check(self, song: Song) -> None:
        """Raises UserError where the labels of a song will have no place."""
        if self._file is None:
            self._read(song)

    def take_over(self, song: Song) -> frozenset[str]:
        """Give a song what somebody wrote into its song.json since it was read; returns the names of those labels.

        Raises UserError where that file holds no labels.
        """
        if self._file is not None:
            return frozenset()
        path, content = self._read(song)
        edited, by_machine = edited_labels(content), machine_labels(content)
        found = read_labels(content, path.name)
        known = {name for name, source in song.sources.items() if source != DEFAULT and not is_machine(source)}
        typed = (edited | found.values.keys()) - by_machine.keys() - known
        typed |= _typed_since(song, path.name, content)
        for name in typed:
            song.set_from(EDITED if name in edited else path.name, name, found.values.get(name, NOT_SAID[name]))
        if "lyrics" in typed:
            song.timed_lyrics = found.timed_lyrics
            if "is_instrumental" not in found.values:
                song.set_from(song.sources["lyrics"], "is_instrumental", song.lyrics == INSTRUMENTAL)
        return frozenset(typed)

    def _read(self, song: Song) -> tuple[Path, dict[str, Any]]:
        path = self._places.of(song)
        before = _bytes(path)
        return path, _parse(path, before) if before is not None else {}

    def write(self, song: Song) -> None:
        """Keep the labels of a song of the dataset, all as they are; `take_over` gave it what was typed meanwhile.

        Raises UserError when they cannot be written.
        """
        if self._file is None:
            place = self._places.of(song)
            with self._dataset.files.written(place):
                _write({place: _planned(song, place, NOT_SAID.keys()).after})
            return
        self._waiting = True
        if self._clock() - self._last >= self._every_s:
            self._save_file()

    def _save_file(self) -> None:
        if self._file is not None and self._waiting:
            save_dataset(self._dataset, self._file)
            self._waiting = False
            self._last = self._clock()


class _Places:
    """Finds the song.json of songs; looks at each folder once."""

    def __init__(self, dataset: Dataset) -> None:
        self._root = dataset.root
        self._folders: dict[Path, tuple[dict[str, str], dict[str, set[str]]]] = {}

    def of(self, song: Song) -> Path:
        """The path of a song's own song.json, which may not exist yet."""
        audio = self._root / song.relative  # the link where the song is one
        with contextlib.suppress(OSError):
            audio = audio if audio.samefile(song.path) else song.path
        sidecars, claims = self._folder(audio.parent)
        name = sidecars.get(audio.name, f"{audio.stem}.json")
        sharing = (claims.get(name, set()) | claims.get(audio.stem.casefold(), set())) - {audio.name}
        if sharing:
            raise UserError(
                f"{song.relative} and {min(sharing)} would share {name}, so its labels cannot be kept there.",
                fix=f"Rename one of them. Or: {_ELSEWHERE}",
            )
        return audio.parent / name

    def _folder(self, folder: Path) -> tuple[dict[str, str], dict[str, set[str]]]:
        """Which JSON file belongs to which audio file, and the audio files of each JSON file and of each stem."""
        if folder not in self._folders:
            try:
                names = sorted(entry.name for entry in folder.iterdir())
            except OSError as error:
                raise UserError(f"{folder} cannot be read ({error.strerror}).", fix=_ELSEWHERE) from error
            audio = [name for name in names if is_audio_name(name)]
            pairing = pair(audio, [name for name in names if name.lower().endswith(".json")])
            sidecars = {name: found["json"] for name, found in pairing.of_audio.items()}
            claims: dict[str, set[str]] = {}
            for name in audio:
                for claim in (sidecars.get(name), Path(name).stem.casefold()):
                    if claim is not None:
                        claims.setdefault(claim, set()).add(name)
            self._folders[folder] = sidecars, claims
        return self._folders[folder]


def _typed_since(song: Song, file: str, content: dict[str, Any]) -> frozenset[str]:
    """The labels that somebody typed into a song's file, here or in another program, after the song was read."""
    found = read_labels(content, file)

    def is_known(name: str) -> bool:
        value = found.values.get(name, NOT_SAID[name])
        if file in song.overruled.get(name, ()):
            return True  # a newer dataset file said otherwise
        if name == "lyrics" and not value:
            return song.lyrics in ("", INSTRUMENTAL)
        same_times = name != "lyrics" or found.timed_lyrics in ("", song.timed_lyrics)
        return bool(value == getattr(song, name)) and same_times

    return frozenset(name for name in edited_labels(content) if not is_known(name))


def _planned(song: Song, path: Path, changed: Set[str]) -> Written:
    """What is in a song's file, and what is to be when the labels `changed` were changed just now."""
    before = _bytes(path)
    content = _parse(path, before) if before is not None else {}
    marked = edited_labels(content)
    typed_elsewhere = _typed_since(song, path.name, content) - changed
    noted = content.get("sources")
    sources = dict(noted) if isinstance(noted, dict) else {}
    typed = hand_made(song)
    for name in NOT_SAID:
        if name in typed_elsewhere:
            continue
        value = song.written_lyrics if name == "lyrics" else getattr(song, name)
        origin = song.sources.get(name, "")
        if name in typed:
            _set(content, name, value)
            sources[name] = EDITED
        elif is_machine(origin):
            if value in _SAYING_NOTHING:
                _remove(content, name)
                value = None
            else:
                _set(content, name, value)
            sources[name] = origin_note(origin, value)
        elif name in marked and name in changed:  # taken back
            del sources[name]
            if song.sources.get(name) == path.name:
                _set(content, name, getattr(song, name))
            else:
                _remove(content, name)
    content["sources"] = sources
    if not sources:
        del content["sources"]
    return Written(path, before, _encoded(content))


def _encoded(content: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
    except UnicodeEncodeError:  # half a character, which JSON can only hold as an escape
        return (json.dumps(content, indent=2) + "\n").encode("utf-8")


def _set(content: dict[str, Any], name: str, value: Any) -> None:
    """Put a label under the name it has in the file already. None of its other names may speak when it is empty."""
    present = _names(content, name)
    if value in _SAYING_NOTHING:
        _remove(content, name)
    content[present[0] if present else name] = value


def _remove(content: dict[str, Any], name: str) -> None:
    for key in _names(content, name):
        del content[key]


def _names(content: dict[str, Any], name: str) -> list[str]:
    """The keys of a label in the file, the one that is read first."""
    spelled = {key.strip().lower().replace(" ", "_").replace("-", "_"): key for key in content}
    return [spelled[alias] for alias in ALIASES[name] if alias in spelled]


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        if len(data) > LARGEST_LABEL_FILE:
            raise NotText(f"It is larger than {LARGEST_LABEL_FILE >> 20} MiB.")
        text = decode(data).text
        content = json.loads(text) if text.strip() else {}
    except (NotText, ValueError, RecursionError) as reason:
        raise UserError(
            f"{path} is not valid JSON, so labels cannot be written into it ({reason}).", fix="Correct or remove it."
        ) from reason
    if is_dataset(content) or not isinstance(content, dict):
        raise UserError(
            f"{path} has the name of a song's label file but holds something else; it is left as it is.",
            fix="Rename that file.",
        )
    return content


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).", fix=_ELSEWHERE) from error


def _write(contents: Mapping[Path, bytes]) -> None:
    with _refusals():
        write_files(contents)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Say what to do about a folder that takes no files."""
    try:
        yield
    except UserError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"Labels cannot be kept: {error.message}", fix=_ELSEWHERE) from error
        raise
    except PermissionError as error:
        raise UserError(f"{error.filename} cannot be removed.", fix=_ELSEWHERE) from error

"""Reading dataset files: {"metadata": {…}, "samples": […]} as ACE-Step trainers save them, or a bare list of samples.

A sample's labels are told apart by where they came from. What the user typed, here or in another program or with
a text editor, outranks every other file. What an earlier scan took from other files is only remembered: those
files may say something new by now. Our files note the origin of each label with a hash of its value for that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acestep.core.errors import Problem, UserError
from acestep.core.paths import existing_file, inside
from acestep.dataset.labels import Labels, noted_origin, read_labels
from acestep.dataset.resolve import Evidence
from acestep.dataset.sidecars import is_dataset
from acestep.dataset.song import DEFAULT, EDITED, NOT_SAID, Song, is_machine
from acestep.dataset.text import NotText, clean, one_line, read_text
from acestep.dataset.walk import is_audio_name
from acestep.model.facts import INSTRUMENTAL
from acestep.settings.dataset import DatasetSettings

SCHEMA_VERSION = 1
"""Version of the dataset files this program writes."""

DATASET_FILE = "dataset.json"
"""Name of the dataset file that is made in a folder of songs where nobody has chosen one."""

LARGEST_DATASET = 256 << 20
"""Bytes."""

PATH_KEYS = ("audio_path", "path", "audio", "file", "filename")
"""Keys of a sample that may name its audio file, the preferred one first."""

OTHER_AUDIO = "Its audio has changed since the dataset was saved; check that the labels still fit."

MISSING = "missing_samples"
"""Key of `Dataset.extra` for samples whose audio is not there; they are written back, so no label is lost."""

_OWN_SAMPLE_KEYS = frozenset({"id", "filename", "duration", "duration_s", "labeled", "sources", "timed_lyrics"})
_OWN_METADATA_KEYS = frozenset(
    {"name", "custom_tag", "tag_position", "genre_ratio", "num_samples", "all_instrumental", "root"}
)
_WINDOWS_ABSOLUTE = re.compile(r"[A-Za-z]:[\\/]|\\\\|//")
_CONTENT_ID = re.compile(r"[0-9a-f]{16}")


@dataclass
class SavedSong:
    """One sample of a dataset file: its audio, and its labels by origin. `raw` is the sample as it stands there."""

    raw: dict[str, Any]
    where: str
    audio: Path | None
    problem: str = ""
    content_id: str | None = None
    typed: frozenset[str] = frozenset()
    edits: Labels = field(default_factory=lambda: Labels(EDITED))
    remembered: Labels = field(default_factory=lambda: Labels(DEFAULT))
    origins: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def kept(self, folder: Path) -> dict[str, Any]:
        """The sample for writing back when its audio is missing, its path no longer relative to `folder`."""
        named = self.raw.get("audio_path")
        if not isinstance(named, str) or ".." in re.split(r"[\\/]", named) or _WINDOWS_ABSOLUTE.match(named):
            return self.raw
        return {**self.raw, "audio_path": str(folder / named)}

    def evidence(self, restoring: bool) -> Evidence:
        """What this sample says. `restoring` takes in values that nobody ever gave, to get the song back as it was."""
        kept = {
            name: value
            for name, value in self.remembered.values.items()
            if restoring or self.origins.get(name) != DEFAULT
        }
        remembered = Labels(self.remembered.source, kept, self.remembered.timed_lyrics)
        return Evidence({"edit": self.edits, "saved": remembered}, self.typed, self.origins)


@dataclass
class Saved:
    """A dataset file as read, before its audio is looked at. `text` is all that stands in it."""

    file: Path | None = None
    text: str = ""
    settings: DatasetSettings | None = None
    root: Path | None = None
    songs: list[SavedSong] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    _by_key: dict[Path | str | None, SavedSong] = field(default_factory=dict)

    def find(self, song: Song, present: Set[str]) -> SavedSong | None:
        """The sample about this song: by the content of its audio, however it is called now, else by its path.

        `present` are the ids of all songs there are: a sample whose recording is among them is about no other.
        """
        if not self._by_key:
            for saved in reversed(self.songs):  # of two about the same song the first counts
                self._by_key[str(saved.raw.get("id"))] = saved
                self._by_key[saved.audio] = saved
        if (same := self._by_key.get(song.id)) is not None:
            return same
        found = self._by_key.get(song.path)
        return None if found is not None and found.content_id in present else found


def find_saved(root: Path, names: Iterable[str]) -> Saved:
    """The newest dataset file among the JSON files `names` of the folder `root`, or an empty Saved."""
    found: list[tuple[int, str, Saved]] = []
    problems: list[Problem] = []
    for name in names:
        path = root / name
        try:
            if not _may_be_dataset(path):
                continue
            found.append((path.stat().st_mtime_ns, name, read_saved(path)))
        except UserError as error:
            problems.append(Problem(name, str(error)))
        except OSError:
            continue  # whoever reads it as a sidecar reports it
    if not found:
        return Saved(problems=problems)
    found.sort(key=lambda entry: entry[:2])
    newest = found[-1][2]
    newest.problems = [*problems, *newest.problems]
    if len(found) > 1:
        others = ", ".join(name for _, name, _ in found[:-1])
        message = f"There are several dataset files here; this newest one is used, not {others}."
        newest.problems.append(Problem(found[-1][1], message, "warning"))
    return newest


def _may_be_dataset(path: Path) -> bool:
    """Is this worth reading as a dataset? Sidecars are told apart without parsing."""
    with open(path, "rb") as handle:
        data = handle.read(LARGEST_DATASET)
    return b'"samples"' in data or (data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") and b'"audio_path"' in data)


def read_saved(path: Path) -> Saved:
    """Read a dataset file. Wrong fields are reported and left out; a file that is no dataset is a UserError."""
    path = existing_file(path, "the dataset file")
    return parse_saved(file_text(path), path)


def parse_saved(text: str, path: Path) -> Saved:
    """Read the text of the dataset file `path`, as `read_saved` does."""
    content = _parse(text, path)
    saved = Saved(path, text)
    metadata = content.get("metadata", {})
    if not isinstance(metadata, dict):
        saved.problems.append(Problem(path.name, '"metadata" must be an object; it is ignored.', "warning"))
        metadata = {}
    saved.settings = _settings(metadata, saved)
    saved.root = _root(metadata.get("root"), path.parent)
    saved.extra = {key: value for key, value in content.items() if key not in ("metadata", "samples", "schema_version")}
    if unknown := {key: value for key, value in metadata.items() if key not in _OWN_METADATA_KEYS}:
        saved.extra["metadata"] = unknown
    for number, raw in enumerate(content["samples"], start=1):
        if isinstance(raw, dict):
            saved.songs.append(_sample(raw, number, saved))
        else:
            saved.problems.append(Problem(path.name, f"Sample {number} is no object; it is left out."))
    return saved


def check_dataset(text: str, path: Path) -> None:
    """Raise UserError unless this is the text of a dataset file of a version known here. Samples are not looked at."""
    _parse(text, path)


def file_text(path: Path) -> str:
    """What stands in a dataset file, with \\n line ends; whether it is one is not looked at yet."""
    try:
        return read_text(path, LARGEST_DATASET).text.replace("\r\n", "\n")
    except NotText as reason:
        raise UserError(f"The dataset file {path} cannot be used. {reason}") from reason


def _parse(text: str, path: Path) -> dict[str, Any]:
    """The content of a dataset file, the bare list form put into an object."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"The dataset file {path} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}).",
            fix="Correct that line.",
        ) from error
    except (RecursionError, ValueError) as error:  # nested without end; a number of thousands of digits
        raise UserError(f"The dataset file {path} cannot be read as JSON ({error}).", fix="Write it again.") from error
    if isinstance(content, list) and (not content or is_dataset(content)):
        content = {"samples": content}
    if not is_dataset(content):
        raise UserError(
            f'{path} is no dataset file: it has no list "samples".', fix="Choose a dataset file or a folder of songs."
        )
    version = content.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(
            f"The dataset file {path} was written by a newer version of this program.", fix="Update this program."
        )
    return content


def _settings(metadata: dict[str, Any], saved: Saved) -> DatasetSettings:
    assert saved.file is not None
    values: dict[str, Any] = {"name": saved.file.stem}
    for key, name in (("name", "name"), ("custom_tag", "trigger_word")):
        if isinstance(metadata.get(key), str):
            text = one_line(metadata[key]) if key == "custom_tag" else clean(metadata[key]).strip()
            values[name] = text or DatasetSettings.model_fields[name].default
        elif metadata.get(key) is not None:
            saved.problems.append(Problem(saved.file.name, f'"{key}" must be text; it is ignored.', "warning"))
    position, ratio = metadata.get("tag_position"), metadata.get("genre_ratio")
    if position in ("prepend", "append", "replace"):
        values["tag_position"] = position
    elif position is not None:
        message = '"tag_position" must be prepend, append or replace; prepend is used.'
        saved.problems.append(Problem(saved.file.name, message, "warning"))
    if isinstance(ratio, int | float) and not isinstance(ratio, bool) and 0 <= ratio <= 100:
        values["genre_ratio"] = int(ratio)
    elif ratio is not None:
        message = '"genre_ratio" must be a number from 0 to 100; 0 is used.'
        saved.problems.append(Problem(saved.file.name, message, "warning"))
    return DatasetSettings.parse(values, str(saved.file))


def _root(raw: Any, folder: Path) -> Path:
    """The folder that relative names of songs count from; it only decides how songs are called."""
    if isinstance(raw, str) and raw and "\x00" not in raw:
        root = folder / raw
        if root.is_dir():
            return root.resolve()
    return folder


def _sample(raw: dict[str, Any], number: int, saved: Saved) -> SavedSong:
    assert saved.file is not None
    key = next((key for key in PATH_KEYS if raw.get(key)), "audio_path")
    named = raw.get(key)
    where = f"{saved.file.name}, sample {number}" + (f" ({named})" if isinstance(named, str) else "")
    song = SavedSong(raw, where, None)
    found = locate_audio(named, key, saved.file.parent)
    if isinstance(found, str):
        song.problem = found
    else:
        song.audio = found
    labels = read_labels(raw, saved.file.name)
    song.edits.source = saved.file.name
    song.edits.warnings = labels.warnings
    _sort_by_origin(song, labels, raw.get("sources"), saved.settings)
    timed = raw.get("timed_lyrics")
    original = clean(timed).strip() if isinstance(timed, str) else labels.timed_lyrics
    (song.edits if "lyrics" in song.edits.values else song.remembered).timed_lyrics = original
    used = labels.keys | _OWN_SAMPLE_KEYS | {key}
    song.extra = {name: value for name, value in raw.items() if name not in used}
    old_id = raw.get("id")
    if isinstance(old_id, str) and old_id:
        if _CONTENT_ID.fullmatch(old_id):
            song.content_id = old_id
        else:
            song.extra.setdefault("original_id", old_id)  # names the tensor files of the trainer that made it
    return song


def _sort_by_origin(song: SavedSong, labels: Labels, notes: Any, settings: DatasetSettings | None) -> None:
    """Put each label of a sample where it belongs: typed by somebody, or remembered from an earlier scan."""
    notes = notes if isinstance(notes, dict) else {}
    song.typed = frozenset(name for name in NOT_SAID if notes.get(name) == EDITED)
    for name, value in labels.values.items():
        origin = noted_origin(notes.get(name), value)
        if origin is None and (name in song.typed or not _is_default(name, value, settings)):
            song.edits.values[name] = value
        elif origin is not None or name in ("lyrics", "is_instrumental"):  # other defaults need no remembering
            song.remembered.values[name] = value
            song.origins[name] = origin or DEFAULT
    for name in NOT_SAID.keys() - labels.values.keys():
        if (origin := noted_origin(notes.get(name), NOT_SAID[name])) and is_machine(origin):
            song.origins[name] = origin  # it was asked and knew nothing


def _is_default(name: str, value: Any, settings: DatasetSettings | None) -> bool:
    """Is this what trainers write where nobody said anything? They copy the dataset's trigger word to every sample."""
    if name == "lyrics":
        return bool(value == INSTRUMENTAL)
    if name == "custom_tag":
        return settings is not None and value == settings.trigger_word
    return bool(value == NOT_SAID[name])


def locate_audio(named: Any, key: str, folder: Path) -> Path | str:
    """The audio file a sample names, or a sentence why there is none.

    Relative paths count from the dataset file's folder and may not lead out of it. Absolute paths may lead
    anywhere. A path from another machine or another folder is looked for by its last parts below that folder.
    """
    if not isinstance(named, str) or not named.strip() or "\x00" in named:
        return f'"{key}" must be the path of an audio file; this sample is left out.'
    if not is_audio_name(named):
        return f'"{key}" does not name an audio file; this sample is left out.'
    for spelled in dict.fromkeys((named, named.replace("\\", "/"))):
        if not Path(spelled).is_absolute() and not _WINDOWS_ABSOLUTE.match(spelled):
            try:
                path = inside(folder, spelled)
            except UserError as error:
                return str(error)
        else:
            path = Path(spelled)
        try:
            if path.is_file():
                return path.resolve()
        except OSError as error:
            return f"Its audio cannot be opened ({error.strerror})."
    parts = [part for part in re.split(r"[\\/]", named) if part not in ("", ".")]
    for start in range(1, len(parts)):
        path = folder.joinpath(*parts[start:])
        try:
            if ".." not in parts and path.is_file() and path.resolve().is_relative_to(folder):
                return path.resolve()
        except OSError:
            break  # a part that is too long for this disk
    return "Its audio file is missing; put it back or remove the sample from the dataset file."

"""The tensor folder: an index, and one latents file and one condition file a song. Training reads it through here.

    out/index.json                       what the songs are, what the model was told, how they were encoded
    out/latents/<key>.safetensors        `latents` (T, C) fp32
    out/conditions/<key>.safetensors     `head` (Ll + 1, E) and `text.0`, `text.1` … (Lt, E); windows with their own
                                         lyrics have one each

A key is the hash of everything that decides a file's content, so a file under its key never goes stale and the
index can be written again from the files at any time. Nothing here imports torch before tensors are loaded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from acestep.core.device import Precision
from acestep.core.errors import UserError
from acestep.core.paths import atomic_file, existing_folder, inside, read_json, value_hash, write_text
from acestep.dataset.song import PromptSource
from acestep.model.prompt import TAG_PLACES
from acestep.settings.dataset import TagPosition
from acestep.settings.preprocess import LatentDraw, Normalization

if TYPE_CHECKING:
    from torch import Tensor

    from acestep.model.checkpoints import Checkpoint

SCHEMA_VERSION: Final = 1
"""Version of index.json. A reader refuses any other."""

INDEX_NAME = "index.json"
LATENTS_FOLDER = "latents"
CONDITIONS_FOLDER = "conditions"
AGAIN = "Run preprocess again with the same folder."

SOURCES: tuple[PromptSource, ...] = get_args(PromptSource)

_OUR_FILE = re.compile(r"[0-9a-f]{32}\.safetensors")
_FACTS = "acestep"  # one metadata entry: the order of several would differ from run to run
_HEADER_LIMIT_BYTES = 16 << 20
_FLOATS = ("F32", "F16", "BF16")
_LATER_FIELDS = ("regularization", "windows", "lyric_windows_s")

Key = Annotated[str, Field(pattern=r"\A[0-9a-f]{32}\z")]
Count = Annotated[int, Field(ge=1, le=100_000_000)]
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class StoreInfo:
    """What is true of the whole folder: the dataset's settings, the model, and what decided the tensors."""

    __pydantic_config__ = _STRICT

    dataset_name: str
    trigger_word: str
    tag_position: TagPosition
    genre_ratio: Annotated[int, Field(ge=0, le=100)]
    checkpoint_name: str
    vae_fingerprint: str
    condition_fingerprint: str
    latent_width: Count
    precision: Precision
    normalize: Normalization
    max_duration_s: Annotated[float, Field(ge=0)]
    latents: LatentDraw
    seed: Annotated[int, Field(ge=0)]
    unfinished: Annotated[int, Field(ge=0)] = 0
    """Songs that were still to be encoded when the work was stopped; 0 when everything is there."""
    lyric_windows_s: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True)
class StoredWindow:
    """A window with lyrics and duration of its own: its condition, with texts in the order of the song's prompts."""

    __pydantic_config__ = _STRICT

    start: Annotated[int, Field(ge=0)]
    frames: Count
    condition_key: Key
    head_tokens: Count
    text_tokens: list[Count]
    prompts: list[str]
    lyric_prompt: str


@dataclass(frozen=True)
class StoredSong:
    """One encoded song. `prompts` are the distinct texts; `variants` says which one "caption.prepend" etc. is."""

    __pydantic_config__ = _STRICT

    id: Annotated[str, Field(pattern=r"\A[0-9a-f]{8,64}\z")]
    title: str
    frames: Count
    duration_s: Annotated[float, Field(gt=0)]
    repeat: Count
    override: PromptSource | None
    has_genre: bool
    custom_tag: str
    latents_key: Key
    condition_key: Key
    head_tokens: Count
    text_tokens: list[Count]
    width: Count
    variants: dict[str, Annotated[int, Field(ge=0)]]
    prompts: list[str]
    lyric_prompt: str
    metas_cut: bool = False
    lyrics_cut: bool = False
    regularization: bool = False
    windows: list[StoredWindow] = field(default_factory=list)

    @property
    def condition_keys(self) -> set[str]:
        return {self.condition_key, *(window.condition_key for window in self.windows)}


@dataclass(frozen=True)
class SongTensors:
    """latents (T, C) fp32; head (Ll + 1, E): lyrics and timbre; texts: variant name → (Lt, E), shared where equal."""

    latents: Tensor
    head: Tensor
    texts: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Index:
    __pydantic_config__ = _STRICT

    schema_version: Literal[1]
    program_version: str
    info: StoreInfo
    songs: list[StoredSong]


@dataclass(frozen=True)
class TensorHeader:
    """What stands in front of the tensors of a safetensors file. `facts` is what we noted there."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)


class DamagedFile(Exception):
    """A tensor file that cannot be what it was written as; the text says why."""


def variant_name(source: PromptSource, position: str) -> str:
    """The name of a text variant: "caption.prepend", "genre.none" …"""
    return f"{source}.{position}"


def variant_names() -> tuple[str, ...]:
    """All eight names, in the order in which prompts are numbered."""
    return tuple(variant_name(source, place) for source in SOURCES for place in TAG_PLACES)


class TensorStore:
    """A tensor folder opened for reading."""

    def __init__(self, folder: Path, info: StoreInfo, songs: list[StoredSong], program_version: str) -> None:
        self.folder = folder
        self.info = info
        self.songs = songs
        self.program_version = program_version

    @classmethod
    def open(cls, folder: str | Path) -> TensorStore:
        """Read and check the index; tensors are read by `load`. Raises a UserError that says what is wrong."""
        folder = existing_folder(folder, "the tensor folder")
        path = inside(folder, INDEX_NAME)
        if not path.is_file():
            old = any(folder.glob("*.pt"))
            raise UserError(
                f"{folder} holds no {INDEX_NAME}" + (", only .pt tensors of another program." if old else "."),
                fix="Take them over with `acestep import-tensors`."
                if old
                else "Run `acestep preprocess` on the songs, or choose the folder it wrote.",
            )
        index = _parse_index(path)
        return cls(folder, index.info, index.songs, index.program_version)

    def load(self, song: StoredSong) -> SongTensors:
        """The tensors of one song, checked against the index; a UserError names the file that is wrong."""
        latents_path = latents_file(self.folder, song.latents_key)
        latents = _load_tensors(latents_path, {"latents": (song.frames, self.info.latent_width)}, ("F32",))["latents"]
        head, texts = self._condition(song, song)
        return SongTensors(latents, head, texts)

    def load_window(self, song: StoredSong, window: StoredWindow) -> tuple[Tensor, dict[str, Tensor]]:
        """Head and texts by variant of one of the song's windows, as `load` gives those of the whole song."""
        return self._condition(song, window)

    def _condition(self, song: StoredSong, part: StoredSong | StoredWindow) -> tuple[Tensor, dict[str, Tensor]]:
        wanted = {"head": (part.head_tokens, song.width)}
        wanted |= {f"text.{number}": (length, song.width) for number, length in enumerate(part.text_tokens)}
        found = _load_tensors(condition_file(self.folder, part.condition_key), wanted, _FLOATS)
        return found["head"], {name: found[f"text.{number}"] for name, number in song.variants.items()}

    def require_made_with(self, checkpoint: Checkpoint) -> None:
        """Raise a UserError when the tensors come from another VAE or condition encoder than this checkpoint's."""
        from acestep.model.identity import condition_fingerprint, vae_fingerprint

        refuse_other_model(self, checkpoint.name, vae_fingerprint(checkpoint), condition_fingerprint(checkpoint))

    def fingerprint(self) -> str:
        """32 hex digits that change with any tensor, label or weight of the songs, not with the folder's place."""
        return value_hash([_said(self.info), [_said(song) for song in self.songs]])

    def size_bytes(self) -> int:
        """Bytes of the tensor files the index refers to; missing ones count as nothing."""
        files = {latents_file(self.folder, song.latents_key) for song in self.songs}
        files |= {condition_file(self.folder, key) for song in self.songs for key in song.condition_keys}
        return sum(file.stat().st_size for file in files if file.is_file())


def _said(part: StoreInfo | StoredSong) -> dict[str, Any]:
    """Its values without fields of later versions that say nothing, so that an old folder keeps its fingerprint."""
    return {name: value for name, value in asdict(part).items() if value or name not in _LATER_FIELDS}


def refuse_other_model(store: TensorStore, name: str, vae: str, condition: str) -> None:
    """Raise a UserError when the fingerprints are not those the store was made with."""
    parts = []
    if store.info.vae_fingerprint != vae:
        parts.append("VAE")
    if store.info.condition_fingerprint != condition:
        parts.append("condition encoder or text encoder")
    if parts:
        raise UserError(
            f"The tensors in {store.folder} were made with {store.info.checkpoint_name}; "
            f"{name} has another {' and another '.join(parts)}.",
            fix="Run preprocess with this model into another folder, or choose the model they were made with.",
        )


def latents_file(folder: Path, key: str) -> Path:
    """Where the latents of a key lie."""
    return folder / LATENTS_FOLDER / f"{key}.safetensors"


def condition_file(folder: Path, key: str) -> Path:
    """Where the condition of a key lies."""
    return folder / CONDITIONS_FOLDER / f"{key}.safetensors"


def _parse_index(path: Path) -> _Index:
    version = read_json(path, "the tensor index").get("schema_version")
    if type(version) is int and version > SCHEMA_VERSION:
        raise UserError(f"{path} was written by a newer version of this program.", fix="Update this program.")
    try:
        index = TypeAdapter(_Index).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f'{path} is not an index this program wrote (field "{where}": {first["msg"]}).',
            fix="Choose another folder, or delete that file and run preprocess again.",
        ) from error
    names = set(variant_names())
    for song in index.songs:
        numbers = set(song.variants.values())
        whole = set(song.variants) == names and numbers == set(range(len(song.prompts)))
        texts = [len(song.text_tokens), *(len(window.text_tokens) for window in song.windows)]
        texts += [len(window.prompts) for window in song.windows]
        inside_song = all(window.start + window.frames <= song.frames for window in song.windows)
        if not whole or not inside_song or set(texts) != {len(song.prompts)}:
            raise UserError(
                f"{path}: the prompts and variants of {song.title} do not belong together.",
                fix="Delete that file and run preprocess again.",
            )
    return index


def write_index(folder: Path, info: StoreInfo, songs: list[StoredSong]) -> None:
    """Write index.json atomically; an index that is already so stays untouched."""
    from acestep import __version__

    index = _Index(SCHEMA_VERSION, __version__, info, songs)
    text = json.dumps(asdict(index), indent=1, ensure_ascii=False) + "\n"
    path = folder / INDEX_NAME
    if not (path.is_file() and path.read_bytes() == text.encode("utf-8")):
        write_text(path, text)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write a safetensors file atomically, with `facts` in its header. Equal input, equal bytes."""
    from safetensors.torch import save

    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    data = save(ready, metadata={_FACTS: json.dumps(facts, sort_keys=True)})
    # Python writes the bytes, so that a full disk is an OSError as everywhere else
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a file, in memory of their own, and the facts noted with them. Raises DamagedFile."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    header = read_header(path)
    try:
        tensors = load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedFile(str(error)) from error
    # tensors read from one buffer start at any byte; a copy gives the alignment fresh tensors have
    return {name: tensor.clone() for name, tensor in tensors.items()}, header.facts


def read_header(path: Path) -> TensorHeader:
    """Names, shapes and dtypes of a safetensors file and our facts, without torch. Raises DamagedFile or OSError."""
    with open(path, "rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT_BYTES):
            raise DamagedFile("it is cut off or is not a safetensors file")
        raw = handle.read(length)
    try:
        entries = json.loads(raw)
        facts = json.loads(entries.pop("__metadata__", {}).get(_FACTS, "{}"))
        shapes = {name: tuple(int(n) for n in entry["shape"]) for name, entry in entries.items()}
        dtypes = {name: str(entry["dtype"]) for name, entry in entries.items()}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise DamagedFile("its header cannot be read") from error
    if not isinstance(facts, dict):
        raise DamagedFile("its header cannot be read")
    if size != 8 + length + end:
        raise DamagedFile(f"it has {size} bytes instead of {8 + length + end}")
    return TensorHeader(shapes, dtypes, facts)


def _load_tensors(path: Path, shapes: dict[str, tuple[int, int]], dtypes: tuple[str, ...]) -> dict[str, Tensor]:
    inside(path.parents[1], path.relative_to(path.parents[1]))
    try:
        header = read_header(path)
        if header.shapes != shapes or not set(header.dtypes.values()) <= set(dtypes):
            raise DamagedFile("its tensors are not those the index names")
        tensors, _ = read_tensors(path)
    except FileNotFoundError as error:
        raise UserError(f"The tensor file {path} is missing.", fix=AGAIN) from error
    except OSError as error:
        raise UserError(f"The tensor file {path} cannot be read ({error.strerror}).", fix="Check the disk.") from error
    except DamagedFile as error:
        raise UserError(f"The tensor file {path} is damaged: {error}.", fix=f"Delete it. {AGAIN}") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f'The tensor file {path} holds values that are not numbers in "{name}".', fix=f"Delete it. {AGAIN}"
            )
    return tensors


def remove_orphans(folder: Path, songs: list[StoredSong]) -> int:
    """Remove tensor files of ours that no song refers to any more; returns how many. Other files stay."""
    removed = remove_files(inside(folder, LATENTS_FOLDER), kept={song.latents_key for song in songs})
    kept = {key for song in songs for key in song.condition_keys}
    return removed + remove_files(inside(folder, CONDITIONS_FOLDER), kept)


def remove_files(part: Path, kept: set[str]) -> int:
    """Remove the files in `part` that are named like ours and whose key is not in `kept`; returns how many."""
    ours = [file for file in part.iterdir() if _OUR_FILE.fullmatch(file.name)] if part.is_dir() else []
    gone = [file for file in ours if file.stem not in kept and file.is_file()]
    for file in gone:
        file.unlink()
    return len(gone)

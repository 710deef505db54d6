"""What there is to encode: the keys of every song's tensors, and which of them are already on disk.

Works without torch and without decoding, so that a run with nothing to do is over at once. The prompt names the
seconds that were really encoded; they are noted in the latents file, so a song whose latents are missing gets its
prompts only after its audio was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from acestep.audio.format import SAMPLE_RATE
from acestep.core.errors import UserError
from acestep.core.paths import value_hash
from acestep.model.prompt import TAG_PLACES, lyric_prompt, text_prompt, with_tag
from acestep.preprocess.store import (
    SOURCES,
    DamagedFile,
    StoredSong,
    StoreInfo,
    TensorHeader,
    condition_file,
    latents_file,
    read_header,
    variant_name,
)

if TYPE_CHECKING:
    from acestep.dataset.dataset import Dataset
    from acestep.dataset.song import Song

LATENTS_VERSION = 1
"""Raise this when the same song and settings give other latents than before."""

CONDITIONS_VERSION = 1
"""Raise this when the same prompts give other conditions than before."""


@dataclass(frozen=True)
class SongPrompts:
    """Everything the model is told about a song: the distinct texts, which variant is which, and the lyrics."""

    texts: tuple[str, ...]
    variants: dict[str, int]
    lyrics: str


@dataclass(frozen=True)
class ConditionFacts:
    """What the header of a condition file tells."""

    head_tokens: int
    text_tokens: tuple[int, ...]
    width: int
    metas_cut: bool
    lyrics_cut: bool


@dataclass
class PlannedSong:
    """One song and how far it is. Fields that are None are still to be made."""

    song: Song
    tag: str
    latents_key: str
    frames: int | None = None
    samples: int | None = None
    prompts: SongPrompts | None = None
    condition_key: str | None = None
    condition: ConditionFacts | None = None
    failed: bool = False
    encoded: bool = False

    @property
    def title(self) -> str:
        # a file name need not be valid text; the index must be
        return self.song.relative.encode("utf-8", "replace").decode("utf-8")

    @property
    def done(self) -> bool:
        return self.condition is not None and not self.failed


@dataclass
class Plan:
    """Every labelled song of a dataset against the tensor folder."""

    folder: Path
    info: StoreInfo
    songs: list[PlannedSong] = field(default_factory=list)

    @property
    def to_encode(self) -> list[PlannedSong]:
        return [planned for planned in self.songs if not planned.done and not planned.failed]

    def entries(self) -> list[StoredSong]:
        """The index entries of the songs that are whole on disk, in the order of the dataset."""
        return [_entry(planned) for planned in self.songs if planned.done]


def make_plan(dataset: Dataset, songs: Sequence[Song], folder: Path, info: StoreInfo) -> Plan:
    """Compare the songs with what `folder` holds. Nothing is decoded or changed."""
    plan = Plan(folder, info)
    for song in songs:
        planned = PlannedSong(song, dataset.tag_of(song), latents_key(song.id, info))
        plan.songs.append(planned)
        find_latents(planned, plan)
        if planned.samples is not None:
            try:
                find_condition(planned, plan)
            except UserError:
                continue  # its labels are wrong; the run meets this again and reports it
    return plan


def latents_key(song_id: str, info: StoreInfo) -> str:
    """Hash of all that decides a song's latents: audio, loudness, length, draw, VAE, number format, our code."""
    return value_hash(
        {
            "version": LATENTS_VERSION,
            "song": song_id,
            "normalize": info.normalize,
            "max_duration_s": float(info.max_duration_s),
            "draw": info.latents if info.latents == "mean" else f"sample {info.seed}",
            "precision": info.precision,
            "vae": info.vae_fingerprint,
        }
    )


def condition_key(prompts: SongPrompts, info: StoreInfo) -> str:
    """Hash of all that decides a song's condition: every prompt text, the lyrics, encoders, number format, our code."""
    return value_hash(
        {
            "version": CONDITIONS_VERSION,
            "texts": prompts.texts,
            "lyrics": prompts.lyrics,
            "precision": info.precision,
            "model": info.condition_fingerprint,
        }
    )


def draw_seed(seed: int, song_id: str) -> int:
    """Seed of a song's posterior draw: its own for each song, whatever the others are. Below 2^63."""
    return int(value_hash(["latents", seed, song_id])[:16], 16) >> 1


def song_prompts(song: Song, tag: str, duration_s: float) -> SongPrompts:
    """The prompts of a song of which `duration_s` seconds are encoded; equal texts are kept once.

    A song without genre uses its caption where the genre is asked for, and the other way round.
    """
    texts: list[str] = []
    variants: dict[str, int] = {}
    for source in SOURCES:
        words = song.words(source)
        for place in TAG_PLACES:
            text = text_prompt(song.labels(with_tag(words, tag, place), duration_s))
            if text not in texts:
                texts.append(text)
            variants[variant_name(source, place)] = texts.index(text)
    lyrics = lyric_prompt(song.labels(song.caption, duration_s))
    try:
        "".join([*texts, lyrics]).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            "its caption, genre or lyrics hold characters that are not valid text.", fix="Type these labels anew."
        ) from error
    return SongPrompts(tuple(texts), variants, lyrics)


def find_latents(planned: PlannedSong, plan: Plan) -> None:
    """Note frames and samples of a song whose latents are whole on disk."""
    header = _header(latents_file(plan.folder, planned.latents_key))
    if header is None or header.dtypes.get("latents") != "F32":
        return
    shape, samples = header.shapes.get("latents", ()), header.facts.get("samples")
    if len(shape) == 2 and shape[0] > 0 and shape[1] == plan.info.latent_width and type(samples) is int and samples > 0:
        planned.frames, planned.samples = shape[0], samples


def find_condition(planned: PlannedSong, plan: Plan) -> None:
    """Make the prompts of a song with known length and note its condition if that is whole on disk."""
    assert planned.samples is not None, "the prompts name the length of the encoded audio"
    planned.prompts = song_prompts(planned.song, planned.tag, planned.samples / SAMPLE_RATE)
    planned.condition_key = condition_key(planned.prompts, plan.info)
    header = _header(condition_file(plan.folder, planned.condition_key))
    if header is not None:
        planned.condition = condition_facts(header, len(planned.prompts.texts))


def condition_facts(header: TensorHeader, texts: int) -> ConditionFacts | None:
    """The facts of a condition file with `texts` texts, or None when its tensors are not such a condition."""
    names = ["head", *(f"text.{number}" for number in range(texts))]
    shapes = [header.shapes.get(name, ()) for name in names]
    if len(header.shapes) != len(names) or any(len(shape) != 2 or min(shape) < 1 for shape in shapes):
        return None
    if len({shape[1] for shape in shapes}) != 1 or len(set(header.dtypes.values())) != 1:
        return None
    return ConditionFacts(
        head_tokens=shapes[0][0],
        text_tokens=tuple(shape[0] for shape in shapes[1:]),
        width=shapes[0][1],
        metas_cut=header.facts.get("metas_cut") is True,
        lyrics_cut=header.facts.get("lyrics_cut") is True,
    )


def _header(path: Path) -> TensorHeader | None:
    try:
        return read_header(path)
    except (OSError, DamagedFile):
        return None  # missing or damaged: it is encoded again


def _entry(planned: PlannedSong) -> StoredSong:
    song, prompts, facts = planned.song, planned.prompts, planned.condition
    assert prompts and facts and planned.condition_key and planned.frames and planned.samples
    return StoredSong(
        id=song.id,
        title=planned.title,
        frames=planned.frames,
        duration_s=planned.samples / SAMPLE_RATE,
        repeat=song.repeat,
        override=song.prompt_override,
        has_genre=bool(song.genre.strip()),
        custom_tag=planned.tag,
        latents_key=planned.latents_key,
        condition_key=planned.condition_key,
        head_tokens=facts.head_tokens,
        text_tokens=list(facts.text_tokens),
        width=facts.width,
        variants=prompts.variants,
        prompts=list(prompts.texts),
        lyric_prompt=prompts.lyrics,
        metas_cut=facts.metas_cut,
        lyrics_cut=facts.lyrics_cut,
        regularization=song.regularization,
    )

"""What there is to encode: the keys of every song's tensors, and which of them are already on disk.

Works without torch and without decoding, so that a run with nothing to do is over at once. The prompt names the
seconds that were really encoded; they are noted in the latents file, so a song whose latents are missing gets its
prompts only after its audio was read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from acestep.audio.format import SAMPLE_RATE
from acestep.core.errors import UserError
from acestep.core.paths import value_hash
from acestep.dataset.lrc import lyrics_between
from acestep.model.facts import LATENT_RATE
from acestep.model.prompt import TAG_PLACES, lyric_prompt, text_prompt, with_tag
from acestep.preprocess.store import (
    SOURCES,
    DamagedFile,
    StoredSong,
    StoredWindow,
    StoreInfo,
    TensorHeader,
    condition_file,
    latents_file,
    read_header,
    variant_name,
)
from acestep.preprocess.tiles import Piece, tiles

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
class PlannedCondition:
    """What the model is told about a whole song, or about its window `piece`. `facts` are None until it is on disk."""

    prompts: SongPrompts
    key: str
    piece: Piece | None = None
    facts: ConditionFacts | None = None


@dataclass
class PlannedSong:
    """One song and how far it is. Fields that are None are still to be made; the first condition is the song's."""

    song: Song
    tag: str
    latents_key: str
    frames: int | None = None
    samples: int | None = None
    conditions: list[PlannedCondition] = field(default_factory=list)
    failed: bool = False
    encoded: bool = False

    @property
    def title(self) -> str:
        # a file name need not be valid text; the index must be
        return self.song.relative.encode("utf-8", "replace").decode("utf-8")

    @property
    def done(self) -> bool:
        return bool(self.conditions) and not self.missing and not self.failed

    @property
    def missing(self) -> list[PlannedCondition]:
        return [condition for condition in self.conditions if condition.facts is None]


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
            with contextlib.suppress(UserError):  # its labels are wrong; the run meets this again and reports it
                find_condition(planned, plan)
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
    """Make the prompts of a song with known length and of its windows, and note which are whole on disk."""
    assert planned.samples and planned.frames, "the prompts name the length of the encoded audio"
    prompts = song_prompts(planned.song, planned.tag, planned.samples / SAMPLE_RATE)
    planned.conditions = [PlannedCondition(prompts, condition_key(prompts, plan.info))]
    for piece in _lyric_pieces(planned.song, planned.frames, plan.info):
        prompts = window_prompts(planned.song, planned.tag, piece)
        planned.conditions.append(PlannedCondition(prompts, condition_key(prompts, plan.info), piece))
    for condition in planned.conditions:
        look_up(condition, plan)


def look_up(condition: PlannedCondition, plan: Plan) -> None:
    """Note the facts of a condition that is whole on disk."""
    header = _header(condition_file(plan.folder, condition.key))
    if header is not None:
        condition.facts = condition_facts(header, len(condition.prompts.texts))


def _lyric_pieces(song: Song, frames: int, info: StoreInfo) -> tuple[Piece, ...]:
    """The windows that get lyrics of their own; none where the times are not those of the lyrics."""
    longest = int(info.lyric_windows_s * LATENT_RATE)
    if not longest or frames <= longest or song.is_instrumental or not song.times_fit:
        return ()
    return tiles(frames, longest)


def window_prompts(song: Song, tag: str, piece: Piece) -> SongPrompts:
    """The prompts of a window: the lyrics sung in it, and its own duration. Without lyrics it is instrumental."""
    assert piece.start is not None
    start_s, duration_s = piece.start / LATENT_RATE, piece.length / LATENT_RATE
    words = lyrics_between(song.timed_lyrics, start_s, start_s + duration_s)
    return song_prompts(replace(song, lyrics=words), tag, duration_s)


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
    song, (whole, *windows) = planned.song, planned.conditions
    prompts, facts = whole.prompts, whole.facts
    assert facts and planned.frames and planned.samples
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
        condition_key=whole.key,
        head_tokens=facts.head_tokens,
        text_tokens=list(facts.text_tokens),
        width=facts.width,
        variants=prompts.variants,
        prompts=list(prompts.texts),
        lyric_prompt=prompts.lyrics,
        metas_cut=facts.metas_cut,
        lyrics_cut=facts.lyrics_cut,
        regularization=song.regularization,
        windows=[_window_entry(window) for window in windows],
    )


def _window_entry(window: PlannedCondition) -> StoredWindow:
    assert window.piece and window.piece.start is not None and window.facts
    return StoredWindow(
        start=window.piece.start,
        frames=window.piece.length,
        condition_key=window.key,
        head_tokens=window.facts.head_tokens,
        text_tokens=list(window.facts.text_tokens),
        prompts=list(window.prompts.texts),
        lyric_prompt=window.prompts.lyrics,
    )

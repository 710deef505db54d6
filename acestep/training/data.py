"""What a run trains on: songs in memory, what is held out, and the reproducible order of every draw.

Nothing here keeps random state. Each draw comes from a generator seeded with (run seed, epoch, position), so a
resumed run, another batch size or another number of processes sees the same windows, noise and timesteps.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from acestep.core.errors import UserError
from acestep.core.words import counted
from acestep.dataset.dataset import genre_songs
from acestep.dataset.labels import in_words
from acestep.model.facts import LATENT_RATE
from acestep.model.prompt import read_prompts
from acestep.preprocess.store import SOURCES, StoredSong, TensorStore, variant_name
from acestep.preprocess.tiles import Piece, tiles
from acestep.settings import TrainSettings
from acestep.training.objective import TIMESTEP_DRAWS, strata_quantiles, timestep_quantile

LEAST_HELD_OUT_FRAMES = 100
"""Shorter ends of songs (4 s) are not worth holding out."""
AUTO_HOLDS_OUT_SONGS_FROM = 10
"""Datasets of this many songs can spare whole songs for validation."""


def derived_generator(*parts: object) -> torch.Generator:
    """A CPU generator whose seed is a hash of `parts`; equal parts give equal draws on every machine."""
    digest = hashlib.sha256(":".join(str(part) for part in parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class TrainingSong:
    """One song in memory. Windows are drawn from the first `frames` frames; what follows is held out.

    `windows` are those with lyrics and duration of their own; `condition` (L, E) is that of the whole song.
    """

    stored: StoredSong
    latents: Tensor  # (T, C) fp32
    condition: Tensor
    frames: int
    windows: Mapping[Piece, Tensor] = field(default_factory=dict)

    @property
    def regularization(self) -> bool:
        return self.stored.regularization


@dataclass(frozen=True)
class Window:
    """Frames `start` to `start + length` of one song."""

    song: TrainingSong
    start: int
    length: int

    @property
    def latents(self) -> Tensor:
        return self.song.latents[self.start : self.start + self.length]


@dataclass(frozen=True)
class Batch:
    """Equal-length windows with every random draw already made. Condition lengths may differ.

    latents, noise: (B, T, C) fp32; t, uniform, weights: (B,) fp32; conditions: B tensors (L, E).
    `weights` are the factors on the losses of the items.
    """

    latents: Tensor
    noise: Tensor
    t: Tensor
    uniform: Tensor
    conditions: list[Tensor]
    weights: Tensor

    def __len__(self) -> int:
        return self.latents.shape[0]


@dataclass(frozen=True)
class TrainingData:
    """Songs to train on and windows to validate on. `max_length` is the longest window in frames, 0: whole songs."""

    songs: list[TrainingSong]
    held_out: list[Window]
    held_out_kind: str  # "songs", "windows" or "none"
    max_length: int
    notes: list[str] = field(default_factory=list)
    tiled: bool = False
    room: int = 0
    """Longest window that fits into memory, in frames; 0: as long as they are. The order does not know of it."""

    def facts(self) -> dict[str, object]:
        """What is trained on and what is held out, for the run's record."""
        return {
            "songs": len(self.songs_to_learn),
            "audio_s": round(sum(song.frames for song in self.songs_to_learn) / LATENT_RATE, 3),
            "held_out": len(self.held_out),
            "held_out_kind": self.held_out_kind,
        }

    def length_of(self, piece: Piece) -> int:
        """Frames of a window of this piece."""
        return min(piece.length, self.room) if self.room else piece.length

    def place(self, song: TrainingSong, piece: Piece, generator: torch.Generator) -> tuple[int, int]:
        """Start and length of the window of a piece: drawn wherever the piece leaves a choice."""
        length = self.length_of(piece)
        first, frames = (0, song.frames) if piece.start is None else (piece.start, piece.length)
        if frames == length:
            return first, length
        return first + int(torch.randint(frames - length + 1, (1,), generator=generator)), length

    @property
    def songs_to_learn(self) -> list[TrainingSong]:
        return [song for song in self.songs if not song.regularization]

    def lyric_grid(self, song: TrainingSong) -> tuple[Piece, ...]:
        """The windows with lyrics of their own that fit: none in whole songs, none that reach into a held-out end."""
        ends = ((piece, (piece.start or 0) + piece.length) for piece in song.windows)
        return tuple(piece for piece, end in ends if end <= song.frames and piece.length <= self.max_length)

    def pieces(self, song: TrainingSong) -> tuple[Piece, ...]:
        """What an epoch takes of a song, once for each of its repeats. All pieces of a song have one length."""
        if grid := self.lyric_grid(song):
            return grid if self.tiled else (Piece(None, grid[0].length),)
        longest = self.max_length or song.frames
        return tiles(song.frames, longest) if self.tiled else (Piece(None, min(song.frames, longest)),)


def load_data(store: TensorStore, settings: TrainSettings) -> TrainingData:
    """Read every song once into memory and split off what is held out.

    Raises UserError when no song to learn is there or the validation asked for would leave nothing to train on.
    """
    used = _songs_in_use(store, settings)
    ratio = store.info.genre_ratio if settings.genre_ratio is None else settings.genre_ratio
    position = store.info.tag_position if settings.tag_position is None else settings.tag_position
    by_genre = genre_songs(store.songs, ratio)
    songs = []
    for stored in used:
        tensors = store.load(stored)
        source = stored.override or ("genre" if stored.id in by_genre else "caption")
        place = "none" if stored.regularization else position  # the trigger word is not to mean these songs
        variant = variant_name(source, place)
        condition = _condition(tensors.head, tensors.texts[variant])
        windows = {}
        for window in stored.windows:
            head, texts = store.load_window(stored, window)
            windows[Piece(window.start, window.frames)] = _condition(head, texts[variant])
        songs.append(TrainingSong(stored, tensors.latents.float(), condition, tensors.latents.shape[0], windows))
    data = _split(songs, settings)
    data.notes.extend(_regularization_notes(store, settings))
    unused = [song.stored.title for song in data.songs if song.windows and not data.lyric_grid(song)]
    if unused and data.max_length:
        data.notes.append(f"Windows with their own lyrics are longer than the longest window here: {in_words(unused)}.")
    if store.info.unfinished:
        data.notes.append(
            "Preprocessing was stopped before its end; not encoded and left out: "
            f"{counted(store.info.unfinished, 'songs')}."
        )
    return data


def outline_data(store: TensorStore, settings: TrainSettings) -> TrainingData:
    """What `load_data` makes of a folder, by its index alone: songs, lengths and split, with empty tensors."""
    nothing = torch.empty(0)
    songs = [
        TrainingSong(
            stored,
            nothing,
            nothing,
            stored.frames,
            {Piece(window.start, window.frames): nothing for window in stored.windows},
        )
        for stored in _songs_in_use(store, settings)
    ]
    return _split(songs, settings)


def _songs_in_use(store: TensorStore, settings: TrainSettings) -> list[StoredSong]:
    """The songs of a folder that a run takes; a UserError where there is nothing to learn from them."""
    if not store.songs:
        raise UserError(f"{store.folder} holds no encoded songs.", fix="Run preprocess on a labelled dataset first.")
    if all(song.regularization for song in store.songs):
        raise UserError(
            f"{store.folder} holds only songs for regularization ({len(store.songs)}); there is nothing to learn.",
            fix="Take the mark from the songs that are to be learned and run preprocess again; it keeps their audio.",
        )
    return [song for song in store.songs if settings.regularization_weight or not song.regularization]


def _condition(head: Tensor, text: Tensor) -> Tensor:
    from acestep.model.condition import join_condition

    return join_condition(head[None], text[None])[0]


def _regularization_notes(store: TensorStore, settings: TrainSettings) -> Iterator[str]:
    marked = [song for song in store.songs if song.regularization]
    if marked and not settings.regularization_weight:
        yield f"Left out, because their weight is 0: {counted(len(marked), 'regularization songs')}."
    elif tag := store.info.trigger_word.strip():
        word = re.compile(rf"(?<!\w){re.escape(tag)}(?!\w)", re.IGNORECASE)
        named = [song.title for song in marked if any(word.search(caption) for caption in _captions(song))]
        if named:
            yield f'The labels of regularization songs hold the trigger word "{tag}" themselves: {in_words(named)}.'


def _captions(song: StoredSong) -> list[str]:
    """Caption and genre as the prompts without trigger word hold them."""
    prompts = (song.prompts[song.variants[variant_name(source, "none")]] for source in SOURCES)
    return [labels.caption for prompt in prompts if (labels := read_prompts(prompt, song.lyric_prompt))]


def _split(songs: list[TrainingSong], settings: TrainSettings) -> TrainingData:
    kind = settings.validation
    if kind == "auto":
        learned = sum(not song.regularization for song in songs)
        kind = "songs" if learned >= AUTO_HOLDS_OUT_SONGS_FROM else "windows"
    if kind == "songs":
        training, held_out = _hold_out_songs(songs, settings)
    elif kind == "windows":
        training, held_out = _hold_out_ends(songs, settings)
    else:
        training, held_out = songs, []
    notes = []
    if kind == "windows" and not held_out:
        notes.append("No song is long enough to hold out its end, so this run has no validation.")
    return TrainingData(
        songs=training,
        held_out=held_out,
        held_out_kind=kind if held_out else "none",
        max_length=0 if settings.window == "whole" else settings.max_latent_length,
        notes=notes,
        tiled=settings.window == "tiled",
    )


Split = tuple[list[TrainingSong], list[Window]]


def _hold_out_songs(songs: list[TrainingSong], settings: TrainSettings) -> Split:
    learned = [song for song in songs if not song.regularization]
    if len(learned) < 2:
        raise UserError(
            "One song to learn cannot be split into training and validation songs.",
            fix='Set "validation" to windows or none, or add songs.',
        )
    # By hash and not by position: adding a song moves no other song between the two sets.
    ranked = sorted(learned, key=lambda song: hashlib.sha256(f"{settings.seed}:{song.stored.id}".encode()).digest())
    count = min(max(1, round(len(learned) * settings.validation_share)), len(learned) - 1)
    chosen = {song.stored.id for song in ranked[:count]}
    training = [song for song in songs if song.stored.id not in chosen]
    longest = settings.max_latent_length or max(song.frames for song in songs)
    return training, [_middle(song, longest) for song in songs if song.stored.id in chosen]


def _middle(song: TrainingSong, longest: int) -> Window:
    length = min(song.frames, longest)
    return Window(song, (song.frames - length) // 2, length)


def _hold_out_ends(songs: list[TrainingSong], settings: TrainSettings) -> Split:
    training, held_out = [], []
    for song in songs:
        held = max(round(song.frames * settings.validation_share), LEAST_HELD_OUT_FRAMES)
        if settings.max_latent_length:
            held = min(held, settings.max_latent_length)
        if song.regularization or song.frames < 2 * held:
            training.append(song)  # not to be judged by, or too short to spare an end
            continue
        kept = song.frames - held
        training.append(replace(song, frames=kept))
        held_out.append(Window(song, kept, held))
    return training, held_out


@dataclass(frozen=True)
class Sample:
    """One place in an epoch: which piece of which song, and the position that seeds its draws."""

    song: TrainingSong
    piece: Piece
    position: int


class EpochOrder:
    """The order of an epoch: optimizer steps of micro-batches of equal-length windows.

    The number of steps is the same in every epoch; the last step takes what is left over.
    """

    def __init__(self, data: TrainingData, settings: TrainSettings) -> None:
        self.data = data
        self.settings = settings
        self._last: tuple[int, list[list[list[Sample]]]] | None = None
        self.steps_per_epoch = len(self.steps(0))

    def steps(self, epoch: int) -> list[list[list[Sample]]]:
        """Epoch → optimizer steps → micro-batches → samples. The last epoch asked for is kept: each step asks."""
        if self._last is None or self._last[0] != epoch:
            self._last = epoch, self._shuffled(epoch)
        return self._last[1]

    def _shuffled(self, epoch: int) -> list[list[list[Sample]]]:
        pieces = [
            (song, piece)
            for song in self.data.songs
            for piece in self.data.pieces(song)
            for _ in range(song.stored.repeat)
        ]
        order = torch.randperm(len(pieces), generator=derived_generator(self.settings.seed, "order", epoch)).tolist()
        shuffled = enumerate(pieces[index] for index in order)
        batches = list(self._batches([Sample(song, piece, place) for place, (song, piece) in shuffled]))
        size = self.settings.gradient_accumulation
        return [batches[first : first + size] for first in range(0, len(batches), size)]

    def _batches(self, samples: list[Sample]) -> Iterator[list[Sample]]:
        waiting: dict[int, list[Sample]] = {}
        for sample in samples:
            same_length = waiting.setdefault(sample.piece.length, [])
            same_length.append(sample)
            if len(same_length) == self.settings.batch_size:
                yield same_length.copy()
                same_length.clear()
        yield from (rest for rest in waiting.values() if rest)


def draw_batch(
    samples: Sequence[Sample],
    epoch: int,
    data: TrainingData,
    settings: TrainSettings,
    flow: Flow,
    strata: Mapping[int, float] | None = None,
) -> Batch:
    """Make the draws of a micro-batch: window, timestep, condition dropout and noise, in this order for each.

    `strata` gives samples, by position, the quantile of their timestep instead of a draw of its own.
    """
    windows, noises, timesteps, uniforms, conditions = [], [], [], [], []
    draw = TIMESTEP_DRAWS[settings.timestep_draw]
    for sample in samples:
        generator = derived_generator(settings.seed, "sample", epoch, sample.position)
        piece = sample.piece
        if piece.start is None and (grid := data.lyric_grid(sample.song)):
            piece = grid[int(torch.randint(len(grid), (1,), generator=generator))]
        start, length = data.place(sample.song, piece, generator)
        t = draw(flow.mu, flow.sigma, generator)
        if strata:
            t = timestep_quantile(settings.timestep_draw, flow.mu, flow.sigma, strata[sample.position])
        timesteps.append(t)
        uniforms.append(float(torch.rand(1, generator=generator)))
        windows.append(Window(sample.song, start, length).latents)
        conditions.append(sample.song.windows.get(piece, sample.song.condition))
        noises.append(torch.randn(windows[-1].shape, generator=generator))
    return Batch(
        latents=torch.stack(windows),
        noise=torch.stack(noises),
        t=torch.tensor(timesteps),
        uniform=torch.tensor(uniforms),
        conditions=conditions,
        weights=torch.tensor([settings.regularization_weight if s.song.regularization else 1.0 for s in samples]),
    )


def step_strata(samples: Sequence[Sample], epoch: int, settings: TrainSettings) -> dict[int, float] | None:
    """Timestep quantiles of all samples of an optimizer step, one from each of as many equal bins, by position."""
    if not settings.stratified_timesteps:
        return None
    first = min(sample.position for sample in samples)
    shares = strata_quantiles(len(samples), derived_generator(settings.seed, "strata", epoch, first))
    return {sample.position: share for sample, share in zip(samples, shares, strict=True)}


@dataclass(frozen=True)
class Flow:
    """μ and σ of the logit-normal timestep draw."""

    mu: float
    sigma: float

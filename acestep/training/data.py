"""What a run trains on: songs in memory, what is held out, and the reproducible order of every draw.

Nothing here keeps random state. Each draw comes from a generator seeded with (run seed, epoch, position), so a
resumed run, another batch size or another number of processes sees the same windows, noise and timesteps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from acestep.core.errors import UserError
from acestep.dataset.dataset import genre_songs
from acestep.preprocess.store import SongTensors, StoredSong, TensorStore, variant_name
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
    """One song in memory. Windows are drawn from the first `frames` frames; what follows is held out."""

    stored: StoredSong
    latents: Tensor  # (T, C) fp32
    condition: Tensor  # (L, E)
    frames: int


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

    latents, noise: (B, T, C) fp32; t, uniform: (B,) fp32; conditions: B tensors (L, E).
    """

    latents: Tensor
    noise: Tensor
    t: Tensor
    uniform: Tensor
    conditions: list[Tensor]

    def __len__(self) -> int:
        return self.latents.shape[0]


@dataclass(frozen=True)
class TrainingData:
    """Songs to train on and windows to validate on."""

    songs: list[TrainingSong]
    held_out: list[Window]
    held_out_kind: str  # "songs", "windows" or "none"
    max_length: int
    notes: list[str] = field(default_factory=list)

    def window_length(self, song: TrainingSong) -> int:
        return min(song.frames, self.max_length) if self.max_length else song.frames


def load_data(store: TensorStore, settings: TrainSettings) -> TrainingData:
    """Read every song once into memory and split off what is held out.

    Raises UserError when no song is there or the validation asked for would leave nothing to train on.
    """
    if not store.songs:
        raise UserError(f"{store.folder} holds no encoded songs.", fix="Run preprocess on a labelled dataset first.")
    ratio = store.info.genre_ratio if settings.genre_ratio is None else settings.genre_ratio
    position = store.info.tag_position if settings.tag_position is None else settings.tag_position
    by_genre = genre_songs(store.songs, ratio)
    songs = []
    for stored in store.songs:
        tensors = store.load(stored)
        source = stored.override or ("genre" if stored.id in by_genre else "caption")
        condition = _condition(tensors, variant_name(source, position))
        songs.append(TrainingSong(stored, tensors.latents.float(), condition, tensors.latents.shape[0]))
    data = _split(songs, settings)
    if store.info.unfinished:
        data.notes.append(
            f"Preprocessing was stopped before its end: {store.info.unfinished} songs are not encoded and are left out."
        )
    return data


def outline_data(store: TensorStore, settings: TrainSettings) -> TrainingData:
    """What `load_data` makes of a folder, by its index alone: songs, lengths and split, with empty tensors."""
    if not store.songs:
        raise UserError(f"{store.folder} holds no encoded songs.", fix="Run preprocess on a labelled dataset first.")
    nothing = torch.empty(0)
    return _split([TrainingSong(song, nothing, nothing, song.frames) for song in store.songs], settings)


def _condition(tensors: SongTensors, variant: str) -> Tensor:
    from acestep.model.condition import join_condition

    return join_condition(tensors.head[None], tensors.texts[variant][None])[0]


def _split(songs: list[TrainingSong], settings: TrainSettings) -> TrainingData:
    kind = settings.validation
    if kind == "auto":
        kind = "songs" if len(songs) >= AUTO_HOLDS_OUT_SONGS_FROM else "windows"
    if kind == "songs":
        return _hold_out_songs(songs, settings)
    if kind == "windows":
        return _hold_out_ends(songs, settings)
    return TrainingData(songs, [], "none", settings.max_latent_length)


def _hold_out_songs(songs: list[TrainingSong], settings: TrainSettings) -> TrainingData:
    if len(songs) < 2:
        raise UserError(
            "One song cannot be split into training and validation songs.",
            fix='Set "validation" to windows or none, or add songs.',
        )
    # By hash and not by position: adding a song moves no other song between the two sets.
    ranked = sorted(songs, key=lambda song: hashlib.sha256(f"{settings.seed}:{song.stored.id}".encode()).digest())
    count = min(max(1, round(len(songs) * settings.validation_share)), len(songs) - 1)
    chosen = {song.stored.id for song in ranked[:count]}
    training = [song for song in songs if song.stored.id not in chosen]
    longest = settings.max_latent_length or max(song.frames for song in songs)
    held_out = [_middle(song, longest) for song in songs if song.stored.id in chosen]
    return TrainingData(training, held_out, "songs", settings.max_latent_length)


def _middle(song: TrainingSong, longest: int) -> Window:
    length = min(song.frames, longest)
    return Window(song, (song.frames - length) // 2, length)


def _hold_out_ends(songs: list[TrainingSong], settings: TrainSettings) -> TrainingData:
    training, held_out = [], []
    for song in songs:
        held = max(round(song.frames * settings.validation_share), LEAST_HELD_OUT_FRAMES)
        if settings.max_latent_length:
            held = min(held, settings.max_latent_length)
        if song.frames < 2 * held:
            training.append(song)  # too short to spare an end
            continue
        kept = song.frames - held
        training.append(TrainingSong(song.stored, song.latents, song.condition, kept))
        held_out.append(Window(song, kept, held))
    notes = [] if held_out else ["No song is long enough to hold out its end, so this run has no validation."]
    return TrainingData(training, held_out, "windows" if held_out else "none", settings.max_latent_length, notes)


@dataclass(frozen=True)
class Sample:
    """One place in an epoch: which song, and the position that seeds its draws."""

    song: TrainingSong
    position: int


class EpochOrder:
    """The order of an epoch: optimizer steps of micro-batches of equal-length windows.

    The number of steps is the same in every epoch; the last step takes what is left over.
    """

    def __init__(self, data: TrainingData, settings: TrainSettings) -> None:
        self.data = data
        self.settings = settings
        self.steps_per_epoch = len(self.steps(0))

    def steps(self, epoch: int) -> list[list[list[Sample]]]:
        """Epoch → optimizer steps → micro-batches → samples."""
        songs = [song for song in self.data.songs for _ in range(song.stored.repeat)]
        order = torch.randperm(len(songs), generator=derived_generator(self.settings.seed, "order", epoch)).tolist()
        batches = list(self._batches([Sample(songs[index], place) for place, index in enumerate(order)]))
        size = self.settings.gradient_accumulation
        return [batches[first : first + size] for first in range(0, len(batches), size)]

    def _batches(self, samples: list[Sample]) -> Iterator[list[Sample]]:
        waiting: dict[int, list[Sample]] = {}
        for sample in samples:
            same_length = waiting.setdefault(self.data.window_length(sample.song), [])
            same_length.append(sample)
            if len(same_length) == self.settings.batch_size:
                yield same_length.copy()
                same_length.clear()
        yield from (rest for rest in waiting.values() if rest)


def draw_batch(
    samples: list[Sample],
    epoch: int,
    data: TrainingData,
    settings: TrainSettings,
    flow: Flow,
    strata: Mapping[int, float] | None = None,
) -> Batch:
    """Make the draws of a micro-batch: window, timestep, condition dropout and noise, in this order for each.

    `strata` gives samples, by position, the quantile of their timestep instead of a draw of its own.
    """
    windows, noises, timesteps, uniforms = [], [], [], []
    draw = TIMESTEP_DRAWS[settings.timestep_draw]
    for sample in samples:
        generator = derived_generator(settings.seed, "sample", epoch, sample.position)
        length = data.window_length(sample.song)
        start = int(torch.randint(sample.song.frames - length + 1, (1,), generator=generator))
        t = draw(flow.mu, flow.sigma, generator)
        if strata:
            t = timestep_quantile(settings.timestep_draw, flow.mu, flow.sigma, strata[sample.position])
        timesteps.append(t)
        uniforms.append(float(torch.rand(1, generator=generator)))
        windows.append(Window(sample.song, start, length).latents)
        noises.append(torch.randn(windows[-1].shape, generator=generator))
    return Batch(
        latents=torch.stack(windows),
        noise=torch.stack(noises),
        t=torch.tensor(timesteps),
        uniform=torch.tensor(uniforms),
        conditions=[sample.song.condition for sample in samples],
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

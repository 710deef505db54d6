"""How long to train: the usual epochs by number of songs, and a better answer in optimizer steps."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from acestep.core.errors import UserError
from acestep.core.words import counted
from acestep.settings.train import TrainSettings

FRAMES_PER_SECOND = 25
"""Latent frames in a second of music."""

EPOCHS_BY_SONGS: tuple[tuple[int, int, int], ...] = (
    (3, 1500, 200),
    (6, 1000, 200),
    (10, 700, 100),
    (20, 500, 100),
    (50, 300, 50),
)
"""Up to so many songs: epochs, and epochs between checkpoints. The table ACE-Step trainers go by."""

EPOCHS_FOR_MORE = (200, 50)

STEP_GOALS: tuple[tuple[int, str], ...] = (
    (0, "too short to hear more than a trace of the style"),
    (500, "a smoke test: it shows that labels and songs work"),
    (2000, "light: the style is there, details are not"),
    (5000, "the usual length"),
    (10_000, "deep: for few songs, at the risk of learning them by heart"),
    (20_000, "beyond what further steps usually gain"),
)
"""From so many optimizer steps on, what to expect of a run with some four windows in a step."""

USUAL_STEPS = 5000
LIGHT_STEPS = 2000
FEW_SONGS = 10
CHECKPOINTS_OF_A_RUN = 10


@dataclass(frozen=True)
class Advice:
    """What a run with these settings amounts to, and what would suit the dataset. `lines` say it in words."""

    steps_per_epoch: int
    steps: int
    advised_steps: int
    advised_epochs: int
    advised_save_every: int
    lines: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"lines": list(self.lines)}


def recommended_epochs(songs: int) -> tuple[int, int]:
    """(epochs, epochs between checkpoints) by number of songs, as the field's table has it."""
    if songs < 1:
        raise UserError("Advice needs the number of songs, from 1.", fix="Give --songs a number from 1.")
    for most, epochs, save_every in EPOCHS_BY_SONGS:
        if songs <= most:
            return epochs, save_every
    return EPOCHS_FOR_MORE


def advise(songs: int, minutes: float, settings: TrainSettings) -> Advice:
    """Length of a run for `songs` songs of `minutes` minutes in all (0: unknown), in steps and in plain words.

    An epoch takes one window of every song, or all of its tiles, which follow from its length; songs of unknown
    length count as one tile.
    """
    recommended_epochs(songs)  # refuses numbers that are none
    if not math.isfinite(minutes) or minutes < 0:
        raise UserError("Advice needs the minutes of music as a number from 0.", fix="Correct --minutes.")
    in_a_step = settings.batch_size * settings.gradient_accumulation
    windows = songs * _windows_of_a_song(songs, minutes, settings)
    per_epoch = math.ceil(math.ceil(windows / settings.batch_size) / settings.gradient_accumulation)
    steps = settings.max_steps or settings.epochs * per_epoch
    goal = LIGHT_STEPS if songs < FEW_SONGS // 2 else USUAL_STEPS
    epochs = math.ceil(goal / per_epoch)
    save_every = max(1, epochs // CHECKPOINTS_OF_A_RUN)
    lines = [
        f"An epoch takes {_some(windows // songs)} of {'the song' if songs == 1 else f'each of the {songs} songs'}: "
        f"{counted(per_epoch, 'steps')} of up to {counted(in_a_step, 'windows')}.",
        f"These settings make {counted(steps, 'steps')}: {_meaning(steps)}.",
        f"For {counted(songs, 'songs')} about {goal} steps are a good length: --epochs {epochs} "
        f"--save-every-epochs {save_every}, or --max-steps {goal}.",
        *_coverage(songs, minutes, settings, steps, windows),
        *_warnings(songs, minutes, windows, in_a_step, settings),
    ]
    return Advice(per_epoch, steps, goal, epochs, save_every, tuple(lines))


def _windows_of_a_song(songs: int, minutes: float, settings: TrainSettings) -> int:
    if settings.window != "tiled" or not settings.max_latent_length or not minutes:
        return 1
    return math.ceil(minutes * 60 / songs * FRAMES_PER_SECOND / settings.max_latent_length)


def _some(windows: int) -> str:
    return "one window" if windows == 1 else f"{windows} windows"


def _meaning(steps: int) -> str:
    return next(words for least, words in reversed(STEP_GOALS) if steps >= least)


def _coverage(songs: int, minutes: float, settings: TrainSettings, steps: int, windows: int) -> list[str]:
    """How often each minute of music is heard in the run."""
    if not minutes:
        return []
    song_s = minutes * 60 / songs
    window_s = song_s * songs / windows
    if settings.window == "random" and settings.max_latent_length:
        window_s = min(song_s, settings.max_latent_length / FRAMES_PER_SECOND)
    heard = steps * min(settings.batch_size * settings.gradient_accumulation, windows)
    times = heard * window_s / (minutes * 60)
    return [f"Windows are {window_s:.0f} s; every part of the music is heard about {times:.0f} times."]


def _warnings(songs: int, minutes: float, windows: int, in_a_step: int, settings: TrainSettings) -> list[str]:
    lines = []
    if in_a_step > windows:
        lines.append(
            f"{counted(songs, 'songs')} {'does' if songs == 1 else 'do'} not fill a step of {in_a_step} windows: "
            "every step takes all songs. "
            f"A gradient accumulation of {max(1, windows // settings.batch_size)} or less makes steps that differ."
        )
    if minutes and minutes * 60 / songs < 30:
        lines.append("Songs shorter than 30 s teach little; two to four minutes are a good length.")
    if songs > 50:
        lines.append("Five to fifty songs in one style teach more than many mixed ones.")
    return lines

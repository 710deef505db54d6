"""Labels without a model: tempo, key and metre as `acestep.audio.analysis` measures them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from acestep.captioning.contract import Answer, BackendFacts, Field, Guess, SongToLabel
from acestep.core.jobs import Job
from acestep.settings.caption import CaptionSettings


class AnalysisBackend:
    """Measures; needs no model, key or network."""

    facts = BackendFacts(
        name="analysis",
        title="Measured: tempo, key and metre without a model",
        origin="analysis",
        gives=frozenset({"bpm", "keyscale", "timesignature"}),
        parallel=True,
        packages=("librosa",),
    )

    @contextmanager
    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Iterator[Measuring]:
        from acestep.audio.analysis import prepare

        prepare()
        yield Measuring()


class Measuring:
    """Reads the file of each song itself: it wants another sample rate, and of long songs only excerpts."""

    def label(self, song: SongToLabel) -> Answer:
        """Tempo, key and metre as far as they are sure enough."""
        from acestep.audio.analysis import analyze

        found = analyze(song.path)
        bpm = Guess(_rounded(found.bpm.value), found.bpm.confidence, _rounded(found.bpm.runner_up))
        guesses: dict[Field, Guess] = {
            "bpm": bpm,
            "keyscale": Guess(found.keyscale.value, found.keyscale.confidence, found.keyscale.runner_up),
            "timesignature": Guess(
                found.timesignature.value, found.timesignature.confidence, found.timesignature.runner_up
            ),
        }
        values = {name: guess for name, guess in guesses.items() if name in song.wanted and guess.value is not None}
        notes = tuple(
            f"{name} is not sure enough to be given (perhaps {guess.runner_up})"
            for name, guess in guesses.items()
            if name in song.wanted and guess.value is None and guess.runner_up is not None
        )
        return Answer(values, notes=(*found.notes, *notes))


def make() -> AnalysisBackend:
    """The backend, as the registry asks for it."""
    return AnalysisBackend()


def _rounded(bpm: float | None) -> int | None:
    return None if bpm is None else round(bpm)

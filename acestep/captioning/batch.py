"""Labelling many songs: who is asked for what, song by song, and every answer on disk at once.

Each backend is opened once, walks over its songs and is closed before the next is opened, so only one local model
is in memory. A backend that serves several fields is asked once a song. What may be written is decided by the plan
(`due_fields`), and nothing that a user said is replaced unless the settings say so.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from acestep.audio.analysis import threads_at_once
from acestep.audio.decode import Audio
from acestep.audio.resample import decode_as, longest_heard_s
from acestep.captioning.contract import (
    FIELDS,
    Answer,
    Backend,
    BackendFacts,
    BackendUnusable,
    Field,
    Guess,
    Hearing,
    OpenBackend,
    SongToLabel,
    TryAgain,
)
from acestep.captioning.keeping import Keeper
from acestep.captioning.pace import Pace
from acestep.captioning.plan import Step, check_keys, due_fields, plan_steps
from acestep.core.ahead import Ahead
from acestep.core.errors import Problem, Stopped, UserError
from acestep.core.jobs import Job
from acestep.dataset import spelling
from acestep.dataset.dataset import Dataset
from acestep.dataset.label_files import LabelWriter
from acestep.dataset.labels import Labels, set_label
from acestep.dataset.song import DEFAULT, EDITED, NOT_SAID, Song, is_machine
from acestep.model.facts import INSTRUMENTAL, UNKNOWN_LANGUAGE
from acestep.settings.caption import CaptionSettings

MOST_FAILED = 5
"""Songs in a row that a busy service may fail before the batch ends; the rest would fail too."""

Answers = Generator[tuple[Song, frozenset[Field], Answer | UserError], None, None]

_MAY_BE_UNTOLD = frozenset({"genre", "bpm", "keyscale", "timesignature", "language"})


@dataclass(frozen=True)
class Told:
    """One value that was written: by which backend, how sure it was (0 to 1 or None), and its second choice."""

    song: str
    field: str
    value: Any
    backend: str
    confidence: float | None = None
    runner_up: Any = None


@dataclass
class LabelReport:
    """What labelling did. `labelled` songs got at least one value, `failed` ones have an error among the problems.

    `usage` sums up what backends count: tokens, audio_s (seconds that were heard), estimated_usd.
    """

    songs: int = 0
    asked: int = 0
    labelled: int = 0
    failed: int = 0
    told: list[Told] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    usage: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    stopped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def label_dataset(
    dataset: Dataset,
    settings: CaptionSettings,
    keys: Mapping[str, str],
    job: Job | None = None,
    songs: Sequence[str] | None = None,
    *,
    file: Path | None = None,
    report: LabelReport | None = None,
    changing: Callable[[Song], AbstractContextManager[object]] = lambda song: nullcontext(),
) -> LabelReport:
    """Let the backends of the settings label the songs (`songs`: ids; None means all) of a dataset.

    Labels are kept in the dataset file `file`, or beside the songs where that is None, after each song. A stopped
    batch returns its report; running it again does what is left. Trouble with a song is in the report. Raises
    UserError for trouble that every song would meet (BackendUnusable, a full disk); what was written by then is kept,
    and so are the answers that were under way.

    A given `report` is filled song by song, for screens that look at it meanwhile. Labels of a song change within
    the context `changing(song)` only; what somebody typed since the song was asked about stays.
    """
    job = job or Job()
    settings = settings.model_copy(update={"language": _language(settings.language)})
    started = job.clock()
    report = report or LabelReport()
    chosen = _chosen(dataset, songs)
    report.songs = len(chosen)
    pace = Pace(settings, job)
    with LabelWriter(dataset, file, clock=job.clock) as writer:
        keeper = Keeper(writer, file is not None, report.problems)
        batch = _Batch(dataset, settings, keys, job, report, pace, changing, keeper)
        try:
            if settings.instrumental == "yes":
                batch.mark_instrumental(chosen)
            steps = plan_steps(chosen, settings)
            check_keys(steps, keys)
            for step in steps:
                batch.run(step)
        except Stopped:
            report.stopped = True
    order = {song.relative: number for number, song in enumerate(dataset.songs)}
    report.told.sort(key=lambda told: order[told.song])  # requests under way together end in any order
    report.problems.sort(key=lambda problem: order.get(problem.subject, -1))
    report.labelled = len({told.song for told in report.told})
    report.failed = len({problem.subject for problem in report.problems if problem.severity == "error"})
    report.seconds = job.clock() - started
    return report


def _language(said: str) -> str:
    """The code of the language that the user says all lyrics are in."""
    code = spelling.language(said).value
    if said and code in (None, UNKNOWN_LANGUAGE):
        raise UserError(f'language: "{said}" is no language the model knows.', fix='Give a code, such as "de".')
    return code if said and code else ""


def _chosen(dataset: Dataset, ids: Sequence[str] | None) -> list[Song]:
    if ids is None:
        return list(dataset.songs)
    wanted = set(ids)
    found = [song for song in dataset.songs if song.id in wanted]
    if len(found) < len(wanted):
        raise UserError(
            f"{len(wanted) - len(found)} of the songs to label are not in the dataset.", fix="Scan it again."
        )
    return found


@dataclass
class _Batch:
    """One run of the batch."""

    dataset: Dataset
    settings: CaptionSettings
    keys: Mapping[str, str]
    job: Job
    report: LabelReport
    pace: Pace
    changing: Callable[[Song], AbstractContextManager[object]]
    keeper: Keeper
    failed_in_a_row: int = 0
    ended: BaseException | None = None

    def mark_instrumental(self, songs: Sequence[Song]) -> None:
        """The user says that no song has a voice: that is kept like anything typed."""
        for song in songs:
            if self._may_be_marked(song) and self.keeper.has_place(song):
                with self.changing(song):
                    if self.keeper.take_over(song) is not None and self._may_be_marked(song):
                        song.edit(is_instrumental=True)
                        self.keeper.write(song)

    def _may_be_marked(self, song: Song) -> bool:
        said = song.sources.get("lyrics", DEFAULT)
        return self.settings.fill == "all" or said == DEFAULT or (self.settings.fill == "machine" and is_machine(said))

    def run(self, step: Step) -> None:
        """Open a backend, ask it about its songs, and close it."""
        facts = step.backend.facts
        todo = [(song, fields) for song, fields in step.songs if self.keeper.has_place(song)]
        if not todo:
            return
        self.failed_in_a_row = 0
        self.job.check_stop()
        with (
            step.backend.open(self.settings, self.keys, self.job) as opened,
            self.job.stage(f"label with {facts.name}", len(todo), "songs") as stage,
        ):
            walk = self._parallel if facts.parallel else self._one_by_one
            with closing(walk(opened, todo, facts)) as answers:
                for song, fields, answer in answers:
                    self.report.asked += 1
                    try:
                        with self.changing(song):
                            self._keep(song, fields, answer, step.backend)
                    except (UserError, OSError) as error:
                        self._end(error)  # the walk hands over what is under way, and then raises it
                    stage.advance(note=song.relative)

    def _end(self, trouble: BaseException) -> None:
        """Ask about no further song. What ends the batch first is told, though trouble sooner than a stop."""
        if self.ended is None or isinstance(self.ended, Stopped):
            self.ended = trouble

    def _check_end(self) -> None:
        """Raise what ends the batch."""
        if self.ended is not None:
            raise self.ended
        self.job.check_stop()

    def _one_by_one(
        self, opened: OpenBackend, todo: list[tuple[Song, frozenset[Field]]], facts: BackendFacts
    ) -> Answers:
        """Answers in order; the next song is decoded while the backend works on the present one."""
        with Ahead((song for song, _ in todo), partial(_heard, hears=facts.hears)) as ahead:
            for song, fields in todo:
                self._check_end()
                try:
                    heard = ahead.take(song)
                except UserError as error:
                    yield song, fields, error
                    continue
                answer = self._answer(opened, facts, song, fields, heard)
                del heard  # else it stays in memory beside the next two
                yield song, fields, answer
        self._check_end()

    def _parallel(self, opened: OpenBackend, todo: list[tuple[Song, frozenset[Field]]], facts: BackendFacts) -> Answers:
        """Answers as they come in, so many songs under way at once as the settings allow and no more in memory.

        When the job is to stop or the batch ends with an error, songs under way are finished first: they may have
        been paid for.
        """

        def ask(song: Song, fields: frozenset[Field]) -> Answer | UserError:
            try:
                heard = _heard(song, facts.hears)
            except UserError as error:
                return error
            return self._answer(opened, facts, song, fields, heard)

        under_way: dict[Future[Answer | UserError], tuple[Song, frozenset[Field]]] = {}
        waiting = iter(todo)
        most = self.settings.parallel_requests if facts.network else threads_at_once()
        with ThreadPoolExecutor(most, "label") as pool:
            while True:
                while self.ended is None and not self.job.stop_requested and len(under_way) < most:
                    if (following := next(waiting, None)) is None:
                        break
                    under_way[pool.submit(ask, *following)] = following
                if not under_way:
                    break
                finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in finished:
                    song, fields = under_way.pop(future)
                    trouble = future.exception()
                    if trouble is None:
                        yield song, fields, future.result()
                    else:
                        self._end(trouble)
        self._check_end()

    def _answer(
        self,
        opened: OpenBackend,
        facts: BackendFacts,
        song: Song,
        fields: frozenset[Field],
        heard: Audio | None,
    ) -> Answer | UserError:
        """What the backend says about a song, or the trouble it has with this one."""
        language = self.settings.language or (song.language if song.language != UNKNOWN_LANGUAGE else "")
        samples: np.ndarray | None = heard.samples if heard else None
        known = {name: getattr(song, name) for name in FIELDS if name not in fields}
        known = {name: value for name, value in known.items() if value != NOT_SAID[name]}
        question = SongToLabel(song.path, song.duration_s, fields, samples, language, known)

        def request() -> Answer:
            if self.ended is not None:
                raise Stopped  # songs that wait for their turn are not paid for any more
            return opened.label(question)

        try:
            answer = self.pace.ask(request, song.id, counts=facts.network)
        except BackendUnusable:
            raise
        except UserError as error:
            return error
        return replace(answer, notes=(*answer.notes, *heard.warnings)) if heard else answer

    def _keep(self, song: Song, fields: frozenset[Field], answer: Answer | UserError, maker: Backend) -> None:
        """Write an answer, or note the trouble."""
        if isinstance(answer, UserError):
            self.report.problems.append(Problem(song.relative, str(answer)))
            self.failed_in_a_row = self.failed_in_a_row + 1 if isinstance(answer, TryAgain) else 0
            if self.failed_in_a_row >= MOST_FAILED:
                raise BackendUnusable(
                    f"{maker.facts.title} failed {MOST_FAILED} songs in a row: {answer}",
                    fix="Run it again later; what was labelled is kept.",
                )
            return
        self.failed_in_a_row = 0
        for name, amount in answer.usage.items():
            self.report.usage[name] = self.report.usage.get(name, 0) + amount
        self.report.problems += [Problem(song.relative, note, "warning") for note in answer.notes]
        if (typed := self.keeper.take_over(song)) is None:
            return
        if typed & fields:
            message = f"{' and '.join(sorted(typed & fields))} changed in its file meanwhile."
            self.report.problems.append(Problem(song.relative, message, "warning"))
        fields = due_fields(song, fields, maker, self.settings)  # less what was typed while it was under way
        values = self._values(song, fields, answer)
        source, told = maker.facts.name, []
        for name in sorted(fields):
            if name in values:
                self._set(song, source, name, values[name])
                guess = answer.values.get(name, Guess(values[name]))
                told.append(Told(song.relative, name, values[name], source, guess.confidence, guess.runner_up))
            elif name in _MAY_BE_UNTOLD and getattr(song, name) == NOT_SAID[name] and not _is_said(song, name):
                song.sources[name] = source  # asked and not known: a later run does not ask again
        if "lyrics" in values:
            self._settle_voice(song, source, answer.timed_lyrics)
        if self.keeper.write(song):
            self.report.told += told

    def _values(self, song: Song, fields: frozenset[Field], answer: Answer) -> dict[Field, Any]:
        """The usable values of an answer in canonical spelling; what is not usable becomes a problem."""
        labels = Labels("")
        for name in fields:
            if name in answer.values:
                set_label(labels, name, answer.values[name].value)
        self.report.problems += [Problem(song.relative, warning, "warning") for warning in labels.warnings]
        values: dict[Field, Any] = {name: labels.values[name] for name in fields if name in labels.values}
        lyrics = values.get("lyrics")
        if lyrics == INSTRUMENTAL and _is_said(song, "is_instrumental") and not song.is_instrumental:
            if self.settings.fill != "all":
                del values["lyrics"]
                message = "No voice was heard, but it is marked as having one; its lyrics stay as they are."
                self.report.problems.append(Problem(song.relative, message, "warning"))
        elif lyrics and lyrics != INSTRUMENTAL and self.settings.language and "language" in fields:
            values["language"] = self.settings.language
        if lyrics == INSTRUMENTAL:
            values.pop("language", None)
        return values

    def _set(self, song: Song, source: str, name: Field, value: Any) -> None:
        # What "all" takes from the user must stand like his word, or the next scan would find the old one again.
        own_word = _is_said(song, name) and not (name == "lyrics" and not song.lyrics)
        song.set_from(EDITED if own_word else source, name, value)

    def _settle_voice(self, song: Song, source: str, timed_lyrics: str) -> None:
        """Make the instrumental mark and the times agree with lyrics just written."""
        instrumental = song.lyrics == INSTRUMENTAL
        if song.is_instrumental != instrumental or not _is_said(song, "is_instrumental"):
            song.set_from(song.sources["lyrics"], "is_instrumental", instrumental)
        if instrumental and is_machine(song.sources.get("language", "")):
            song.set_from(source, "language", UNKNOWN_LANGUAGE)
        song.timed_lyrics = timed_lyrics
        if not song.times_fit:
            song.timed_lyrics = ""


def _is_said(song: Song, name: str) -> bool:
    """Was it the user, in this program or a file, who gave a label or left it empty?"""
    source = song.sources.get(name, DEFAULT)
    return source != DEFAULT and not is_machine(source)


def _heard(song: Song, hears: Hearing | None) -> Audio | None:
    if hears is None:
        return None
    heard = decode_as(song.path, hears.sample_rate, hears.channels)
    longest_s = longest_heard_s(hears.sample_rate, hears.channels)
    if song.duration_s <= longest_s:
        return heard
    return replace(heard, warnings=(*heard.warnings, f"Only its first {longest_s / 60:.0f} min were listened to."))

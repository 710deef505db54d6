"""Labelling folders: who is asked for what, what is never replaced, and what is on disk when it ends anyhow.

The backends here are small but real: they compute their answers from the samples they are given.
"""

from __future__ import annotations

import errno
import gc
import json
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile

from acestep.audio import resample
from acestep.captioning.batch import LabelReport, label_dataset
from acestep.captioning.contract import (
    Answer,
    BackendFacts,
    BackendUnusable,
    Guess,
    Hearing,
    SongToLabel,
    TryAgain,
)
from acestep.captioning.plan import plan_steps
from acestep.captioning.registry import BACKENDS
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.dataset.dataset import Dataset
from acestep.dataset.editing import History, set_labels
from acestep.dataset.scan import scan_folder
from acestep.dataset.song import Song
from acestep.dataset.store import load_dataset, save_dataset
from acestep.model.facts import INSTRUMENTAL
from acestep.settings.caption import CaptionSettings

LYRICS = "[Verse]\nla la\nlo lo"
TIMED = "[00:01.00][Verse]\n[00:01.00]la la\n[00:02.50]lo lo"


class Meter:
    """Tells the loudest sample of a song, and by it what to sing. Counts who is open and what was asked."""

    def __init__(self, name: str, **facts: Any) -> None:
        gives = {"caption", "genre", "lyrics", "language", "bpm", "keyscale", "timesignature"}
        defaults: dict[str, Any] = {"origin": "model", "hears": Hearing(8000, 1), "gives": frozenset(gives)}
        self.facts = BackendFacts(name, f"the {name}", **{**defaults, **facts})
        self.opened = self.closed = 0
        self.asked: list[tuple[str, frozenset[str]]] = []
        self.before: Callable[[SongToLabel], None] = lambda song: None
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0

    @contextmanager
    def open(self, settings: CaptionSettings, keys: Mapping[str, str], job: Job) -> Iterator[Meter]:
        self.opened += 1
        try:
            yield self
        finally:
            self.closed += 1

    def label(self, song: SongToLabel) -> Answer:
        with self.lock:
            self.asked.append((song.path.name, song.wanted))
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            self.before(song)
            return self.describe(song)
        finally:
            with self.lock:
                self.under_way -= 1

    def describe(self, song: SongToLabel) -> Answer:
        samples = song.samples if song.samples is not None else soundfile.read(song.path, always_2d=True)[0].T
        peak = float(np.abs(samples).max())
        values: dict[Any, Guess] = {
            "caption": Guess(f"peaks at {peak:.1f}", 0.9, "something else"),
            "bpm": Guess(f"{100 * peak + 60:.0f} BPM"),
            "keyscale": Guess("Am"),
        }
        values["lyrics"] = Guess(LYRICS if peak > 0.5 else "[instrumental]")
        values["language"] = Guess("english")
        timed = TIMED if peak > 0.5 else ""
        return Answer(values, timed, usage={"tokens": 10, "estimated_usd": 0.25})


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Meter]:
    """backends("name", origin="service", …): a backend in the registry."""
    module = ModuleType("acestep_test_backends")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def register(name: str, **facts: Any) -> Meter:
        made = Meter(name, **facts)
        setattr(module, name.replace("-", "_"), lambda: made)
        monkeypatch.setitem(BACKENDS, name, f"{module.__name__}:{name.replace('-', '_')}")
        return made

    return register


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Three songs with peaks of 0.2, 0.4 and 0.8."""
    return write_songs(tmp_path / "songs", [0.2, 0.4, 0.8])


def write_songs(folder: Path, peaks: list[float]) -> Path:
    folder.mkdir()
    for number, peak in enumerate(peaks):
        wave = peak * np.sin(np.arange(8000 * 1.2) * (0.05 + number / 1000))
        soundfile.write(folder / f"song{number:03d}.wav", wave, 8000)
    return folder


def settings(**values: Any) -> CaptionSettings:
    return CaptionSettings(**{"caption_by": "", "lyrics_by": "", "metadata_by": "", **values})


def everything(name: str, **values: Any) -> CaptionSettings:
    return settings(caption_by=name, lyrics_by=name, metadata_by=name, **values)


def label(folder: Path, chosen: CaptionSettings, job: Job | None = None, **more: Any) -> LabelReport:
    return label_dataset(scan_folder(folder), chosen, {}, job, **more)


def notes(folder: Path, stem: str = "song000") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    return content


def test_one_backend_for_everything_is_asked_once_a_song_and_its_values_are_kept(
    songs: Path, backends: Callable[..., Meter]
) -> None:
    meter = backends("meter")
    report = label(songs, everything("meter"))
    assert [name for name, _ in meter.asked] == ["song000.wav", "song001.wav", "song002.wav"]
    assert (report.songs, report.labelled, report.failed, report.problems) == (3, 3, 0, [])
    assert report.usage == {"tokens": 30, "estimated_usd": 0.75}
    quiet, _, loud = scan_folder(songs).songs
    assert (quiet.caption, quiet.bpm, quiet.keyscale) == ("peaks at 0.2", 80, "A minor")
    assert (quiet.lyrics, quiet.is_instrumental, quiet.language) == (INSTRUMENTAL, True, "unknown")
    assert (loud.lyrics, loud.is_instrumental, loud.language, loud.timed_lyrics) == (LYRICS, False, "en", TIMED)
    assert {quiet.sources[name] for name in ("caption", "bpm", "lyrics", "is_instrumental")} == {"meter"}
    told = next(told for told in report.told if told.field == "caption")
    assert (told.song, told.value, told.confidence, told.runner_up) == (
        "song000.wav", "peaks at 0.2", 0.9, "something else",
    )  # fmt: skip
    assert json.loads(json.dumps(report.to_dict()))["labelled"] == 3


def test_nothing_is_asked_twice_even_what_the_backend_could_not_tell(
    songs: Path, backends: Callable[..., Meter]
) -> None:
    meter = backends("meter")
    label(songs, everything("meter"))
    before = {path: path.read_bytes() for path in songs.iterdir()}
    asked = len(meter.asked)
    assert label(songs, everything("meter")).asked == 0, "it knows no genre and no metre, and was asked for them"
    assert len(meter.asked) == asked and {path: path.read_bytes() for path in songs.iterdir()} == before
    other = backends("other")
    assert label(songs, everything("other")).asked == 3, "another backend may know them"
    assert all(wanted <= {"genre", "timesignature", "language"} for _, wanted in other.asked)


def test_files_and_hands_outrank_backends_and_are_replaced_only_when_all_is_asked_for(
    songs: Path, backends: Callable[..., Meter]
) -> None:
    backends("meter")
    label(songs, everything("meter"))
    (songs / "song000.caption.txt").write_text("a file's caption", encoding="utf-8")
    dataset = scan_folder(songs)
    assert dataset.songs[0].caption == "a file's caption" and not dataset.songs[0].overruled
    content = notes(songs, "song001")
    (songs / "song001.json").write_text(json.dumps(content | {"caption": "by a text editor"}), encoding="utf-8")
    History(dataset).apply(set_labels([dataset.songs[2]], caption="by hand", genre=""))
    said = ["a file's caption", "by a text editor", "by hand"]
    for fill in ("missing", "machine"):
        label(songs, everything("meter", fill=fill))
        assert [song.caption for song in scan_folder(songs).songs] == said
    label(songs, everything("meter", fill="all"))
    after = scan_folder(songs).songs
    assert [song.caption for song in after] == ["peaks at 0.2", "peaks at 0.4", "peaks at 0.8"]
    assert after[2].genre == ""


def test_machine_values_are_refreshed_but_measured_ones_not_by_a_guess(
    songs: Path, backends: Callable[..., Meter]
) -> None:
    backends("measuring", origin="analysis", gives=frozenset({"bpm"}))
    guessing = backends("guessing")
    label(songs, settings(metadata_by="measuring", caption_by="guessing"))
    asked = len(guessing.asked)
    label(songs, everything("guessing", fill="machine"))
    assert all("bpm" not in wanted and "caption" in wanted for _, wanted in guessing.asked[asked:])
    assert scan_folder(songs).songs[0].sources["bpm"] == "measuring"
    label(songs, settings(metadata_by="guessing", fill="all"))
    assert scan_folder(songs).songs[0].sources["bpm"] == "guessing"


def test_only_one_backend_is_open_at_a_time(songs: Path, backends: Callable[..., Meter]) -> None:
    one, two = backends("one"), backends("two", parallel=True)

    def alone(song: SongToLabel) -> None:
        assert (one.opened - one.closed) + (two.opened - two.closed) == 1

    one.before = two.before = alone
    report = label(songs, settings(caption_by="one", lyrics_by="two", metadata_by="one"))
    assert (one.opened, two.opened, report.asked) == (1, 1, 6)
    assert one.asked[0][1] == {"caption", "genre", "bpm", "keyscale", "timesignature"}


def test_songs_of_a_local_model_are_decoded_one_ahead_and_let_go(
    tmp_path: Path, backends: Callable[..., Meter], monkeypatch: pytest.MonkeyPatch
) -> None:
    from acestep.captioning import batch

    alive: list[weakref.ref[np.ndarray]] = []
    most, decoded = 0, threading.Semaphore(0)
    real = batch.decode_as

    def counted(*arguments: Any) -> Any:
        nonlocal most
        heard = real(*arguments)
        alive.append(weakref.ref(heard.samples))
        most = max(most, sum(array() is not None for array in alive))
        decoded.release()
        return heard

    monkeypatch.setattr(batch, "decode_as", counted)
    meter = backends("meter", hears=Hearing(16_000, 2))
    shapes = []

    def look(song: SongToLabel) -> None:
        assert song.samples is not None
        shapes.append(song.samples.shape)
        assert len(shapes) == 8 or decoded.acquire(timeout=20), "the next song is decoded meanwhile"
        gc.collect()

    decoded.acquire(blocking=False)
    meter.before = look
    label(write_songs(tmp_path / "many", [0.3] * 8), settings(caption_by="meter"))
    assert shapes == [(2, 19_200)] * 8 and most <= 2


def test_an_hour_is_heard_to_its_end_in_little_memory(
    tmp_path: Path, backends: Callable[..., Meter], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "long").mkdir()
    with soundfile.SoundFile(tmp_path / "long" / "hour.wav", "w", 4000, 2) as file:
        for minute in range(60):
            file.write(np.full((60 * 4000, 2), 0.1 + minute / 100))
    meter, ends = backends("meter", hears=Hearing(8000, 1)), []
    meter.before = lambda song: ends.append((song.samples.shape, float(song.samples[0, -4000:].mean())))
    tracemalloc.start()
    report = label(tmp_path / "long", settings(caption_by="meter"))
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    hour_bytes = 3600 * 8000 * 4
    assert ends == [((1, 3600 * 8000), pytest.approx(0.69, abs=0.01))] and not report.problems
    assert most_bytes < 3.5 * hour_bytes, "and never a larger form of it"
    monkeypatch.setattr(resample, "MOST_BYTES", hour_bytes // 2)
    report = label(tmp_path / "long", settings(caption_by="meter", fill="machine"))
    assert ends[1][0] == (1, 1800 * 8000) and "first 30 min" in report.problems[0].message


def test_services_work_in_parallel_within_bounds_and_the_report_keeps_the_order(
    tmp_path: Path, backends: Callable[..., Meter]
) -> None:
    folder = write_songs(tmp_path / "many", [0.01 * number for number in range(5, 45)])
    meter = backends("service", parallel=True, network=True, hears=None, origin="service")
    meeting = threading.Barrier(4)

    def meet(song: SongToLabel) -> None:
        meeting.wait(timeout=20)  # passes only if four are under way together

    meter.before = meet
    report = label(folder, settings(caption_by="service", parallel_requests=4))
    assert meter.most_under_way == 4 and report.labelled == 40
    assert [told.song for told in report.told] == [f"song{number:03d}.wav" for number in range(40)]


class Dozing(Job):
    """A job whose time passes only while it waits."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: sum(self.naps))
        self.naps: list[float] = []

    def wait(self, seconds: float) -> None:
        self.naps.append(seconds)


def test_trouble_that_passes_is_waited_for(songs: Path, backends: Callable[..., Meter]) -> None:
    meter, tries, job = backends("meter"), [0], Dozing()

    def busy(song: SongToLabel) -> None:
        tries[0] += 1
        if tries[0] in (1, 2):
            raise TryAgain("busy")
        if tries[0] == 3:
            raise TryAgain("come back", after_s=30)

    meter.before = busy
    report = label(songs, settings(caption_by="meter"), job)
    assert report.labelled == 3 and not report.problems
    first, second, third, *_ = job.naps
    assert 1 <= first <= 1.2 and 2 <= second <= 2.4 and 30 <= third <= 36
    naps, job = job.naps, Dozing()
    tries[0] = 0
    label(songs, settings(caption_by="meter", fill="all"), job)
    assert job.naps == naps, "the waits are a function of the seed"


def test_requests_a_minute_are_bounded(songs: Path, backends: Callable[..., Meter]) -> None:
    backends("meter", parallel=True, network=True)
    backends("here", parallel=True, hears=None)
    job = Dozing()
    slow = {"requests_per_minute": 6, "parallel_requests": 1}
    label(songs, settings(metadata_by="here", **slow), job)
    assert job.naps == [], "what runs on this machine asks nobody"
    label(songs, settings(caption_by="meter", **slow), job)
    assert job.naps == [10, 10]


def test_trouble_with_one_song_is_reported_and_never_a_label(songs: Path, backends: Callable[..., Meter]) -> None:
    meter, job = backends("meter"), Dozing()

    def fail(song: SongToLabel) -> None:
        if song.path.name == "song000.wav":
            raise UserError("The model cannot hear it.")
        if song.path.name == "song001.wav":
            raise TryAgain("Still busy.")

    meter.before = fail
    (songs / "song003.wav").write_bytes((songs / "song002.wav").read_bytes()[:3000])
    soundfile.write(songs / "song004.wav", np.zeros(16_000), 8000)
    report = label(songs, settings(caption_by="meter", retries=2), job)
    errors = {problem.subject: problem.message for problem in report.problems if problem.severity == "error"}
    assert errors.keys() == {"song000.wav", "song001.wav", "song004.wav"} and len(job.naps) == 2
    assert errors["song000.wav"] == "The model cannot hear it." and "silent" in errors["song004.wav"]
    assert report.failed == 3
    assert not (songs / "song000.json").exists() and not (songs / "song001.json").exists()
    assert scan_folder(songs).songs[2].caption == "peaks at 0.8"


def test_values_that_cannot_be_used_are_absent(
    songs: Path, backends: Callable[..., Meter], monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = backends("meter")
    nonsense: dict[Any, Guess] = {
        "caption": Guess("Error: out of memory"), "bpm": Guess("fast"), "keyscale": Guess(["A"]), "lyrics": Guess(7),
        "language": Guess("Klingon"), "timesignature": Guess("13/8"), "genre": Guess({"a": 1}),
    }  # fmt: skip
    monkeypatch.setattr(meter, "describe", lambda song: Answer(nonsense, notes=("It hums.",)))
    report = label(songs, everything("meter"))
    assert report.labelled == 0 and report.failed == 0 and len(report.problems) == 3 * 8
    assert {song.caption for song in scan_folder(songs).songs} == {""}


@pytest.mark.parametrize("parallel", [False, True])
def test_a_refused_key_ends_the_batch_and_keeps_what_was_done(
    songs: Path, backends: Callable[..., Meter], parallel: bool
) -> None:
    meter = backends("meter", parallel=parallel, network=parallel)

    def refuse(song: SongToLabel) -> None:
        if song.path.name == "song001.wav":
            raise BackendUnusable("The key was refused.", fix="Set METER_KEY.")

    meter.before = refuse
    with pytest.raises(BackendUnusable, match="refused"):
        label(songs, settings(caption_by="meter", parallel_requests=1))
    assert [song.caption for song in scan_folder(songs).songs] == ["peaks at 0.2", "", ""] and meter.closed == 1


def test_a_service_that_stays_away_is_not_asked_for_ever(tmp_path: Path, backends: Callable[..., Meter]) -> None:
    folder, job = write_songs(tmp_path / "many", [0.1 + 0.01 * number for number in range(20)]), Dozing()
    meter = backends("meter")

    def down(song: SongToLabel) -> None:
        raise TryAgain("No connection.")

    meter.before = down
    with pytest.raises(BackendUnusable, match="5 songs in a row: No connection"):
        label(folder, settings(caption_by="meter", retries=1), job)
    assert len(meter.asked) == 10


@pytest.mark.parametrize("parallel", [False, True])
def test_a_stopped_batch_keeps_what_is_done_and_goes_on_later(
    tmp_path: Path, backends: Callable[..., Meter], parallel: bool
) -> None:
    folder = write_songs(tmp_path / "many", [0.1 + 0.01 * number for number in range(12)])
    meter, job = backends("meter", parallel=parallel, network=parallel), Job()

    def stop(song: SongToLabel) -> None:
        if song.path.name == "song004.wav":
            job.request_stop()

    meter.before = stop
    report = label(folder, settings(caption_by="meter", parallel_requests=2), job)
    assert report.stopped and 4 <= report.labelled <= 6 and report.usage["tokens"] == 10 * report.asked
    rest = label(folder, settings(caption_by="meter"))
    assert rest.asked == 12 - report.labelled and not rest.stopped
    assert all(song.caption for song in scan_folder(folder).songs)


def test_a_stop_cuts_a_wait_short(songs: Path, backends: Callable[..., Meter]) -> None:
    meter, job = backends("meter"), Job()

    def busy(song: SongToLabel) -> None:
        job.request_stop()
        raise TryAgain("busy", after_s=600)

    meter.before = busy
    assert label(songs, settings(caption_by="meter"), job).stopped


def test_labels_go_into_a_dataset_file_and_come_back(
    songs: Path, tmp_path: Path, backends: Callable[..., Meter]
) -> None:
    backends("meter")
    file = tmp_path / "set.json"
    dataset = scan_folder(songs)
    save_dataset(dataset, file)
    label_dataset(dataset, everything("meter"), {}, file=file)
    assert not list(songs.glob("*.json"))
    again = load_dataset(file)
    assert [song.caption for song in again.songs] == ["peaks at 0.2", "peaks at 0.4", "peaks at 0.8"]
    assert again.songs[2].timed_lyrics == TIMED and again.songs[2].sources["lyrics"] == "meter"
    assert not plan_steps(again.songs, everything("meter")), "what it could not tell is remembered too"


def test_voices(songs: Path, backends: Callable[..., Meter]) -> None:
    meter = backends("meter")
    dataset = scan_folder(songs)
    dataset.songs[0].edit(is_instrumental=False)
    report = label_dataset(dataset, settings(lyrics_by="meter", language="de"), {})
    first, second, third = scan_folder(songs).songs
    assert (first.is_instrumental, first.lyrics) == (False, "")
    assert "No voice was heard" in report.problems[0].message
    assert second.is_instrumental and (third.language, third.lyrics) == ("de", LYRICS)
    asked = len(meter.asked)
    label(songs, settings(lyrics_by="meter", instrumental="yes", fill="all"))
    assert len(meter.asked) == asked
    assert {(song.is_instrumental, song.lyrics) for song in scan_folder(songs).songs} == {(True, INSTRUMENTAL)}


def test_a_voice_that_a_file_tells_of_is_not_denied_by_a_backend(songs: Path, backends: Callable[..., Meter]) -> None:
    backends("meter")
    for stem in ("song000", "song002"):
        (songs / f"{stem}.json").write_text('{"is_instrumental": false}', encoding="utf-8")
    report = label(songs, settings(lyrics_by="meter"))
    assert "No voice was heard" in report.problems[0].message
    quiet, _, loud = scan_folder(songs).songs
    assert (quiet.is_instrumental, quiet.lyrics, notes(songs)["is_instrumental"]) == (False, "", False)
    assert (loud.is_instrumental, loud.lyrics) == (False, LYRICS)
    assert loud.sources["is_instrumental"] == "song002.json"


def test_what_is_written_into_a_sidecar_while_the_batch_runs_stays(songs: Path, backends: Callable[..., Meter]) -> None:
    meter = backends("meter")
    label(songs, settings(caption_by="meter"))

    def somebody_types(song: SongToLabel) -> None:
        content = json.loads(song.path.with_suffix(".json").read_text(encoding="utf-8"))
        if song.path.name == "song000.wav":
            other = scan_folder(songs)
            History(other).apply(set_labels([other.songs[0]], caption="typed in another window"))
        elif song.path.name == "song001.wav":
            content |= {"caption": "by a text editor", "keyscale": "H sharp"}
            song.path.with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")

    meter.before = somebody_types
    report = label(songs, everything("meter", fill="machine"))
    first, second, third = scan_folder(songs).songs
    assert [song.caption for song in (first, second, third)] == [
        "typed in another window", "by a text editor", "peaks at 0.8",
    ]  # fmt: skip
    assert (first.bpm, second.keyscale) == (80, "A minor"), "the rest is written, and what says nothing is replaced"
    assert [told.song for told in report.told if told.field == "caption"] == ["song002.wav"]
    assert [problem.subject for problem in report.problems if "meanwhile" in problem.message] == [
        "song000.wav", "song001.wav",
    ]  # fmt: skip


def test_a_damaged_sidecar_is_trouble_with_its_song_alone(songs: Path, backends: Callable[..., Meter]) -> None:
    meter = backends("meter")
    (songs / "song000.json").write_text("{", encoding="utf-8")

    def damage(song: SongToLabel) -> None:
        (songs / "song001.json").write_text("[", encoding="utf-8")

    meter.before = damage
    report = label(songs, settings(caption_by="meter"))
    assert [name for name, _ in meter.asked] == ["song001.wav", "song002.wav"], "the first has no place for labels"
    assert [problem.subject for problem in report.problems] == ["song000.wav", "song001.wav"]
    assert report.failed == 2 and [path.read_text() for path in sorted(songs.glob("*.json"))[:2]] == ["{", "["]
    assert scan_folder(songs).songs[2].caption == "peaks at 0.8"


@pytest.fixture
def eight(tmp_path: Path) -> Path:
    return write_songs(tmp_path / "eight", [0.1 + 0.05 * number for number in range(8)])


def refuse_to_write(monkeypatch: pytest.MonkeyPatch, code: int, refused: Callable[[str], bool]) -> None:
    """The system refuses to write song.json of some songs; root, who may run the tests, ignores permissions."""
    replace = Path.replace

    def refusing(self: Path, target: Path) -> Path:
        if Path(target).suffix == ".json" and refused(Path(target).stem):
            raise OSError(code, "refused", str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refusing)


def four_together(backends: Callable[..., Meter], also: Callable[[SongToLabel], None] = lambda song: None) -> Meter:
    """A service whose first four requests end only when all four are under way."""
    service = backends("service", parallel=True, network=True, hears=None, origin="service")
    meeting = threading.Barrier(4)

    def meet(song: SongToLabel) -> None:
        also(song)
        if len(service.asked) <= 4:
            meeting.wait(timeout=20)

    service.before = meet
    return service


FOUR_AT_ONCE = settings(caption_by="service", parallel_requests=4)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_sidecar_that_cannot_be_written_is_trouble_with_its_song_alone(
    eight: Path, backends: Callable[..., Meter], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    four_together(backends)
    tagger = backends("tagger", gives=frozenset({"bpm"}), origin="analysis")
    refuse_to_write(monkeypatch, code, lambda stem: stem == "song003")
    report = label(eight, FOUR_AT_ONCE)
    assert (report.asked, report.labelled, report.failed) == (8, 7, 1)
    assert "song003.wav" not in {told.song for told in report.told} and report.usage["tokens"] == 80
    (problem,) = report.problems
    assert problem.subject == "song003.wav" and "cannot be written" in problem.message
    assert [song.relative for song in scan_folder(eight).songs if not song.caption] == ["song003.wav"]
    assert not list(eight.glob(".*"))
    chosen = settings(caption_by="service", metadata_by="tagger", fill="all", parallel_requests=4)
    report = label(eight, chosen)
    assert (len(tagger.asked), report.asked, len(report.problems)) == (8, 15, 1), "the next backend is not asked of it"


def test_a_sidecar_that_becomes_a_folder_while_songs_are_under_way_is_trouble_with_its_song_alone(
    eight: Path, backends: Callable[..., Meter]
) -> None:
    def block(song: SongToLabel) -> None:
        if song.path.name == "song000.wav":
            song.path.with_suffix(".json").mkdir()

    four_together(backends, block)
    report = label(eight, FOUR_AT_ONCE)
    assert (report.asked, report.labelled) == (8, 7)
    (problem,) = report.problems
    assert problem.subject == "song000.wav" and "song000.json" in problem.message and "--save" in problem.message


def test_a_full_disk_ends_the_batch_and_no_further_song_is_paid_for(
    eight: Path, backends: Callable[..., Meter], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, first = four_together(backends), iter([True])
    refuse_to_write(monkeypatch, errno.ENOSPC, lambda stem: stem.startswith("song") and next(first, False))
    report = LabelReport()
    with pytest.raises(UserError, match="disk is full"):
        label(eight, FOUR_AT_ONCE, report=report)
    assert len(service.asked) == report.asked == 4
    kept = {song.relative for song in scan_folder(eight).songs if song.caption}
    assert len(kept) == 3 and kept == {told.song for told in report.told}, "they were under way"


@pytest.mark.parametrize("parallel", [False, True])
def test_places_that_refuse_one_after_the_other_end_the_batch(
    tmp_path: Path, backends: Callable[..., Meter], monkeypatch: pytest.MonkeyPatch, parallel: bool
) -> None:
    folder = write_songs(tmp_path / "many", [0.1 + 0.01 * number for number in range(20)])
    meter, report = backends("meter", parallel=parallel, network=parallel), LabelReport()
    refuse_to_write(monkeypatch, errno.EACCES, lambda stem: True)
    with pytest.raises(UserError, match=r"5 songs in a row could not be kept.*Save the dataset file"):
        label(folder, settings(caption_by="meter", parallel_requests=2), report=report)
    assert 5 <= len(meter.asked) <= 7 and len(report.problems) == report.asked and not report.told


def test_a_dataset_file_that_cannot_be_written_ends_the_batch(
    eight: Path, tmp_path: Path, backends: Callable[..., Meter]
) -> None:
    four_together(backends)
    dataset, file, report = scan_folder(eight), tmp_path / "set.json", LabelReport()
    file.mkdir()
    job = Job(clock=iter(range(0, 10_000, 60)).__next__)
    with pytest.raises(UserError, match=r"set\.json"):
        label_dataset(dataset, FOUR_AT_ONCE, {}, job, file=file, report=report)
    assert report.asked == 4 and not report.problems, "no single song is to blame"
    assert sum(bool(song.caption) for song in dataset.songs) == 4, "what was paid for can be saved elsewhere"


@pytest.mark.parametrize("damaged", ["broken", "refused"])
def test_a_song_that_cannot_be_marked_instrumental_does_not_stop_the_others(
    eight: Path, backends: Callable[..., Meter], monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    meter = backends("meter")
    if damaged == "broken":
        (eight / "song000.json").write_text("{", encoding="utf-8")
    else:
        refuse_to_write(monkeypatch, errno.EACCES, lambda stem: stem == "song000")
    report = label(eight, settings(caption_by="meter", instrumental="yes"))
    (problem,) = report.problems
    assert problem.subject == "song000.wav" and "song000.json" in problem.message
    assert report.labelled == 7 and "song000.wav" not in [name for name, _ in meter.asked]
    assert all(notes(eight, f"song{number:03d}")["is_instrumental"] for number in range(1, 8))


def test_answers_under_way_at_the_last_failure_in_a_row_are_kept(
    tmp_path: Path, backends: Callable[..., Meter]
) -> None:
    folder = write_songs(tmp_path / "many", [0.1 + 0.01 * number for number in range(20)])
    service = backends("service", parallel=True, network=True, hears=None, origin="service")
    five_failed = threading.Event()

    def slow_or_down(song: SongToLabel) -> None:
        if song.path.name in ("song000.wav", "song001.wav"):
            assert five_failed.wait(timeout=20)
            return
        raise TryAgain("No connection.")

    @contextmanager
    def changing(song: Song) -> Iterator[None]:
        try:
            yield
        except UserError:
            five_failed.set()  # what is under way ends only after the end of the batch is known
            raise

    service.before = slow_or_down
    chosen = settings(caption_by="service", parallel_requests=4, retries=0)
    with pytest.raises(BackendUnusable, match="5 songs in a row: No connection"):
        label(folder, chosen, changing=changing)
    captions = {song.relative: song.caption for song in scan_folder(folder).songs if song.caption}
    assert captions == {"song000.wav": "peaks at 0.1", "song001.wav": "peaks at 0.1"}
    assert len(service.asked) <= 2 + 5 + 3, "nothing new was asked"


def test_the_language_is_said_in_any_spelling_or_refused(songs: Path, backends: Callable[..., Meter]) -> None:
    meter, heard = backends("meter"), []
    meter.before = lambda song: heard.append(song.language)
    with pytest.raises(UserError, match="Klingon"):
        label(songs, settings(lyrics_by="meter", language="Klingon"))
    assert not meter.opened
    label(songs, settings(lyrics_by="meter", language="German"))
    assert heard == ["de"] * 3 and scan_folder(songs).songs[2].language == "de"


def test_what_cannot_be_done_is_said_before_anything_is_loaded(songs: Path, backends: Callable[..., Meter]) -> None:
    meter = backends("meter", gives=frozenset({"caption"}))
    for wrong in (settings(metadata_by="meter"), settings(caption_by="metre")):
        with pytest.raises(UserError):
            label(songs, wrong)
    with pytest.raises(UserError, match="not in the dataset"):
        label(songs, settings(caption_by="meter"), songs=["0" * 16])
    assert not meter.opened
    (songs / "song000.flac").write_bytes(b"")
    soundfile.write(songs / "song000.flac", 0.3 * np.ones(16_000), 8000)
    report = label(songs, settings(caption_by="meter"))
    assert "would share song000.json" in report.problems[0].message and len(meter.asked) == 2
    opened = meter.opened
    label(songs, settings(caption_by="meter"), songs=[song.id for song in scan_folder(songs).songs[:1]])
    assert meter.opened == opened, "nothing is loaded where no song has a place for its labels"


def test_only_the_songs_asked_for(songs: Path, backends: Callable[..., Meter]) -> None:
    backends("meter")
    dataset: Dataset = scan_folder(songs)
    report = label_dataset(dataset, settings(caption_by="meter"), {}, songs=[dataset.songs[1].id])
    assert [told.song for told in report.told] == ["song001.wav"]

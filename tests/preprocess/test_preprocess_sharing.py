"""Several processes encode what one does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
from preprocess_songs import SETTINGS, content, write_song

from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job
from acestep.dataset.scan import scan_folder
from acestep.preprocess import sharing
from acestep.preprocess.store import TensorStore

Encode = Callable[..., object]


def test_two_processes_write_the_bytes_of_one(
    songs: Path, encoded: Path, encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a song that breaks after the scan and with audio that two songs share, stopped once on the way.

    `tests/ui/test_preprocess_tab.py` has new interpreters encode.
    """
    import multiprocessing

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sharing, "multiprocessing", SimpleNamespace(get_context=lambda kind: forked.context()))
    (songs / "copy.wav").write_bytes((songs / "one.wav").read_bytes())
    (songs / "copy.json").write_text('{"caption": "the same waltz"}', encoding="utf-8")
    write_song(songs, "broken", 550, 1.1, caption="a flute")
    dataset = scan_folder(songs, SETTINGS)
    (songs / "broken.wav").write_text("no audio", encoding="utf-8")
    one, two = tmp_path / "one", tmp_path / "two"
    alone = encode(dataset, one)

    def stop_at_once(kind: str, what: object) -> None:
        if kind == "progress" and what.name == "encode songs":
            job.request_stop()

    job = Job(stop_at_once)
    with pytest.raises(Stopped):
        encode(dataset, two, job=job, devices=2)
    kept = TensorStore.open(two)
    assert kept.info.unfinished == len(dataset.songs) - len(kept.songs) - any_failed(job)
    finished = len(list((two / "latents").glob("*.safetensors")))
    warnings: list[object] = []
    listener = Job(lambda kind, what: kind == "warn" and warnings.append(what))
    shared = encode(dataset, two, job=listener, devices=2)
    assert content(two) == content(one)
    assert shared.problems == alone.problems and shared.failed == alone.failed == 1
    assert len(warnings) == 1 and "broken.wav" in str(warnings[0])
    assert (alone.latents_encoded, shared.latents_encoded) == (3, 3 - finished)
    assert not multiprocessing.active_children()


def any_failed(job: Job) -> int:
    return len([text for text in job.warnings if "broken.wav" in text])


def test_a_killed_process_is_told_and_what_is_done_is_kept(
    songs: Path, encoded: Path, encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import multiprocessing

    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def kill(kind: str, what: object) -> None:
        if kind == "start" and what.name == "encode songs":
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with pytest.raises(UserError, match="ended from outside"):
        encode(songs, tmp_path / "out", job=Job(kill), devices=2)
    encode(songs, tmp_path / "out", two_pass=True)
    assert content(tmp_path / "out") == content(encoded)


def test_reports_come_through_the_pipes_of_windows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a pipe's end is a PipeConnection, which is no Connection."""

    class PipeConnection:
        reports = [("progress", "one.wav"), ("warn", "two.wav: cut"), ("trouble", UserError("no room"))]  # noqa: RUF012

        def recv(self) -> tuple[str, object]:
            if not self.reports:
                raise EOFError
            return self.reports.pop(0)

    monkeypatch.setattr(sharing, "wait", lambda connections, seconds: connections)
    process, stop = SimpleNamespace(join=lambda: None, exitcode=0), threading.Event()
    job = Job()
    with job.stage("encode songs", 1, "songs") as stage:
        trouble = sharing._listen(SimpleNamespace(job=job), {PipeConnection(): process}, stop, stage)  # type: ignore[dict-item, arg-type]
    assert str(trouble) == "no room" and stop.is_set()
    assert (stage.done, job.warnings) == (1, ["two.wav: cut"])

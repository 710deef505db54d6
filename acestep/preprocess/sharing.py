"""Several processes encoding one dataset, each on a device of its own.

Songs are dealt out once; every process writes finished tensors under their keys, as a single one does, and reports to
the process that started it, which alone writes the index. So a stop or a crash costs at most the songs in work.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, cast

from acestep.core.device import DeviceChoice
from acestep.core.errors import Stopped, UserError
from acestep.core.jobs import Job, Stage
from acestep.preprocess.plan import Plan, PlannedSong
from acestep.preprocess.work import Work

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from acestep.model.checkpoints import Checkpoint
    from acestep.settings.preprocess import PreprocessSettings

LOOK_EVERY_S = 0.2
"""Seconds between looks at whether the user asked to stop."""
COUNTS = ("latents_encoded", "conditions_encoded", "encoded_samples")


class SharedWork(Work):
    """The part of one process. The index is not its business."""

    def _save_index_now_and_then(self) -> None:
        pass


@dataclass(frozen=True)
class Part:
    """What one process needs to know."""

    plan: Plan
    checkpoint: Checkpoint
    settings: PreprocessSettings
    card: str | None
    threads: int


def encode_shared(work: Work) -> None:
    """Encode what the plan lacks with one process a device; `work` is afterwards as if one process had done it.

    Raises what the first process in trouble raised, or Stopped; all others then end after their present song.
    """
    import torch

    songs, settings, plan = work.plan.to_encode, work.settings, work.plan
    choice = work._choose_device()
    cards = _cards(choice, settings.devices)
    shares = deal(songs, settings.devices)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    threads = max(1, torch.get_num_threads() // len(shares))
    processes: dict[Connection, SpawnProcess] = {}
    for number, share in enumerate(shares):
        part = Part(Plan(plan.folder, plan.info, share), work.checkpoint, settings, cards[number], threads)
        ours, theirs = context.Pipe()
        process = context.Process(target=encode_part, args=(part, theirs, stop), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is the end of the connection
        processes[ours] = process
    work.job.say(f"Encoding with {len(shares)} processes on {choice}.")
    passes = 2 if settings.two_pass else 1
    with work.job.stage("encode songs", passes * len(songs), "songs" if passes == 1 else "passes over songs") as stage:
        trouble = _listen(work, processes, stop, stage)
    order = {planned.title: number for number, planned in enumerate(plan.songs)}
    work.problems.sort(key=lambda problem: order[problem.subject])
    if trouble:
        work.save_index_so_far()
        raise trouble
    if plan.to_encode:
        work.job.check_stop()


def deal(songs: Sequence[PlannedSong], count: int) -> list[list[PlannedSong]]:
    """Shares of about the same length in seconds; songs with the same audio stay together. None is empty."""
    same_audio: dict[str, list[PlannedSong]] = {}
    for planned in songs:
        same_audio.setdefault(planned.latents_key, []).append(planned)
    shares: list[list[PlannedSong]] = [[] for _ in range(count)]
    seconds = [0.0] * count
    for group in sorted(same_audio.values(), key=lambda group: -group[0].song.duration_s):
        least = seconds.index(min(seconds))
        shares[least] += group
        seconds[least] += max(group[0].song.duration_s, 1.0)
    return [share for share in shares if share]


def _cards(choice: DeviceChoice, count: int) -> list[str | None]:
    """What each process is to see as CUDA_VISIBLE_DEVICES; None on a processor."""
    import torch

    if choice.device == "cpu":
        return [None] * count
    if choice.device != "cuda":
        raise UserError(f"Several devices work with cuda and cpu, not {choice.device}.", fix='Set "devices" to 1.')
    if count > torch.cuda.device_count():
        raise UserError(
            f"{count} devices were asked for, this machine has {torch.cuda.device_count()}.", fix='Lower "devices".'
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return list(visible.split(",") if visible else map(str, range(count)))


def _listen(work: Work, processes: dict[Connection, SpawnProcess], stop: Any, stage: Stage) -> Exception | None:
    """Take the reports of all processes until they have ended; returns the first trouble."""
    trouble: Exception | None = None
    while processes:
        for connection in cast("list[Connection]", wait(list(processes), LOOK_EVERY_S)):  # on Windows of another class
            try:
                kind, value = connection.recv()
            except EOFError:
                process = processes.pop(connection)
                process.join()
                if process.exitcode and trouble is None:
                    trouble = UserError(
                        f"A process of preprocessing was ended from outside (exit code {process.exitcode}); finished "
                        "songs are kept.",
                        fix="Run the same command again; with fewer devices if memory ran out.",
                    )
                continue
            if kind == "progress":
                stage.advance(note=value)
            elif kind == "warn":
                work.job.warn(value)
            elif kind == "part":
                _add(work, value)
            elif trouble is None:
                trouble = value
        if work.job.stop_requested or trouble:
            stop.set()
    return trouble


def _add(work: Work, part: dict[str, Any]) -> None:
    """Take over what one process has done."""
    done = {planned.title: planned for planned in part["plan"].songs}
    work.plan.songs = [done.get(planned.title, planned) for planned in work.plan.songs]
    work.problems += part["problems"]
    work.device = part["device"]
    for name in COUNTS:
        setattr(work, name, getattr(work, name) + part[name])
    for phase, seconds in part["seconds"].items():
        work.seconds[phase] = work.seconds.get(phase, 0.0) + seconds


def encode_part(part: Part, connection: Connection, stop: Any) -> None:
    """What each process runs. Where the one that started it is gone, its connection breaks and it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one passes it on as a stop
    if part.card is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = part.card
    import torch

    torch.set_num_threads(part.threads)

    def listen(kind: str, what: Stage | str) -> None:
        if stop.is_set():
            job.request_stop()
        if kind == "progress" and isinstance(what, Stage):
            connection.send(("progress", what.note))
        elif kind == "warn":
            connection.send(("warn", what))

    job = Job(listen)
    work = SharedWork(part.plan, part.checkpoint, part.settings, job)
    try:
        work.encode()
    except Stopped:
        pass
    except UserError as error:
        connection.send(("trouble", UserError(error.message, fix=error.fix, detail=error.detail)))
    except Exception:  # noqa: BLE001 - told to the user by the first process, with its traceback
        connection.send(("trouble", RuntimeError(f"A process of preprocessing failed:\n{traceback.format_exc()}")))
    connection.send(
        ("part", {name: getattr(work, name) for name in (*COUNTS, "plan", "problems", "seconds", "device")})
    )
    connection.close()

"""Several programs that begin and end together, on every system, whatever ends first and however.

Each program reads the standard input that its starter holds open. It ends when that closes, which it also does when
the starter is killed: no program is left behind, and each may first bring its work to a safe point.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType

_HELD_VARIABLE = "ACESTEP_ENDS_WITH_STARTER"
_LOOK_EVERY_S = 0.2
_GRACE_S = 150.0
"""Seconds a program has for its end before it is cut off; saving the work of a long run may take a while."""


def run_together(
    commands: Sequence[Sequence[str]], environment: Mapping[str, str] | None = None, grace_s: float = _GRACE_S
) -> int:
    """Run programs beside each other until one ends or this one is to end (Ctrl-C, SIGTERM); then end them all.

    They write where this program writes. Returns 0 when the user ended them, else the exit code of the program that
    ended first (1 where it was killed).
    """
    ended = threading.Event()
    children: list[subprocess.Popen[bytes]] = []
    with _told_to_end(ended):
        try:
            for command in commands:
                surroundings = {**os.environ, **(environment or {}), _HELD_VARIABLE: "1"}
                children.append(subprocess.Popen(command, stdin=subprocess.PIPE, env=surroundings))
            while not ended.wait(_LOOK_EVERY_S):
                codes = [child.poll() for child in children]
                if first := [code for code in codes if code is not None]:
                    return max(first[0], 0) or int(first[0] < 0)
        finally:
            for child in children:
                assert child.stdin is not None
                child.stdin.close()
            for child in children:
                try:
                    child.wait(grace_s)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
    return 0


@contextlib.contextmanager
def _told_to_end(ended: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `ended`, instead of ending this program in the middle."""

    def note(number: int, frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def when_the_starter_ends(end: Callable[[], object]) -> None:
    """Call `end` once, when `run_together` started this program and ends it or is gone; else do nothing."""
    if os.environ.pop(_HELD_VARIABLE, None) is None:  # taken away: programs started from here have a life of their own
        return
    descriptor = sys.stdin.fileno()

    def wait() -> None:
        while os.read(descriptor, 1024):
            pass
        end()

    threading.Thread(target=wait, name="starter", daemon=True).start()


def end_with_parent() -> None:
    """End this process at once when the one that started it is gone.

    For helpers that wait for each other on graphics cards: NCCL may not notice for hours that a process has ended.
    """
    import psutil

    parent, never = psutil.Process(os.getppid()), threading.Event()

    def is_gone() -> bool:
        try:
            return not parent.is_running() or parent.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def wait() -> None:
        while not is_gone():
            never.wait(_LOOK_EVERY_S)
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()

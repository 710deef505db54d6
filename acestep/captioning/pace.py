"""How fast services are asked: so many requests a minute, and later again after trouble that may pass."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from acestep.captioning.contract import Answer, TryAgain
from acestep.core.errors import UserError
from acestep.core.jobs import Job
from acestep.settings.caption import CaptionSettings

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
MOST_ASKED_FOR_S = 900.0
"""A service that wants to be left alone for longer than this is not waited for."""


class Pace:
    """Turns for requests, shared by the threads of a batch. All wait while a service asks to be left alone."""

    def __init__(self, settings: CaptionSettings, job: Job) -> None:
        self._settings = settings
        self._job = job
        self._lock = threading.Lock()
        self._next_turn = job.clock()
        self._apart_s = 60.0 / settings.requests_per_minute if settings.requests_per_minute else 0.0

    def ask(self, request: Callable[[], Answer], subject: str, counts: bool = True) -> Answer:
        """The answer to a request, tried again after TryAgain as often as the settings allow.

        Waits twice as long each time, up to a fifth longer at random (a function of the seed, the subject and the
        try), or as long as the service says. Requests that do not count, since they leave nobody's machine, need no
        turn. Raises what the last try raised, Stopped when the job is to stop.
        """
        for attempt in range(self._settings.retries + 1):
            self._pause(self._until_turn_s() if counts else 0.0)
            try:
                return request()
            except TryAgain as trouble:
                if attempt == self._settings.retries or (trouble.after_s or 0.0) > MOST_ASKED_FOR_S:
                    raise
                jitter = 1 + 0.2 * random.Random(f"{self._settings.seed}/{subject}/{attempt}").random()
                wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**attempt)
                if trouble.after_s is not None:
                    wait_s = max(0.0, trouble.after_s)
                    self._hold(wait_s)
                self._pause(wait_s * jitter)
        raise UserError(f"{subject} was not asked about.")  # never reached: the last try returns or raises

    def _until_turn_s(self) -> float:
        with self._lock:
            now = self._job.clock()
            turn = max(now, self._next_turn)
            self._next_turn = turn + self._apart_s
        return turn - now

    def _hold(self, seconds: float) -> None:
        with self._lock:
            self._next_turn = max(self._next_turn, self._job.clock() + seconds)

    def _pause(self, seconds: float) -> None:
        self._job.check_stop()
        if seconds > 0:
            self._job.wait(seconds)
            self._job.check_stop()

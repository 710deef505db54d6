"""What the graphics card is doing: memory, load, temperature, other programs on it; and a watch over a long job.

Readings come from NVIDIA's management library (nvidia-ml-py). Where it cannot be asked, torch's own counters tell the
memory, and where there is no card there is no reading.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from acestep.core.jobs import Job

ALERT_SHARE = 0.92
"""Above this share of the card's memory the next allocation may fail."""
REARM_SHARE = 0.9
"""An alert is given again only after the use fell below this share of the alert's threshold."""
SAMPLE_EVERY_S = 10.0
NO_GPU = "No graphics card is found."
_GIB = 1 << 30
_MIB = 1 << 20


@dataclass(frozen=True)
class GpuProcess:
    """Another program that computes on the card. `used_mb` is None where the driver does not tell."""

    pid: int
    name: str
    used_mb: int | None

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid}{'' if self.used_mb is None else f', {self.used_mb} MB'})"


@dataclass(frozen=True)
class GpuReading:
    """One look at the card. Memory in bytes, load in percent, temperature in °C; None where nothing tells it."""

    name: str
    used_bytes: int
    total_bytes: int
    load_percent: int | None = None
    temperature_c: int | None = None
    processes: tuple[GpuProcess, ...] = ()

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.used_bytes

    @property
    def used_share(self) -> float:
        return self.used_bytes / self.total_bytes if self.total_bytes else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "free_bytes": self.free_bytes}

    def __str__(self) -> str:
        parts = [
            f"{self.name}: {self.used_bytes / _GIB:.1f} of {self.total_bytes / _GIB:.1f} GiB used, "
            f"{self.free_bytes / _GIB:.1f} GiB free",
            *([] if self.load_percent is None else [f"load {self.load_percent} %"]),
            *([] if self.temperature_c is None else [f"{self.temperature_c} °C"]),
        ]
        return ", ".join(parts) + self.others()

    def others(self) -> str:
        """The other programs as a sentence with a blank before it, or nothing."""
        if not self.processes:
            return ""
        return f". Also on it: {', '.join(str(process) for process in self.processes)}"


def read_gpu(library: Any = None) -> GpuReading | None:
    """A reading of the first card that this process may use, or None where there is none.

    `library` has the interface of the module pynvml; unset takes that module.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first in ("", "-1"):  # NVIDIA's cards are hidden from this process
        return _by_torch()
    if library is None:
        try:
            import pynvml
        except ImportError:
            return _by_torch()
        library = pynvml
    try:
        library.nvmlInit()
        try:
            return _by_library(library, _handle(library, first))
        finally:
            library.nvmlShutdown()
    except library.NVMLError:  # no driver, no card, or one that does not answer
        return _by_torch()


def _by_library(library: Any, handle: Any) -> GpuReading:
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    return GpuReading(
        name=_text(library.nvmlDeviceGetName(handle)),
        used_bytes=int(memory.total - memory.free),  # with what the driver keeps for itself
        total_bytes=int(memory.total),
        load_percent=_asked(library, lambda: int(library.nvmlDeviceGetUtilizationRates(handle).gpu)),
        temperature_c=_asked(
            library, lambda: int(library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU))
        ),
        processes=_asked(library, lambda: _other_processes(library, handle)) or (),
    )


def _handle(library: Any, first: str) -> Any:
    """The card that CUDA counts first of those in CUDA_VISIBLE_DEVICES, the first of which is given.

    CUDA counts from the fastest card on, and the library by their places: its index may be that of another card. What
    torch computes on is known by its id. While nothing has needed torch, the index has to do.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and not first.startswith("MIG-"):
        return library.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    if first.startswith(("GPU-", "MIG-")):
        return library.nvmlDeviceGetHandleByUUID(first)
    return library.nvmlDeviceGetHandleByIndex(int(first) if first.isdigit() else 0)


def _asked(library: Any, question: Callable[[], Any]) -> Any:
    """The answer, or None where this card has none."""
    try:
        return question()
    except library.NVMLError:
        return None


def _other_processes(library: Any, handle: Any) -> tuple[GpuProcess, ...]:
    running = library.nvmlDeviceGetComputeRunningProcesses(handle)
    return tuple(
        GpuProcess(
            pid=int(item.pid),
            name=_program(item.pid),
            used_mb=None if item.usedGpuMemory is None else int(item.usedGpuMemory) // _MIB,
        )
        for item in running
        if item.pid != os.getpid()
    )


def _program(pid: int) -> str:
    import psutil

    try:
        return psutil.Process(pid).name()
    except psutil.Error:  # it ended, or belongs to somebody else
        return "a program"


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _by_torch() -> GpuReading | None:
    """Name and memory by torch's counters, for cards that NVIDIA's library does not know."""
    torch = sys.modules.get("torch")  # not imported for this: it takes seconds, and who computes has it
    if torch is None:
        return None
    for kind in ("cuda", "xpu"):
        device = getattr(torch, kind, None)
        if device is not None and device.is_available():
            free, total = device.mem_get_info()
            return GpuReading(device.get_device_name(), total - free, total)
    return None


def describe_gpu(reading: GpuReading | None) -> str:
    """A reading as a sentence, or that there is no card."""
    return NO_GPU if reading is None else f"{reading}."


# a watch over a job -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GpuSummary:
    """What a watch saw: the most and the mean memory used, in bytes, and how often it gave an alert."""

    samples: int
    peak_bytes: int
    mean_bytes: int
    total_bytes: int
    hottest_c: int | None
    alerts: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        heat = "" if self.hottest_c is None else f", at most {self.hottest_c} °C"
        return (
            f"Graphics card: at most {self.peak_bytes / _GIB:.1f}, on average {self.mean_bytes / _GIB:.1f} "
            f"of {self.total_bytes / _GIB:.1f} GiB used{heat}."
        )


class GpuMonitor:
    """A thread that reads the card every `every_s` seconds, calls `alert` when memory runs short, and sums up.

    `wait` pauses for so many seconds and says whether to end; the monitor's own ends at once when it is stopped.
    The watch ends by itself where there is no card. It keeps sums only, however long it lasts.
    """

    def __init__(
        self,
        alert: Callable[[str], None],
        read: Callable[[], GpuReading | None] = read_gpu,
        every_s: float = SAMPLE_EVERY_S,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self.last: GpuReading | None = None
        self._alert = alert
        self._read = read
        self._every_s = every_s
        self._ended = threading.Event()
        self._wait = wait or self._ended.wait
        self._armed = True
        self._samples = self._sum = self._peak = self._alerts = 0
        self._hottest: int | None = None
        self._thread = threading.Thread(target=self._watch, name="gpu-monitor", daemon=True)

    def __enter__(self) -> GpuMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> GpuSummary | None:
        """End the watch and sum up; None where nothing was read. May be called again."""
        self._ended.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        return self.summary()

    def summary(self) -> GpuSummary | None:
        """What was seen so far."""
        if self.last is None:
            return None
        mean = self._sum // self._samples
        return GpuSummary(self._samples, self._peak, mean, self.last.total_bytes, self._hottest, self._alerts)

    def note(self, reading: GpuReading) -> None:
        """Take one reading into account; gives the alert when it is the first above the threshold."""
        self.last = reading
        self._samples += 1
        self._sum += reading.used_bytes
        self._peak = max(self._peak, reading.used_bytes)
        if reading.temperature_c is not None:
            known = reading.temperature_c if self._hottest is None else self._hottest
            self._hottest = max(reading.temperature_c, known)
        if self._armed and reading.used_share > ALERT_SHARE:
            self._armed = False
            self._alerts += 1
            self._alert(
                f"The graphics card's memory is {100 * reading.used_share:.0f} % full "
                f"({reading.free_bytes / _GIB:.1f} GiB free){reading.others()}."
            )
        elif reading.used_share < REARM_SHARE * ALERT_SHARE:
            self._armed = True

    def _watch(self) -> None:
        while not self._ended.is_set():
            reading = self._read()
            if reading is None:
                return
            self.note(reading)
            if self._wait(self._every_s):
                return


@contextmanager
def watched_gpu(job: Job, read: Callable[[], GpuReading | None] = read_gpu) -> Iterator[GpuMonitor]:
    """Watch the card while a job goes on: alerts are the job's warnings, and it says the summary at the end."""
    monitor = GpuMonitor(job.warn, read)
    try:
        with monitor:
            yield monitor
    finally:
        summary = monitor.summary()
        if summary is not None:
            job.say(str(summary))

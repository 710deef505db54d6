"""Readings of the graphics card through a library made by hand, and the watch over a job."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acestep.core import gpu, health
from acestep.core.gpu import (
    NO_GPU,
    GpuMonitor,
    GpuProcess,
    GpuReading,
    describe_gpu,
    read_gpu,
    watched_gpu,
)
from acestep.core.jobs import Job

GIB = 1 << 30


def reading(used: int, temperature: int | None = None, processes: tuple[GpuProcess, ...] = ()) -> GpuReading:
    return GpuReading("Some Card", used, 100, 50, temperature, processes)


class Library:
    """The part of the interface of pynvml that is used, with one or several cards."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, broken: tuple[str, ...] = (), processes: tuple[object, ...] = ()) -> None:
        self.broken, self.processes, self.open = broken, processes, 0

    def _fail(self, name: str) -> None:
        if name in self.broken:
            raise self.NVMLError(name)

    def nvmlInit(self) -> None:
        self._fail("init")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self._fail("handle")
        return f"card {index}"

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        return f"card {name}"

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        return handle.encode()

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> object:
        return SimpleNamespace(total=24 * GIB, free=18 * GIB, used=5 * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> object:
        self._fail("load")
        return SimpleNamespace(gpu=37, memory=5)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        self._fail("temperature")
        return 61

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> tuple[object, ...]:
        self._fail("processes")
        return self.processes


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)


def test_a_reading_names_memory_load_heat_and_other_programs(monkeypatch: pytest.MonkeyPatch, no_card: None) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        running = (
            SimpleNamespace(pid=os.getpid(), usedGpuMemory=5 << 20),
            SimpleNamespace(pid=child.pid, usedGpuMemory=700 << 20),
            SimpleNamespace(pid=2**22 + 5, usedGpuMemory=None),
        )
        library = Library(processes=running)
        found = read_gpu(library)
        child.communicate(b"\n")
    assert found is not None and library.open == 0
    assert (found.name, found.used_bytes, found.free_bytes, found.total_bytes) == (
        "card 0",
        6 * GIB,
        18 * GIB,
        24 * GIB,
    )
    assert (found.load_percent, found.temperature_c) == (37, 61)
    assert [(item.pid, item.used_mb) for item in found.processes] == [(child.pid, 700), (2**22 + 5, None)]
    assert "python" in found.processes[0].name
    assert describe_gpu(found) == (
        "card 0: 6.0 of 24.0 GiB used, 18.0 GiB free, load 37 %, 61 °C. Also on it: "
        f"{found.processes[0].name} (process {child.pid}, 700 MB), a program (process {2**22 + 5})."
    )
    assert found.to_dict()["processes"][1] == {"pid": 2**22 + 5, "name": "a program", "used_mb": None}


@pytest.mark.parametrize(
    ("visible", "name"), [("2,0", "card 2"), ("GPU-ab,1", "card GPU-ab"), ("", None), ("-1", None)]
)
def test_the_card_is_the_first_this_program_may_use(
    monkeypatch: pytest.MonkeyPatch, no_card: None, visible: str, name: str | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = read_gpu(Library())
    assert (found and found.name) == name


@pytest.mark.parametrize(
    ("visible", "name"),
    [(None, "card GPU-ab-2"), ("1,0", "card GPU-ab-2"), ("GPU-ab", "card GPU-ab-2"), ("MIG-7", "card MIG-7")],
)
def test_the_card_is_the_one_that_torch_computes_on_whichever_is_first_here(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, name: str
) -> None:
    """CUDA's first card is the fastest one, and this library's first has the lowest place."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=("ab-2", "ab-1")[index])
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = read_gpu(Library())
    assert found is not None and found.name == name


def test_what_a_card_does_not_tell_is_left_out(no_card: None) -> None:
    library = Library(broken=("load", "temperature", "processes"))
    found = read_gpu(library)
    assert found is not None and library.open == 0
    assert describe_gpu(found).endswith("6.0 of 24.0 GiB used, 18.0 GiB free.")


@pytest.mark.parametrize("broken", ["init", "handle"])
def test_without_the_driver_torch_tells_or_nothing(no_card: None, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    library = Library(broken=(broken,))
    assert read_gpu(library) is None and library.open == 0
    assert describe_gpu(None) == NO_GPU
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "mem_get_info", lambda: (3 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda: "Other Card")
    assert describe_gpu(read_gpu(library)) == "Other Card: 5.0 of 8.0 GiB used, 3.0 GiB free."


def test_the_check_of_the_installation_shows_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "read_gpu", lambda: reading(50))
    check = health.check_gpu()
    assert (check.status, check.found.split(":")[0]) == ("ok", "Some Card")
    monkeypatch.setattr(gpu, "read_gpu", lambda: None)
    assert health.check_gpu().found == NO_GPU


# the watch


def watch(readings: list[GpuReading | None]) -> tuple[GpuMonitor, list[str]]:
    """Let a monitor take these readings, one at every look, until they end."""
    alerts: list[str] = []
    waiting, last = iter(readings), threading.Event()
    left = len(readings)

    def wait(seconds: float) -> bool:
        nonlocal left
        assert seconds == 7
        left -= 1
        if not left:
            last.set()
        return not left

    with GpuMonitor(alerts.append, lambda: next(waiting), every_s=7, wait=wait) as monitor:
        if None not in readings:
            assert last.wait(10)
        else:
            monitor._thread.join(10)
    assert not monitor._thread.is_alive()
    return monitor, alerts


def test_alerts_come_once_and_again_only_after_a_real_fall() -> None:
    other = GpuProcess(7, "game", 300)
    # the threshold is 92, and it is armed again below 82.8
    levels = [50, 92, 93, 99, 83, 95, 82, 92, 94]
    monitor, alerts = watch([reading(level, processes=(other,)) for level in levels])
    assert [words.split("%")[0].split()[-1] for words in alerts] == ["93", "94"]
    assert "game (process 7, 300 MB)" in alerts[0]
    assert monitor.stop() == monitor.summary()


def test_the_summary_holds_peak_and_mean() -> None:
    monitor, _ = watch([reading(10, 40), reading(30, 70), reading(20, None)])
    summary = monitor.stop()
    assert summary is not None
    assert (summary.samples, summary.peak_bytes, summary.mean_bytes, summary.hottest_c) == (3, 30, 20, 70)
    assert "at most 70 °C" in str(summary)
    assert summary.to_dict()["alerts"] == 0


def test_the_watch_ends_by_itself_where_there_is_no_card() -> None:
    monitor, alerts = watch([None])
    assert (monitor.summary(), alerts) == (None, [])


@given(st.lists(st.integers(0, 100), min_size=1, max_size=60))
def test_every_alert_is_above_the_threshold_and_none_follows_without_a_fall(levels: list[int]) -> None:
    alerts: list[str] = []
    monitor = GpuMonitor(alerts.append, lambda: None)
    expected, armed = 0, True
    for level in levels:
        monitor.note(reading(level))
        if armed and level > 92:
            expected, armed = expected + 1, False
        armed = armed or level < 82.8
    summary = monitor.summary()
    assert summary is not None and len(alerts) == summary.alerts == expected
    assert summary.peak_bytes == max(levels) and summary.mean_bytes == sum(levels) // len(levels)


def test_a_job_hears_of_alerts_and_of_the_summary_also_when_it_fails() -> None:
    heard: list[str] = []
    seen = threading.Event()

    def listen(kind: str, what: object) -> None:
        heard.append(f"{kind}: {what}")
        seen.set()

    job = Job(listen)
    with pytest.raises(ValueError), watched_gpu(job, lambda: reading(99)) as monitor:
        assert seen.wait(10)
        raise ValueError
    assert not monitor._thread.is_alive()
    assert heard[0].startswith("warn: The graphics card's memory is 99 % full")
    assert heard[-1].startswith("say: Graphics card: at most")

"""What this computer has left: graphics memory, memory and disk, as meters that colour with their share."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from acestep.core.errors import UserError
from acestep.core.gpu import ALERT_SHARE, GpuReading, read_gpu

LOOK_AGAIN_S = 2.0
"""All open pages share one look at the machine within this time."""
FILLING_SHARE = 0.75
_GIB = 1 << 30


@dataclass(frozen=True)
class Reading:
    """One look at the machine. `device` is empty until something has needed torch."""

    gpu: GpuReading | None
    memory_used_bytes: int
    memory_total_bytes: int
    disk_used_bytes: int
    disk_total_bytes: int
    device: str


class Machine:
    """Looks at the machine, seldom enough to cost nothing. Safe to share between threads."""

    def __init__(
        self,
        folder: Path,
        read: Callable[[], GpuReading | None] = read_gpu,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._last: tuple[float, Reading] | None = None

    def look(self) -> Reading:
        """How things stand; a look of a moment ago still counts."""
        import psutil

        with self._lock:
            now = self._clock()
            if self._last is None or now - self._last[0] >= LOOK_AGAIN_S:
                memory = psutil.virtual_memory()
                place = next(path for path in (self._folder, *self._folder.parents) if path.exists())
                disk = shutil.disk_usage(place)
                reading = Reading(
                    self._read(),
                    memory.total - memory.available,
                    memory.total,
                    disk.total - disk.free,
                    disk.total,
                    device_words(),
                )
                self._last = (now, reading)
            return self._last[1]

    def sign(self) -> tuple[object, ...]:
        """Changes when the meters would be drawn otherwise."""
        reading = self.look()
        card = reading.gpu
        shown = (reading.memory_used_bytes, reading.disk_used_bytes, card.used_bytes if card else 0)
        rounded = tuple(round(used / _GIB, 1) for used in shown)
        return rounded, card and (card.name, card.load_percent, card.temperature_c, card.processes), reading.device


def device_words() -> str:
    """Device and precision and why, or nothing while torch is not imported: an idle app stays small."""
    if "torch" not in sys.modules:
        return ""
    from acestep.core.device import choose_device

    try:
        return str(choose_device())
    except UserError as error:
        return str(error)


def machine_html(reading: Reading) -> str:
    """The meters and the device."""
    card = reading.gpu
    if card is None:
        graphics = (
            '<div class="meter"><b>Graphics card</b><p>No graphics card answers; the processor computes.</p></div>'
        )
    else:
        more = [f"load {card.load_percent} %"] if card.load_percent is not None else []
        more += [f"{card.temperature_c} °C"] if card.temperature_c is not None else []
        graphics = meter_html(f"Graphics card: {card.name}", card.used_bytes, card.total_bytes, ", ".join(more))
        graphics += f"<p>{escape(card.others().removeprefix('. '))}.</p>" if card.processes else ""
    device = reading.device or "known after the first job, or after the check below"
    return (
        f"{graphics}{meter_html('Memory', reading.memory_used_bytes, reading.memory_total_bytes)}"
        f"{meter_html('Disk of the results', reading.disk_used_bytes, reading.disk_total_bytes)}"
        f'<table class="facts"><tr><th>Device and precision</th><td>{escape(device)}</td></tr></table>'
    )


def meter_html(label: str, used: int, total: int, more: str = "") -> str:
    """A bar with its numbers beside it; the colour only repeats what the words say."""
    share = used / total if total else 0.0
    state, word = (
        ("full", ", almost full") if share > ALERT_SHARE else ("filling", "") if share > FILLING_SHARE else ("", "")
    )
    words = f"{used / _GIB:.1f} of {total / _GIB:.1f} GiB used, {(total - used) / _GIB:.1f} free{word}"
    words += f" · {more}" if more else ""
    return (
        f'<div class="meter {state}"><b>{escape(label)}</b><span>{escape(words)}</span>'
        f'<div class="bar" role="meter" aria-label="{escape(label)}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * share:.0f}"><i style="width:{100 * share:.1f}%"></i></div></div>'
    )


def size_words(size_bytes: int) -> str:
    """A size on disk, such as 4.8 GB."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.1f} MB"

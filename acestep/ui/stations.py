"""How far the user is on the way from a folder of songs to an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from acestep.core.errors import UserError
from acestep.core.words import counted
from acestep.ui.app import App


@dataclass(frozen=True)
class Station:
    """One stop on the way: whether it is reached, what is there, and what to do to reach it."""

    label: str
    done: bool
    facts: str
    advice: str


def stations(app: App) -> list[Station]:
    """The six stations, in their order."""
    chosen = app.workspace
    songs = app.dataset.songs if app.dataset else []
    labelled = sum(song.labeled for song in songs)
    tensors = _tensors(chosen.tensors)
    trained, adapter = _run(chosen.run)
    return [
        Station(
            "Model",
            bool(chosen.model) and Path(chosen.model).exists(),
            Path(chosen.model).name if chosen.model else "none chosen",
            "choose a model in Service, or take the small one of the demo.",
        ),
        Station(
            "Songs", bool(songs), counted(len(songs), "songs") if songs else "none yet", "choose a folder in Dataset."
        ),
        Station(
            "Labels",
            bool(labelled),
            f"{labelled} of {len(songs)} labelled" if songs else "",
            "give the songs captions in Dataset.",
        ),
        Station(
            "Tensors", bool(tensors), counted(tensors, "songs") if tensors else "", "encode the songs in Preprocess."
        ),
        Station("Training", bool(trained), trained, "start a run in Train."),
        Station("Adapter", adapter, "ready" if adapter else "", "let the run end, or stop it: both leave an adapter."),
    ]


def _tensors(folder: str) -> int:
    from acestep.preprocess.store import TensorStore

    try:
        return len(TensorStore.open(folder).songs) if folder else 0
    except UserError:
        return 0  # Preprocess and Train say what is wrong with it


def _run(folder: str) -> tuple[str, bool]:
    """What to say about the chosen run, and whether it has left an adapter."""
    path = Path(folder) if folder else None
    if path is None or not (path / "run.json").is_file():
        return "", False
    return path.name, (path / "final").is_dir()

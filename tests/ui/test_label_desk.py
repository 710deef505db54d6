"""The one place where labels are edited: what threads and pages do at the same moment, and what then is kept."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from acestep.dataset.dataset import Dataset
from acestep.dataset.song import Song
from acestep.settings import DatasetSettings
from acestep.ui.app import App
from acestep.ui.label_desk import LabelDesk

PATIENCE_S = 30.0


def a_dataset(root: Path) -> Dataset:
    """Two songs whose sound nobody needs."""
    songs = [Song(name, root / f"{name}.wav", f"{name}.wav", 10.0, caption=f"{name} before") for name in ("one", "two")]
    return Dataset(root, DatasetSettings(), songs)


@pytest.fixture
def desk(tmp_path: Path) -> LabelDesk:
    desk = LabelDesk()
    desk.take(a_dataset(tmp_path), None)
    return desk


def test_opening_songs_and_choosing_something_do_not_wait_for_each_other(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that keeps settings of the songs holds the labels and then chooses; opening must not do the opposite."""
    take, free = app.labels.take, []

    def take_while_a_page_chooses(*values: object) -> None:
        page = threading.Thread(target=lambda: app.choose(song="x"), daemon=True)
        page.start()
        page.join(PATIENCE_S)
        free.append(not page.is_alive())
        take(*values)  # type: ignore[arg-type]

    monkeypatch.setattr(app.labels, "take", take_while_a_page_chooses)
    app.take_songs(a_dataset(app.project), app.project)
    assert free == [True] and app.workspace.songs == str(app.project)


def test_pages_see_what_a_machine_set_though_it_could_not_be_kept(desk: LabelDesk) -> None:
    song, before = desk.song("one"), desk.revision
    with pytest.raises(OSError, match="full"), desk.labelling(song):
        song.caption = "heard"
        raise OSError("the disk is full")
    assert desk.changed_by_others("one", "a page", before).keys() == {"caption"}

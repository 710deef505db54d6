"""Fixtures shared by all rooms: a tiny model and songs, made once a session, and a machine state of its own."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from shared_folders import filled_once

os.environ.setdefault("HF_HUB_OFFLINE", "1")
gc.set_threshold(20_000, 10, 10)  # tests make many objects that live for a moment; see pytest_runtest_setup
# how long an example takes says how busy the machine is, and nothing about the program
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of pages first: they wait a lot, and meanwhile the others compute. The longest of all begins."""
    items.sort(key=lambda item: ("ui" not in item.path.parts, item.path.name != "test_whole_way.py"))


_IMPORTED_AT_ONCE = 200
_modules_known = 0


def pytest_runtest_setup() -> None:
    """Let the garbage collector pass over what was imported, which stays.

    The program collects whenever it frees a model. With all that tests import this takes a third of a second each time,
    together a quarter of what the tests take.
    """
    global _modules_known
    if len(sys.modules) > _modules_known + _IMPORTED_AT_ONCE:
        gc.collect()
        gc.freeze()
        _modules_known = len(sys.modules)


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Locks and caches of the tests never meet those of the user."""
    os.environ["ACESTEP_STATE_DIR"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def demo_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints folder of the tiny untrained model, in the original layout. Tests must not write into it.

    It stands for the demo's model, which is larger and slower; `tests/model/test_demo_model.py` is about that one.
    """
    from acestep.model.untrained import build_untrained_checkpoint

    return filled_once(tmp_path_factory, "demo-checkpoints", build_untrained_checkpoint)


@pytest.fixture(scope="session")
def demo_songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the eight short labelled songs of `planned_songs.py`. Tests must not write into it."""
    from planned_songs import write_test_songs

    return filled_once(tmp_path_factory, "demo-songs", write_test_songs)

"""Runs every golden test on every model folder under test."""

from __future__ import annotations

import pytest
from golden_model import GoldenModel, golden_folders


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_model" in metafunc.fixturenames:
        folders = golden_folders()
        assert folders, "ACESTEP_GOLDEN holds no golden model"
        metafunc.parametrize("golden_model", folders, ids=lambda path: path.name, indirect=True, scope="session")


@pytest.fixture(scope="session")
def golden_model(request: pytest.FixtureRequest) -> GoldenModel:
    return GoldenModel(request.param)

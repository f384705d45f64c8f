"""Hypothesis profiles, and the array libraries that the tests run on."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import settings

from invocupy.arrays import require_cupy

# No deadlines: the first call of a kernel compiles it.
settings.register_profile("dev", max_examples=100, deadline=None)
settings.register_profile(
    "ci", max_examples=300, deadline=None, derandomize=True, database=None, print_blob=True
)
settings.register_profile("nightly", max_examples=5000, deadline=None, print_blob=True)
# On a GPU almost every new geometry compiles a kernel, for a second or so.
settings.register_profile("gpu", max_examples=10, deadline=None, print_blob=True)
settings.register_profile(
    "stand-in", max_examples=2, deadline=None, derandomize=True, database=None
)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` where there is no device, and say why."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        try:
            require_cupy()
        except RuntimeError as error:
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=str(error)))


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test begins in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session", params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest) -> ModuleType:
    """The array library: each test that asks for it runs with NumPy and, on a GPU, with CuPy."""
    return np if request.param == "numpy" else require_cupy()

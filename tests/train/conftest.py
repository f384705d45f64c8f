"""A run that was never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import TINY

from invocupy.train import (
    fit,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of TINY that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    fit(TINY, folder)
    return folder

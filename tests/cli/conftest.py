"""A finished run, for commands that look at one."""

from __future__ import annotations

import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest
from command import TRAIN

from invocupy.cli import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main([*TRAIN, "--out", str(folder)]) == 0
    return str(folder)

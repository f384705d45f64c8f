"""A short run, and what there is to see of it."""

from __future__ import annotations

import pytest

from invocupy.report import Findings, gather
from invocupy.train import Config, fit

CONFIG = Config(layers=2, epochs=2, batch_size=20, limit=60, device="cpu")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    fit(CONFIG, folder)
    return str(folder)


@pytest.fixture(scope="session")
def found(run: str) -> Findings:
    """What there is to see of it."""
    return gather(run, device="cpu")


@pytest.fixture
def bare(found: Findings) -> Findings:
    """One epoch without a test loss, no involution, no mistake; a name that is trouble."""
    row = {**found.history[0], "test_loss": None}
    nothing = found.mistakes.take(slice(0, 0))
    empty = found._replace(mistakes=nothing, maps=[], explored=None, machine={})
    return empty._replace(history=[row], name="<i>&\"'")

"""Small files of CIFAR-10, and none of the user."""

from __future__ import annotations

import pooch  # noqa: F401  (its logger keeps the standard error of its first import)
import pytest
from cifar_files import (
    RECORDS,
)

from invocupy.data import cifar


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same format with 20 records a file."""
    small = {"records": (RECORDS, RECORDS), "spare": 2**16}
    monkeypatch.setattr(cifar, "TEN", cifar.TEN._replace(**small))
    monkeypatch.setattr(cifar, "HUNDRED", cifar.HUNDRED._replace(**small))


@pytest.fixture(autouse=True)
def _no_user_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INVOCUPY_DATA", raising=False)

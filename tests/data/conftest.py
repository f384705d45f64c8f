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
    monkeypatch.setattr(cifar, "_RECORDS", RECORDS)
    monkeypatch.setattr(cifar, "_FILE_SIZE", RECORDS * 3073)
    monkeypatch.setattr(cifar, "_UNPACKED_LIMIT", 6 * RECORDS * 3073 + 2**16)


@pytest.fixture(autouse=True)
def _no_user_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INVOCUPY_DATA", raising=False)

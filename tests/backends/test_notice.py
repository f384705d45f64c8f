"""Python users read once that kernels are compiled, where they wait for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import start

from invocupy.backends import notice


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test sets; and nobody has been told."""
    now = [0.0]
    monkeypatch.setattr(notice, "perf_counter", lambda: now[0])
    for name, value in (("_spent", 0.0), ("_told", False), ("_begun", {})):
        monkeypatch.setattr(notice, name, value)
    return now


def compiled(clock: list[float], seconds: float) -> None:
    notice.note("kernel", False)
    clock[0] += seconds
    notice.note("kernel", True)


def test_a_second_in_all_is_told_once(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    compiled(clock, 0.5)
    clock[0] += 100
    compiled(clock, 0.4)
    assert not caplog.messages
    for _ in range(3):
        compiled(clock, 2.0)
    (line,) = caplog.messages
    assert line.startswith("invocupy: compiling CPU kernels, on first use only")


def test_kernels_within_kernels_count_once(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        notice.note("outer", False)
        compiled(clock, 0.3)
        notice.note("outer", True)
    assert not caplog.messages
    compiled(clock, 0.5)
    assert len(caplog.messages) == 1


CODE = """
    import numpy as np
    from invocupy import functional as F
    from invocupy.backends import notice
    notice._PATIENCE = 0.0
    F.relu(np.ones(10, np.float32)); F.conv2d(np.ones((1, 1, 5, 5)), np.ones((1, 1, 3, 3)))
"""


def test_a_process_writes_it_to_standard_error(tmp_path: Path) -> None:
    for silence, lines in (("", 1), ("import logging; logging.disable()", 0)):
        with start(silence, CODE, INVOCUPY_CACHE_DIR=str(tmp_path / str(lines))) as process:
            _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        assert errors.count("compiling CPU kernels") == errors.count("\n") == lines, errors

"""The number of threads, which each test leaves as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest

from invocupy.backends.cpu import pool, threads


@pytest.fixture
def four_threads() -> Iterator[None]:
    threads.set_num_threads(4)
    yield
    threads.set_num_threads(None)


@pytest.fixture
def same_bits(
    monkeypatch: pytest.MonkeyPatch, four_threads: None
) -> Callable[[Callable[[], Iterable[np.ndarray]]], None]:
    """Check that results do not depend on the number of threads, however small the work is."""
    monkeypatch.setattr(pool, "GRAIN", 1)

    def check(results: Callable[[], Iterable[np.ndarray]]) -> None:
        found = []
        for number in (1, 2, 3, 8):
            threads.set_num_threads(number)
            found.append([result.tobytes() for result in results()])
        assert all(bits == found[0] for bits in found)

    return check

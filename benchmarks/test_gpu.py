"""``benchmarks/gpu.py``: what it times computes the same as the float64 computation beside it."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import gpu
import numpy as np
import pytest

pytestmark = pytest.mark.gpu
SMALL = [((2, 32, 5, 4), 3), ((2, 16, 3, 4, 5), 3), ((2, 32, 9), 5)]


@pytest.fixture
def contenders(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module without PyTorch, which only the peers need, and with few sets of arrays."""
    cupy = pytest.importorskip("cupy")
    if not hasattr(cupy, "random"):  # the stand-in

        def rng(seed: int) -> SimpleNamespace:
            draw = np.random.default_rng(seed).standard_normal
            return SimpleNamespace(
                standard_normal=lambda *given, **o: cupy.asarray(draw(*given, **o))
            )

        random = SimpleNamespace(default_rng=rng)
        monkeypatch.setattr(cupy, "random", random, raising=False)
    monkeypatch.setitem(sys.modules, "torch", MagicMock())
    monkeypatch.delitem(sys.modules, "contenders", raising=False)
    module = importlib.import_module("contenders")
    monkeypatch.setattr(module, "PAST_CACHE", 1)
    yield module
    sys.modules.pop("contenders", None)


@pytest.mark.parametrize(("shape", "k"), SMALL)
def test_our_operations_in_each_number_of_dimensions(
    contenders: ModuleType, shape: tuple[int, ...], k: int
) -> None:
    p = contenders.Problem(shape, k, "float32")
    wanted, ours = contenders.expected(p), contenders.ours(p)
    assert ours.keys() == wanted.keys() == p.bytes.keys()
    for op, calls in ours.items():
        got = calls[0]()
        for part, want in zip(got if isinstance(got, tuple) else (got,), wanted[op], strict=False):
            exact = want.get()
            error = np.linalg.norm(part.get()[: len(exact)].astype(float) - exact)
            assert error < 1e-6 * np.linalg.norm(exact), op


def test_signals_and_volumes_are_among_the_shapes(contenders: ModuleType) -> None:
    assert {len(shape) - 2 for shape, _ in gpu.SHAPES.values()} == {1, 2, 3}
    assert all(shape[1] % contenders.PER_GROUP == 0 for shape, _ in gpu.SHAPES.values())
    assert next(iter(gpu.SHAPES)) == "(32, 64, 32, 32) K=3"  # as results files have them
    volume = contenders.Problem((2, 16, 3, 4, 5), 3, "float32")
    assert contenders.one_thread_per_output(volume) == {}

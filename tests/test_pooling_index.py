"""The winner of a window: an index into its plane, which may need more than 32 bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from invocupy.backends.pooling import cpu, cuda, reference

WINDOW = (3, 2), (2, 2), (1, 1)


@pytest.mark.parametrize("backend", [cpu, reference, cuda])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_winners_of_both_sizes_are_the_same(backend: ModuleType, dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 8)).astype(dtype)
    results = []
    for index in ("int32", "int64"):
        out, winner = np.empty((2, 3, 5, 5), dtype), np.empty((2, 3, 5, 5), index)
        backend.max_pool(x, WINDOW, out, winner)
        back = np.empty(x.shape, dtype)
        backend.max_pool_grad(out, winner, WINDOW, back)
        results.append((out, winner, back))
        seen = np.take_along_axis(x.reshape(6, -1), winner.reshape(6, -1).astype(int), axis=1)
        np.testing.assert_array_equal(seen, out.reshape(6, -1))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_planes_past_32_bits_get_wide_indices() -> None:
    """Nothing is computed or touched: 2**31 pixels are 8 GB."""
    code = """
import numpy as np
from numpy.lib.stride_tricks import as_strided
from invocupy import backends, ops
from invocupy.backends import memory
kinds = []
from invocupy.ops import pooling
def empty(shape, dtype, like):
    kinds.append(np.dtype(dtype))
    return memory.empty(shape, dtype, like)
pooling.empty = empty
pooling.contiguous = lambda x, dtype: x
for height, width in ((1 << 15, (1 << 16) - 1), (1 << 15, 1 << 16), (1 << 20, 1 << 20)):
    x = as_strided(np.zeros(1, np.float32), (1, 1, height, width), (0, 0, 0, 0))
    with backends.dry_run():
        ops.max_pool2d(x, 1 << 13)
assert [kind.name for kind in kinds[1::2]] == ["int32", "int64", "int64"], kinds
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_the_reference_counts_pixels_in_64_bits() -> None:
    x = np.lib.stride_tricks.as_strided(np.zeros(1), (1, 1, 1 << 16, 1 << 16), (0, 0, 0, 0))
    window = (1 << 15, 1 << 15), (1 << 15, 1 << 15), (0, 0)
    place, _ = next(reference._taps(np, x, window, np.empty((1, 1, 2, 2))))
    assert place.tolist() == [[0, 1 << 15], [1 << 31, (1 << 31) + (1 << 15)]]

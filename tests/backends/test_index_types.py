"""Numbers that may need more than 32 bits: pixels of a plane, what threads of a GPU count to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from invocupy.backends import cuda
from invocupy.backends.cpu import pooling as cpu
from invocupy.backends.cuda import batch_norm as batch_norm_on_gpu
from invocupy.backends.cuda import involution as involution_on_gpu
from invocupy.backends.cuda import pointwise as pointwise_on_gpu
from invocupy.backends.reference import pooling as reference
from invocupy.geometry import Geometry

WINDOW = (3, 2), (2, 2), (1, 1)


@pytest.mark.parametrize("backend", [cpu, reference])
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
from invocupy.ops import call, pooling
def empty(shape, dtype, like):
    kinds.append(np.dtype(dtype))
    return memory.empty(shape, dtype, like)
pooling.empty = empty  # which makes the winners
call.contiguous = lambda x, dtype: x
for height, width in ((1 << 15, (1 << 16) - 1), (1 << 15, 1 << 16), (1 << 20, 1 << 20)):
    x = as_strided(np.zeros(1, np.float32), (1, 1, height, width), (0, 0, 0, 0))
    with backends.dry_run():
        ops.max_pool2d(x, 1 << 13)
assert [kind.name for kind in kinds] == ["int32", "int64", "int64"], kinds
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)


def test_the_reference_counts_pixels_in_64_bits() -> None:
    x = np.lib.stride_tricks.as_strided(np.zeros(1), (1, 1, 1 << 16, 1 << 16), (0, 0, 0, 0))
    window = (1 << 15, 1 << 15), (1 << 15, 1 << 15), (0, 0)
    place, _ = next(reference._taps(np, x, window, np.empty((1, 1, 2, 2))))
    assert place.tolist() == [[0, 1 << 15], [1 << 31, (1 << 31) + (1 << 15)]]


def unreal(*shape: int) -> np.ndarray:
    """An array of zeros in the memory of one."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), shape, (0,) * len(shape))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The type in which each kernel that is started counts."""
    found: dict[str, Any] = {}

    def compile_(kernel: str, macros: Any) -> Any:
        found[cuda.name_of(kernel)] = macros["INDEX"]
        return lambda *given: None

    monkeypatch.setattr(cuda, "compile", compile_)
    monkeypatch.setattr(cuda, "address", lambda array: 0)
    monkeypatch.setattr(pointwise_on_gpu, "_product", lambda *given: None)
    return found


@pytest.mark.parametrize("wide", [False, True])
def test_sums_on_a_gpu_count_far_enough(wide: bool, started: dict[str, Any]) -> None:
    """A few threads that sum over more than 2**32 places."""
    images = 1 << (8 if wide else 6)
    x, few = unreal(images, 1, 1 << 13, 1 << 13), np.zeros(1, np.float32)  # 2**24 vectors each
    batch_norm_on_gpu.moments(x, few, few)
    batch_norm_on_gpu.grad_sums(x, x, None, few, few, few)
    flat = x.reshape(images, 1, -1)
    pointwise_on_gpu.grad_weight(flat, flat, np.zeros((1, 1), np.float32), few)
    g = Geometry.of(x.shape, (images, 1, 1, 1, 1 << 13, 1 << 13))
    involution_on_gpu.fused_grad_span(
        x, x, x, np.zeros((1, 1), np.float32), g, unreal(images, 0, 1, 1), few, few
    )
    sums = {"moments", "grad_sums", "sum_planes", "grad_weight"}
    assert {started[name] for name in sums} == {"unsigned long long" if wide else "unsigned int"}
    assert started["merge_moments"] == "unsigned int"


@pytest.mark.parametrize(("size", "padding"), [(1 << 31, 0), (4, 1 << 30)])
def test_sizes_with_their_padding_must_fit_32_bits_on_a_gpu(size: int, padding: int) -> None:
    g = Geometry.of((1, 1, size, 1), (1, 1, 1, 1, size + 2 * padding, 1), 1, (padding, 0))
    with pytest.raises(ValueError, match=r"x has a size past 2\*\*31 - 1 in one dimension"):
        g.record()

"""Involution of dask arrays: any chunks of x and kernel give what the whole arrays give.

Skipped where dask is not installed; it is no dependency.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import invocupy
from invocupy import Geometry, reference
from invocupy.arrays import require_cupy
from invocupy.testing import geometries, options

da = pytest.importorskip("dask.array", reason="dask is not installed")
adapter: Any = pytest.importorskip("invocupy.interop.dask")


@st.composite
def chunks(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Cut each dimension at drawn places."""
    cut = []
    for n in shape:
        edges = draw(st.sets(st.integers(1, n - 1), max_size=3)) if n > 1 else set()
        ends = [0, *sorted(edges), n]
        cut.append(tuple(b - a for a, b in pairwise(ends)))
    return tuple(cut)


def operands(g: Geometry, xp: Any = np) -> tuple[Any, Any]:
    """Small integers, whose sums of products are exact in every order."""
    rng = np.random.default_rng(g.size)
    shapes = g.x_shape, g.kernel_shape
    return tuple(xp.asarray(rng.integers(-3, 4, shape).astype(np.float32)) for shape in shapes)


def plain_code(x: Any, kernel: Any, **options: Any) -> tuple[Any, None]:
    return reference.involution(x, kernel, **options), None


def compute(array: Any) -> Any:
    return array.compute(scheduler="synchronous")


@settings(max_examples=100)
@given(
    st.data(),
    geometries(max_size=24, max_kernel=4)
    | geometries(dims=1, max_size=99, max_kernel=9)
    | geometries(dims=3, max_size=12, max_kernel=3),
)
def test_any_chunks_give_the_whole(data: Any, g: Geometry) -> None:
    x, kernel = operands(g)
    out = adapter.involution(
        da.from_array(x, chunks=data.draw(chunks(g.x_shape))),
        da.from_array(kernel, chunks=data.draw(chunks(g.kernel_shape))),
        **options(g),
    )
    assert out.shape == g.out_shape
    assert out.dtype == np.float32
    with pytest.MonkeyPatch.context() as patch:  # the cutting is tested; this compiles nothing
        patch.setattr(adapter.ops, "involution", plain_code)
        got = compute(out)
    assert got.shape == tuple(map(sum, out.chunks)) == g.out_shape
    np.testing.assert_array_equal(got, reference.involution(x, kernel, **options(g)))


def test_fitting_chunks_stay_as_they_are() -> None:
    x = da.ones((2, 4, 30, 40), chunks=(1, 2, 10, 20), dtype=np.float32)
    kernel = da.ones((2, 2, 5, 5, 30, 40), chunks=(1, 1, 5, 5, 10, 20))
    out = adapter.involution(x, kernel)
    assert out.chunks == x.chunks
    assert out.dtype == np.float64
    strided = adapter.involution(x, kernel[..., ::2, ::2], stride=2)
    assert strided.chunks[2:] == ((5, 5, 5), (10, 10))


def test_signals_and_volumes_keep_their_chunks() -> None:
    signal = adapter.involution(
        da.ones((1, 2, 60), chunks=(1, 2, 20)), da.ones((1, 1, 7, 60), chunks=(1, 1, 7, 20))
    )
    assert signal.chunks[2:] == ((20, 20, 20),)
    assert float(compute(signal).sum()) == 2 * (60 * 7 - 2 * (1 + 2 + 3))
    x = da.ones((1, 2, 12, 10, 8), chunks=(1, 2, 4, 5, 4))
    kernel = da.ones((1, 1, 3, 3, 3, *x.shape[2:]), chunks=(1, 1, 3, 3, 3, 4, 5, 4))
    volume = adapter.involution(x, kernel)
    assert volume.chunks == x.chunks
    assert float(compute(volume).sum()) == 2 * (36 - 2) * (30 - 2) * (24 - 2)


def test_narrow_chunks_are_merged() -> None:
    kernel = da.ones((1, 1, 9, 1, 30, 4), chunks=(1, 1, 9, 1, 1, 4))
    out = adapter.involution(da.ones((1, 1, 30, 4)), kernel)
    assert out.chunks[2] == (4, 4, 4, 4, 4, 4, 6)
    assert float(compute(out).sum()) == 4 * (30 * 9 - 2 * (1 + 2 + 3 + 4))


def test_threads_give_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 16, 64, 64), np.float32)
    kernel = rng.standard_normal((1, 1, 3, 3, 64, 64), np.float32)
    out = adapter.involution(
        da.from_array(x, chunks=(1, 16, 16, 32)), da.from_array(kernel, chunks=(1, 1, 3, 3, 16, 32))
    )
    got = out.compute(scheduler="threads", num_workers=4)
    np.testing.assert_array_equal(got, invocupy.involution(x, kernel))


def test_errors_say_what_to_do() -> None:
    x, kernel = np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3, 4, 4))
    with pytest.raises(TypeError, match="x must be a dask array, got ndarray"):
        adapter.involution(x, da.from_array(kernel))
    with pytest.raises(ValueError, match="kernel has 4x4 positions, but x of 4x4"):
        adapter.involution(da.from_array(x), da.from_array(kernel), stride=2)
    for shape in ((1,) * 2, (1,) * 6):
        with pytest.raises(ValueError, match=r"^x must have .*dimensions.*got shape .*$"):
            adapter.involution(da.ones(shape), da.from_array(kernel))
    with pytest.raises(ValueError, match=r"^stride must be an integer >= 1 or a pair of them.*$"):
        adapter.involution(da.from_array(x), da.from_array(kernel), stride=(1, 1, 1))
    unknown = da.from_array(x)[:, :, da.from_array(np.arange(4)) > 1]
    with pytest.raises(ValueError, match=r"x has unknown sizes .* compute_chunk_sizes"):
        adapter.involution(unknown, da.from_array(kernel))
    for dtype in (int, bool, complex, object):
        with pytest.raises(TypeError, match=r"kernel has dtype \S+, but only floating dtypes work"):
            adapter.involution(da.from_array(x), da.from_array(kernel).astype(dtype))


@pytest.mark.gpu
def test_cupy_chunks() -> None:
    cupy = require_cupy()
    g = Geometry.of((2, 4, 17, 19), (2, 2, 3, 3, 9, 10), stride=2)
    x, kernel = operands(g, cupy)
    out = adapter.involution(
        da.from_array(x, chunks=(1, 2, 6, 19), asarray=False),
        da.from_array(kernel, chunks=(2, 1, 3, 3, 4, 5), asarray=False),
        stride=2,
    )
    got = compute(out)
    assert isinstance(got, cupy.ndarray)
    assert (got == invocupy.involution(x, kernel, stride=2)).all()

"""Pooling: its formula, window by window, and what it refuses."""

from __future__ import annotations

import itertools
import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import SEEDS, assert_close, host
from hypothesis import given
from hypothesis import strategies as st

from invocupy import functional as F  # noqa: N812
from invocupy import ops


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-3, 4, shape).astype("float64")


# ---------------------------------------------------------------------------- pooling


def windows(
    size: tuple[int, ...], kernel: Any, stride: Any, padding: Any, ceil_mode: bool
) -> list[list[range]]:
    """The places along each axis that each window covers, clipped to the padded image."""
    result = []
    for n, k, s, p in zip(size, kernel, stride, padding, strict=True):
        starts = [-p]
        while starts[-1] + s + k <= n + p or (ceil_mode and starts[-1] + k < n + p):
            if starts[-1] + s >= n + p or (ceil_mode and starts[-1] + s >= n):
                break  # a partial window must begin inside the image
            starts.append(starts[-1] + s)
        result.append([range(start, min(start + k, n + p)) for start in starts])
    return result


@st.composite
def pools(draw: st.DrawFn, dims: int) -> tuple[Any, ...]:
    """Kernel, stride, padding and image by axis, and a seed."""

    def by_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, size = by_axis(1, 3), by_axis(1, 4), by_axis(3, 8 if dims < 3 else 5)
    padding = tuple(min(p, k // 2) for p, k in zip(by_axis(0, 1), kernel, strict=True))
    return kernel, stride, padding, size, draw(SEEDS)


def inside(size: tuple[int, ...], window: Any) -> list[tuple[int, ...]]:
    places = itertools.product(*window)
    return [place for place in places if all(0 <= i < n for i, n in zip(place, size, strict=True))]


in_all = pytest.mark.parametrize("dims", [1, 2, 3])


@in_all
@given(data=st.data(), ceil_mode=st.booleans(), include=st.booleans())
def test_avg_pool_is_its_formula(
    dims: int, data: st.DataObject, ceil_mode: bool, include: bool, xp: ModuleType
) -> None:
    kernel, stride, padding, size, seed = data.draw(pools(dims))
    x = integers(np.random.default_rng(seed), 2, 1, *size)
    pool, options = getattr(ops, f"avg_pool{dims}d"), {"count_include_pad": include}
    value, (partial,) = pool(xp.asarray(x), kernel, stride, padding, ceil_mode=ceil_mode, **options)
    axes = windows(size, kernel, stride, padding, ceil_mode)
    assert value.shape == (2, 1, *map(len, axes))
    grad = integers(np.random.default_rng(seed + 1), *value.shape)
    back = np.zeros_like(x)
    for i in np.ndindex(value.shape[2:]):
        window = [axis[k] for axis, k in zip(axes, i, strict=True)]
        seen = inside(size, window)
        count = math.prod(map(len, window)) if include else len(seen)
        expected = sum(x[:, 0, *place] for place in seen) / count
        assert_close(value[:, 0, *i], expected, terms=4 + dims, summand=abs(x).max())
        for place in seen:
            back[:, 0, *place] += grad[:, 0, *i] / count
    assert_close(partial(xp.asarray(grad)), back, terms=100, summand=3.0)


@in_all
@given(data=st.data())
def test_max_pool_is_its_formula(dims: int, data: st.DataObject, xp: ModuleType) -> None:
    kernel, stride, padding, size, seed = data.draw(pools(dims))
    x = integers(np.random.default_rng(seed), 2, 1, *size)  # with many ties
    pool = getattr(ops, f"max_pool{dims}d")
    value, (partial,) = pool(xp.asarray(x), kernel, stride, padding)
    axes = windows(size, kernel, stride, padding, ceil_mode=False)
    assert value.shape == (2, 1, *map(len, axes))
    grad = integers(np.random.default_rng(seed + 1), *value.shape)
    expected = np.zeros_like(x)
    for n, _, *i in np.ndindex(value.shape):
        window = [axis[k] for axis, k in zip(axes, i, strict=True)]
        first = max(inside(size, window), key=lambda place: x[n, 0, *place])
        assert value[n, 0, *i] == x[n, 0, *first]
        expected[n, 0, *first] += grad[n, 0, *i]
    assert host(partial(xp.asarray(grad))).tolist() == expected.tolist()


def test_max_pool2d_keeps_nan_and_infinities(xp: ModuleType) -> None:
    x = np.zeros((1, 1, 4, 4))
    x[0, 0, 1, 0], x[0, 0, 0, 3], x[0, 0, 2:, :2], x[0, 0, 2, 3] = np.nan, np.inf, -np.inf, np.nan
    value, (partial,) = ops.max_pool2d(xp.asarray(x), 2)
    np.testing.assert_equal(host(value)[0, 0], [[np.nan, np.inf], [-np.inf, np.nan]])
    grad = host(partial(xp.asarray(np.arange(1.0, 5.0).reshape(1, 1, 2, 2))))
    assert {tuple(place): grad[0, 0, *place] for place in np.argwhere(grad[0, 0])} == {
        (1, 0): 1.0,
        (0, 3): 2.0,
        (2, 0): 3.0,
        (2, 3): 4.0,
    }


def test_max_pool2d_padding_never_wins(xp: ModuleType) -> None:
    x = xp.full((1, 1, 2, 2), -np.inf)
    value, (partial,) = ops.max_pool2d(x, 2, 2, 1)
    assert (value == -np.inf).all()
    assert host(partial(xp.ones_like(value))).tolist() == [[[[1.0, 1.0], [1.0, 1.0]]]]


@pytest.mark.parametrize("pool", [F.max_pool2d, F.avg_pool2d])
def test_pools_refuse(pool: Any) -> None:
    with pytest.raises(ValueError, match=r"x must be \(N, C, H, W\), got.*batch axis"):
        pool(np.ones((2, 4, 4)), 2)
    with pytest.raises(ValueError, match="padding must be at most half of kernel_size"):
        pool(np.ones((1, 1, 4, 4)), 2, padding=2)
    with pytest.raises(ValueError, match=r"x of 1x4 is too small for kernel size 2x2.*: give"):
        pool(np.ones((1, 1, 1, 4)), 2)
    with pytest.raises(ValueError, match="kernel_size must be an integer >= 1"):
        pool(np.ones((1, 1, 4, 4)), 0)


@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_pools_of_other_dimensions_refuse(name: str) -> None:
    along, inside = getattr(F, f"{name}1d"), getattr(F, f"{name}3d")
    with pytest.raises(ValueError, match=r"x must be \(N, C, W\), got shape"):
        along(np.ones((2, 4, 4, 4)), 2)
    with pytest.raises(ValueError, match=r"x must be \(N, C, D, H, W\), got shape"):
        inside(np.ones((2, 4, 4, 4)), 2)
    with pytest.raises(ValueError, match="kernel_size must be an integer >= 1 or a triple of them"):
        inside(np.ones((1, 1, 4, 4, 4)), (2, 2))
    with pytest.raises(ValueError, match=r"x of 1x4x4 is too small for kernel size 2x2x2"):
        inside(np.ones((1, 1, 1, 4, 4)), 2)


@pytest.mark.parametrize("special", [np.nan, -np.inf])
def test_max_pool3d_takes_the_first_of_planes_that_are_all_special(special: float) -> None:
    value, (partial,) = ops.max_pool3d(np.full((1, 1, 2, 2, 2), special), 2)
    np.testing.assert_equal(value.ravel(), [special])
    assert partial(np.ones_like(value)).ravel().tolist() == [1.0] + 7 * [0.0]

"""Pooling: its formula, window by window, and what it refuses."""

from __future__ import annotations

import itertools
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
    size: tuple[int, int], kernel: Any, stride: Any, padding: Any, ceil_mode: bool
) -> list[list[range]]:
    """The rows, and the columns, that each window covers, clipped to the padded image."""
    result = []
    for n, k, s, p in zip(size, kernel, stride, padding, strict=True):
        starts = [-p]
        while starts[-1] + s + k <= n + p or (ceil_mode and starts[-1] + k < n + p):
            if starts[-1] + s >= n + p or (ceil_mode and starts[-1] + s >= n):
                break  # a partial window must begin inside the image
            starts.append(starts[-1] + s)
        result.append([range(start, min(start + k, n + p)) for start in starts])
    return result


pools = st.tuples(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
    st.tuples(st.integers(3, 8), st.integers(3, 8)),
    SEEDS,
)


@given(pool=pools, ceil_mode=st.booleans(), include=st.booleans())
def test_avg_pool2d_is_its_formula(
    pool: Any, ceil_mode: bool, include: bool, xp: ModuleType
) -> None:
    kernel, stride, padding, (h, w), seed = pool
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    x = integers(np.random.default_rng(seed), 2, 1, h, w)
    value = F.avg_pool2d(
        xp.asarray(x), kernel, stride, padding, ceil_mode=ceil_mode, count_include_pad=include
    )
    rows, columns = windows((h, w), kernel, stride, padding, ceil_mode)
    assert value.shape == (2, 1, len(rows), len(columns))
    for i, j in itertools.product(range(len(rows)), range(len(columns))):
        inside = [(r, c) for r in rows[i] for c in columns[j] if 0 <= r < h and 0 <= c < w]
        count = len(rows[i]) * len(columns[j]) if include else len(inside)
        expected = sum(x[:, 0, r, c] for r, c in inside) / count
        assert_close(value[:, 0, i, j], expected, terms=4)


@given(pool=pools)
def test_max_pool2d_is_its_formula(pool: Any, xp: ModuleType) -> None:
    kernel, stride, padding, (h, w), seed = pool
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel, strict=True))
    x = integers(np.random.default_rng(seed), 2, 1, h, w)  # with many ties
    value, (partial,) = ops.max_pool2d(xp.asarray(x), kernel, stride, padding)
    rows, columns = windows((h, w), kernel, stride, padding, ceil_mode=False)
    assert value.shape == (2, 1, len(rows), len(columns))
    grad = integers(np.random.default_rng(seed + 1), *value.shape)
    expected = np.zeros_like(x)
    for n, i, j in np.ndindex(2, len(rows), len(columns)):
        inside = [(r, c) for r in rows[i] for c in columns[j] if 0 <= r < h and 0 <= c < w]
        first = max(inside, key=lambda place: x[n, 0, *place])
        assert value[n, 0, i, j] == x[n, 0, *first]
        expected[n, 0, *first] += grad[n, 0, i, j]
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
    with pytest.raises(ValueError, match="x must have 4 dimensions"):
        pool(np.ones((2, 4, 4)), 2)
    with pytest.raises(ValueError, match="padding must be at most half of kernel_size"):
        pool(np.ones((1, 1, 4, 4)), 2, padding=2)
    with pytest.raises(ValueError, match=r"x of 1x4 is too small for kernel size 2x2.*: give"):
        pool(np.ones((1, 1, 1, 4)), 2)
    with pytest.raises(ValueError, match="kernel_size must be an integer >= 1"):
        pool(np.ones((1, 1, 4, 4)), 0)

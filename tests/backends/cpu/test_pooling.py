"""Pooling on the CPU: against its plain form, to the bit where nothing is summed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bounds import DTYPES, SEEDS, agree, draw, filled, roundoff, sizes_of, wide
from hypothesis import given
from hypothesis import strategies as st

from invocupy import Tensor, functional, ops
from invocupy.backends.cpu import pooling
from invocupy.backends.reference import pooling as pooling_reference

POOLS = st.tuples(
    *[st.tuples(st.integers(1, n), st.integers(1, n)) for n in (5, 4)],
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(5, 40), st.integers(5, 40)),
)
VALUES = [-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf, np.nan]

# ---------------------------------------------------------------------------- pooling


def check_max_pool(backend: Any, dtype: str, pool: Any, seed: int) -> None:
    """Values and winners to the bit, among many that are equal, infinite or NaN."""
    size, stride, padding, image = pool
    padding = tuple(min(p, k // 2) for p, k in zip(padding, size, strict=True))
    rng = np.random.default_rng(seed)
    x = rng.choice(VALUES, (2, 3, *image)).astype(dtype)
    out = [
        (n + 2 * p - k) // s + 1 for n, p, k, s in zip(image, padding, size, stride, strict=True)
    ]
    looks, found = (size, stride, padding), []
    grad = rng.integers(-3, 4, (2, 3, *out)).astype(dtype)
    for module in backend, pooling_reference:
        value, winner = np.full(grad.shape, 7, dtype), np.full(grad.shape, -7, np.int32)
        total = np.full(x.shape, np.nan, dtype)
        module.max_pool(x, looks, value, winner)
        module.max_pool_grad(grad, winner, looks, total)
        found.append((value, winner, total))
    for ours, plain in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, plain)


@given(DTYPES, POOLS, SEEDS)
def test_max_pool_is_its_plain_form(dtype: str, pool: Any, seed: int) -> None:
    check_max_pool(pooling, dtype, pool, seed)


def test_the_last_of_equal_values_is_not_the_first() -> None:
    class Wrong:
        max_pool_grad = pooling.max_pool_grad

        @staticmethod
        def max_pool(x: Any, looks: Any, out: Any, winner: Any) -> None:
            turned, (size, stride, padding) = x[..., ::-1].copy(), looks
            place = np.empty_like(winner)
            pooling.max_pool(turned, (size, stride, padding), out, place)
            out[...] = out[..., ::-1].copy()
            row, column = np.divmod(place[..., ::-1], x.shape[3])
            winner[...] = row * x.shape[3] + x.shape[3] - 1 - column

    with pytest.raises(AssertionError):
        check_max_pool(Wrong, "float32", ((3, 3), (1, 1), (1, 1), (7, 9)), 0)


@given(DTYPES, POOLS, st.booleans(), SEEDS)
def test_avg_pool_is_its_plain_form(dtype: str, pool: Any, ceil_mode: bool, seed: int) -> None:
    size, stride, padding, image = pool
    padding = tuple(min(p, k // 2) for p, k in zip(padding, size, strict=True))
    out = []
    for n, p, k, s in zip(image, padding, size, stride, strict=True):
        whole = (n + 2 * p - k) // s + 1
        out.append(whole + (ceil_mode and whole * s < n + p))
    looks, terms = (size, stride, padding), size[0] * size[1]
    x, grad, scale = draw(seed, dtype, (2, 3, *image), (2, 3, *out), tuple(out))
    for name, arrays, shape in (
        ("avg_pool", [x, scale], grad.shape),
        ("avg_pool_grad", [grad, scale], x.shape),
    ):

        def run(module: Any, given: Any, kind: Any, name: str = name, shape: Any = shape) -> Any:
            call = getattr(module, name)
            return filled(lambda a, b, to: call(a, b, looks, to), given, shape, dtype=kind)

        exact = run(pooling_reference, wide(*arrays), np.float64)
        sizes = run(pooling_reference, sizes_of(*arrays), np.float64)
        bound = roundoff(dtype, terms + 1) + roundoff("float64", terms + 1)
        agree(run(pooling, arrays, dtype), exact, [bound * s for s in sizes])


@pytest.mark.parametrize("stride", [7, 10**9])
def test_a_stride_beyond_the_image_takes_no_memory(stride: int) -> None:
    x = np.arange(30.0).reshape(1, 1, 5, 6)
    for pool, best in ((ops.max_pool2d, 14), (ops.avg_pool2d, 7)):
        value, (partial,) = pool(x, 3, stride)
        assert value.tolist() == [[[[best]]]]
        assert partial(value).sum() == pytest.approx(best)


@pytest.mark.parametrize("shape", [(1, 1, 0, 4), (1, 2, 3, 0), (2, 1, 0, 0)])
def test_windows_of_an_empty_plane_see_padding_only(shape: tuple[int, ...]) -> None:
    x = Tensor(np.zeros(shape, np.float32), requires_grad=True)
    for pool, value in (functional.max_pool2d, -np.inf), (functional.avg_pool2d, 0):
        y = pool(x, 2, 1, 1)
        assert y.size
        np.testing.assert_array_equal(y.data, value)
        y.backward(np.ones_like(y.data))
        assert x.grad.shape == shape

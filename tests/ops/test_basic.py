"""Sums over many values: as exact whatever their axes and the order in memory are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from invocupy import Tensor
from invocupy import functional as F  # noqa: N812
from invocupy.ops.basic import total

LONG: list[tuple[tuple[int, ...], Any]] = [
    ((200_000, 3), 0),
    ((1000, 300, 3), (0, 1)),
    ((300, 1000, 3), (0, 1)),
    ((20, 100, 3, 100), (0, 1, 3)),
    ((65, 64, 64, 2), (0, 2, 1)),
    ((3, 1000, 300), (-1, -2)),
]


@pytest.mark.parametrize(("shape", "axis"), LONG)
@pytest.mark.parametrize("order", ["C", "F", "reversed", "broadcast"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_no_sum_has_more_than_1024_terms_one_by_one(
    shape: tuple[int, ...], axis: Any, order: str, dtype: str
) -> None:
    x = np.full(shape, 0.1, dtype)
    if order == "F":
        x = np.asfortranarray(x)
    elif order == "reversed":
        x = np.ascontiguousarray(x.T)[::-1].T
    elif order == "broadcast":
        x = np.broadcast_to(x[:1], shape)
    exact = np.float64(x.flat[0]) * (x.size // x.sum(axis).size)
    # Terms are positive: no more than an ulp of the sum is lost in each addition.
    bound = 1024 * np.finfo("f4").eps
    for keepdims in (False, True):
        found = total(x, axis, keepdims)
        assert found.dtype == np.float32
        assert found.shape == x.sum(axis, keepdims=keepdims).shape
        np.testing.assert_allclose(found, exact, rtol=bound)
    mean = F.mean(x, axis)
    assert mean.dtype == x.dtype
    np.testing.assert_allclose(mean, x.flat[0], rtol=bound + np.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(2000, 3), (130, 20, 7), (64, 17, 1, 3), (2, 1025, 0)])
def test_sums_of_integers_are_numpys(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 100, shape).astype(np.int8)
    for axis in [(0, 1), 0, 1, (1, 0), -1, None]:
        for array in (x, x > 50):
            found, wanted = total(array, axis), array.sum(axis)
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)


def test_softmax_over_many_rows_sums_to_one() -> None:
    x = np.zeros((100_000, 3), np.float32)
    for values in (F.softmax(x, 0), np.exp(F.log_softmax(x, 0))):
        # 1 / 100_000 is rounded once, its logarithm (-11.5) to 2**-20.
        np.testing.assert_allclose(values.sum(0, np.float64), 1, rtol=2**-19)


def test_a_row_that_is_taken_many_times_sums_its_gradients() -> None:
    x = Tensor(np.ones((3, 2), np.float32), requires_grad=True)
    (x[np.arange(200_000) % 2] * 0.1).mean().backward()
    # The gradient of one use is rounded three times, their sum once.
    expected = [[0.025] * 2] * 2 + [[0, 0]]
    np.testing.assert_allclose(x.grad, expected, rtol=4 * np.finfo("f4").eps / 2)


def test_masks_take_each_place_once() -> None:
    data = np.arange(24.0).reshape(2, 3, 4)
    rng = np.random.default_rng(0)
    whole, rows, columns = rng.random(data.shape) > 0.5, np.ones(2, bool), np.ones(3, bool)
    columns[1] = False
    indices: list[Any] = [
        whole, rows, np.True_, (slice(None), columns), (rows, ..., 1), (0, columns),
        (rows, columns), (None, whole), (rows, np.array([1, 1])),
    ]  # fmt: skip
    for index in indices:
        x = Tensor(data, requires_grad=True)
        weights = rng.random(data[index].shape)
        (x[index] * weights).sum().backward()
        expected = np.zeros_like(data)
        np.add.at(expected, index, weights)
        np.testing.assert_array_equal(x.grad, expected)

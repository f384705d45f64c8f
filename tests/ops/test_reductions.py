"""Sums over many values: as exact whatever their axes and the order in memory are."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import host

from invocupy import Tensor
from invocupy import functional as F  # noqa: N812
from invocupy.ops.reductions import total

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


# ---------------------------------------------------------------------------- pooling


def test_ties_share_the_gradient(xp: ModuleType) -> None:
    x = Tensor(xp.asarray([1.0, 3.0, 3.0]), requires_grad=True)
    x.max().backward()
    assert host(x.grad).tolist() == [0.0, 0.5, 0.5]
    a, b = (Tensor(xp.asarray([1.0, 2.0]), requires_grad=True) for _ in range(2))
    F.maximum(a, b * xp.asarray([1.0, 2.0])).sum().backward()
    assert host(a.grad).tolist() == [0.5, 0.0]
    assert host(b.grad).tolist() == [0.5, 2.0]


MANY = 200_000


def leaf(array: Any) -> Tensor:
    return Tensor(array, requires_grad=True)


# ---------------------------------------------------------------------------- long sums of rows


def test_sums_over_many_rows_are_as_exact_as_those_of_a_convolution() -> None:
    """The error of sums of at most 1024 terms, not of one sum of 200,000."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (MANY, 3)).astype("f4")
    grad = rng.uniform(0, 1, (MANY, 2)).astype("f4")
    weight, bias = leaf(np.ones((2, 3), "f4")), leaf(np.zeros(2, "f4"))
    F.linear(x, weight, bias).backward(grad)
    stretched = leaf(np.zeros(2, "f4"))
    (Tensor(grad * 0) + stretched).backward(grad)
    image = np.ascontiguousarray(x.reshape(1, 100, -1, 3).transpose(0, 3, 1, 2))
    share = np.ascontiguousarray(grad.reshape(1, 100, -1, 2).transpose(0, 3, 1, 2))
    taps, offset = leaf(np.ones((2, 3, 1, 1), "f4")), leaf(np.zeros(2, "f4"))
    F.conv2d(image, taps, offset).backward(share)
    exact, exact_bias = grad.astype(float).T @ x.astype(float), grad.sum(axis=0, dtype=float)
    # sums of 1024 positive terms, then of 196 sums
    bound = (1024 + MANY / 1024) * np.finfo("f4").eps / 2
    for value, wanted in (
        (weight.grad, exact),
        (taps.grad[:, :, 0, 0], exact),
        (bias.grad, exact_bias),
        (offset.grad, exact_bias),
        (stretched.grad, exact_bias),
        (F.sum(grad, axis=0), exact_bias),
        (F.sum(grad[:, None], axis=(0, 1)), exact_bias),
        (F.sum(grad.reshape(1, MANY, 2), axis=-2)[0], exact_bias),
        (F.mean(grad, axis=0) * MANY, exact_bias),
    ):
        assert value.dtype == np.float32
        error = abs(value - wanted).max() / wanted.max()
        assert error < bound / 10  # roundings are of both signs


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2), (1,), (2, 0), (0, 1, 2), ()])
@pytest.mark.parametrize("keepdims", [False, True])
def test_long_sums_have_the_shape_of_short_ones(axis: Any, keepdims: bool) -> None:
    x = np.random.default_rng(0).integers(0, 9, (3, 2500, 4)).astype("f8")
    for array in (x, x.transpose(1, 0, 2), np.asfortranarray(x), x[:, ::-2]):
        for ours, theirs in ((F.sum, np.sum), (F.mean, np.mean)):
            value = ours(array, axis=axis, keepdims=keepdims)
            np.testing.assert_allclose(
                value, theirs(array, axis=axis, keepdims=keepdims), rtol=1e-13, strict=True
            )
    with pytest.raises(np.exceptions.AxisError, match="axis 3 is out of bounds"):
        F.sum(x, axis=3)


# ---------------------------------------------------------------------------- 0 times infinity


def test_what_does_not_win_gets_no_part_of_an_infinite_gradient(xp: ModuleType) -> None:
    seed = xp.asarray([np.inf, 1.0])
    for function in (F.relu, lambda x: F.maximum(x, 0.0), lambda x: F.maximum(0.0, x)):
        x = leaf(xp.asarray([-1.0, 2.0]))
        function(x).backward(seed)
        assert host(x.grad).tolist() == [0, 1]
    x = leaf(xp.asarray([[1.0, 3.0], [2.0, 0.0]]))
    F.max(x, axis=0).backward(seed)
    assert host(x.grad).tolist() == [[0, 1], [np.inf, 0]]

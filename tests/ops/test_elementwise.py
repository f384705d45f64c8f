"""Elementwise operators: what NaN, ties and infinite slopes give."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import host

from invocupy import Tensor
from invocupy import functional as F  # noqa: N812


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


# ---------------------------------------------------------------------------- pooling


def test_power_has_a_gradient_at_zero(xp: ModuleType) -> None:
    for exponent, slope in ((0, 0.0), (1, 1.0), (2, 0.0)):
        x = Tensor(xp.zeros(2), requires_grad=True)
        (x**exponent).sum().backward()
        assert host(x.grad).tolist() == [slope, slope]


def test_relu_and_maximum_keep_nan(xp: ModuleType) -> None:
    x = xp.asarray([np.nan, -1.0, np.inf])
    np.testing.assert_equal(host(F.relu(x)), [np.nan, 0.0, np.inf])
    np.testing.assert_equal(host(F.maximum(x, 0.0)), [np.nan, 0.0, np.inf])


def leaf(array: Any) -> Tensor:
    return Tensor(array, requires_grad=True)


# ---------------------------------------------------------------------------- 0 times infinity


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_gradient_of_zero_leaves_infinite_slopes_out(dtype: str, xp: ModuleType) -> None:
    largest = float(np.finfo(dtype).max)
    cases: list[tuple[Any, Any, float]] = [
        (F.sqrt, [0.0, 4.0], 0.25),
        (F.log, [0.0, 4.0], 0.25),
        (lambda x: x**0.5, [0.0, 4.0], 0.25),
        (lambda x: x**-1.0, [0.0, 2.0], -0.25),
        (lambda x: x ** xp.asarray([0.5, 0.5], dtype), [0.0, 4.0], 0.25),
        (lambda x: xp.asarray([0.0, 1.0], dtype) ** x, [-1.0, 2.0], 0.0),
        (lambda x: 1.0 / x, [0.0, 2.0], -0.25),
        (lambda x: x / xp.asarray([0.0, 2.0], dtype), [1.0, 2.0], 0.5),
        (F.exp, [largest, 0.0], 1.0),
    ]
    for function, values, slope in cases:
        x = leaf(xp.asarray(values, dtype))
        with np.errstate(all="ignore"):
            y = function(x)
        y.backward(xp.asarray([0.0, 1.0], dtype))  # without a warning
        np.testing.assert_allclose(host(x.grad).astype(float), [0, slope])


# ---------------------------------------------------------------------------- choosing


def gradients(function: Any, *arrays: Any) -> list[Any]:
    tensors = [Tensor(np.array(array, float), requires_grad=True) for array in arrays]
    function(*tensors).sum().backward()
    return [None if t.grad is None else t.grad.tolist() for t in tensors]


def test_equal_values_share_the_gradient() -> None:
    assert gradients(F.minimum, [1, 2, 3], [3, 2, 1]) == [[1, 0.5, 0], [0, 0.5, 1]]
    assert gradients(F.maximum, [1, 2, 3], [3, 2, 1]) == [[0, 0.5, 1], [1, 0.5, 0]]
    assert gradients(F.clip, [-1, 0, 0.5, 1, 2], 0, 1) == [[0, 0.5, 1, 0.5, 0], 1.5, 1.5]
    assert gradients(lambda x: x.clip(0, 1), [-1, 0, 0.5, 1, 2]) == [[0, 0.5, 1, 0.5, 0]]
    assert gradients(lambda x: x.clip(max=1), [0, 1, 2]) == [[1, 0.5, 0]]


def test_clip_holds_values_as_numpy_does() -> None:
    x = np.array([[-np.inf, -1.0, 0.5], [2.0, np.inf, np.nan]], np.float32)
    for bounds in (
        (0, 1),
        (None, 0.5),
        (0.5, None),
        (np.float64(0), 1),
        (np.zeros(3), np.ones((2, 1))),
    ):
        expected = np.clip(x, *bounds)
        if not isinstance(bounds[0], np.ndarray):
            expected = expected.astype(np.float32)  # numbers do not widen
        found = F.clip(x, *bounds)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    assert F.clip(x, np.full(3, 2.0), 1.0)[0].tolist() == [1, 1, 1]  # max wins, as in NumPy
    assert F.clip(x, max=0, min=-1)[0].tolist() == [-1, -1, 0]


def test_clip_refuses_bounds_that_exclude_all() -> None:
    with pytest.raises(ValueError, match="min must be at most max, got 2 and 1"):
        F.clip(np.ones(2), 2, 1)
    with pytest.raises(ValueError, match="min and max are both missing: give at least one"):
        Tensor(np.ones(2)).clip()
    with pytest.raises(TypeError, match="min must be a NumPy or CuPy array, got list"):
        F.clip(np.ones(2), [0, 1])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_sigmoid_is_exact_at_both_ends(dtype: str) -> None:
    x = Tensor(
        np.array([-np.inf, -1e4, -11, 0, 11, 1e4, np.inf, np.nan], dtype), requires_grad=True
    )
    with np.errstate(all="raise", under="ignore"):
        y = x.sigmoid()
        y.backward(np.ones(x.shape, dtype))
    small = 1 / (1 + np.exp(11.0))
    expected = np.array([0, 0, small, 0.5, 1 - small, 1, 1, np.nan])
    slopes = np.array([0, 0, small * (1 - small), 0.25, small * (1 - small), 0, 0, np.nan])
    unit = np.finfo(dtype).eps / 2
    # exp, the sum, the power or the quotient, the product, and the rounding to the dtype
    np.testing.assert_allclose(y.data, expected, rtol=8 * unit, atol=0)
    assert x.grad is not None
    # 2**-25 is half of the smallest step of float16 below its normal numbers
    np.testing.assert_allclose(x.grad, slopes, rtol=8 * unit, atol=2.0**-25 * (dtype == "float16"))
    assert y.dtype == x.grad.dtype == dtype


def test_where_takes_each_value_from_one_side(xp: ModuleType) -> None:
    condition = xp.asarray([[True], [False]])
    x, y = (Tensor(xp.asarray(a, "float32"), requires_grad=True) for a in ([1.0, 2.0], [[np.inf]]))
    chosen = F.where(condition, x, y)
    assert host(chosen).tolist() == [[1, 2], [np.inf, np.inf]]
    chosen.backward(xp.asarray([[3.0, 4.0], [5.0, 6.0]], "float32"))
    assert host(x.grad).tolist() == [3, 4]
    assert host(y.grad).tolist() == [[11]]
    assert F.where(condition, x, 0.0).dtype == "float32"
    assert F.where(Tensor(condition), 1.0, x).requires_grad
    with pytest.raises(TypeError, match="condition must be a bool array, got float32: compare it"):
        F.where(x, x, y)

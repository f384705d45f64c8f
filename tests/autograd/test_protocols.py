"""NumPy's functions and numbers with Tensors: the gradient is kept, or the loss of it refused."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from invocupy import Tensor, no_grad
from invocupy import functional as F  # noqa: N812


def leaf(values: Any, dtype: str = "float64") -> Tensor:
    return Tensor(np.asarray(values, dtype), requires_grad=True)


# ---------------------------------------------------------------------------- conversions


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x // 2,
        lambda x: 7 // x,
        lambda x: np.ones(2) % x,
        lambda x: x % 2.0,
        lambda x: divmod(x, 2),
    ],
)
def test_operators_without_a_gradient_are_refused_where_it_is_lost(act: Any) -> None:
    with pytest.raises(TypeError, match=r"would lose the gradient.*\.numpy\(\)"):
        act(leaf([2.0, 3.0]))
    np.testing.assert_array_equal(act(Tensor([2.0, 3.0])), act(np.array([2.0, 3.0])))


# ---------------------------------------------------------------------------- NumPy


@pytest.mark.parametrize(
    "function",
    [
        np.exp, np.log, np.sqrt, np.tanh, np.negative, np.abs, np.sum, np.mean, np.transpose,
        lambda x: np.sum(x, 0), lambda x: np.mean(x, axis=1, keepdims=True), lambda x: np.max(x, 1),
        lambda x: np.reshape(x, (4, -1)), lambda x: np.concatenate([x, x * 2], axis=1),
        lambda x: np.concatenate((np.ones((1, 4)), x)), lambda x: np.add(x, 1.0),
        lambda x: np.subtract(np.ones(4), x), lambda x: np.multiply(x, x),
        lambda x: np.divide(1.0, x), lambda x: np.power(x, 3), lambda x: np.maximum(x, 0.6),
        lambda x: np.minimum(x, 0.6), lambda x: np.where(np.arange(4) > 1, x, 0.0),
        lambda x: np.where([True, False, 1, 0], 2.0, x), lambda x: np.clip(x, 0.4, 0.9),
        lambda x: np.clip(x, a_min=0.4, a_max=None), lambda x: np.clip(np.ones(4), x, 2.0),
        lambda x: np.matmul(x, np.ones((4, 2))), lambda x: np.ones((2, 2)) @ x,
        lambda x: np.arange(4.0) * x, lambda x: np.float64(3) / x,
    ],
)  # fmt: skip
def test_functions_of_numpy_keep_the_gradient(function: Callable[..., Any]) -> None:
    data = np.linspace(0.3, 1.1, 8).reshape(2, 4)
    x = leaf(data)
    result = function(x)
    assert type(result) is Tensor
    np.testing.assert_allclose(result.data, function(data), rtol=1e-15)
    result.sum().backward()
    step = 1e-6
    moved = (np.sum(function(data + step)) - np.sum(function(data - step))) / (2 * step)
    np.testing.assert_allclose(x.grad.sum(), moved, rtol=1e-6)


REFUSED: list[Callable[..., Any]] = [
    lambda x: np.stack([x, x]),
    lambda x: np.sin(x),
    lambda x: np.clip(x, 0, 1, out=np.empty(2)),
    lambda x: np.linalg.norm(x),
    lambda x: np.dot(x, x),
    lambda x: np.einsum("i->", x),
    lambda x: np.sum(x, dtype=np.float32),
    lambda x: np.sum(x, 0, np.float32),
    lambda x: np.sum(x, where=[True, False]),
    lambda x: np.add.reduce(x),
    lambda x: np.squeeze(x),
    lambda x: np.exp(x, out=np.empty(2)),
    lambda x: np.histogram(x),
]


@pytest.mark.parametrize("function", REFUSED)
def test_functions_that_would_lose_the_gradient_are_refused(function: Any) -> None:
    with pytest.raises(TypeError, match=r"numpy\.\w+ would lose the gradient.*\.numpy\(\)"):
        function(leaf([0.5, 2.0]))
    expected = function(np.array([0.5, 2.0]))
    with no_grad():  # where no gradient can be lost, they work
        for x in (leaf([0.5, 2.0]), Tensor([0.5, 2.0])):
            result = function(x)
            for one, other in zip(
                *((r if isinstance(r, tuple) else (r,)) for r in (result, expected)), strict=True
            ):
                np.testing.assert_array_equal(one.data if isinstance(one, Tensor) else one, other)


def test_functions_whose_result_has_no_gradient_work() -> None:
    data = np.array([[0.5, 2.0], [np.nan, 1.0]])
    x = leaf(data)
    assert np.shape(x) == (2, 2)
    assert (np.ndim(x), np.size(x)) == (2, 4)
    assert np.argmax(x[0]) == 1
    assert np.argsort(x[0]).tolist() == [0, 1]
    assert np.isnan(x).sum() == 1
    assert np.allclose(x[0], [0.5, 2.0])
    assert np.array_equal(x[0], leaf([0.5, 2.0]))
    assert np.zeros_like(x).tolist() == [[0, 0], [0, 0]]
    np.testing.assert_allclose(x, data)
    np.testing.assert_array_equal(np.asarray(x * 1), data)  # an explicit conversion


def test_nothing_is_written_in_place() -> None:
    x, target = leaf([1.0, 2.0]), np.ones(2)
    for act in (
        lambda: operator.imul(target, x),
        lambda: np.copyto(target, x),
        lambda: np.add.at(target, [0, 1], x),
        lambda: np.put(target, [0, 1], x),
    ):
        with pytest.raises(TypeError, match="would lose the gradient"):
            act()
    assert target.tolist() == [1, 1]
    operator.imul(target, x.detach())
    assert target.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        np.copyto(Tensor([1.0, 2.0]), target)  # type: ignore[call-overload]


def test_what_has_no_gradient_is_not_recorded_in_silence() -> None:
    x = leaf([1.0, 2.0])
    with pytest.raises(TypeError, match=r"data holds Tensors.*functional\.concatenate"):
        Tensor([x[0], x[1]])
    for nested in ([[x[0]], [x[1]]], [(x[0], 1.0)], ([[x[0]]],)):
        with pytest.raises(TypeError, match=r"data holds Tensors.*functional\.concatenate"):
            Tensor(nested)
    for value in (None, {"x": x}, {1.0}, (item for item in x), object()):
        with pytest.raises(TypeError, match="data must hold numbers, got "):
            Tensor(value)
    with pytest.raises(TypeError, match="real numbers, but the result would be complex128"):
        _ = x * 1j
    for seed in (1j, "1"):
        with pytest.raises(TypeError, match="grad must hold real numbers"):
            x.sum().backward(seed)
    with no_grad():
        assert Tensor([x[0], x[1]]).data.tolist() == [1, 2]
        assert (x * 1j).dtype == complex


def test_usual_mistakes_are_named() -> None:
    x = leaf(np.ones((2, 3)))
    for act, message in (
        (lambda: F.max(np.zeros((2, 0)), axis=1), r"x must have a value along axis 1, got .*2, 0"),
        (lambda: F.max(np.zeros((0, 2))), "x must have a value along axis None"),
        (lambda: F.softmax(x, axis=3), "axis 3 is out of bounds"),
        (lambda: F.transpose(x, (0, 5)), "axis 5 is out of bounds"),
        (lambda: F.transpose(x, (0, 0)), "repeated axis"),
        (lambda: F.concatenate([]), "parts must be one array or more"),
        (lambda: F.concatenate([x, [[1.0]], x]), "parts must be a NumPy or CuPy array, got list"),
        (lambda: F.flatten([1.0]), "x must be a NumPy or CuPy array, got list"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            act()
    assert F.max(np.zeros((0, 2)), axis=1).shape == (0,)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_numbers_of_numpy_by_themselves_keep_their_dtype(kind: Any) -> None:
    number = kind(2)
    for op in (F.exp, F.log, F.sqrt, F.tanh, F.relu, F.sum, F.mean, F.max, F.softmax, F.flatten):
        value = op(number)
        assert value.dtype == kind
        np.testing.assert_array_equal(value, op(np.array(2, kind)))
    for op in (F.add, F.subtract, F.multiply, F.divide, F.power, F.maximum):
        assert op(number, kind(3)).dtype == op(number, 3.0).dtype == kind
        assert op(number, np.ones(2, np.float16)).dtype == np.float16


def test_wider_floats_of_numpy_work_as_constants() -> None:
    x, wide = leaf(np.array([0.5, 2.0])), np.array([1, 2], np.longdouble)
    for value, gradient in (
        (x / wide, [1, 0.5]),
        (wide / x, [-4, -0.5]),
        ((x * wide).relu(), [1, 2]),
        ((x + wide).log(), [1 / 1.5, 0.25]),
        ((x * wide).max(), [0, 2]),
    ):
        x.grad = None
        value.sum().backward()
        np.testing.assert_allclose(x.grad, gradient, rtol=1e-15)
    assert math.trunc(Tensor(-2.5)) == -2


def test_a_power_of_zero_has_no_gradient_at_infinity() -> None:
    x = leaf([0.0, 2.0, np.inf])
    (x ** np.array([0.0, 2.0, 0.0])).sum().backward()
    assert x.grad.tolist() == [0, 4, 0]


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_a_matrix_is_an_array() -> None:
    data, other = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.5, -1.0], [2.0, 1.5]])
    for act in (
        lambda x, m: x * m,
        lambda x, m: m * x,
        lambda x, m: x**m,
        lambda x, m: F.multiply(m, x),
        lambda x, m: F.add(x, m) / m,
        lambda x, m: x @ m,
    ):
        results = []
        for operand in (other, np.matrix(other)):
            x = leaf(data)
            y = act(x, operand)
            y.sum().backward()
            results.append((type(y.data), y.data.tolist(), x.grad.tolist()))
        assert results[0] == results[1]


def test_objects_have_lost_their_gradient_too() -> None:
    twice = np.frompyfunc(lambda value: value * 2, 1, 1)
    with pytest.raises(TypeError, match="would lose the gradient"):
        twice(leaf([1.0, 2.0]))
    assert list(twice(Tensor([1.0, 2.0]))) == [2, 4]

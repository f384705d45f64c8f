"""What Python and NumPy do with a Tensor: copies, conversions, comparisons, NumPy's functions."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from invocupy import Tensor, nn, no_grad
from invocupy import functional as F  # noqa: N812


def leaf(values: Any, dtype: str = "float64") -> Tensor:
    return Tensor(np.asarray(values, dtype), requires_grad=True)


# ---------------------------------------------------------------------------- copies


class Named(Tensor):
    """With an attribute that no slot holds."""

    def __init__(self, data: Any) -> None:
        super().__init__(data, requires_grad=True)
        self.name = "mine"


@pytest.mark.parametrize("make", [leaf, Named, lambda v: nn.Parameter(np.asarray(v))])
@pytest.mark.parametrize(
    "clone",
    [
        copy.copy,
        copy.deepcopy,
        *(lambda t, p=p: pickle.loads(pickle.dumps(t, p)) for p in (2, 5)),  # noqa: S301
    ],
)
def test_each_copy_is_a_tensor_of_its_own(clone: Callable[..., Any], make: Any) -> None:
    first = make([1.0, 2.0])
    first.grad = np.ones(2)
    second = clone(first)
    assert type(second) is type(first)
    assert getattr(second, "name", None) == getattr(first, "name", None)
    assert second.requires_grad
    assert second.grad.tolist() == [1, 1]
    assert second._serial != first._serial
    (first * 2 + second * 3).sum().backward()
    assert (first.grad.tolist(), second.grad.tolist()) == ([3, 3], [4, 4])


def test_copied_models_keep_their_gradients_apart() -> None:
    student = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm2d(3), nn.Linear(3, 1))
    teacher = copy.deepcopy(student)
    pairs = list(zip(student.parameters(), teacher.parameters(), strict=True))
    for mine, other in pairs:
        (mine.sum() - 5 * other.sum()).backward()
        assert (mine.grad == 1).all()
        assert (other.grad == -5).all()
    numbers = [p._serial for pair in pairs for p in pair]
    assert len(set(numbers)) == len(numbers)


def test_one_tensor_stays_one_in_a_copied_structure() -> None:
    shared = leaf([1.0])
    first, second = copy.deepcopy([shared, shared])
    assert first is second


def test_results_are_copied_shallowly_or_not_at_all() -> None:
    x = leaf([1.0, 2.0])
    y = x * 3
    again = copy.copy(y)  # another node, of the same parents
    (y + again).sum().backward()
    assert x.grad.tolist() == [6, 6]
    deep = x
    for _ in range(1000):
        deep = deep + 1
    for act in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"computed from others .* take its \.detach\(\)"):
            act(deep)
    assert copy.deepcopy(deep.detach()).data.tolist() == [1001, 1002]


# ---------------------------------------------------------------------------- comparisons


@pytest.mark.parametrize(
    "compare",
    [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge],
)
def test_comparisons_are_those_of_the_values(compare: Callable[..., Any]) -> None:
    data, other = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([2.0, 2.0])
    for left, right in (
        (leaf(data), leaf(other)),
        (leaf(data), other),
        (data, leaf(other)),
        (leaf(data), 2.0),
        (leaf(data), np.float64(2)),
        (leaf(data), np.array(2.0)),
    ):
        plain = [a.data if isinstance(a, Tensor) else a for a in (left, right)]
        result = compare(left, right)
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, compare(*plain))
    assert (leaf([1.0, 2.0]) == leaf([1.0, 3.0])).mean() == 0.5


def test_tensors_are_keys_by_identity() -> None:
    first, second = leaf([1.0, 2.0]), leaf([1.0, 2.0])
    seen = {first: "first", second: "second"}
    assert (seen[first], seen[second]) == ("first", "second")
    assert len({first, second, first}) == 2
    assert first in {first}
    assert second not in {first}


def test_membership_looks_at_the_values() -> None:
    x = leaf([1.0, 2.0, 3.0])
    assert 3.0 in x
    assert 4.0 not in x
    assert Tensor(2.0) in x
    assert 1 in Tensor(1.0)


# ---------------------------------------------------------------------------- conversions


@pytest.mark.parametrize(
    "act", [list, tuple, sum, iter, len, sorted, enumerate, lambda t: [*t], lambda t: {"a": t} | t]
)
def test_without_axes_there_is_nothing_to_iterate(act: Callable[..., Any]) -> None:
    with pytest.raises(TypeError):
        act(leaf(5.0))


def test_iteration_keeps_the_gradient() -> None:
    x = leaf([[1.0, 2.0], [3.0, 4.0]])
    first, second = x
    (first * 2 + second * 3).sum().backward()
    assert x.grad.tolist() == [[2, 2], [3, 3]]
    assert [row.shape for row in leaf(np.zeros((0, 2)))] == []


def test_one_element_is_a_number() -> None:
    for x in (leaf(2.75), leaf([[2.75]]), Tensor(np.float32(2.75))):
        assert (float(x), int(x), complex(x)) == (2.75, 2, 2.75)
        assert (round(x), round(x, 1)) == (3, 2.8)
        assert (f"{x:.1f}", f"{x:>6.2f}") == ("2.8", "  2.75")
        assert math.floor(x) == 2
    assert f"{leaf(1.0)}" == str(leaf(1.0))
    assert f"{leaf([1.0, 2.0])}" == str(leaf([1.0, 2.0]))
    assert "abc"[Tensor(1)] == "b"
    assert list(range(Tensor(np.int32(3)))) == [0, 1, 2]


@pytest.mark.parametrize(
    "act", [float, int, complex, round, lambda t: f"{t:.3f}", lambda t: [0][t]]
)
def test_several_elements_are_no_number(act: Callable[..., Any]) -> None:
    for x in (leaf([1.0, 2.0]), leaf([])):
        with pytest.raises(TypeError, match=r"item\(\)|int\(tensor\)"):
            act(x)


def test_truth_is_that_of_one_element() -> None:
    assert leaf([1.0])
    assert not leaf(0.0)
    for x in (leaf([1.0, 2.0]), leaf([])):
        with pytest.raises(ValueError, match=r"truth value .* use \.numpy\(\)\.any\(\)"):
            bool(x)


def test_elements_are_not_assigned() -> None:
    x = leaf([1.0, 2.0])
    with pytest.raises(TypeError, match=r"cannot be assigned.*functional\.concatenate"):
        x[0] = 3.0
    assert (+x) is x


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


def test_masks_combine() -> None:
    a, b = Tensor([True, False]), Tensor([True, True])
    assert (a & b).tolist() == [True, False]
    assert (a | b).tolist() == (b | np.array([True, False])).tolist() == [True, True]
    assert (a ^ b).tolist() == (~a).tolist() == [False, True]


# ---------------------------------------------------------------------------- an index


@pytest.mark.parametrize(
    "index",
    [
        np.array([0, 2]),
        np.array([2, 0, 2], np.int32),
        np.array([True, False, True]),
        np.array([[0, 1], [2, 2]]),
        np.array(1),
    ],
)
def test_a_tensor_as_index_is_its_array(index: Any) -> None:
    data = np.arange(6.0).reshape(3, 2)
    forms: list[Any] = [Tensor(index), (Tensor(index), slice(0, 1)), (Tensor(index), Tensor(1))]
    if index.ndim == 1:
        forms.append([Tensor(i) for i in index])
    for form in forms:
        plain = index
        if isinstance(form, tuple):
            plain = tuple(i.data if isinstance(i, Tensor) else i for i in form)
        x, y = leaf(data), leaf(data)
        ours, theirs = x[form], y[plain]
        np.testing.assert_array_equal(ours.data, data[plain])
        (ours * ours).sum().backward()
        (theirs * theirs).sum().backward()
        np.testing.assert_array_equal(x.grad, y.grad)
    x = leaf(data)
    x[x > 2].sum().backward()
    np.testing.assert_array_equal(x.grad, data > 2)
    assert x[[]].shape == (0, 2)
    with pytest.raises(IndexError, match="integer"):
        x[leaf([1.0])]


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
    lambda x: np.where([True, False], x, 0),
    lambda x: np.sin(x),
    lambda x: np.clip(x, 0, 1),
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

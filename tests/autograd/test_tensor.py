"""A Tensor as an array: operators, methods, conversions, copies, comparisons."""

from __future__ import annotations

import copy
import math
import operator
import pickle
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import invocupy
from invocupy import Tensor, nn, no_grad, ops
from invocupy import functional as F  # noqa: N812


def leaf(values: Any, dtype: str = "float64") -> Tensor:
    return Tensor(np.asarray(values, dtype), requires_grad=True)


# ---------------------------------------------------------------------------- memory of others


def test_augmented_assignment_makes_a_new_tensor() -> None:
    x = leaf([1.0, 2.0])
    y = x
    y += 1.0
    assert y is not x
    assert x.data.tolist() == [1.0, 2.0]
    y.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_data_is_not_copied() -> None:
    array = np.ones(2)
    assert Tensor(array).data is array
    assert Tensor(Tensor(array)).data is array
    assert Tensor(array).detach().data is array
    assert Tensor(array).numpy() is array


# ---------------------------------------------------------------------------- operators


def test_operators_and_methods_are_the_functions(xp: ModuleType) -> None:
    data = xp.asarray([[0.5, 2.0], [3.0, 0.25]])
    x = Tensor(data)
    pairs = {
        "+": (x + 2, data + 2),
        "r+": (2 + x, 2 + data),
        "-": (x - 2, data - 2),
        "r-": (2 - x, 2 - data),
        "*": (x * 3, data * 3),
        "r*": (3 * x, 3 * data),
        "/": (x / 2, data / 2),
        "r/": (2 / x, 2 / data),
        "**": (x**2, data**2),
        "r**": (2**x, 2**data),
        "@": (x @ x, data @ data),
        "array+": (data + x, data + data),
        "array*": (data * x, data * data),
        "array-": (data - x, data - data),
        "array/": (data / x, data / data),
        "array@": (data @ x, data @ data),
        "neg": (-x, -data),
        "abs": (abs(-x), data),
        "abs()": ((-x).abs(), data),
        "index": (x[0, 1:], data[0, 1:]),
        "sum": (x.sum(axis=0), data.sum(axis=0)),
        "mean": (x.mean(axis=1, keepdims=True), data.mean(axis=1, keepdims=True)),
        "max": (x.max(axis=-1), data.max(axis=-1)),
        "reshape": (x.reshape(4, 1), data.reshape(4, 1)),
        "reshape tuple": (x.reshape((1, -1)), data.reshape(1, -1)),
        "flatten": (x.flatten(), data.reshape(-1)),
        "flatten from": (x.reshape(2, 1, 2).flatten(1), data),
        "transpose": (x.transpose(), data.T),
        "transpose axes": (x.transpose(0, 1), data),
        "T": (x.T, data.T),
        "exp": (x.exp(), xp.exp(data)),
        "log": (x.log(), xp.log(data)),
        "sqrt": (x.sqrt(), xp.sqrt(data)),
        "tanh": (x.tanh(), xp.tanh(data)),
        "relu": ((x - 1).relu(), xp.maximum(data - 1, 0)),
    }
    for name, (tensor, expected) in pairs.items():
        assert isinstance(tensor, Tensor), name
        assert tensor.shape == expected.shape, name
        assert (tensor.data == expected).all(), name


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_scalars_keep_the_dtype(dtype: str) -> None:
    x = leaf([1.0, 2.0], dtype)
    for number in (2, 0.5, np.float64(0.5), np.float32(2), np.int64(3)):
        for y in (x + number, number - x, x * number, number / x, x**number, number * x):
            assert y.dtype == dtype
    ((x * np.float64(2) + 1) / 3).sum().backward()
    assert x.grad.dtype == dtype


def test_array_times_tensor_stays_a_tensor() -> None:
    x = leaf([1.0, 2.0])
    y = np.array([[3.0], [4.0]]) * x
    assert isinstance(y, Tensor)
    y.sum().backward()
    assert x.grad.tolist() == [7.0, 7.0]


def test_as_numpy_and_numbers() -> None:
    x = leaf([[1.0, 2.0]])
    assert np.asarray(x) is x.data
    assert np.asarray(x, "float32").dtype == "float32"
    assert not np.shares_memory(np.array(x), x.data)
    assert len(x) == 1
    assert (x.ndim, x.size, x.shape) == (2, 2, (1, 2))
    assert x.sum().item() == float(x.sum()) == 3.0
    assert not leaf(0.0)
    assert leaf([[2.0]])
    assert repr(leaf([1.0])) == "Tensor(array([1.]), requires_grad=True)"
    assert repr(Tensor([1])) == "Tensor(array([1]))"


@pytest.mark.gpu
def test_numpy_copies_from_the_device() -> None:
    cupy = invocupy.arrays.require_cupy()
    x = Tensor(cupy.ones(2), requires_grad=True)
    (x * 2).sum().backward()
    assert isinstance(x.grad, cupy.ndarray)
    assert isinstance(x.numpy(), np.ndarray)


# ---------------------------------------------------------------------------- errors


def test_errors() -> None:
    x = leaf([1.0, 2.0])
    with pytest.raises(ValueError, match=r"got a tensor of shape \(2,\): take its .mean"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"grad must have the shape \(2,\), got \(3,\)"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(RuntimeError, match="requires_grad=True"):
        Tensor([1.0]).backward()
    with pytest.raises(RuntimeError, match="no_grad"), no_grad():
        (x * 2).sum().backward()
    with pytest.raises(TypeError, match="requires_grad needs a floating dtype, got int64"):
        Tensor(np.arange(3), requires_grad=True)
    with pytest.raises(TypeError, match="data is a masked array"):
        Tensor(np.ma.masked_less(np.arange(3.0), 1))
    for given in ([1.0, 2.0], (1.0, 2.0)):
        with pytest.raises(TypeError, match="b must be a NumPy or CuPy array"):
            _ = x + given
        with pytest.raises(TypeError, match="a must be a NumPy or CuPy array"):
            F.add(given, given)
        with pytest.raises(TypeError, match="x must be a NumPy or CuPy array"):
            F.softmax(given)
    with pytest.raises(ValueError, match="truth value"):
        bool(x)
    with pytest.raises(ValueError, match=r"a and b must be \(\.\.\., n, k\)"):
        _ = x @ x
    with pytest.raises(TypeError, match="labels have no gradient"):
        ops.cross_entropy(np.ones((1, 2)), np.array([0]))[1][1](np.ones(()))


def test_reductions_take_axes_as_numpy_numbers() -> None:
    x = leaf([[2.0, 3.0], [4.0, 5.0]])
    for reduced in (x.sum(np.int64(1)), 2 * x.mean(np.int64(0)), 2 * x.max(np.int64(-1))):
        x.grad = None
        reduced.sum().backward()
        assert x.grad.sum() == 4


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

"""The tape: order, sums, memory; nothing that another may hold is ever written."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import invocupy
from invocupy import Tensor, functional, no_grad, ops
from invocupy import functional as F  # noqa: N812
from invocupy.autograd import apply, is_recording

DEPTH = 10_000


def leaf(values: Any, dtype: str = "float64") -> Tensor:
    return Tensor(np.asarray(values, dtype), requires_grad=True)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only reference counting frees memory."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# ---------------------------------------------------------------------------- deep graphs


def chain(x: Tensor) -> Tensor:
    for _ in range(DEPTH):
        x = x + 1.0
    return x


def diamonds(x: Tensor) -> Tensor:
    """Fans out and in: 2**DEPTH paths, which a walk along paths could not finish."""
    for _ in range(DEPTH):
        x = x * 0.25 + x * 0.75
    return x


@pytest.mark.parametrize("graph", [chain, diamonds])
@pytest.mark.usefixtures("no_collector")
def test_deep_graph_runs_backward_and_is_freed(graph: Any) -> None:
    x = leaf([1.0, 2.0])
    loss = graph(x).sum()
    inner = weakref.ref(loss._parents[0][0])
    loss.backward(np.asarray(3.0))
    assert x.grad.tolist() == [3.0, 3.0]
    del loss
    assert inner() is None


@pytest.mark.usefixtures("no_collector")
def test_graph_of_layers_is_freed_without_the_collector() -> None:
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((2, 4, 6, 6)), requires_grad=True)
    kernel = Tensor(rng.standard_normal((2, 2, 3, 3, 6, 6)), requires_grad=True)
    weight, bias = leaf(np.ones(4)), leaf(np.zeros(4))
    hidden = F.batch_norm(
        F.involution(x, kernel), weight=weight, bias=bias, training=True, relu=True
    )
    pooled = F.flatten(F.max_pool2d(hidden, 2) + F.avg_pool2d(hidden, 2))
    loss = F.cross_entropy(pooled, np.array([3, 5]))
    memory = [weakref.ref(t.data) for t in (hidden, pooled, loss)]
    loss.backward()
    del hidden, pooled, loss
    assert [array() for array in memory] == [None] * 3


def test_backward_frees_gradients_on_its_way() -> None:
    alive: list[int] = []
    arrays: list[weakref.ref[np.ndarray]] = []

    def watched(x: Any) -> Any:
        def partial(grad: Any) -> Any:
            alive.append(sum(ref() is not None for ref in arrays))
            result = grad * 1
            arrays.append(weakref.ref(result))
            return result

        return x * 1, (partial,)

    x = leaf(np.ones(3))
    y = x
    for _ in range(50):
        y = apply(watched, y)
    y.backward(np.ones(3))
    assert max(alive) <= 2


# ---------------------------------------------------------------------------- sums of gradients


def test_tensor_used_several_times() -> None:
    x = leaf([2.0, 3.0])
    (x * x * x + x).sum().backward()
    assert x.grad.tolist() == [13.0, 28.0]


def test_backward_adds_to_grad() -> None:
    x = leaf([1.0, 2.0])
    (x * 2).sum().backward()
    first = x.grad
    (x * 3).sum().backward()
    assert x.grad.tolist() == [5.0, 5.0]
    assert first.tolist() == [2.0, 2.0]  # who took the array keeps it as it was
    x.grad = None
    (x * 3).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


def test_backward_twice_through_one_graph() -> None:
    x = leaf([1.0, 2.0])
    y = (x.exp() * x).sum()
    y.backward()
    once = x.grad.copy()
    y.backward()
    assert (x.grad == 2 * once).all()


def test_backward_through_a_part_only() -> None:
    x = leaf([1.0, 2.0])
    y = x * 2
    z = y * 3
    y.sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]
    assert (y.grad, z.grad) == (None, None)  # leaves only


def test_newest_first_even_if_reached_late() -> None:
    """``b`` is reached over a short way first, and must wait for the long one."""
    calls: list[str] = []

    def named(name: str) -> Any:
        def op(*operands: Any) -> Any:
            def partial(grad: Any) -> Any:
                calls.append(name)
                return grad

            return sum(operands), (partial,) * len(operands)

        return op

    x = leaf(1.0)
    b = apply(named("b"), x)
    long = apply(named("d"), apply(named("c"), b))
    apply(named("e"), b, long).backward()
    assert calls == ["e", "e", "d", "c", "b"]
    assert x.grad == 2.0


def test_partials_are_called_only_if_wanted() -> None:
    def refuses(*operands: Any) -> Any:
        def partial(grad: Any) -> Any:
            raise AssertionError("nobody wants this gradient")

        return operands[0] + operands[1], (lambda grad: grad, partial)

    x = leaf([1.0])
    apply(refuses, x, Tensor([1.0])).backward()
    apply(refuses, x, np.ones(1)).backward()
    apply(refuses, x, 1.0).backward()
    assert x.grad.tolist() == [3.0]


# ---------------------------------------------------------------------------- memory of others


def test_gradients_of_leaves_share_no_memory() -> None:
    a, b, c = leaf([1.0, 2.0]), leaf([3.0, 4.0]), leaf([[5.0, 6.0]])
    start = np.array([1.0, 1.0])
    (a + b + c.reshape(2)).backward(start)
    arrays = [start, a.grad, b.grad, c.grad]
    for i, one in enumerate(arrays):
        assert one.flags.writeable
        for other in arrays[:i]:
            assert not np.shares_memory(one, other)


def test_leaf_that_is_the_loss_copies_its_gradient() -> None:
    x, grad = leaf([1.0, 2.0]), np.ones(2)
    x.backward(grad)
    assert x.grad.tolist() == [1.0, 1.0]
    assert not np.shares_memory(x.grad, grad)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x + x.reshape(3, 2).transpose()).sum(),
        lambda x: (x[0] + x[1] + x.sum(axis=0)).sum(),
        lambda x: F.concatenate([x, x]).sum() + x.max() + x.mean(),
        lambda x: (F.relu(x) + x).exp().sum(),
    ],
)
def test_nothing_that_others_hold_is_written(function: Any) -> None:
    data = np.random.default_rng(0).standard_normal((2, 3))
    data.flags.writeable = False
    held = np.ones((), "float64")
    held.flags.writeable = False
    x = Tensor(data, requires_grad=True)
    function(x).backward(held)
    before = x.grad.copy()
    x.grad.flags.writeable = False
    function(x).backward(held)
    assert (x.grad == 2 * before).all()


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


# ---------------------------------------------------------------------------- recording


def test_no_grad() -> None:
    x = leaf([1.0])
    with no_grad():
        assert not is_recording()
        y = x * 2
        with no_grad():
            pass
        assert not is_recording()
    assert is_recording()
    assert not y.requires_grad
    assert y._parents == ()

    @no_grad()
    def twice(value: Tensor) -> Any:
        return value * 2

    assert not twice(x).requires_grad
    assert not twice(x).requires_grad  # a decorator works more than once
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert is_recording()


def test_no_grad_is_of_one_thread() -> None:
    seen: list[bool] = []
    with no_grad():
        thread = threading.Thread(target=lambda: seen.append((leaf([1.0]) * 2).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]


def test_detach_cuts() -> None:
    x = leaf([2.0])
    (x.detach() * x).backward()
    assert x.grad.tolist() == [2.0]
    assert not x.detach().requires_grad


def test_constants_record_nothing() -> None:
    y = Tensor([1.0]) * Tensor([2.0])
    assert not y.requires_grad
    assert y._parents == ()


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


def test_gradient_has_the_dtype_of_its_tensor() -> None:
    x, y = leaf([1.0, 2.0], "float32"), leaf([3.0, 4.0], "float64")
    z = x * y
    assert z.dtype == "float64"
    z.sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == ("float32", "float64")


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
    with pytest.raises(ValueError, match=r"grad is needed for a tensor of shape \(2,\)"):
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
    with pytest.raises(ValueError, match="a and b must have 2 or more dimensions"):
        _ = x @ x
    with pytest.raises(TypeError, match="labels have no gradient"):
        ops.cross_entropy(np.ones((1, 2)), np.array([0]))[1][1](np.ones(()))


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_grad_given_as_a_matrix_or_list_is_an_array() -> None:
    x = leaf([[2.0, 3.0], [4.0, 5.0]])
    numbers = [[1.0, 2.0], [3.0, 4.0]]
    for grad in (np.matrix(numbers), numbers):
        x.grad = None
        (x * x).backward(grad)
        np.testing.assert_array_equal(x.grad, 2 * x.data * numbers)
    leaf(2.0).backward(3.0)
    with pytest.raises(TypeError, match="masked array"):
        x.backward(np.ma.masked_array(numbers))


def test_reductions_take_axes_as_numpy_numbers() -> None:
    x = leaf([[2.0, 3.0], [4.0, 5.0]])
    for reduced in (x.sum(np.int64(1)), 2 * x.mean(np.int64(0)), 2 * x.max(np.int64(-1))):
        x.grad = None
        reduced.sum().backward()
        assert x.grad.sum() == 4


def test_grad_given_as_a_tensor_or_single_element() -> None:
    x = leaf([[2.0]])
    (x * 3).backward()
    assert x.grad.tolist() == [[3.0]]
    (x * 3).backward(Tensor([[2.0]]))
    assert x.grad.tolist() == [[9.0]]


def test_a_network_of_them_learns_the_gradient_of_its_reference() -> None:
    """Through the tape, the ops on these backends against array code in float64."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 6, 6))
    weight, bias = rng.standard_normal((8, 3, 1, 1)), rng.standard_normal(8)
    scale, shift = rng.standard_normal(8), rng.standard_normal(8)
    operands = [Tensor(a, requires_grad=True) for a in (x, weight, bias, scale, shift)]
    y = functional.conv2d(*operands[:3])
    y = functional.batch_norm(y, weight=operands[3], bias=operands[4], training=True, relu=True)
    cotangent = rng.standard_normal(y.shape)
    y.backward(cotangent)

    def loss(*arrays: Any) -> float:
        x, weight, bias, scale, shift = arrays
        z = np.einsum("oc,nchw->nohw", weight[:, :, 0, 0], x) + bias[:, None, None]
        centred = z - z.mean(axis=(0, 2, 3), keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(axis=(0, 2, 3), keepdims=True) + 1e-5)
        out = np.maximum(scale[:, None, None] * unit + shift[:, None, None], 0)
        return float((out * cotangent).sum())

    arrays = [t.data for t in operands]
    for i, operand in enumerate(operands):
        direction = rng.standard_normal(arrays[i].shape)
        ends = [
            loss(*arrays[:i], arrays[i] + step * direction, *arrays[i + 1 :])
            for step in (-1e-6, 1e-6)
        ]
        slope = (ends[1] - ends[0]) / 2e-6
        size = float(abs(operand.grad * direction).sum())
        assert abs(slope - float((operand.grad * direction).sum())) <= 1e-5 * max(size, 1.0)

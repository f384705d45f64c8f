"""The tape: order, sums, memory; nothing that another may hold is ever written."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from invocupy import Tensor, functional
from invocupy import functional as F  # noqa: N812
from invocupy.autograd import apply

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


# ---------------------------------------------------------------------------- operators


def test_gradient_has_the_dtype_of_its_tensor() -> None:
    x, y = leaf([1.0, 2.0], "float32"), leaf([3.0, 4.0], "float64")
    z = x * y
    assert z.dtype == "float64"
    z.sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == ("float32", "float64")


# ---------------------------------------------------------------------------- errors


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

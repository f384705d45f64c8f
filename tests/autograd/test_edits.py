"""An edit in place between an operator and backward is noticed, or changes no gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from op_table import Row, rows

from invocupy import Tensor, detect_in_place, nn, no_grad, optim
from invocupy import functional as F  # noqa: N812
from invocupy.testing import lay_out


def edit(array: Any) -> None:
    """Change every element."""
    if array.dtype.kind == "b":
        array[...] = ~array
    elif array.dtype.kind in "iu":
        array[...] = (array + 1) % 4
    else:
        array[...] = -array - 0.25


def drawn(row: Row, dtype: str, layout: str) -> list[Any]:
    return [
        lay_out(a, layout) if getattr(a, "ndim", 0) and a.dtype == dtype else a
        for a in row.draw(0, np, dtype)
    ]


def gradients(row: Row, form: tuple[str, str], edited: int | None) -> list[Any]:
    """After an edit of one of the arguments, or of the result, which is behind them."""
    given = drawn(row, *form)
    floats = [getattr(a, "dtype", None) == form[0] for a in given]
    leaves = [Tensor(a, True) if f else a for a, f in zip(given, floats, strict=True)]
    value = row.run(*leaves)
    if edited is not None:
        edit(value.data if edited == len(given) else given[edited])
    value.backward(np.random.default_rng(1).normal(size=value.shape))
    return [leaf.grad for leaf, f in zip(leaves, floats, strict=True) if f]


@pytest.mark.parametrize(
    "form", [("float64", "C"), ("float64", "Fortran"), ("float32", "sliced"), ("float16", "C")]
)
@rows
def test_each_edit_is_noticed_or_harmless(row: Row, form: tuple[str, str]) -> None:
    wanted = gradients(row, form, None)
    given = drawn(row, *form)
    for i in range(len(given) + 1):
        if i < len(given) and not (isinstance(given[i], np.ndarray) and given[i].size):
            continue
        with suppress(RuntimeError):
            for one, other in zip(gradients(row, form, i), wanted, strict=True):
                np.testing.assert_array_equal(one, other)


def leaf(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).normal(size=shape), requires_grad=True)


@pytest.fixture
def unchecked() -> Iterator[None]:
    yield
    detect_in_place()


def test_the_message_names_array_and_way_out() -> None:
    x = leaf(3, 4)
    loss = x.exp().sum() + (x * 2.0).sum()
    x.data += 1
    loss.backward()  # exp has kept its result, and 2 * x needs no x
    assert x.grad is not None
    grad = x.grad.copy()
    y = x * x
    x.data[0] = 0.0
    with pytest.raises(RuntimeError, match=r"operand a of multiply, an array \(3, 4\), was"):
        y.sum().backward()
    np.testing.assert_array_equal(x.grad, grad)
    y = x.exp()
    y.data *= 2
    with pytest.raises(RuntimeError, match="the result of exp"):
        y.sum().backward()
    y.data /= 2
    y.sum().backward()


@pytest.mark.parametrize("size", [1, 16, 250, 257, 1 << 12, 99_991])
def test_large_arrays(size: int) -> None:
    """All of it, or a sixteenth of it, whatever the size."""
    for part in (slice(None), slice(0, -(-size // 8)), slice(size - -(-size // 8), None)):
        x = leaf(size)
        loss = (x * x).sum()
        x.data[part] += 1
        with pytest.raises(RuntimeError, match="edited in place"):
            loss.backward()


@pytest.mark.parametrize("kind", ["int8", "uint16", "int32", "uint64"])
def test_labels_of_any_integers(kind: str) -> None:
    x, labels = leaf(2, 3), np.zeros((2, 2), kind)[:, 0]
    loss = F.cross_entropy(x, labels)
    labels += 1
    with pytest.raises(RuntimeError, match="operand labels of cross_entropy"):
        loss.backward()


def test_indices_may_be_edited() -> None:
    for index in (np.array([0, 2]), np.array([True, False, True])):
        x = leaf(3)
        y = x[index] + x[:, None][index, 0] + x[Tensor(index)]
        index[...] = 1
        y.backward(np.ones(2))
        np.testing.assert_array_equal(x.grad, [3, 0, 3])


def test_operands_of_where_may_be_edited_but_not_its_condition() -> None:
    x, y, condition = leaf(3), leaf(3), np.array([True, False, True])
    chosen = F.where(condition, x, y)
    x.data += 1
    y.data += 1
    chosen.backward(np.ones(3))
    np.testing.assert_array_equal(x.grad, condition)
    np.testing.assert_array_equal(y.grad, ~condition)
    chosen = F.where(condition, x, y)
    condition[0] = False
    with pytest.raises(RuntimeError, match="operand condition of where"):
        chosen.backward(np.ones(3))


def test_what_is_not_of_the_tape_may_be_edited() -> None:
    x, image = leaf(2, 3, 8, 8), np.ones((2, 3, 8, 8))
    with no_grad():
        y = x * x
    x.data += 1
    layer = nn.Conv2d(3, 4, 3)
    layer.bias.data += 1  # type: ignore[union-attr]
    loss = layer(Tensor(image.astype(np.float32))).sum() + (x + y).sum()
    layer.bias.data += 1  # type: ignore[union-attr]
    x.data += 1
    y.data += 1
    loss.backward()
    np.testing.assert_array_equal(x.grad, 1)
    layer.weight.data -= 0.1 * layer.weight.grad  # after backward: an update of one's own


def test_a_batch_that_is_filled_again_and_weights_that_move() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    batch, labels = np.ones((5, 4), np.float32), np.zeros(5, np.int64)
    for array in (batch, labels, model[0].weight.data, model[2].weight.data):
        loss = F.cross_entropy(model(Tensor(batch)), labels)
        if array is not model[0].weight.data:
            array += 1
            with pytest.raises(RuntimeError, match="edited in place"):
                loss.backward()
            array -= 1
    sgd = optim.SGD(model.parameters(), lr=0.1)
    loss = F.cross_entropy(model(Tensor(batch)), labels)
    loss.backward()
    sgd.step()  # makes new arrays
    loss.backward()


@pytest.mark.usefixtures("unchecked")
def test_the_switch() -> None:
    x = leaf(3)
    loss = (x * x).sum()
    x.data += 1
    detect_in_place(False)
    loss.backward()
    loss = (x * x).sum()
    detect_in_place(True)
    x.data += 1
    loss.backward()  # nothing was noted

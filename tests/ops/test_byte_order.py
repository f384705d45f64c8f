"""Arrays in the other byte order, as files have them, give the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from op_table import ROWS, Row
from ranks import run_ranks

from invocupy import Tensor, nn
from invocupy.train.replica import Message


def other_order(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype(value.dtype.newbyteorder())
    return value


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name} {row.variant}".strip())
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_order_of_bytes_does_not_matter(row: Row, dtype: str) -> None:
    results = []
    for order in (lambda value: value, other_order):
        arrays = [order(value) for value in row.draw(0, np, dtype)]
        leaves = [
            Tensor(a, requires_grad=True)
            if isinstance(a, np.ndarray) and a.dtype.kind == "f"
            else a
            for a in arrays
        ]
        value = row.run(*leaves)
        value.backward(order(np.ones(value.shape, dtype)))
        gradients = [leaf.grad for leaf in leaves if isinstance(leaf, Tensor)]
        results.append([value.data, *(g for g in gradients if g is not None)])
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype.newbyteorder("=")
        # Sums are not taken in the same order where one of the two is converted first.
        tolerance = 32 * np.finfo(dtype).eps
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_gradients_of_float64_are_summed_in_float64_over_the_ranks() -> None:
    def task(comm: Any) -> Any:
        weight = nn.Parameter(np.zeros(1, ">f8"))
        weight.grad = np.array([1 + 2**-40], ">f8")
        Message([weight], 1, comm).sum(0)
        return weight.grad.item()

    assert run_ranks(2, task) == [2 + 2**-39] * 2

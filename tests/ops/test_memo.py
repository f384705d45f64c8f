"""What several gradients share is computed once, and not kept."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from typing import Any

import numpy as np
import pytest
from bounds import draw
from op_table import ROWS, Row, rows

from invocupy import Tensor, backends, ops
from invocupy.autograd import apply
from invocupy.ops.block import involution_block
from invocupy.ops.memo import once, sharing


def test_partials_share_sums_but_keep_no_gradient() -> None:
    x, weight, bias, grad = draw(0, "float32", (2, 3, 5, 7), (4, 3, 1, 1), (4,), (2, 4, 5, 7))
    _, (_, grad_weight, grad_bias) = ops.conv2d(x, weight, bias)
    alive = weakref.ref(grad)
    first = grad_weight(grad)
    first[...] = np.nan  # the caller's own array
    assert np.isfinite(grad_weight(grad)).all()
    assert grad_bias(grad).shape == (4,)
    assert not np.array_equal(grad_bias(2 * grad), grad_bias(grad))
    del grad
    gc.collect()
    assert alive() is None


def test_shared_work_is_forgotten_with_its_gradient() -> None:
    made: list[Any] = []

    def make(grad: np.ndarray) -> np.ndarray:
        result = 2 * grad
        made.append(weakref.ref(result))
        return result

    shared, grad = once(make), np.ones(3)
    with sharing(grad):
        assert shared(grad) is shared(grad)
        assert len(made) == 1
        assert shared(2 * grad)[0] == 4  # not the gradient that is passed on
    assert made[0]() is None
    grad[...] = 3  # filled again
    with sharing(grad):
        assert shared(grad)[0] == 6
    assert shared(grad) is not shared(grad)


def leaf(array: Any) -> Tensor:
    return Tensor(array, requires_grad=True)


# ---------------------------------------------------------------------------- gradients by content


def _leaves(row: Row, dtype: str) -> tuple[list[Any], list[Tensor]]:
    drawn = row.draw(0, np, dtype)
    operands = [leaf(a) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in drawn]
    return operands, [a for a in operands if isinstance(a, Tensor)]


def _gradients(y: Any, seed: Any, leaves: list[Tensor]) -> list[Any]:
    for tensor in leaves:
        tensor.grad = None
    y.backward(seed)
    return [tensor.grad for tensor in leaves]


@rows
def test_a_gradient_buffer_may_be_filled_again(row: Row) -> None:
    operands, leaves = _leaves(row, "float64")
    y, rng = row.run(*operands), np.random.default_rng(0)
    buffer = np.empty(y.shape)
    _, partials = row.run_op(*row.draw(0, np, "float64"))
    wanted = [p for p, a in zip(partials, operands, strict=True) if isinstance(a, Tensor)]
    for _ in range(3):
        fresh = rng.standard_normal(y.shape)
        buffer[...] = fresh
        again = _gradients(y, buffer, leaves)
        once = _gradients(y, fresh, leaves)
        direct = [partial(buffer) for partial in wanted]
        for first, second, third in zip(again, once, direct, strict=True):
            np.testing.assert_array_equal(first, second)
            np.testing.assert_array_equal(third, second)


def test_a_block_takes_a_gradient_buffer_again() -> None:
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 4, 5), (8, 3, 1, 1), *[(8,)] * 3, (2, 8, 1, 1), *[(2,)] * 3]
    shapes += [(18, 2, 1, 1), (18,), (3, 8, 1, 1), *[(3,)] * 3]
    leaves = [leaf(rng.standard_normal(shape)) for shape in shapes]
    y = apply(involution_block, *leaves, kernel_size=3)
    buffer = np.ones(y.shape)
    _gradients(y, buffer, leaves)
    buffer[...] = rng.standard_normal(y.shape)
    again = _gradients(y, buffer, leaves)
    for first, second in zip(again, _gradients(y, buffer.copy(), leaves), strict=True):
        np.testing.assert_array_equal(first, second)


ONCE = {
    "conv2d": {"grad_x": 1, "grad_weight": 1},
    "conv2d 1x1": {"grad_x": 1, "grad_weight": 1},
    "batch_norm": {"grad_sums": 1, "coefficients": 1, "grad_x": 1},
    "batch_norm residual and relu": {"grad_sums": 1, "coefficients": 1, "grad_x": 1},
    "fused_involution": {"fused_grad_x": 1, "fused_grad_span": 1},
    "involution": {"grad_x": 1, "grad_kernel": 1},
    # the scores' gradient, and from it those of query, key; value
    "local_self_attention": {"grad_kernel": 1, "forward": 1, "grad_x": 2},
}


@pytest.mark.parametrize("name", ONCE)
def test_the_tape_does_common_work_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = (row for row in ROWS if f"{row.name} {row.variant}".strip() == name)
    calls: Counter[str] = Counter()
    of = backends.of

    class Counting:
        def __init__(self, backend: Any) -> None:
            self.backend = backend

        def __getattr__(self, function: str) -> Any:
            def call(*arguments: Any) -> Any:
                calls[function] += 1
                return getattr(self.backend, function)(*arguments)

            return call

    monkeypatch.setattr(backends, "of", lambda op, x: Counting(of(op, x)))
    operands, leaves = _leaves(row, "float64")
    y = row.run(*operands)
    for _ in range(2):
        calls.clear()
        y.backward(np.ones(y.shape))
        assert calls == ONCE[name]
    assert len(leaves) > 1

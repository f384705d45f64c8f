"""Kernels of layers on arrays past 2^31 elements: only the last blocks run.

Three images of one channel. What is a sum over all of it means nothing then: there the sanitizers
judge the index arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from invocupy.backends import cuda
from invocupy.backends.cuda import batch_norm, expansion, involution, pointwise
from invocupy.backends.reference import involution as reference
from invocupy.geometry import Geometry

from . import host

BATCH, HEIGHT, WIDTH, ROWS, LAST = 3, 1 << 25, 32, 64, 8
Virtual = Callable[..., Any]  # zeros of any shape, of which only what is touched takes memory
_HALF = np.full(1, 0.5, np.float32)


def drawn(virtual: Virtual, count: int) -> list[Any]:
    """Images that hold numbers in their last rows; the last of them is to be filled."""
    arrays = [virtual((BATCH, 1, HEIGHT, WIDTH), np.float16) for _ in range(count)]
    for number, array in enumerate(arrays):
        random = np.random.default_rng(number)
        array[-1, 0, -ROWS:] = random.standard_normal((ROWS, WIDTH))
    arrays[-1][-1, 0, -ROWS:] = np.nan
    return arrays


def end(array: Any) -> Any:
    """The last rows, which the last blocks own."""
    return array[-1, 0, -LAST:].astype(np.float64)


def norm_forward(virtual: Virtual) -> tuple[Any, Any]:
    x, out = drawn(virtual, 2)
    batch_norm.forward(x, _HALF, _HALF, None, True, out)
    return end(out), np.maximum(end(x) / 2 + 0.5, 0)


def norm_grad_x(virtual: Virtual) -> tuple[Any, Any]:
    grad, x, out, residual, to = drawn(virtual, 5)
    batch_norm.grad_x(grad, x, out, _HALF, _HALF, _HALF, to, residual)
    h = end(grad) * (end(out) > 0)
    return np.stack([end(to), end(residual)]), np.stack([h / 2 + end(x) / 2 + 0.5, h])


def norm_sums(virtual: Virtual) -> tuple[Any, Any]:
    grad, x, out, _ = drawn(virtual, 4)
    sums = np.zeros((2, 1), np.float32)
    batch_norm.moments(x, *sums)
    batch_norm.grad_sums(grad, x, out, _HALF, *sums)
    return 0, 0


def bias_sum(virtual: Virtual) -> tuple[Any, Any]:
    """Of as many channels as there are, and of three, for which a channel of ones is added."""
    pixels, made = HEIGHT * WIDTH, []
    x = drawn(virtual, 2)[0].reshape(BATCH, 1, pixels)

    def stored(like: Any, *shape: int) -> Any:
        made.append(virtual(shape, like.dtype))
        return made[-1]

    weight, bias = np.zeros((3, 1), np.float16), np.zeros(3, np.float16)
    with (
        mock.patch.object(cuda, "stored", stored),
        mock.patch.object(pointwise, "_product"),
    ):
        pointwise.grad_weight(x, x, weight[:1], bias[:1])
        pointwise.grad_weight(virtual((BATCH, 3, pixels), np.float16), x, weight, bias)
    (seen,) = made
    few = slice(-LAST * WIDTH, None)  # of the last channel, of which the last blocks own as much
    return seen[-1, 1, few], np.ones(LAST * WIDTH)


def expanding(virtual: Virtual) -> tuple[Any, Any]:
    """To three channels: by moments of the blocks that run, so it counts that all is written."""
    x, grad_x = (array.reshape(BATCH, 1, -1) for array in drawn(virtual, 2))
    out, grad = (virtual((BATCH, 3, HEIGHT * WIDTH), np.float16) for _ in range(2))
    few, half = slice(-LAST * WIDTH, None), _HALF.astype(np.float16).repeat(3)
    out[-1, :, few] = np.nan
    kept, grads = np.zeros(8, np.float32), [half.copy() for _ in range(4)]
    with (
        mock.patch.object(cuda, "stored", lambda like, *shape: virtual(shape, like.dtype)),
        mock.patch.object(cuda, "workspace", lambda like, *shape: virtual(shape, np.float32)),
        mock.patch.object(expansion, "_BLOCKS", 1 << 31),
    ):
        mean_and_var = np.zeros((2, 3), np.float32)
        expansion.forward(x, half[:, None], half, half, half, 1.0, True, out, *mean_and_var, kept)
        kept[1:] = 0.5  # which the first block writes
        expansion.backward(grad, x, half[:, None], half, kept, 1.0, True, grad_x, *grads)
    return 0 * np.concatenate([out[-1, :, few], grad_x[-1, :, few]]), 0


def fused(function: str, virtual: Virtual) -> tuple[Any, Any]:
    x, features, out = drawn(virtual, 3)
    random = np.random.default_rng(0)
    weight, bias = (random.standard_normal(s).astype(np.float16) for s in ((9, 1), (9,)))
    whole = Geometry.of(x.shape, (BATCH, 1, 3, 3, HEIGHT, WIDTH))
    getattr(involution, function)(x, features, weight, bias, whole, out)
    parts = [a[-1:, :, -ROWS:].astype(np.float64) for a in (x, features)]
    wanted = np.empty(parts[0].shape)
    part = Geometry.of(wanted.shape, (1, 1, 3, 3, ROWS, WIDTH))
    wide = (a.astype(np.float64) for a in (weight, bias))
    getattr(reference, function)(*parts, *wide, part, wanted)
    return end(out), end(wanted)


CALLS: dict[str, Callable[[Virtual], tuple[Any, Any]]] = {
    "norm_forward": norm_forward,
    "norm_grad_x": norm_grad_x,
    "norm_sums": norm_sums,
    "bias_sum": bias_sum,
    "expanding": expanding,
    "fused_forward": lambda virtual: fused("fused_forward", virtual),
    "fused_grad_x": lambda virtual: fused("fused_grad_x", virtual),
}


def run(machine: host.Machine, virtual: Virtual, names: tuple[str, ...] = tuple(CALLS)) -> None:
    """Those calls; ``machine`` runs the last blocks only."""
    for name in names:
        with host.installed(machine.compile):
            got, wanted = CALLS[name](virtual)
        if not np.allclose(got, wanted, rtol=1e-2, atol=1e-2):  # not if it is NaN
            raise AssertionError(f"huge {name}: the last rows are wrong")

"""Reductions: sums, means and maxima.

Sums of half types are accumulated in float32 and rounded at the end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from invocupy.arrays import Array, is_cupy, namespace, wide
from invocupy.ops.declaration import Axis, Result, op

_BITS = {size: np.dtype(f"i{size}") for size in (1, 2, 4, 8)}
ROWS = 64  # summed one by one; longer sums are sums of such sums


def total(x: Array, axis: Axis = None, keepdims: bool = False) -> Any:
    """The sum over ``axis``, in float32 for half types.

    NumPy sums elements that are not adjacent one by one: over many rows, also of several axes, the
    rounding errors would accumulate.
    """
    if axis is not None and x.size > 16 * ROWS and not is_cupy(x):
        axes = normalize_axis_tuple(axis, x.ndim)
        apart = [a for a in axes if x.strides[a] != x.itemsize]
        if math.prod(x.shape[a] for a in apart) > 16 * ROWS:
            for a in apart:
                x = _rows_summed(x, a)
    return x.sum(axis, wide(x.dtype), keepdims=keepdims)


def _rows_summed(x: Array, axis: int) -> Any:
    """The sum over one axis, which stays: of sums of :data:`ROWS`, as often as it takes."""
    before, behind = x.shape[:axis], x.shape[axis + 1 :]
    while (count := x.shape[axis]) > ROWS:
        whole, left = np.split(x, [count - count % ROWS], axis)
        parts = whole.reshape(*before, -1, ROWS, *behind).sum(axis + 1, wide(x.dtype))
        x = np.concatenate([parts, left], axis) if left.size else parts
    return x.sum(axis, wide(x.dtype), keepdims=True)


def check_some(x: Array, axis: Axis) -> None:
    """Raise a ``ValueError`` if a maximum would be over an axis without elements."""
    if not x.size:
        axes = range(x.ndim) if axis is None else normalize_axis_tuple(axis, x.ndim)
        if not all(x.shape[a] for a in axes):
            raise ValueError(f"x must have a value along axis {axis}, got shape {x.shape}")


def masked(array: Array, mask: Any) -> Any:
    """``array``, with 0 where ``mask`` is false: its bits times 1 or 0, since ``0 * inf`` is NaN.

    ``where`` is up to fifty times slower, since it branches.
    """
    bits = _BITS.get(array.dtype.itemsize)
    if bits is None:  # a longdouble
        return namespace(array).where(mask, array, array.dtype.type(0))
    return (array.view(bits) * mask).view(array.dtype)


@op(np.sum, methods="sum", reads="")
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Result:  # noqa: A001
    """The sum over ``axis`` (all axes by default).

    >>> F.sum(np.ones((2, 3)), axis=1)
    array([3., 3.])
    """
    value = _narrow(total(x, axis, keepdims), x)
    return value, (lambda grad: _broadcast(grad, x, axis, keepdims),)


@op(np.mean, methods="mean", reads="")
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Result:
    """The mean over ``axis`` (all axes by default).

    >>> F.mean(np.ones((2, 3)), axis=0)
    array([1., 1., 1.])
    """
    if is_cupy(x):
        value = x.mean(axis=axis, dtype=wide(x.dtype), keepdims=keepdims)
    else:
        value = total(x, axis, keepdims)
        value = value / (x.size // value.size if value.size else 1)
    value = _narrow(value, x)
    scale = value.size / x.size if x.size else 0.0
    return value, (lambda grad: _broadcast(grad * scale, x, axis, keepdims),)


@op(np.max, np.amax, methods="max", reads="x value")
def max(x: Array, axis: Axis = None, keepdims: bool = False) -> Result:  # noqa: A001
    """The largest value over ``axis``; equal ones share the gradient evenly.

    >>> F.max(np.array([[1.0, 3.0], [2.0, 0.0]]), axis=1)
    array([3., 2.])
    """
    check_some(x, axis)
    value = namespace(x).asarray(x.max(axis=axis, keepdims=keepdims))

    def vjp(grad: Array) -> Any:
        winners = x == _broadcast(value, x, axis, keepdims)
        count = winners.sum(axis=axis, keepdims=keepdims).astype(wide(x.dtype) or x.dtype)
        shares = _broadcast((grad / count).astype(x.dtype, copy=False), x, axis, keepdims)
        return masked(shares, winners)

    return value, (vjp,)


def _narrow(value: Any, x: Array) -> Any:
    """The result of a reduction as an array, in the dtype of ``x`` for half types."""
    return namespace(x).asarray(value, dtype=x.dtype if wide(x.dtype) else None)


def _broadcast(reduced: Array, x: Array, axis: Axis, keepdims: bool) -> Any:
    """Put the reduced axes back and broadcast to the shape of ``x`` (read-only view)."""
    if not keepdims:
        axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        kept = {a % x.ndim for a in axes} if x.ndim else set()
        reduced = reduced.reshape([1 if a in kept else size for a, size in enumerate(x.shape)])
    return namespace(x).broadcast_to(reduced, x.shape)

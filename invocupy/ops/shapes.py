"""Operators that only move elements: shapes, axes, indices."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from invocupy.arrays import Array, is_cupy, namespace, wide
from invocupy.ops.declaration import Result, Vjp, op, reading


@op(np.reshape, reads="")
def reshape(x: Array, shape: tuple[int, ...]) -> Result:
    """The same elements in another shape; one size may be -1.

    >>> F.reshape(np.zeros((2, 3)), (3, -1)).shape
    (3, 2)
    """
    return x.reshape(shape), (lambda grad: grad.reshape(x.shape),)


@op(reads="")
def flatten(x: Array, start: int = 1) -> Result:
    """All axes from ``start`` on joined into one; the batch axis stays by default.

    >>> F.flatten(np.zeros((2, 3, 4))).shape
    (2, 12)
    """
    return reshape(x, (*x.shape[:start], math.prod(x.shape[start:])))


@op(np.transpose, reads="")
def transpose(x: Array, axes: tuple[int, ...] | None = None) -> Result:
    """The axes in another order (reversed by default).

    >>> F.transpose(np.zeros((2, 3, 4)), (0, 2, 1)).shape
    (2, 4, 3)
    """
    value = x.transpose(axes)
    order = tuple(range(x.ndim))[::-1] if axes is None else tuple(a % x.ndim for a in axes)
    inverse = tuple(order.index(a) for a in range(x.ndim))
    return value, (lambda grad: grad.transpose(inverse),)


@op(np.concatenate, reads="")
def concatenate(*parts: Array, axis: int = 0) -> Result:
    """The arrays or Tensors joined along ``axis``.

    Parameters
    ----------
    parts : sequence of array or Tensor
        One or more, of equal shapes but for ``axis``.
    axis : int
        The axis along which they are joined.

    >>> F.concatenate([np.zeros((1, 2)), np.ones((1, 2))]).shape
    (2, 2)
    """
    if not parts:
        raise ValueError("parts must be one array or more, got none")
    axis = operator.index(axis)
    value = namespace(parts[0]).concatenate(parts, axis=axis)
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + part.shape[axis])

    def vjp(i: int) -> Vjp:
        window = [slice(None)] * value.ndim
        window[axis] = slice(ends[i], ends[i + 1])
        return lambda grad: grad[tuple(window)].astype(parts[i].dtype, copy=False)

    return value, tuple(vjp(i) for i in range(len(parts)))


@reading("")
def getitem(x: Array, index: Any) -> Result:
    """``x[index]`` for slices, integers, masks and integer arrays."""
    items = index if isinstance(index, tuple) else (index,)
    once = all(
        i is None
        or i is Ellipsis
        or isinstance(i, (int, slice))
        or (isinstance(i, np.ndarray) and i.dtype == bool)
        for i in items
    )

    def vjp(grad: Array) -> Array:
        xp = namespace(x)
        # One element may be the sum of very many values, added one by one.
        dtype = x.dtype if once else (wide(x.dtype) or x.dtype) if is_cupy(x) else np.float64
        out: Array = xp.zeros_like(x, dtype=dtype)
        if once:
            out[index] = grad
        else:
            xp.add.at(out, index, grad.astype(dtype, copy=False))
        return out.astype(x.dtype, copy=False)

    return namespace(x).asarray(x[index]), (vjp,)

"""Arithmetic, reductions and shapes: array code that is the same for NumPy and CuPy.

Sums of half types are accumulated in float32 and rounded at the end. Where a gradient is exactly
0 the factor that it is multiplied by is left out, so that an infinite slope (of ``sqrt`` or ``log``
at 0, of ``exp`` past its range) gives 0 there, not NaN. Products of values follow IEEE 754 as in
NumPy and PyTorch: ``0 * inf`` is NaN.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from invocupy.arrays import is_cupy, namespace, wide

Partial: TypeAlias = Callable[[Any], Any]
Result: TypeAlias = tuple[Any, tuple[Partial, ...]]
Axis: TypeAlias = int | tuple[int, ...] | None

_BITS = {size: np.dtype(f"i{size}") for size in (1, 2, 4, 8)}
ROWS = 64  # that are summed one by one; sums of more are made of sums of so many


def _like(grad: Any, operand: Any) -> Any:
    """Undo broadcasting and promotion: sum ``grad`` down to the operand's shape and dtype."""
    extra = grad.ndim - operand.ndim
    stretched = tuple(
        axis + extra
        for axis, size in enumerate(operand.shape)
        if size == 1 and grad.shape[axis + extra] != 1
    )
    if extra or stretched:
        grad = total(grad, tuple(range(extra)) + stretched, keepdims=True)
        grad = grad.reshape(operand.shape)
    return grad.astype(operand.dtype, copy=False)


def total(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The sum over ``axis``, in float32 for half types.

    NumPy adds what does not lie side by side one by one: over many rows, also those of several axes
    together, the rounding errors of one long sum would add up.
    """
    if axis is not None and x.size > 16 * ROWS and not is_cupy(x):
        axes = normalize_axis_tuple(axis, x.ndim)
        apart = [a for a in axes if x.strides[a] != x.itemsize]
        if math.prod(x.shape[a] for a in apart) > 16 * ROWS:
            for a in apart:
                x = _rows_summed(x, a)
    return x.sum(axis, wide(x.dtype), None, keepdims)


def _rows_summed(x: Any, axis: int) -> Any:
    """The sum over one axis, which stays: of sums of :data:`ROWS`, as often as it takes."""
    before, behind = x.shape[:axis], x.shape[axis + 1 :]
    while (count := x.shape[axis]) > ROWS:
        whole, left = np.split(x, [count - count % ROWS], axis)
        parts = whole.reshape(*before, -1, ROWS, *behind).sum(axis + 1, wide(x.dtype))
        x = np.concatenate([parts, left], axis) if left.size else parts
    return x.sum(axis, wide(x.dtype), None, True)


def check_some(x: Any, axis: Axis) -> None:
    """Raise a ``ValueError`` if a maximum would be over an axis without elements."""
    if not x.size:
        axes = range(x.ndim) if axis is None else normalize_axis_tuple(axis, x.ndim)
        if not all(x.shape[a] for a in axes):
            raise ValueError(f"x must have a value along axis {axis}, got shape {x.shape}")


def _masked(array: Any, mask: Any) -> Any:
    """``array``, with 0 where ``mask`` is false: its bits times 1 or 0, since ``0 * inf`` is NaN.

    ``where`` takes up to fifty times as long, since it branches.
    """
    bits = _BITS.get(array.dtype.itemsize)
    if bits is None:  # a longdouble
        return namespace(array).where(mask, array, array.dtype.type(0))
    return (array.view(bits) * mask).view(array.dtype)


def _used(used: Any, slope: Any) -> Any:
    """``slope``, with 1 where ``used`` is false."""
    if not hasattr(slope, "dtype"):
        if slope:
            return slope  # a number, which is finite
        slope = namespace(used).zeros(())
    return _masked(slope, used) + ~used


def add(a: Any, b: Any) -> Result:
    """``a + b``."""
    return a + b, (lambda grad: _like(grad, a), lambda grad: _like(grad, b))


def subtract(a: Any, b: Any) -> Result:
    """``a - b``."""
    return a - b, (lambda grad: _like(grad, a), lambda grad: _like(-grad, b))


def multiply(a: Any, b: Any) -> Result:
    """``a * b``."""
    return a * b, (lambda grad: _like(grad * b, a), lambda grad: _like(grad * a, b))


def divide(a: Any, b: Any) -> Result:
    """``a / b``."""
    value = a / b

    def grad_b(grad: Any) -> Any:
        return _like(-grad * _used(grad != 0, value) / _used(grad != 0, b), b)

    return value, (lambda grad: _like(grad / _used(grad != 0, b), a), grad_b)


def power(a: Any, b: Any) -> Result:
    """``a ** b``; the gradient of ``b`` is 0 where ``a`` is 0, as its limit for ``b > 0``."""
    value = a**b

    def grad_exponent(grad: Any) -> Any:
        xp = namespace(value)
        base = xp.asarray(a, value.dtype)
        used = (grad != 0) & (base != 0)
        return _like(grad * _used(used, value) * xp.log(_used(used, base)), b)

    def grad_base(grad: Any) -> Any:
        # x ** 0 is constant: 0 * 0 ** -1 must not be asked for.
        below = (
            namespace(value).where(b == 0, 1, b - 1) if hasattr(b, "dtype") else (b - 1 if b else 1)
        )
        return _like(grad * (b * _used((grad != 0) & (b != 0), a) ** below), a)

    return value, (grad_base, grad_exponent)


def negative(x: Any) -> Result:
    """``-x``."""
    return -x, (lambda grad: -grad,)


def exp(x: Any) -> Result:
    """``e ** x``."""
    value = namespace(x).exp(x)
    return value, (lambda grad: grad * _used(grad != 0, value),)


def log(x: Any) -> Result:
    """The natural logarithm."""
    return namespace(x).log(x), (lambda grad: grad / _used(grad != 0, x),)


def sqrt(x: Any) -> Result:
    """The square root."""
    value = namespace(x).sqrt(x)
    return value, (lambda grad: grad / (2 * _used(grad != 0, value)),)


def tanh(x: Any) -> Result:
    """The hyperbolic tangent."""
    value = namespace(x).tanh(x)
    return value, (lambda grad: grad * (1 - value * value),)


def absolute(x: Any) -> Result:
    """``|x|``; the gradient at 0 is 0."""
    xp = namespace(x)
    return xp.abs(x), (lambda grad: grad * xp.sign(x),)


def relu(x: Any) -> Result:
    """``max(x, 0)``; NaN stays NaN, the gradient at 0 is 0."""
    value = namespace(x).maximum(x, 0)
    return value, (lambda grad: _masked(grad, value > 0),)


def maximum(a: Any, b: Any) -> Result:
    """The larger of two; where they are equal each gets half of the gradient."""
    xp = namespace(a) if hasattr(a, "dtype") else namespace(b)
    value = xp.maximum(a, b)

    def share(grad: Any, own: Any, other: Any) -> Any:
        return _like(_masked(grad, own > other) + _masked(grad / 2, own == other), own)

    return value, (lambda grad: share(grad, a, b), lambda grad: share(grad, b, a))


def matmul(a: Any, b: Any) -> Result:
    """``a @ b`` for arrays of 2 or more dimensions, broadcast over the leading ones."""
    if a.ndim < 2 or b.ndim < 2:
        raise ValueError(
            f"a and b must have 2 or more dimensions, got shapes {a.shape} and {b.shape}: "
            "reshape vectors to (1, n) or (n, 1)"
        )
    return a @ b, (
        lambda grad: _like(grad @ b.swapaxes(-1, -2), a),
        lambda grad: _like(a.swapaxes(-1, -2) @ grad, b),
    )


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Result:  # noqa: A001
    """The sum over ``axis`` (all axes by default)."""
    value = _narrow(total(x, axis, keepdims), x)
    return value, (lambda grad: _spread(grad, x, axis, keepdims),)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Result:
    """The mean over ``axis`` (all axes by default)."""
    if is_cupy(x):
        value = x.mean(axis=axis, dtype=wide(x.dtype), keepdims=keepdims)
    else:
        value = total(x, axis, keepdims)
        value = value / (x.size // value.size if value.size else 1)
    value = _narrow(value, x)
    scale = value.size / x.size if x.size else 0.0
    return value, (lambda grad: _spread(grad * scale, x, axis, keepdims),)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Result:  # noqa: A001
    """The largest value over ``axis``; equal ones share the gradient evenly."""
    check_some(x, axis)
    value = namespace(x).asarray(x.max(axis=axis, keepdims=keepdims))

    def partial(grad: Any) -> Any:
        winners = x == _spread(value, x, axis, keepdims)
        count = winners.sum(axis=axis, keepdims=keepdims).astype(wide(x.dtype) or x.dtype)
        shares = _spread((grad / count).astype(x.dtype, copy=False), x, axis, keepdims)
        return _masked(shares, winners)

    return value, (partial,)


def _narrow(value: Any, x: Any) -> Any:
    """The result of a reduction as an array, in the dtype of ``x`` for half types."""
    return namespace(x).asarray(value, dtype=x.dtype if wide(x.dtype) else None)


def _spread(reduced: Any, x: Any, axis: Axis, keepdims: bool) -> Any:
    """Put the reduced axes back and broadcast to the shape of ``x`` (read-only view)."""
    xp = namespace(x)
    if not keepdims:
        axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        kept = {a % x.ndim for a in axes} if x.ndim else set()
        shape = tuple(1 if a in kept else size for a, size in enumerate(x.shape))
        reduced = reduced.reshape(shape)
    return xp.broadcast_to(reduced, x.shape)


def reshape(x: Any, shape: tuple[int, ...]) -> Result:
    """The same elements in another shape; one size may be -1."""
    return x.reshape(shape), (lambda grad: grad.reshape(x.shape),)


def transpose(x: Any, axes: tuple[int, ...] | None = None) -> Result:
    """The axes in another order (reversed by default)."""
    value = x.transpose(axes)
    order = tuple(range(x.ndim))[::-1] if axes is None else tuple(a % x.ndim for a in axes)
    inverse = tuple(order.index(a) for a in range(x.ndim))
    return value, (lambda grad: grad.transpose(inverse),)


def getitem(x: Any, index: Any) -> Result:
    """``x[index]`` for slices, integers, masks and integer arrays."""
    items = index if isinstance(index, tuple) else (index,)
    once = all(
        i is None
        or i is Ellipsis
        or isinstance(i, (int, slice))
        or (isinstance(i, np.ndarray) and i.dtype == bool)
        for i in items
    )

    def partial(grad: Any) -> Any:
        xp = namespace(x)
        if once:
            out = xp.zeros_like(x)
            out[index] = grad
            return out
        # One place may get very many values, one by one.
        dtype = (wide(x.dtype) or x.dtype) if is_cupy(x) else np.float64
        out = xp.zeros_like(x, dtype=dtype)
        xp.add.at(out, index, grad.astype(dtype, copy=False))
        return out.astype(x.dtype, copy=False)

    return namespace(x).asarray(x[index]), (partial,)


def concatenate(*parts: Any, axis: int = 0) -> Result:
    """The arrays joined along ``axis``."""
    if not parts:
        raise ValueError("parts must be one array or more, got none")
    axis = operator.index(axis)
    value = namespace(parts[0]).concatenate(parts, axis=axis)
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + part.shape[axis])

    def partial(i: int) -> Partial:
        window = [slice(None)] * value.ndim
        window[axis] = slice(ends[i], ends[i + 1])
        return lambda grad: grad[tuple(window)].astype(parts[i].dtype, copy=False)

    return value, tuple(partial(i) for i in range(len(parts)))

"""Elementwise arithmetic: array code that is the same for NumPy and CuPy.

Arguments are broadcast, and may be numbers. Where the incoming gradient is exactly 0, the result is
0 and not NaN, also at infinite slopes (``sqrt`` or ``log`` at 0, ``exp`` past its range). Products
of values follow IEEE 754 as in NumPy and PyTorch: ``0 * inf`` is NaN.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from invocupy.arrays import Array, check, namespace, wide
from invocupy.ops.declaration import Result, no_gradient, op
from invocupy.ops.reductions import masked, total


def unbroadcast(grad: Array, operand: Array) -> Array:
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


def _used(used: Any, slope: Any) -> Any:
    """``slope``, with 1 where ``used`` is false."""
    if not hasattr(slope, "dtype"):
        if slope:
            return slope  # a number, which is finite
        slope = namespace(used).zeros(())
    return masked(slope, used) + ~used


@op(np.add, methods="__add__ __radd__", reads="")
def add(a: Array, b: Array) -> Result:
    """``a + b``, broadcast.

    >>> F.add(np.ones(2), 1.0)
    array([2., 2.])
    """
    return a + b, (lambda grad: unbroadcast(grad, a), lambda grad: unbroadcast(grad, b))


@op(np.subtract, methods="__sub__ __rsub__", reads="")
def subtract(a: Array, b: Array) -> Result:
    """``a - b``, broadcast.

    >>> F.subtract(np.ones(2), 1.0)
    array([0., 0.])
    """
    return a - b, (lambda grad: unbroadcast(grad, a), lambda grad: unbroadcast(-grad, b))


@op(np.multiply, methods="__mul__ __rmul__", reads="a b others")
def multiply(a: Array, b: Array) -> Result:
    """``a * b``, broadcast.

    >>> F.multiply(np.ones(2), 3.0)
    array([3., 3.])
    """
    return a * b, (lambda grad: unbroadcast(grad * b, a), lambda grad: unbroadcast(grad * a, b))


@op(np.divide, methods="__truediv__ __rtruediv__", reads="b value")
def divide(a: Array, b: Array) -> Result:
    """``a / b``, broadcast.

    >>> F.divide(np.ones(2), 2.0)
    array([0.5, 0.5])
    """
    value = a / b

    def grad_b(grad: Array) -> Array:
        return unbroadcast(-grad * _used(grad != 0, value) / _used(grad != 0, b), b)

    return value, (lambda grad: unbroadcast(grad / _used(grad != 0, b), a), grad_b)


@op(np.power, methods="__pow__ __rpow__", reads="a b value")
def power(a: Array, b: Array) -> Result:
    """``a ** b``, broadcast; the gradient of ``b`` is 0 where ``a`` is 0, as its limit for b > 0.

    >>> F.power(np.array([2.0, 3.0]), 2)
    array([4., 9.])
    """
    value = a**b

    def grad_exponent(grad: Array) -> Array:
        xp = namespace(value)
        base = xp.asarray(a, value.dtype)
        used = (grad != 0) & (base != 0)
        return unbroadcast(grad * _used(used, value) * xp.log(_used(used, base)), b)

    def grad_base(grad: Array) -> Array:
        # x ** 0 is constant: 0 * 0 ** -1 must not be computed.
        if hasattr(b, "dtype"):
            below = namespace(value).where(b == 0, 1, b - 1)
        else:
            below = b - 1 if b else 1
        return unbroadcast(grad * (b * _used((grad != 0) & (b != 0), a) ** below), a)

    return value, (grad_base, grad_exponent)


@op(np.maximum)
def maximum(a: Array, b: Array) -> Result:
    """The larger of two, broadcast; where they are equal each gets half of the gradient.

    >>> F.maximum(np.array([-1.0, 2.0]), 0.0)
    array([0., 2.])
    """
    return _chosen("maximum", operator.gt, a, b)


@op(np.minimum)
def minimum(a: Array, b: Array) -> Result:
    """The smaller of two, broadcast; where they are equal each gets half of the gradient.

    >>> F.minimum(np.array([-1.0, 2.0]), 0.0)
    array([-1.,  0.])
    """
    return _chosen("minimum", operator.lt, a, b)


def _chosen(name: str, wins: Any, a: Array, b: Array) -> Result:
    xp = namespace(a) if hasattr(a, "dtype") else namespace(b)

    def share(grad: Array, own: Array, other: Array) -> Array:
        shared = masked(grad, wins(own, other)) + masked(grad / 2, own == other)
        return unbroadcast(shared, own)

    vjps = lambda grad: share(grad, a, b), lambda grad: share(grad, b, a)
    return getattr(xp, name)(a, b), vjps


@op(np.clip, methods="clip")
def clip(
    x: Array,
    min: Array | None = None,  # noqa: A002
    max: Array | None = None,  # noqa: A002
) -> Result:
    """``x`` limited to the range from ``min`` to ``max``: ``minimum(maximum(x, min), max)``.

    The gradient goes to x inside the range, and to the bound outside; at a bound each gets half, as
    in :func:`maximum`. NaN stays NaN.

    Parameters
    ----------
    x : array or Tensor
        Of any shape.
    min, max : array, Tensor or number, optional
        At least one. In arrays, ``max`` wins where ``min`` is larger.

    Returns
    -------
    array or Tensor

    Raises
    ------
    ValueError
        Without bounds, or for numbers of which ``min`` is larger.

    >>> F.clip(np.array([-1.0, 0.5, 2.0]), 0, 1)
    array([0. , 0.5, 1. ])
    """
    if min is None and max is None:
        raise ValueError("min and max are both missing: give at least one")
    if max is None:
        value, vjps = maximum(x, min)  # type: ignore[arg-type]
        return value, (*vjps, no_gradient("missing bounds"))
    if min is None:
        value, (grad_x, grad_max) = minimum(x, max)
        return value, (grad_x, no_gradient("missing bounds"), grad_max)
    if not (hasattr(min, "dtype") or hasattr(max, "dtype")) and min > max:
        raise ValueError(f"min must be at most max, got {min} and {max}: exchange them")
    raised, (grad_x, grad_min) = maximum(x, min)
    value, (grad_raised, grad_max) = minimum(raised, max)
    return value, (
        lambda grad: grad_x(grad_raised(grad)),
        lambda grad: grad_min(grad_raised(grad)),
        grad_max,
    )


@op(np.where, reads="condition")
def where(condition: Array, x: Array, y: Array) -> Result:
    """``x`` where ``condition`` is true, else ``y``, broadcast.

    Parameters
    ----------
    condition : bool array or Tensor
        Which of the two.
    x, y : array, Tensor or number
        Shapes are broadcast.

    Returns
    -------
    array or Tensor

    Raises
    ------
    TypeError
        If ``condition`` has another dtype than bool.

    >>> F.where(np.array([True, False]), np.ones(2), 0.0)
    array([1., 0.])
    """
    arrays = (array for array in (condition, x, y) if hasattr(array, "dtype"))
    xp = namespace(next(arrays, None))
    mask = xp.asarray(condition)
    if mask.dtype.kind != "b":
        raise TypeError(
            f"condition must be a bool array, got {mask.dtype}: compare it, as in condition > 0"
        )
    return xp.where(mask, x, y), (
        no_gradient("conditions"),
        lambda grad: unbroadcast(masked(grad, mask), x),
        lambda grad: unbroadcast(masked(grad, ~mask), y),
    )


@op(np.negative, methods="__neg__", reads="")
def negative(x: Array) -> Result:
    """``-x``.

    >>> F.negative(np.ones(1))
    array([-1.])
    """
    return -x, (lambda grad: -grad,)


@op(np.absolute, methods="abs __abs__")
def absolute(x: Array) -> Result:
    """``|x|``; the gradient at 0 is 0.

    >>> F.absolute(np.array([-2.0]))
    array([2.])
    """
    xp = namespace(x)
    return xp.abs(x), (lambda grad: grad * xp.sign(x),)


@op(np.exp, methods="exp", reads="value")
def exp(x: Array) -> Result:
    """``e ** x``.

    >>> F.exp(np.zeros(1))
    array([1.])
    """
    value = namespace(x).exp(x)
    return value, (lambda grad: grad * _used(grad != 0, value),)


@op(np.log, methods="log")
def log(x: Array) -> Result:
    """The natural logarithm.

    >>> F.log(np.ones(1))
    array([0.])
    """
    return namespace(x).log(x), (lambda grad: grad / _used(grad != 0, x),)


@op(np.sqrt, methods="sqrt", reads="value")
def sqrt(x: Array) -> Result:
    """The square root.

    >>> F.sqrt(np.array([4.0]))
    array([2.])
    """
    value = namespace(x).sqrt(x)
    return value, (lambda grad: grad / (2 * _used(grad != 0, value)),)


@op(np.tanh, methods="tanh", reads="value")
def tanh(x: Array) -> Result:
    """The hyperbolic tangent.

    >>> F.tanh(np.zeros(1))
    array([0.])
    """
    value = namespace(x).tanh(x)
    return value, (lambda grad: grad * (1 - value * value),)


@op(methods="sigmoid", reads="")
def sigmoid(x: Array) -> Result:
    """``1 / (1 + exp(-x))`` of floats, by powers of e below 1 only, so that none overflows.

    >>> F.sigmoid(np.array([-1000.0, 0.0]))
    array([0. , 0.5])
    """
    check(x=x)
    xp, exact = namespace(x), x.astype(wide(x.dtype) or x.dtype, copy=False)
    small = xp.exp(-xp.abs(exact))
    value = xp.where(exact < 0, small, exact.dtype.type(1)) / (1 + small)

    def vjp(grad: Array) -> Any:
        # not value * (1 - value), of which for large x nothing would be left
        return (grad * (small / (1 + small) ** 2)).astype(x.dtype, copy=False)

    return value.astype(x.dtype, copy=False), (vjp,)


@op(methods="relu", reads="value")
def relu(x: Array) -> Result:
    """``max(x, 0)``; NaN stays NaN, the gradient at 0 is 0.

    >>> F.relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    value = namespace(x).maximum(x, 0)
    return value, (lambda grad: masked(grad, value > 0),)

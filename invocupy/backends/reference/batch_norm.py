"""Batch normalisation: passes over (N, C, H, W), and what comes between them, on arrays (C,)."""

from __future__ import annotations

from typing import Any

from invocupy.arrays import Array, namespace, widen

_AXES = (0, 2, 3)


def moments(x: Array, mean: Array, var: Array) -> None:
    """Two passes: the mean, then the mean square distance from it."""
    x = widen(x)
    mean[...] = x.mean(axis=_AXES)
    var[...] = ((x - _column(mean)) ** 2).mean(axis=_AXES)


def forward(
    x: Array, scale: Array, shift: Array, residual: Array | None, relu: bool, out: Array
) -> None:
    y = _column(scale) * widen(x) + _column(shift)
    if residual is not None:
        y = y + widen(residual)
    out[...] = namespace(x).maximum(y, 0) if relu else y


def grad_sums(
    grad: Array, x: Array, out: Array | None, mean: Array, sum_grad: Array, sum_grad_x: Array
) -> None:
    h = _masked(grad, out)
    sum_grad[...] = h.sum(axis=_AXES)
    sum_grad_x[...] = (h * (widen(x) - _column(mean))).sum(axis=_AXES)


def grad_x(
    grad: Array, x: Array, out: Array | None, a: Array, b: Array, c: Array, grad_x: Array,
    grad_residual: Array | None,
) -> None:  # fmt: skip
    h = _masked(grad, out)
    grad_x[...] = _column(a) * h + _column(b) * widen(x) + _column(c)
    if grad_residual is not None:
        grad_residual[...] = h


def fold(
    mean: Array, var: Array, weight: Array, bias: Array, eps: float, inverse: Array, scale: Array,
    shift: Array,
) -> None:  # fmt: skip
    inverse[...] = 1 / namespace(var).sqrt(var + inverse.dtype.type(eps))
    scale[...] = weight * inverse
    shift[...] = bias - mean * scale


def coefficients(
    scale: Array, inverse: Array, mean: Array, sum_grad: Array, sum_grad_x: Array, count: int,
    b: Array, c: Array, grad_weight: Array,
) -> None:  # fmt: skip
    """What the gradient through the statistics adds."""
    size = scale.dtype.type(count)
    b[...] = -scale * inverse * inverse * sum_grad_x / size
    c[...] = -scale * sum_grad / size - b * mean
    grad_weight[...] = sum_grad_x * inverse


def running(
    old_mean: Array, old_var: Array, mean: Array, var: Array, momentum: float, unbiased: float,
    new_mean: Array, new_var: Array,
) -> None:  # fmt: skip
    new_mean[...] = (1 - momentum) * old_mean + momentum * mean
    new_var[...] = (1 - momentum) * old_var + momentum * (var * unbiased)


def _masked(grad: Array, out: Array | None) -> Any:
    grad = widen(grad)
    return grad if out is None else namespace(grad).where(widen(out) > 0, grad, grad.dtype.type(0))


def _column(channel: Array) -> Any:
    return channel[:, None, None]

"""Batch normalisation of (N, C, H, W) in few passes, with ReLU and a residual in them.

Per-channel arrays (C,) are float64 for float64 arrays and float32 otherwise. ``residual`` and
``out`` may be ``None`` where they are optional.

::

    moments(x, mean, var)               mean and biased variance of each channel, stable (no
                                        E[x^2] - E[x]^2 cancellation), one read of x from memory
    forward(x, scale, shift, residual, relu, out)
                                        out = scale[c] * x + shift[c] (+ residual), then max(., 0)
                                        if relu; NaN stays NaN
    grad_sums(grad, x, out, mean, sum_grad, sum_grad_x)
                                        with h = grad where out > 0 else 0 (h = grad if out is
                                        None): sum_grad[c] = sum h,
                                        sum_grad_x[c] = sum h * (x - mean[c])
    grad_x(grad, x, out, a, b, c, grad_x, grad_residual)
                                        grad_x = a[c] * h + b[c] * x + c[c]; grad_residual = h
                                        (unless None)

What comes between, all on arrays (C,) of one dtype::

    fold(mean, var, weight, bias, eps, inverse, scale, shift)
                                        inverse = 1 / sqrt(var + eps), scale = weight * inverse,
                                        shift = bias - mean * scale
    coefficients(scale, inverse, mean, sum_grad, sum_grad_x, count, b, c, grad_weight)
                                        b and c for grad_x (whose a is scale) where the moments are
                                        those of the batch; grad_weight = sum_grad_x * inverse
    running(old_mean, old_var, mean, var, momentum, unbiased, new_mean, new_var)
                                        (1 - momentum) * old + momentum * (mean, unbiased * var)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from invocupy.arrays import namespace

_AXES = (0, 2, 3)


def moments(x: Any, mean: Any, var: Any) -> None:
    """Two passes: the mean, then the mean square distance from it."""
    wide = _wide(x)
    mean[...] = wide.mean(axis=_AXES)
    var[...] = ((wide - _column(mean)) ** 2).mean(axis=_AXES)


def forward(x: Any, scale: Any, shift: Any, residual: Any, relu: bool, out: Any) -> None:
    """``scale * x + shift (+ residual)``, then ReLU."""
    y = _column(scale) * _wide(x) + _column(shift)
    if residual is not None:
        y = y + _wide(residual)
    out[...] = namespace(x).maximum(y, 0) if relu else y


def grad_sums(grad: Any, x: Any, out: Any, mean: Any, sum_grad: Any, sum_grad_x: Any) -> None:
    """The two sums per channel that the gradients of weight, bias and statistics need."""
    h = _masked(grad, out)
    sum_grad[...] = h.sum(axis=_AXES)
    sum_grad_x[...] = (h * (_wide(x) - _column(mean))).sum(axis=_AXES)


def grad_x(
    grad: Any, x: Any, out: Any, a: Any, b: Any, c: Any, grad_x: Any, grad_residual: Any
) -> None:
    """``a * h + b * x + c``, and ``h`` itself for the residual."""
    h = _masked(grad, out)
    grad_x[...] = _column(a) * h + _column(b) * _wide(x) + _column(c)
    if grad_residual is not None:
        grad_residual[...] = h


def fold(
    mean: Any, var: Any, weight: Any, bias: Any, eps: float, inverse: Any, scale: Any, shift: Any
) -> None:
    """Statistics, weight and bias as one factor and one summand."""
    inverse[...] = 1 / namespace(var).sqrt(var + inverse.dtype.type(eps))
    scale[...] = weight * inverse
    shift[...] = bias - mean * scale


def coefficients(
    scale: Any, inverse: Any, mean: Any, sum_grad: Any, sum_grad_x: Any, count: int,
    b: Any, c: Any, grad_weight: Any,
) -> None:  # fmt: skip
    """What the gradient through the statistics adds."""
    size = scale.dtype.type(count)
    b[...] = -scale * inverse * inverse * sum_grad_x / size
    c[...] = -scale * sum_grad / size - b * mean
    grad_weight[...] = sum_grad_x * inverse


def running(
    old_mean: Any, old_var: Any, mean: Any, var: Any, momentum: float, unbiased: float,
    new_mean: Any, new_var: Any,
) -> None:  # fmt: skip
    """The moments of a batch taken into the running ones."""
    new_mean[...] = (1 - momentum) * old_mean + momentum * mean
    new_var[...] = (1 - momentum) * old_var + momentum * (var * unbiased)


def _masked(grad: Any, out: Any) -> Any:
    wide = _wide(grad)
    return wide if out is None else namespace(grad).where(_wide(out) > 0, wide, wide.dtype.type(0))


def _wide(array: Any) -> Any:
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def _column(channel: Any) -> Any:
    return channel[:, None, None]

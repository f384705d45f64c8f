"""Batch normalisation, with ReLU and a residual in the same pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from invocupy import backends
from invocupy.arrays import contiguous, is_cupy, namespace, on_device
from invocupy.backends.memory import empty
from invocupy.ops.basic import Result
from invocupy.ops.memo import once


def batch_moments(x: Any) -> tuple[Any, Any]:
    """Mean and biased variance of each channel of x (N, C, H, W); not differentiable by itself."""
    if x.ndim != 4 or x.shape[0] * x.shape[2] * x.shape[3] < 1:
        raise ValueError(f"x must be (N, C, H, W) with at least one value a channel, got {x.shape}")
    work, channel = _dtypes(x)
    with on_device(x):
        mean, var = (namespace(x).empty(x.shape[1], channel) for _ in range(2))
        backends.of("batch_norm", x).moments(contiguous(x, work), mean, var)
    return mean, var


def batch_norm(
    x: Any,
    weight: Any,
    bias: Any,
    residual: Any = None,
    *,
    mean: Any,
    var: Any,
    training: bool,
    eps: float = 1e-5,
    relu: bool = False,
) -> Result:
    """``weight * (x - mean) / sqrt(var + eps) + bias (+ residual)``, then ReLU if asked.

    With ``training``, ``mean`` and ``var`` are those of ``x`` itself (:func:`batch_moments`) and
    the gradient flows through them; else they are constants.
    """
    work, channel = _dtypes(x)
    backend = backends.of("batch_norm", x)
    xp = namespace(x)
    # Per-channel arithmetic on (C,) arrays; the passes over the images are the backend's.
    mean, var = contiguous(mean, channel), var.astype(channel, copy=False)
    inverse = 1 / xp.sqrt(var + channel.type(eps))
    scale = weight.astype(channel, copy=False) * inverse
    shift = bias.astype(channel, copy=False) - mean * scale
    wide = contiguous(x, work)
    value = empty(x.shape, work, x)
    with on_device(x):
        added = None if residual is None else contiguous(residual, work)
        if x.size:
            backend.forward(wide, scale, shift, added, relu, value)
    masks = value if relu else None
    count = x.size // x.shape[1] if x.shape[1] else 0

    @once
    def sums(grad: Any) -> tuple[Any, Any]:
        with on_device(x):
            results = xp.zeros(x.shape[1], channel), xp.zeros(x.shape[1], channel)
            if x.size:
                backend.grad_sums(contiguous(grad, work), wide, masks, mean, *results)
        return results

    def grad_input(grad: Any) -> Any:
        a, b, c = scale, xp.zeros_like(scale), xp.zeros_like(scale)
        if training:
            total, total_x = sums(grad)
            b = -scale * inverse * inverse * total_x / channel.type(count)
            c = -scale * total / channel.type(count) - b * mean
        result = empty(x.shape, work, x)
        with on_device(x):
            if x.size:
                backend.grad_x(contiguous(grad, work), wide, masks, a, b, c, result, None)
        return result.astype(x.dtype.newbyteorder("="), copy=False)

    def grad_residual(grad: Any) -> Any:
        masked = grad if masks is None else xp.where(masks > 0, grad, grad.dtype.type(0))
        return masked.astype(residual.dtype.newbyteorder("="), copy=False)

    return value.astype(x.dtype.newbyteorder("="), copy=False), (
        grad_input,
        lambda grad: (sums(grad)[1] * inverse).astype(weight.dtype, copy=False),
        lambda grad: sums(grad)[0].astype(bias.dtype),
        grad_residual,
    )


def _dtypes(x: Any) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """What the backend computes in, and the dtype of the per-channel arrays."""
    work = np.dtype(np.float32) if x.dtype == np.float16 and not is_cupy(x) else x.dtype
    return work.newbyteorder("="), np.dtype(np.float64 if x.dtype == np.float64 else np.float32)

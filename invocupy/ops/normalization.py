"""Batch normalisation, with ReLU and a residual in the same pass."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from invocupy import backends
from invocupy.arrays import Array, cast_like, check, contiguous, is_cupy, namespace, on_device
from invocupy.backends.memory import empty
from invocupy.backends.reference import batch_norm as reference
from invocupy.geometry import number
from invocupy.ops.declaration import Result, reading
from invocupy.ops.memo import each, once
from invocupy.ops.ranks import Comm, allreduce_sum, merge


def batch_moments(x: Array) -> tuple[Any, Any]:
    """Mean and biased variance of each channel of x (N, C, *S); not differentiable by itself."""
    check(x=x)
    if x.ndim < 2 or not x.size:
        raise ValueError(f"x must be (N, C, *S) with at least one value per channel, got {x.shape}")
    work, channel = _dtypes(x)
    with on_device(x):
        mean, var = (namespace(x).empty(x.shape[1], channel) for _ in range(2))
        backends.of("batch_norm", x).moments(_images(contiguous(x, work)), mean, var)
    return mean, var


def merged_moments(x: Array, comm: Comm) -> tuple[Any, Any, Any]:
    """Mean and biased variance of each channel over the x of all ranks, and the number of values.

    It sends one message. A rank with an empty share of the batch calls it with x of (0, C, *S). On
    a GPU the number is an array (), so that nothing waits for it.
    """
    if x.ndim < 2:
        raise ValueError(f"x must have 2 or more dimensions (N, C, *S), got {x.shape}")
    work, channel = _dtypes(x)
    with on_device(x):
        mean, var = namespace(x).zeros((2, x.shape[1]), _exact(x, channel))
        if x.size:
            backends.of("batch_norm", x).moments(_images(contiguous(x, work)), mean, var)
        count, mean, var = merge(comm, x.size // max(x.shape[1], 1), mean, var)
        return mean.astype(channel), var.astype(channel), count


def running_moments(
    running_mean: Array, running_var: Array, mean: Array, var: Array, momentum: Any, count: Any,
    out: tuple[Array, Array] | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """``(1 - momentum) * running + momentum * batch`` with the unbiased variance, as new arrays.

    Or in those of ``out``, which may be the old ones.

    ``mean`` and ``var`` (C,) are :func:`batch_moments` of ``count`` values per channel, or
    :func:`merged_moments`; ``momentum`` is a number, or an array () of their library.
    """
    known = not is_cupy(momentum)
    momentum = number("momentum", momentum, 0, 1) if known else momentum
    if not is_cupy(count) and count <= 1:
        raise ValueError(
            f"count must be 2 or more: the variance of {count} value per channel is not defined; "
            "train with larger batches or images, or call eval() first"
        )
    arrays = running_mean, running_var, mean, var
    # The backends' arithmetic is in one dtype.
    one = all(array.dtype == mean.dtype for array in arrays)
    backend = backends.of("batch_norm", mean) if one else reference
    xp = namespace(mean)
    with on_device(mean):
        if not is_cupy(count):
            unbiased = count / (count - 1)
        else:  # kernels take numbers of the host, which would have to wait for it
            unbiased = count / xp.maximum(count - 1, 1)
            arrays = *arrays[:3], (var * unbiased).astype(var.dtype)
            unbiased = 1.0
        if not known:  # nor may it wait for the momentum
            pairs = zip(arrays[:2], (arrays[2], arrays[3] * unbiased), strict=True)
            mixed = ((1 - momentum) * old + momentum * new for old, new in pairs)
            mean, var = (a.astype(r.dtype) for a, r in zip(mixed, arrays, strict=False))
            return mean, var
        results = out or (xp.empty_like(running_mean), xp.empty_like(running_var))
        backend.running(*arrays, momentum, unbiased, *results)
    return results


@reading("x value")
def batch_norm(
    x: Array,
    weight: Array,
    bias: Array,
    residual: Array | None = None,
    *,
    mean: Array,
    var: Array,
    training: bool,
    eps: float = 1e-5,
    relu: bool = False,
    comm: Comm | None = None,
    count: Any = None,
) -> Result:
    """``weight * (x - mean) / sqrt(var + eps) + bias (+ residual)``, optionally with a ReLU.

    With ``training``, ``mean`` and ``var`` are those of ``x`` itself (:func:`batch_moments`) and
    the gradient flows through them; else they are constants.

    With ``comm`` too, they and ``count`` are those of the x of all ranks
    (:func:`merged_moments`), and so is what flows through them, in one message for all vjps
    together. The gradients of weight and bias are this rank's share: their sum is the batch's.
    """
    per_channel = {"mean": mean, "var": var, "weight": weight, "bias": bias}
    check(x=x, **per_channel, **({} if residual is None else {"residual": residual}))
    if x.ndim < 2:
        raise ValueError(f"x must have 2 or more dimensions (N, C, *S), got {x.shape}")
    eps = number("eps", eps, 0)
    work, channel = _dtypes(x)
    backend = backends.of("batch_norm", x)
    xp, channels = namespace(x), x.shape[1]
    for name, array in per_channel.items():
        if array.shape != (channels,):
            raise ValueError(
                f"{name} must have shape ({channels},) for x {x.shape}, got {array.shape}"
            )
    # The backends take it to be as large as x: they would read past the end of a smaller one.
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual must have the shape of x, {x.shape}, got {residual.shape}")
    ranks = comm if training else None
    if ranks is not None and count is None:
        raise ValueError("count is missing: moments of several ranks are (mean, var, count)")
    # Per-channel arithmetic on (C,) arrays; the passes over the images are the backend's.
    with on_device(x):
        mean = contiguous(mean, channel)
        given = (contiguous(array, channel) for array in (var, weight, bias))
        inverse, scale, shift = xp.empty((3, channels), channel)
        backend.fold(mean, *given, eps, inverse, scale, shift)
    wide = _images(contiguous(x, work))
    value = empty(x.shape, work, x)
    made = _images(value)
    with on_device(x):
        added = None if residual is None else _images(contiguous(residual, work))
        if x.size:
            backend.forward(wide, scale, shift, added, relu, made)
    masks = made if relu else None

    @once
    def sums(grad: Array) -> Any:
        """Gradients of bias and weight, and b and c of the gradient of x, (4, C)."""
        with on_device(x):
            new, exact = xp.empty if x.size else xp.zeros, _exact(x, channel)
            # Each has memory of its own, which a leaf may keep.
            total, total_x = (new(channels, channel if ranks is None else exact) for _ in range(2))
            b, c, grad_weight = (new(channels, channel) for _ in range(3))
            if x.size:
                backend.grad_sums(
                    _images(contiguous(grad, work)), wide, masks, mean, total, total_x
                )
            norm = scale, inverse, mean
            if ranks is not None:
                means = (allreduce_sum(ranks, total, total_x) / count).astype(channel)
                backend.coefficients(*norm, *means, 1, b, c, grad_weight)
                grad_weight = total_x * inverse  # of this rank
            elif x.size:
                size = x.size // channels
                backend.coefficients(*norm, total, total_x, size, b, c, grad_weight)
        return total, grad_weight, b, c

    @each
    def taken(grad: Array) -> tuple[Any, Any]:
        """Gradients of x and, if a ReLU follows, of the residual."""
        result = empty(wide.shape, work, x)
        split = empty(wide.shape, work, x) if residual is not None and relu else None
        with on_device(x):
            _, _, b, c = sums(grad) if training else xp.zeros((4, channels), channel)
            if x.size:
                wide_grad = _images(contiguous(grad, work))
                backend.grad_x(wide_grad, wide, masks, scale, b, c, result, split)
        return result.reshape(x.shape), None if split is None else split.reshape(x.shape)

    return cast_like(value, x), (
        lambda grad: cast_like(taken(grad, 0), x),
        lambda grad: cast_like(sums(grad)[1], weight),
        lambda grad: cast_like(sums(grad)[0], bias),
        lambda grad: cast_like(taken(grad, 1) if relu else grad, residual),
    )


def without_bias(x: Array, bias: Array) -> Result:
    """``x + bias`` for each channel, for a norm that takes the bias off again: ``x``, and zeros."""
    return x, (lambda grad: grad, lambda grad: namespace(bias).zeros_like(bias))


def _images(array: Array) -> Array:
    """A contiguous (N, C, *S) as (N, C, H, W), for the backends."""
    if array.ndim == 4:
        return array
    return array.reshape(*array.shape[:2], 1, prod(array.shape[2:]))


def _dtypes(x: Array) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """The dtype that the backend uses, and that of the per-channel arrays."""
    given = x.dtype.newbyteorder("=")
    work = np.dtype(np.float32) if given == np.float16 and not is_cupy(x) else given
    return work, np.dtype(np.float64 if given == np.float64 else np.float32)


def _exact(x: Array, channel: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of sums that are sent to other ranks: on the CPU they are float64 anyway."""
    return channel if is_cupy(x) else np.dtype(np.float64)

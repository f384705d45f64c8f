"""Pooling: options and what a window counts; what there is to compute is the backends'."""

from __future__ import annotations

from typing import Any

import numpy as np

from invocupy import backends
from invocupy.arrays import check, contiguous, namespace, on_device, wide
from invocupy.backends.memory import empty
from invocupy.backends.windows import Pair, within
from invocupy.geometry import IntOrPair, pair
from invocupy.ops.basic import Result
from invocupy.ops.convolution import working_dtypes
from invocupy.ops.windows import out_size


def max_pool2d(
    x: Any, kernel_size: IntOrPair, stride: IntOrPair | None = None, padding: IntOrPair = 0
) -> Result:
    """The largest value in each window; the gradient goes to the first one of equal values."""
    size, strides, pads = window = _pool_options(x, kernel_size, stride, padding)
    out = out_size(x.shape[2:], size, strides, pads, (1, 1))
    window = within(window, x.shape[2:], out)
    dtype, work = working_dtypes(x)
    backend = backends.of("pooling", x)
    value = empty((*x.shape[:2], *out), work, x)
    # A pixel of the plane: four bytes for each, where they are enough.
    index = "int32" if x.shape[2] * x.shape[3] < 1 << 31 else "int64"
    winner = empty(value.shape, index, x)
    seeing = bool(x.size and value.size)  # of an empty plane, windows see padding only
    with on_device(x):
        if seeing:
            backend.max_pool(contiguous(x, work), window, value, winner)
        else:
            value[...] = -np.inf

    def partial(grad: Any) -> Any:
        result = empty(x.shape, work, x)
        with on_device(x):
            if seeing:
                backend.max_pool_grad(contiguous(grad, work), winner, window, result)
            else:
                result[...] = 0
        return result.astype(dtype, copy=False)

    return value.astype(dtype, copy=False), (partial,)


def avg_pool2d(
    x: Any,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Result:
    """The mean of each window; PyTorch's rules for ``ceil_mode`` and ``count_include_pad``."""
    size, strides, pads = window = _pool_options(x, kernel_size, stride, padding)
    sizes = x.shape[2:]
    out = out_size(sizes, size, strides, pads, (1, 1), ceil_mode)
    window = within(window, sizes, out)
    dtype, work = working_dtypes(x)
    backend = backends.of("pooling", x)
    value = empty((*x.shape[:2], *out), work, x)
    with on_device(x):
        counts = [
            namespace(x).asarray(_counted(*options, count_include_pad), dtype=wide(work) or work)
            for options in zip(out, size, strides, pads, sizes, strict=True)
        ]
        scale = 1 / (counts[0][:, None] * counts[1][None, :])
        seeing = bool(x.size and value.size)
        if seeing:
            backend.avg_pool(contiguous(x, work), scale, window, value)
        else:
            value[...] = 0 * scale

    def partial(grad: Any) -> Any:
        result = empty(x.shape, work, x)
        with on_device(x):
            if seeing:
                backend.avg_pool_grad(contiguous(grad, work), scale, window, result)
            else:
                result[...] = 0
        return result.astype(dtype, copy=False)

    return value.astype(dtype, copy=False), (partial,)


def _counted(out: int, kernel: int, stride: int, pad: int, size: int, padding: bool) -> list[int]:
    """How many elements each window counts along one axis."""
    low, high = (-pad, size + pad) if padding else (0, size)
    starts = [i * stride - pad for i in range(out)]
    return [min(start + kernel, high) - max(start, low) for start in starts]


def _pool_options(
    x: Any, kernel_size: IntOrPair, stride: IntOrPair | None, padding: IntOrPair
) -> tuple[Pair, Pair, Pair]:
    check(x=x)
    if x.ndim != 4:
        raise ValueError(f"x must have 4 dimensions (N, C, H, W), got shape {x.shape}")
    size, pads = pair("kernel_size", kernel_size, 1), pair("padding", padding, 0)
    if any(2 * p > k for p, k in zip(pads, size, strict=True)):
        raise ValueError(f"padding must be at most half of kernel_size, got {pads} for {size}")
    return size, size if stride is None else pair("stride", stride, 1), pads

"""Pooling as sums and maxima over taps of strided views: the same lines serve NumPy and CuPy."""

from __future__ import annotations

from typing import Any

from invocupy.arrays import namespace
from invocupy.geometry import IntOrPair, pair
from invocupy.ops.basic import Result
from invocupy.ops.windows import Pair, out_size, pad, unpad, windows


def max_pool2d(
    x: Any, kernel_size: IntOrPair, stride: IntOrPair | None = None, padding: IntOrPair = 0
) -> Result:
    """The largest value in each window; the gradient goes to the first one of equal values."""
    size, strides, pads = _pool_options(x, kernel_size, stride, padding)
    out = out_size(x.shape[2:], size, strides, pads, (1, 1))
    xp = namespace(x)
    padded = pad(x, pads, -xp.inf)
    taps = list(windows(size, out, strides, (1, 1)))
    value = xp.full((*x.shape[:2], *out), -xp.inf, x.dtype)
    winner = xp.full(value.shape, -1, xp.int32)
    inside = pad(xp.ones((1, 1, *x.shape[2:]), bool), pads, False)
    for index, (_, _, window) in enumerate(taps):
        candidate = padded[window]
        # The first tap inside wins even with -inf: padding never does.
        better = (candidate > value) | ((winner < 0) & inside[window])
        better |= xp.isnan(candidate) & ~xp.isnan(value)
        xp.copyto(value, candidate, where=better)
        xp.copyto(winner, index, where=better)

    def partial(grad: Any) -> Any:
        total = xp.zeros_like(padded)
        for index, (_, _, window) in enumerate(taps):
            total[window] += xp.where(winner == index, grad, grad.dtype.type(0))
        return unpad(total, pads, x)

    return value, (partial,)


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
    size, strides, pads = _pool_options(x, kernel_size, stride, padding)
    sizes = x.shape[2:]
    out_h, out_w = out = out_size(sizes, size, strides, pads, (1, 1), ceil_mode)
    xp = namespace(x)
    # Windows may pass the padded edge in ceil mode: pad on, but do not count there.
    beyond = tuple(
        max((n - 1) * s + k - (full + 2 * p), 0)
        for n, s, k, full, p in zip(out, strides, size, sizes, pads, strict=True)
    )
    padded = pad(x, pads, 0, beyond)
    taps = list(windows(size, out, strides, (1, 1)))
    counts = [
        xp.asarray(_counted(*options, count_include_pad), dtype=x.dtype)
        for options in zip(out, size, strides, pads, sizes, strict=True)
    ]
    weight = 1 / (counts[0][:, None] * counts[1][None, :])
    total = xp.zeros((*x.shape[:2], out_h, out_w), x.dtype)
    for _, _, window in taps:
        total += padded[window]
    total *= weight

    def partial(grad: Any) -> Any:
        share = grad * weight
        spread = xp.zeros_like(padded)
        for _, _, window in taps:
            spread[window] += share
        return unpad(spread, pads, x)

    return total, (partial,)


def _counted(out: int, kernel: int, stride: int, pad: int, size: int, padding: bool) -> list[int]:
    """How many elements each window counts along one axis."""
    low, high = (-pad, size + pad) if padding else (0, size)
    starts = [i * stride - pad for i in range(out)]
    return [min(start + kernel, high) - max(start, low) for start in starts]


def _pool_options(
    x: Any, kernel_size: IntOrPair, stride: IntOrPair | None, padding: IntOrPair
) -> tuple[Pair, Pair, Pair]:
    if x.ndim != 4:
        raise ValueError(f"x must have 4 dimensions (N, C, H, W), got shape {x.shape}")
    size, pads = pair("kernel_size", kernel_size, 1), pair("padding", padding, 0)
    if any(2 * p > k for p, k in zip(pads, size, strict=True)):
        raise ValueError(f"padding must be at most half of kernel_size, got {pads} for {size}")
    return size, size if stride is None else pair("stride", stride, 1), pads

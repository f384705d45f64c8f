"""Pooling, tap by tap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from invocupy.arrays import Array, namespace, wide
from invocupy.backends.windows import Window, pad, unpad, windows


def max_pool(x: Array, window: Window, out: Array, winner: Array) -> None:
    """Tap by tap: each replaces the value of the windows where it is larger."""
    xp = namespace(x)
    padded = _padded(x, window, out, -xp.inf)
    inside = _padded(xp.ones((1, 1, *x.shape[2:]), bool), window, out, False)
    out[...], winner[...] = -xp.inf, -1
    for place, seen in _taps(xp, x, window, out):
        candidate = padded[seen]
        # The first tap inside wins even with -inf: padding never does.
        better = (candidate > out) | ((winner < 0) & inside[seen])
        better |= xp.isnan(candidate) & ~xp.isnan(out)
        xp.copyto(out, candidate, where=better)
        xp.copyto(winner, place, where=better)


def max_pool_grad(grad: Array, winner: Array, window: Window, out: Array) -> None:
    """Tap by tap: each adds the gradient to the pixels that win by it."""
    xp = namespace(grad)
    total = xp.zeros_like(_padded(out, window, grad, 0), dtype=wide(out.dtype))
    for place, seen in _taps(xp, out, window, grad):
        total[seen] += xp.where(winner == place, grad, grad.dtype.type(0))
    out[...] = unpad(total, window[2], out)


def avg_pool(x: Array, scale: Array, window: Window, out: Array) -> None:
    xp, padded = namespace(x), _padded(x, window, out, 0)
    total = xp.zeros_like(out, dtype=wide(out.dtype))
    for _, seen in _taps(xp, x, window, out):
        total += padded[seen]
    xp.multiply(total, scale, out=out)


def avg_pool_grad(grad: Array, scale: Array, window: Window, out: Array) -> None:
    xp, share = namespace(grad), grad * scale
    total = xp.zeros_like(_padded(out, window, grad, 0), dtype=wide(out.dtype))
    for _, seen in _taps(xp, out, window, grad):
        total[seen] += share
    out[...] = unpad(total, window[2], out)


def _taps(xp: Any, x: Array, window: Window, out: Array) -> Iterator[tuple[Any, Any]]:
    """For each tap, which pixel of the plane of x each window sees, and all of them as a view."""
    size, stride, padding = window
    dims = len(size)
    for tap, seen in windows(size, out.shape[2:], stride, (1,) * dims):
        place: Any = 0
        for i, (t, n, s, p) in enumerate(zip(tap, out.shape[2:], stride, padding, strict=True)):
            along = xp.arange(n, dtype=xp.int64) * s - p + t
            place = place * x.shape[2 + i] + along.reshape(-1, *[1] * (dims - 1 - i))
        yield place, seen


def _padded(x: Array, window: Window, out: Array, fill: Any) -> Any:
    """Also by how much the last windows pass the padded edge."""
    size, stride, padding = window
    beyond = tuple(
        max((n - 1) * s + k - (full + 2 * p), 0)
        for n, s, k, full, p in zip(out.shape[2:], stride, size, x.shape[2:], padding, strict=True)
    )
    return pad(x, padding, fill, beyond)

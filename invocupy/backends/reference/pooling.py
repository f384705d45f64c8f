"""Largest values and means of windows of x (N, C, H, W), of which only the part in x counts.

``window`` is (size, stride, padding), a pair each; every window meets x. The last ones may pass the
padded edge (PyTorch's ``ceil_mode``).

::

    max_pool(x, window, out, winner)          out = the largest value, NaN the largest of all;
                                              winner[n,c,i,j] = where the first of equal ones
                                              stands in the plane of x, int32 or int64
    max_pool_grad(grad, winner, window, out)  out = the sum of grad over the windows it wins
    avg_pool(x, scale, window, out)           out = scale[i,j] * the sum
    avg_pool_grad(grad, scale, window, out)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from invocupy.arrays import namespace, wide
from invocupy.backends.windows import pad, unpad, windows


def max_pool(x: Any, window: Any, out: Any, winner: Any) -> None:
    """Taps in turn: each takes the windows where it is larger."""
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


def max_pool_grad(grad: Any, winner: Any, window: Any, out: Any) -> None:
    """Taps in turn: each gives to the pixels that win by it."""
    xp = namespace(grad)
    total = xp.zeros_like(_padded(out, window, grad, 0), dtype=wide(out.dtype))
    for place, seen in _taps(xp, out, window, grad):
        total[seen] += xp.where(winner == place, grad, grad.dtype.type(0))
    out[...] = unpad(total, window[2], out)


def avg_pool(x: Any, scale: Any, window: Any, out: Any) -> None:
    """The sum over taps, scaled."""
    padded = _padded(x, window, out, 0)
    total = namespace(x).zeros_like(out, dtype=wide(out.dtype))
    for _, seen in _taps(namespace(x), x, window, out):
        total += padded[seen]
    namespace(x).multiply(total, scale, out=out)


def avg_pool_grad(grad: Any, scale: Any, window: Any, out: Any) -> None:
    """The scaled gradient to every tap."""
    share = grad * scale
    total = namespace(grad).zeros_like(_padded(out, window, grad, 0), dtype=wide(out.dtype))
    for _, seen in _taps(namespace(grad), out, window, grad):
        total[seen] += share
    out[...] = unpad(total, window[2], out)


def _taps(xp: Any, x: Any, window: Any, out: Any) -> Iterator[tuple[Any, Any]]:
    """For each tap, which pixel of the plane of x each window sees, and all of them as a view."""
    size, stride, padding = window
    rows, columns = (
        xp.arange(n, dtype=xp.int64) * s - p
        for n, s, p in zip(out.shape[2:], stride, padding, strict=True)
    )
    for u, v, seen in windows(size, out.shape[2:], stride, (1, 1)):
        yield (rows[:, None] + u) * x.shape[3] + columns + v, seen


def _padded(x: Any, window: Any, out: Any, fill: Any) -> Any:
    """Also by how much the last windows pass the padded edge."""
    size, stride, padding = window
    beyond = tuple(
        max((n - 1) * s + k - (full + 2 * p), 0)
        for n, s, k, full, p in zip(out.shape[2:], stride, size, x.shape[2:], padding, strict=True)
    )
    return pad(x, padding, fill, (beyond[0], beyond[1]))

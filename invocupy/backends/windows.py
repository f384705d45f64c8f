"""Padded images and strided views for the taps of involution, convolution and pooling."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, TypeAlias

from invocupy.arrays import namespace
from invocupy.geometry import Shape

Window: TypeAlias = tuple[Shape, Shape, Shape]
"""(stride, padding, dilation) of a convolution, (size, stride, padding) of pooling; by axis."""


def within(window: Window, sizes: Shape, out: Shape) -> Window:
    """(size, stride, padding) of equivalent windows that reach less far beyond the image."""
    size, stride, padding = window
    if not any(padding) and all(k <= n for k, n in zip(size, sizes, strict=True)):
        return window
    axes = []
    for k, s, p, n, o in zip(size, stride, padding, sizes, out, strict=True):
        if s > n and k - p >= n:  # all see the image to its end, all but the last from its start
            first = max((o - 1) * s - p, 0)
            axes.append((o * n - first, n, (o - 1) * n - first))
        else:  # without the taps that are outside for all
            outside = max(p - (o - 1) * s, 0)
            axes.append((min(k, p + n) - outside, s, p - outside))
    nearer, steps, pads = zip(*axes, strict=True)
    return nearer, steps, pads


def pad(x: Any, pads: Shape, fill: float, beyond: Shape | None = None) -> Any:
    """``x`` itself where there is nothing to pad."""
    beyond = beyond or (0,) * len(pads)
    if not any((*pads, *beyond)):
        return x
    borders = ((before, before + more) for before, more in zip(pads, beyond, strict=True))
    return namespace(x).pad(x, ((0, 0), (0, 0), *borders), constant_values=fill)


def unpad(padded: Any, pads: Shape, x: Any) -> Any:
    """The part of a padded array that lies over ``x``."""
    inside = (slice(before, before + n) for before, n in zip(pads, x.shape[2:], strict=True))
    return padded[:, :, *inside]


def windows(kernel: Shape, out: Shape, stride: Shape, dilation: Shape) -> Iterator[tuple[Any, Any]]:
    """Each tap with the window of the padded image that all outputs see through it."""
    axes = list(zip(out, stride, dilation, strict=True))
    for tap in product(*map(range, kernel)):
        seen = (
            slice(t * d, t * d + max(n - 1, 0) * s + (n > 0), s)
            for t, (n, s, d) in zip(tap, axes, strict=True)
        )
        yield tap, (..., *seen)

"""What the taps of convolution and pooling see: padded images and strided views of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from invocupy.arrays import namespace

Pair: TypeAlias = tuple[int, int]
Window: TypeAlias = tuple[Pair, Pair, Pair]
"""(stride, padding, dilation) of a convolution, (size, stride, padding) of pooling."""


def within(window: Window, sizes: Pair, out: Pair) -> Window:
    """(size, stride, padding) of windows that see the same and reach less far beyond the image."""
    size, stride, padding = window
    if padding == (0, 0) and size[0] <= sizes[0] and size[1] <= sizes[1]:
        return window
    axes = []
    for k, s, p, n, o in zip(size, stride, padding, sizes, out, strict=True):
        if s > n and k - p >= n:  # all see the image to its end, all but the last from its start
            first = max((o - 1) * s - p, 0)
            axes.append((o * n - first, n, (o - 1) * n - first))
        else:  # without the taps that are outside for all
            outside = max(p - (o - 1) * s, 0)
            axes.append((min(k, p + n) - outside, s, p - outside))
    down, across = axes
    return (down[0], across[0]), (down[1], across[1]), (down[2], across[2])


def pad(x: Any, pads: Pair, fill: float, beyond: Pair = (0, 0)) -> Any:
    """``x`` itself where there is nothing to pad."""
    if not any((*pads, *beyond)):
        return x
    (top, left), (more_h, more_w) = pads, beyond
    borders = ((0, 0), (0, 0), (top, top + more_h), (left, left + more_w))
    return namespace(x).pad(x, borders, constant_values=fill)


def unpad(padded: Any, pads: Pair, x: Any) -> Any:
    """The part of a padded array that lies over ``x``."""
    return padded[:, :, pads[0] : pads[0] + x.shape[2], pads[1] : pads[1] + x.shape[3]]


def windows(
    kernel: Pair, out: Pair, stride: Pair, dilation: Pair
) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    """Each tap (u, v) with the window of the padded image that all outputs see through it."""

    def span(tap: int, axis: int) -> slice:
        start = tap * dilation[axis]
        return slice(
            start, start + max(out[axis] - 1, 0) * stride[axis] + (out[axis] > 0), stride[axis]
        )

    for u in range(kernel[0]):
        for v in range(kernel[1]):
            yield u, v, (..., span(u, 0), span(v, 1))

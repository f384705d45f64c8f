"""What the taps of convolution and pooling see: padded images and strided views of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from invocupy.arrays import namespace
from invocupy.geometry import output_size

Pair = tuple[int, int]


def out_size(
    sizes: Any, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool = False
) -> Pair:
    """Outputs along both axes; PyTorch's rule for ``ceil_mode``."""
    result = []
    for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        out = output_size(n, k, s, p, d)
        # In ceil mode a last, partial window counts if it starts inside the image or left padding.
        if ceil_mode and (n + 2 * p - d * (k - 1) - 1) % s and out * s < n + p:
            out += 1
        if out < 1 and n:
            raise ValueError(
                f"x of {sizes[0]}x{sizes[1]} is too small for kernel size {kernel[0]}x{kernel[1]}, "
                f"padding {padding}, dilation {dilation}: give more padding or a smaller kernel"
            )
        result.append(max(out, 0))
    return result[0], result[1]


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

"""How many windows convolution and pooling have."""

from __future__ import annotations

from invocupy.backends.windows import Pair
from invocupy.geometry import output_size


def out_size(
    sizes: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    ceil_mode: bool = False,
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

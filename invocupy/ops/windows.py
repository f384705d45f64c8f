"""How many windows convolution and pooling have."""

from __future__ import annotations

from invocupy.geometry import Shape, by, output_size


def out_size(
    sizes: Shape, kernel: Shape, stride: Shape, padding: Shape, dilation: Shape,
    ceil_mode: bool = False,
) -> Shape:  # fmt: skip
    """Outputs along each axis; PyTorch's rule for ``ceil_mode``."""
    result = []
    for n, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True):
        out = output_size(n, k, s, p, d)
        # In ceil mode a last, partial window counts if it starts inside the image or left padding.
        if ceil_mode and (n + 2 * p - d * (k - 1) - 1) % s and out * s < n + p:
            out += 1
        if out < 1 and n:
            raise ValueError(
                f"x of {by(sizes)} is too small for kernel size {by(kernel)}, "
                f"padding {padding}, dilation {dilation}: give more padding or a smaller kernel"
            )
        result.append(max(out, 0))
    return tuple(result)

"""Common code of convolution and pooling: the number of windows, and other numbers of axes."""

from __future__ import annotations

from invocupy.arrays import Array, on_device
from invocupy.geometry import Shape, by, output_size
from invocupy.ops.declaration import Result
from invocupy.ops.memo import along


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


def reshaped(result: Result, shape: Shape, *arrays: Array | None) -> Result:
    """The result of an op on arrays of other shapes, as one of ``shape`` on ``arrays``."""
    value, vjps = result
    own, device = value.shape, on_device(value)

    @along
    def inner(grad: Array) -> Array:
        with device:
            return grad.reshape(own)

    outer = zip(map(inner, vjps), arrays, strict=True)
    return value.reshape(shape), tuple(
        lambda grad, vjp=vjp, array=array: vjp(grad).reshape(array.shape) for vjp, array in outer
    )

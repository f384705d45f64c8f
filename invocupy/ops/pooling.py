"""Pooling: options and what a window counts; what there is to compute is the backends'."""

from __future__ import annotations

import numpy as np

from invocupy.arrays import Array, check, namespace, on_device, wide
from invocupy.backends.memory import empty
from invocupy.backends.windows import Window, within
from invocupy.geometry import IntOrTuple, per_axis
from invocupy.ops.call import Call
from invocupy.ops.declaration import Result, op
from invocupy.ops.windows import out_size


@op()
def max_pool2d(
    x: Array, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0
) -> Result:
    """The largest value of each window; padding never wins, the first of equal values does.

    Parameters
    ----------
    x : array or Tensor (N, C, H, W), float
    kernel_size : int or pair
    stride : int or pair, optional
        ``kernel_size`` by default.
    padding : int or pair
        At most half of ``kernel_size``.

    Returns
    -------
    array or Tensor (N, C, Ho, Wo)

    Raises
    ------
    TypeError
        For arguments that are no arrays of a floating dtype.
    ValueError
        For shapes or options that do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.max_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2)[0, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    window = _window(x, kernel_size, stride, padding)
    out = out_size(x.shape[2:], *window, (1, 1))
    window = within(window, x.shape[2:], out)
    call, shape = Call("pooling", x), (*x.shape[:2], *out)
    # A pixel of the plane: four bytes for each, where they are enough.
    index = "int32" if x.shape[2] * x.shape[3] < 1 << 31 else "int64"
    winner = empty(shape, index, x)
    # Of an empty plane, windows see padding only.
    value, _ = call.run("max_pool", call.inputs, (window,), shape, winner, fill=-np.inf)

    def vjp(grad: Array) -> Array:
        return call.gradient("max_pool_grad", grad, (), (winner, window), x)

    return value.astype(call.dtype, copy=False), (vjp,)


@op()
def avg_pool2d(
    x: Array,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Result:
    """The mean of each window.

    Parameters
    ----------
    x : array or Tensor (N, C, H, W), float
    kernel_size : int or pair
    stride : int or pair, optional
        ``kernel_size`` by default.
    padding : int or pair
        At most half of ``kernel_size``.
    ceil_mode : bool
        Also take the last, partial window of an axis; only its valid pixels count.
    count_include_pad : bool
        Whether the padding's zeros count in the mean.

    Returns
    -------
    array or Tensor (N, C, Ho, Wo)

    Raises
    ------
    TypeError
        For arguments that are no arrays of a floating dtype.
    ValueError
        For shapes or options that do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.avg_pool2d(np.arange(9.0).reshape(1, 1, 3, 3), 2, ceil_mode=True)[0, 0]
    array([[2. , 3.5],
           [6.5, 8. ]])
    """
    given = size, strides, pads = _window(x, kernel_size, stride, padding)
    sizes = x.shape[2:]
    out = out_size(sizes, size, strides, pads, (1, 1), ceil_mode)
    window = within(given, sizes, out)
    call = Call("pooling", x)
    with on_device(x):
        rows, columns = (
            namespace(x).asarray(_counted(*axis, count_include_pad), wide(call.work) or call.work)
            for axis in zip(out, size, strides, pads, sizes, strict=True)
        )
        scale = 1 / (rows[:, None] * columns[None, :])
        empty = 0 * scale
    value = call.value("avg_pool", (scale, window), (*x.shape[:2], *out), fill=empty)

    def vjp(grad: Array) -> Array:
        return call.gradient("avg_pool_grad", grad, (), (scale, window), x)

    return value, (vjp,)


def _counted(out: int, kernel: int, stride: int, pad: int, size: int, padding: bool) -> list[int]:
    """How many elements each window counts along one axis."""
    low, high = (-pad, size + pad) if padding else (0, size)
    starts = [i * stride - pad for i in range(out)]
    return [min(start + kernel, high) - max(start, low) for start in starts]


def _window(
    x: Array, kernel_size: IntOrTuple, stride: IntOrTuple | None, padding: IntOrTuple
) -> Window:
    """Size, stride and padding."""
    check(x=x)
    if x.ndim != 4:
        raise ValueError(f"x must have 4 dimensions (N, C, H, W), got shape {x.shape}")
    size, pads = per_axis("kernel_size", kernel_size, 1), per_axis("padding", padding, 0)
    if any(2 * p > k for p, k in zip(pads, size, strict=True)):
        raise ValueError(f"padding must be at most half of kernel_size, got {pads} for {size}")
    return size, size if stride is None else per_axis("stride", stride, 1), pads

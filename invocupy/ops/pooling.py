"""Pooling: options, and the number of elements in a window; the work is in the backends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import numpy as np

from invocupy.arrays import Array, check, namespace, on_device, wide
from invocupy.backends.memory import empty
from invocupy.backends.windows import Window, within
from invocupy.geometry import IntOrTuple, Shape, check_rank, per_axis
from invocupy.ops.call import Call
from invocupy.ops.declaration import Result, in_dimensions
from invocupy.ops.windows import out_size, reshaped


def _max_pools(dims: int) -> Callable[..., Result]:
    def max_pool(
        x: Array,
        kernel_size: IntOrTuple,
        stride: IntOrTuple | None = None,
        padding: IntOrTuple = 0,
    ) -> Result:
        window = _window(dims, x, kernel_size, stride, padding)
        return _pooled(_planar_max, x, window, out_size(x.shape[2:], *window, (1,) * dims))

    example = """>>> x = np.arange(4.0**<dims>).reshape((1, 1) + (4,) * <dims>)
    >>> F.max_pool<dims>d(x, 2).ravel()[:2].tolist()
    """
    first = [float(sum(4**axis for axis in range(dims)) + step) for step in (0, 2)]
    head = "The largest value of each window, never padding; the gradient goes to the first one."
    doc = head + _PARAMETERS + _REST + f"{example}{first}\n    "
    return in_dimensions(max_pool, dims, doc, reads="")


def _avg_pools(dims: int) -> Callable[..., Result]:
    def avg_pool(
        x: Array,
        kernel_size: IntOrTuple,
        stride: IntOrTuple | None = None,
        padding: IntOrTuple = 0,
        *,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> Result:
        window = _window(dims, x, kernel_size, stride, padding)
        out = out_size(x.shape[2:], *window, (1,) * dims, ceil_mode)
        return _pooled(partial(_planar_avg, count_include_pad), x, window, out)

    options = """
    ceil_mode : bool
        Also take the last, partial window of an axis; only its valid pixels count.
    count_include_pad : bool
        Whether the padding's zeros count in the mean."""
    example = """>>> x = np.arange(3.0**<dims>).reshape((1, 1) + (3,) * <dims>)
    >>> F.avg_pool<dims>d(x, 2, ceil_mode=True).ravel()[:2].tolist()
    """
    corner = sum(3**axis for axis in range(dims)) / 2
    doc = "The mean of each window." + _PARAMETERS + options + _REST
    first = [corner, corner + 1.5]
    return in_dimensions(avg_pool, dims, f"{doc}{example}{first}\n    ", reads="")


_PARAMETERS = """

    Parameters
    ----------
    x : array or Tensor (N, C, <image>), float
        Each channel is pooled by itself.
    kernel_size : int or tuple
        The window; a tuple has one size for each axis.
    stride : int or tuple, optional
        Steps between windows; ``kernel_size`` by default.
    padding : int or tuple
        On each side, at most half of ``kernel_size``."""
_REST = """

    Returns
    -------
    array or Tensor (N, C, <out>)

    Raises
    ------
    TypeError
        For arguments that are not floating-point arrays.
    ValueError
        For shapes or options that do not fit together.

    """


def _planar_max(x: Array, window: Window, out: Shape) -> Result:
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


def _planar_avg(count_include_pad: bool, x: Array, given: Window, out: Shape) -> Result:
    sizes = x.shape[2:]
    window = within(given, sizes, out)
    call = Call("pooling", x)
    with on_device(x):
        rows, columns = (
            namespace(x).asarray(_counted(*axis, count_include_pad), wide(call.work) or call.work)
            for axis in zip(out, *given, sizes, strict=True)
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


def _pooled(
    planar: Callable[[Array, Window, Shape], Result], x: Array, window: Window, out: Shape
) -> Result:
    """Pooling in one or three dimensions by that in two."""
    n, c, *sizes = x.shape
    if len(sizes) == 2:
        return planar(x, window, out)
    (k, *size), (s, *stride), (p, *pads) = window
    if len(sizes) == 1:
        row = (1, k), (1, s), (0, p)
        return reshaped(planar(x[:, :, None], row, (1, *out)), (n, c, *out), x)
    # the largest, or the mean, of those of planes; the first of equal ones is in the first plane
    depth, *image = sizes
    with on_device(x):
        planes = x.reshape(n, c * depth, *image)
    first = planar(planes, (tuple(size), tuple(stride), tuple(pads)), out[1:])
    held, (to_x,) = reshaped(first, (n, c, depth, prod(out[1:])), x)
    column = (k, 1), (s, 1), (p, 0)
    value, (back,) = reshaped(planar(held, column, (out[0], prod(out[1:]))), (n, c, *out), held)
    return value, (lambda grad: to_x(back(grad)),)


def _window(
    dims: int, x: Array, kernel_size: IntOrTuple, stride: IntOrTuple | None, padding: IntOrTuple
) -> Window:
    """Size, stride and padding."""
    check(x=x)
    check_rank(x, dims)
    return pool_options(dims, kernel_size, stride, padding)


def pool_options(
    dims: int, kernel_size: IntOrTuple, stride: IntOrTuple | None, padding: IntOrTuple
) -> Window:
    """The options for each axis, checked."""
    size = per_axis("kernel_size", kernel_size, 1, dims)
    pads = per_axis("padding", padding, 0, dims)
    if any(2 * p > k for p, k in zip(pads, size, strict=True)):
        raise ValueError(f"padding must be at most half of kernel_size, got {pads} for {size}")
    return size, size if stride is None else per_axis("stride", stride, 1, dims), pads


max_pool1d, max_pool2d, max_pool3d = map(_max_pools, (1, 2, 3))
avg_pool1d, avg_pool2d, avg_pool3d = map(_avg_pools, (1, 2, 3))

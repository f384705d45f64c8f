"""Pooling: options and what a window counts; what there is to compute is the backends'."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import numpy as np

from invocupy.arrays import Array, check, namespace, on_device, wide
from invocupy.backends.memory import empty
from invocupy.backends.windows import Window, within
from invocupy.geometry import NAMES, IntOrTuple, Shape, per_axis
from invocupy.messages import layout_hint
from invocupy.ops.call import Call
from invocupy.ops.declaration import Result, op
from invocupy.ops.windows import out_size, reshaped


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

    >>> F.max_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2)[0, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    return _max_pool(2, x, kernel_size, stride, padding)


@op()
def max_pool1d(
    x: Array,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
) -> Result:
    """The largest value of each window along one axis, as :func:`max_pool2d`.

    Parameters
    ----------
    x : array or Tensor (N, C, W), float
    kernel_size, stride, padding
        As in :func:`max_pool2d`; a tuple has one integer.

    Returns
    -------
    array or Tensor (N, C, Wo)

    Raises
    ------
    TypeError, ValueError
        As :func:`max_pool2d`.

    >>> F.max_pool1d(np.arange(6.0).reshape(1, 1, 6), 2)
    array([[[1., 3., 5.]]])
    """
    return _max_pool(1, x, kernel_size, stride, padding)


@op()
def max_pool3d(
    x: Array,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
) -> Result:
    """The largest value of each window in three dimensions, as :func:`max_pool2d`.

    Parameters
    ----------
    x : array or Tensor (N, C, D, H, W), float
    kernel_size, stride, padding
        As in :func:`max_pool2d`; a tuple has three integers.

    Returns
    -------
    array or Tensor (N, C, Do, Ho, Wo)

    Raises
    ------
    TypeError, ValueError
        As :func:`max_pool2d`.

    >>> F.max_pool3d(np.arange(16.0).reshape(1, 1, 2, 2, 4), 2)
    array([[[[[13., 15.]]]]])
    """
    return _max_pool(3, x, kernel_size, stride, padding)


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

    >>> F.avg_pool2d(np.arange(9.0).reshape(1, 1, 3, 3), 2, ceil_mode=True)[0, 0]
    array([[2. , 3.5],
           [6.5, 8. ]])
    """
    return _avg_pool(2, x, kernel_size, stride, padding, ceil_mode, count_include_pad)


@op()
def avg_pool1d(
    x: Array,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Result:
    """The mean of each window along one axis, as :func:`avg_pool2d`.

    Parameters
    ----------
    x : array or Tensor (N, C, W), float
    kernel_size, stride, padding, ceil_mode, count_include_pad
        As in :func:`avg_pool2d`; a tuple has one integer.

    Returns
    -------
    array or Tensor (N, C, Wo)

    Raises
    ------
    TypeError, ValueError
        As :func:`avg_pool2d`.

    >>> F.avg_pool1d(np.arange(5.0).reshape(1, 1, 5), 2, ceil_mode=True)
    array([[[0.5, 2.5, 4. ]]])
    """
    return _avg_pool(1, x, kernel_size, stride, padding, ceil_mode, count_include_pad)


@op()
def avg_pool3d(
    x: Array,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Result:
    """The mean of each window in three dimensions, as :func:`avg_pool2d`.

    Parameters
    ----------
    x : array or Tensor (N, C, D, H, W), float
    kernel_size, stride, padding, ceil_mode, count_include_pad
        As in :func:`avg_pool2d`; a tuple has three integers.

    Returns
    -------
    array or Tensor (N, C, Do, Ho, Wo)

    Raises
    ------
    TypeError, ValueError
        As :func:`avg_pool2d`.

    >>> F.avg_pool3d(np.arange(16.0).reshape(1, 1, 2, 2, 4), 2)
    array([[[[[6.5, 8.5]]]]])
    """
    return _avg_pool(3, x, kernel_size, stride, padding, ceil_mode, count_include_pad)


def _max_pool(
    dims: int, x: Array, kernel_size: IntOrTuple, stride: IntOrTuple | None, padding: IntOrTuple
) -> Result:
    window = _window(dims, x, kernel_size, stride, padding)
    return _pooled(_planar_max, x, window, out_size(x.shape[2:], *window, (1,) * dims))


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


def _avg_pool(
    dims: int, x: Array, kernel_size: IntOrTuple, stride: IntOrTuple | None, padding: IntOrTuple,
    ceil_mode: bool, count_include_pad: bool,
) -> Result:  # fmt: skip
    window = _window(dims, x, kernel_size, stride, padding)
    out = out_size(x.shape[2:], *window, (1,) * dims, ceil_mode)
    return _pooled(partial(_planar_avg, count_include_pad), x, window, out)


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
    if x.ndim != dims + 2:
        image = NAMES[dims].image
        hint = layout_hint(x.shape, None, dims)
        raise ValueError(f"x must be (N, C, {image}), got shape {x.shape}{hint}")
    size = per_axis("kernel_size", kernel_size, 1, dims)
    pads = per_axis("padding", padding, 0, dims)
    if any(2 * p > k for p, k in zip(pads, size, strict=True)):
        raise ValueError(f"padding must be at most half of kernel_size, got {pads} for {size}")
    return size, size if stride is None else per_axis("stride", stride, 1, dims), pads

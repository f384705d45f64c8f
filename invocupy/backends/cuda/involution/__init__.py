"""Involution on the GPU: chooses the specialisation and the number of threads for each kernel.

The constants were chosen by measurement on an H100 (``benchmarks/gpu.py``); they change speed only.
"""

from __future__ import annotations

from math import gcd, prod

from invocupy.arrays import Array
from invocupy.backends import cuda
from invocupy.backends.cuda import Macros, ceil_div, launch
from invocupy.backends.far import bounded
from invocupy.geometry import Geometry

_FIXED = ("kernel", "stride", "padding", "dilation")  # by the layer, and so compiled in
_SUMS = 64  # running sums of 4 bytes that a thread can hold in registers
ENOUGH = 2**18  # threads that keep a large GPU busy; if there are fewer, each has fewer channels


@bounded
def forward(x: Array, kernel: Array, g: Geometry, out: Array) -> None:
    """One thread per strip of columns and share of a group's channels."""
    macros, strips = _strips(g, x, kernel, out, least=2)
    shares = _share_channels(macros, g, strips)
    launch("involution/forward", macros, strips * shares, x, kernel, out, g)


@bounded
def grad_x(grad: Array, kernel: Array, g: Geometry, out: Array) -> None:
    """One thread per strip of ``x`` and share of a group's channels."""
    macros, strips = _strips(g, out, grad, kernel, of_x=True)
    shares = _share_channels(macros, g, strips, most=8)
    launch("involution/grad_x", macros, strips * shares, grad, kernel, out, g)


@bounded
def grad_kernel(grad: Array, x: Array, g: Geometry, out: Array) -> None:
    """One thread per strip of columns and tap row."""
    macros, strips = _strips(g, x, grad, out)
    launch("involution/grad_kernel", macros, strips * prod(g.kernel[:-1]), grad, x, out, g)


@bounded
def fused_forward(
    x: Array, features: Array, weight: Array, bias: Array, g: Geometry, out: Array
) -> None:
    """:func:`forward` with a kernel that is computed in registers."""
    macros, strips = _strips(g, x, features, out, widest=4)
    threads = strips * _share_channels(macros, g, strips, enough=0)
    args = x, features, weight, bias, out, g, weight.shape[1]
    launch("involution/fused_forward", macros | _feature_macros(weight), threads, *args)


@bounded
def fused_grad_x(
    grad: Array, features: Array, weight: Array, bias: Array, g: Geometry, out: Array
) -> None:
    """:func:`grad_x` with a kernel that is computed in registers."""
    macros, strips = _strips(g, out, grad, features, of_x=True, widest=4)
    threads = strips * _share_channels(macros, g, strips, enough=0)
    args = grad, features, weight, bias, out, g, weight.shape[1]
    launch("involution/fused_grad_x", macros | _feature_macros(weight), threads, *args)


@bounded
def fused_grad_span(
    grad: Array, x: Array, features: Array, weight: Array, g: Geometry,
    grad_features: Array, grad_weight: Array, grad_bias: Array,
) -> None:  # fmt: skip
    """The gradient of the involution kernel stays in registers.

    Two CUDA kernels compute it: one sums it over the taps of a position, one over the positions.
    """
    rows, count = weight.shape
    macros, strips = _strips(g, x, grad, features, grad_features, widest=4)
    macros |= _feature_macros(weight)
    shares = ceil_div(count, int(macros["FEATURES"])) or 1
    strips //= g.groups
    threads = strips * shares if grad_features.size else 0
    launch("involution/grad_features", macros, threads, grad, x, weight, grad_features, g, count)

    warps = g.groups * prod(g.kernel[:-1]) * shares
    # Enough slices to fill a GPU, each long enough that the sum over lanes costs little.
    slices = max(1, min(2048 // warps, strips // 256))
    partial = cuda.workspace(x, slices, rows, count + 1)
    args = grad, x, features, partial, g, count, slices
    launch("involution/grad_weight", macros, warps * slices * 32, *args, over=strips)
    sums = partial, grad_weight, grad_bias, rows, count, slices
    launch("involution/sum_slices", cuda.element(x.dtype), rows * (count + 1), *sums)


def _strips(
    g: Geometry, x: Array, *others: Array, of_x: bool = False, widest: int = 8, least: int = 4
) -> tuple[Macros, int]:
    """The macros, and the number of strips: what a thread has of a row of the result, or of ``x``.

    A strip is as wide as an access of 16 bytes if rows allow it, else ``least`` columns. In ``x``
    its width is a multiple of the stride, so that a tap contributes to the same columns of every
    strip; and rows are grouped by index modulo the stride, in groups of the same length.
    """
    vector_x = min(widest, cuda.vector(g.size[-1], x))
    vector_out = min(widest, cuda.vector(g.out[-1], *others))
    narrow = min(vector_x, vector_out)
    columns = 2 if x.itemsize == 8 else narrow if narrow >= 4 else least
    down, across = g.stride[-2:] if of_x else (1, 1)
    live = max(1, columns // across)
    columns = live * across
    macros = cuda.element(x.dtype) | {
        "DIMS": g.dims,
        "COLUMNS": columns,
        "VECTOR_X": gcd(columns, vector_x),
        "VECTOR_OUT": gcd(live, vector_out),
    }
    for field in _FIXED:
        by_axis = zip("DHW"[-g.dims :], getattr(g, field), strict=True)
        macros |= {f"{field.upper()}_{axis}": number for axis, number in by_axis}
    *planes, height, width = g.size if of_x else g.out
    rows = prod(planes) * ceil_div(height, down) * down
    return macros, g.batch * g.groups * rows * ceil_div(width, columns)


def _share_channels(
    macros: Macros, g: Geometry, strips: int, most: int = 16, enough: int | None = None
) -> int:
    """Add the channels per thread to ``macros``; returns the number of shares of a group.

    Each share reads (or computes) the kernel values again. KERNEL_ONCE: if there are at most two
    shares, the caches evict kernel values first.
    """
    enough = ENOUGH if enough is None else enough
    per_group = g.channels_per_group
    sums = _SUMS // 2 if macros["ACCUM"] == "double" else _SUMS
    shares = ceil_div(per_group, max(1, min(most, sums // int(macros["COLUMNS"]))))
    fewest = max(4, 16 // int(macros["COLUMNS"]))
    while strips * shares < enough and per_group > fewest * shares:
        shares *= 2
    channels = ceil_div(per_group, shares)
    shares = ceil_div(per_group, channels)
    macros |= {
        "CHANNELS": channels,
        "RAGGED": int(per_group % channels != 0),
        "KERNEL_ONCE": int(shares <= 2),
    }
    return shares


def _feature_macros(weight: Array) -> Macros:
    """The features per memory access, and per thread of :func:`fused_grad_span`."""
    count = weight.shape[1]
    width = min(4, cuda.vector(count, weight))
    most = 8 if weight.itemsize == 8 else 16
    features = ceil_div(ceil_div(count, ceil_div(count, most) or 1), width) * width
    return {"VECTOR_F": width, "FEATURES": max(features, width)}

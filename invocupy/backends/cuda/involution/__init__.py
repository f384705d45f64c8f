"""Involution on the GPU: chooses the specialisation and the number of threads for each kernel.

Functions: see :mod:`invocupy.backends.reference.involution`. The arithmetic is in the ``.cu`` files
here. The constants were chosen by measurement on an H100 (``benchmarks/gpu.py``); they change speed
only.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd
from typing import Any, TypeAlias

import numpy as np

from invocupy.arrays import namespace, on_device
from invocupy.backends import cuda
from invocupy.backends.cuda import ceil_div
from invocupy.backends.far import bounded
from invocupy.geometry import Geometry

Macros: TypeAlias = dict[str, str | int]

_SUMS = 64  # running sums of 4 bytes that a thread can hold in registers
ENOUGH = 2**18  # threads that keep a large GPU busy; below it, each owns fewer channels


@bounded
def forward(x: Any, kernel: Any, g: Geometry, out: Any) -> None:
    """The result: a thread for each strip of columns and share of a group's channels."""
    if not out.size:
        return
    macros, strips = _result_strips(g, x, kernel, out, least=2)
    shares = _share_channels(macros, g, strips)
    _launch("forward", "forward.cuh", macros, strips * shares, (x, kernel, out, _record(g)))


@bounded
def grad_x(grad: Any, kernel: Any, g: Geometry, out: Any) -> None:
    """The gradient of ``x``: a thread for each strip of ``x`` and share of a group's channels."""
    if not out.size:
        return
    macros, strips = _x_strips(g, out, grad, kernel)
    shares = _share_channels(macros, g, strips, most=8)
    args = (grad, kernel, out, _record(g))
    _launch("grad_x", "forward.cuh grad_x.cuh", macros, strips * shares, args)


@bounded
def grad_kernel(grad: Any, x: Any, g: Geometry, out: Any) -> None:
    """The gradient of ``kernel``: a thread for each strip of columns and tap row."""
    if not out.size:
        return
    macros, strips = _result_strips(g, x, grad, out)
    args = (grad, x, out, _record(g))
    _launch("grad_kernel", "grad_kernel.cuh", macros, strips * g.kernel_h, args)


@bounded
def fused_forward(x: Any, features: Any, weight: Any, bias: Any, g: Geometry, out: Any) -> None:
    """:func:`forward` with the kernel made in registers."""
    if not out.size:
        return
    macros, strips = _result_strips(g, x, features, out, widest=4)
    macros |= _feature_macros(weight)
    shares = _share_channels(macros, g, strips, enough=0)
    args = (x, features, weight, bias, out, _record(g), np.int32(weight.shape[1]))
    _launch("fused_forward", "forward.cuh", macros, strips * shares, args)


@bounded
def fused_grad_x(grad: Any, features: Any, weight: Any, bias: Any, g: Geometry, out: Any) -> None:
    """:func:`grad_x` with the kernel made in registers."""
    if not out.size:
        return
    macros, strips = _x_strips(g, out, grad, features, widest=4)
    macros |= _feature_macros(weight)
    shares = _share_channels(macros, g, strips, enough=0)
    args = (grad, features, weight, bias, out, _record(g), np.int32(weight.shape[1]))
    _launch("fused_grad_x", "forward.cuh grad_x.cuh", macros, strips * shares, args)


@bounded
def fused_grad_span(
    grad: Any, x: Any, features: Any, weight: Any, g: Geometry,
    grad_features: Any, grad_weight: Any, grad_bias: Any,
) -> None:  # fmt: skip
    """The gradients of what the kernel is made of; that of the kernel itself stays in registers.

    Two kernels make it anew: one sums it over the taps of a position, one over the positions.
    """
    rows, count = weight.shape
    macros, strips = _result_strips(g, x, grad, features, grad_features, widest=4)
    macros |= _feature_macros(weight)
    shares = ceil_div(count, int(macros["FEATURES"])) or 1
    strips //= g.groups
    if grad_features.size:
        args: tuple[Any, ...] = (grad, x, weight, grad_features, _record(g), np.int32(count))
        _launch("grad_features", "grad_kernel.cuh", macros, strips * shares, args)

    warps = g.groups * g.kernel_h * shares
    # Enough slices to fill a GPU, but each long enough that adding up lanes costs little.
    slices = max(1, min(2048 // warps, strips // 256))
    with on_device(x):
        dtype = np.float64 if x.itemsize == 8 else np.float32
        partial = namespace(x).empty((slices, rows, count + 1), dtype)
    args = (grad, x, features, partial, _record(g), np.int32(count), np.int32(slices))
    threads = warps * slices * 32
    _launch("grad_weight", "grad_kernel.cuh", macros, threads, args, strips + threads)
    args = (partial, grad_weight, grad_bias, np.int32(rows), np.int32(count), np.int32(slices))
    files = ("cuda.cuh", "involution/sum_slices.cu")
    cuda.launch("sum_slices", files, cuda.element(x.dtype), rows * (count + 1), args)


@lru_cache(1024)
def _record(g: Geometry) -> Any:
    """What kernels know of the sizes; made once for each, as it takes longer than to launch."""
    return g.record()


def _launch(
    name: str, headers: str, macros: Macros, threads: int, args: tuple[Any, ...], most: int = 0
) -> None:
    own = ("involution.cuh", *headers.split(), f"{name}.cu")
    files = ("cuda.cuh", *(f"involution/{file}" for file in own))
    cuda.launch(name, files, macros, threads, args, most)


def _result_strips(
    g: Geometry, x: Any, *others: Any, widest: int = 8, least: int = 4
) -> tuple[Macros, int]:
    """Threads own strips of a row of the result: macros, and the number of strips of all groups."""
    vector_x = min(widest, cuda.vector(g.width, x))
    vector_out = min(widest, cuda.vector(g.out_w, *others))
    columns = _columns(x, vector_x, vector_out, least=least)
    macros = _macros(x, g) | {
        "COLUMNS": columns,
        "VECTOR_X": min(columns, vector_x),
        "VECTOR_OUT": min(columns, vector_out),
    }
    return macros, g.batch * g.groups * g.out_h * ceil_div(g.out_w, columns)


def _x_strips(g: Geometry, x: Any, *others: Any, widest: int = 8) -> tuple[Macros, int]:
    """Threads own strips of a row of ``x``: macros, and the number of strips of all groups.

    A strip holds a multiple of the stride, so that each tap serves the same columns of every strip;
    and rows are taken in phases of the stride, all of the same length.
    """
    vector_x = min(widest, cuda.vector(g.width, x))
    vector_out = min(widest, cuda.vector(g.out_w, *others))
    live = max(1, _columns(x, vector_x, vector_out) // g.stride_w)
    columns = live * g.stride_w
    macros = _macros(x, g) | {
        "COLUMNS": columns,
        "VECTOR_X": gcd(columns, vector_x),
        "VECTOR_OUT": gcd(live, vector_out),
    }
    rows = ceil_div(g.height, g.stride_h) * g.stride_h
    return macros, g.batch * g.groups * rows * ceil_div(g.width, columns)


def _columns(array: Any, *vectors: int, least: int = 4) -> int:
    """How many columns a thread owns: an access of 16 bytes where rows allow it, else ``least``."""
    if array.itemsize == 8:
        return 2
    return 8 if min(vectors) == 8 else 4 if min(vectors) == 4 else least


def _macros(array: Any, g: Geometry) -> Macros:
    return {
        **cuda.element(array.dtype),
        "KERNEL_H": g.kernel_h,
        "KERNEL_W": g.kernel_w,
        "STRIDE_H": g.stride_h,
        "STRIDE_W": g.stride_w,
        "PAD_H": g.pad_h,
        "PAD_W": g.pad_w,
        "DILATION_H": g.dilation_h,
        "DILATION_W": g.dilation_w,
    }


def _share_channels(
    macros: Macros, g: Geometry, strips: int, most: int = 16, enough: int | None = None
) -> int:
    """Add to ``macros`` how many channels a thread owns; returns how many shares a group makes.

    Each share reads (or makes) the kernel values again. Loads that are not repeated, but for one
    other share, go past the first cache.
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


def _feature_macros(weight: Any) -> Macros:
    """How many features one access moves, and how many a thread owns where it sums over them."""
    count = weight.shape[1]
    width = min(4, cuda.vector(count, weight))
    most = 8 if weight.itemsize == 8 else 16
    features = ceil_div(ceil_div(count, ceil_div(count, most) or 1), width) * width
    return {"VECTOR_F": width, "FEATURES": max(features, width)}

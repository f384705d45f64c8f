"""Involution on the GPU: chooses the specialisation and the number of threads for each kernel.

Functions: see :mod:`invocupy.backends.involution`. The arithmetic is in the ``.cu`` files here.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

from invocupy.arrays import namespace, on_device
from invocupy.backends import cuda
from invocupy.backends.cuda import ceil_div
from invocupy.geometry import Geometry

_SUMS = 64  # running sums that a thread holds in registers (half of it in double)
_ENOUGH = 2**16  # threads that keep a large GPU busy; below it, each thread owns less


def forward(x: Any, kernel: Any, g: Geometry, out: Any) -> None:
    """The result: a thread for each strip of columns and share of a group's channels."""
    if not out.size:
        return
    macros, strips = _result_strips(g, x, kernel, out)
    shares = _share_channels(macros, g, strips)
    _launch("forward", "forward.cuh", macros, strips * shares, (x, kernel, out, g.record()))


def grad_x(grad: Any, kernel: Any, g: Geometry, out: Any) -> None:
    """The gradient of ``x``: a thread for each strip of ``x`` and share of a group's channels."""
    if not out.size:
        return
    macros, strips = _x_strips(g, out, grad, kernel)
    shares = _share_channels(macros, g, strips)
    args = (grad, kernel, out, g.record())
    _launch("grad_x", "forward.cuh grad_x.cuh", macros, strips * shares, args)


def grad_kernel(grad: Any, x: Any, g: Geometry, out: Any) -> None:
    """The gradient of ``kernel``: a thread for each strip of columns and share of the tap rows."""
    if not out.size:
        return
    macros, strips = _result_strips(g, x, grad, out)
    tap_rows = g.kernel_h if strips >= _ENOUGH else 1
    threads = strips * ceil_div(g.kernel_h, tap_rows)
    args = (grad, x, out, g.record(), np.int32(tap_rows))
    _launch("grad_kernel", "grad_kernel.cuh", macros, threads, args)


def fused_forward(x: Any, features: Any, weight: Any, bias: Any, g: Geometry, out: Any) -> None:
    """:func:`forward` with the kernel made in registers."""
    if not out.size:
        return
    macros, strips = _result_strips(g, x, features, out)
    macros |= _feature_macros(weight)
    shares = _share_channels(macros, g, strips)
    args = (x, features, weight, bias, out, g.record(), np.int32(weight.shape[1]))
    _launch("fused_forward", "forward.cuh", macros, strips * shares, args)


def fused_grad_x(grad: Any, features: Any, weight: Any, bias: Any, g: Geometry, out: Any) -> None:
    """:func:`grad_x` with the kernel made in registers."""
    if not out.size:
        return
    macros, strips = _x_strips(g, out, grad, features)
    macros |= _feature_macros(weight)
    shares = _share_channels(macros, g, strips)
    args = (grad, features, weight, bias, out, g.record(), np.int32(weight.shape[1]))
    _launch("fused_grad_x", "forward.cuh grad_x.cuh", macros, strips * shares, args)


def fused_grad_span(
    grad: Any, x: Any, features: Any, weight: Any, g: Geometry,
    grad_features: Any, grad_weight: Any, grad_bias: Any,
) -> None:  # fmt: skip
    """The gradients of what the kernel is made of; that of the kernel itself stays in registers.

    Two kernels make it anew: one sums it over the taps of a position, one over the positions.
    """
    rows, count = weight.shape
    macros, strips = _result_strips(g, x, grad, features, grad_features)
    macros |= _feature_macros(weight)
    shares = ceil_div(count, int(macros["FEATURES"])) or 1
    strips //= g.groups
    if grad_features.size:
        args: tuple[Any, ...] = (grad, x, weight, grad_features, g.record(), np.int32(count))
        _launch("grad_features", "grad_kernel.cuh", macros, strips * shares, args)

    warps = g.groups * g.kernel_h * shares
    # Enough slices to fill a GPU, but each long enough that adding up lanes costs little.
    slices = max(1, min(2048 // warps, strips // 256))
    with on_device(x):
        dtype = np.float64 if x.itemsize == 8 else np.float32
        partial = namespace(x).empty((slices, rows, count + 1), dtype)
    args = (grad, x, features, partial, g.record(), np.int32(count), np.int32(slices))
    _launch("grad_weight", "grad_kernel.cuh", macros, warps * slices * 32, args)
    args = (partial, grad_weight, grad_bias, np.int32(rows), np.int32(count), np.int32(slices))
    macros = cuda.element(x.dtype)
    cuda.launch("sum_slices", ("cuda.cuh", "involution/sum_slices.cu"), macros, rows * (count + 1), args)


def _launch(
    name: str, headers: str, macros: dict[str, str | int], threads: int, args: tuple[Any, ...]
) -> None:
    own = ("involution.cuh", *headers.split(), f"{name}.cu")
    files = ("cuda.cuh", *(f"involution/{file}" for file in own))
    cuda.launch(name, files, macros, threads, args)


def _result_strips(g: Geometry, x: Any, *others: Any) -> tuple[dict[str, str | int], int]:
    """Threads own strips of a row of the result: macros, and the number of strips of all groups."""
    columns = 2 if x.itemsize == 8 else 4
    macros = _macros(x, g) | {
        "COLUMNS": columns,
        "VECTOR_X": min(columns, cuda.vector(g.width, x)),
        "VECTOR_OUT": min(columns, cuda.vector(g.out_w, *others)),
    }
    return macros, g.batch * g.groups * g.out_h * ceil_div(g.out_w, columns)


def _x_strips(g: Geometry, x: Any, *others: Any) -> tuple[dict[str, str | int], int]:
    """Threads own strips of a row of ``x``: macros, and the number of strips of all groups.

    A strip holds a multiple of the stride, so that each tap serves the same columns of every strip;
    and rows are taken in phases of the stride, all of the same length.
    """
    live = max(1, (2 if x.itemsize == 8 else 4) // g.stride_w)
    columns = live * g.stride_w
    macros = _macros(x, g) | {
        "COLUMNS": columns,
        "VECTOR_X": gcd(columns, cuda.vector(g.width, x)),
        "VECTOR_OUT": gcd(live, cuda.vector(g.out_w, *others)),
    }
    rows = ceil_div(g.height, g.stride_h) * g.stride_h
    return macros, g.batch * g.groups * rows * ceil_div(g.width, columns)


def _macros(array: Any, g: Geometry) -> dict[str, str | int]:
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


def _share_channels(macros: dict[str, str | int], g: Geometry, strips: int) -> int:
    """Add to ``macros`` how many channels a thread owns; returns how many shares a group makes."""
    per_group = g.channels_per_group
    sums = _SUMS // 2 if macros["ACCUM"] == "double" else _SUMS
    shares = ceil_div(per_group, max(1, sums // int(macros["COLUMNS"])))
    while strips * shares < _ENOUGH and per_group > 4 * shares:
        shares *= 2
    channels = ceil_div(per_group, shares)
    macros |= {"CHANNELS": channels, "RAGGED": int(per_group % channels != 0)}
    return ceil_div(per_group, channels)


def _feature_macros(weight: Any) -> dict[str, str | int]:
    """How many features one access moves, and how many a thread owns where it sums over them."""
    count = weight.shape[1]
    width = min(4, cuda.vector(count, weight))
    most = 8 if weight.itemsize == 8 else 16
    features = ceil_div(ceil_div(count, ceil_div(count, most) or 1), width) * width
    return {"VECTOR_F": width, "FEATURES": max(features, width)}

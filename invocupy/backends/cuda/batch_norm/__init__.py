"""Batch normalisation: one thread per vector of elements, one warp per slice of a sum.

Sums over a channel take two kernels: the second combines the slices of the first.
"""

from __future__ import annotations

from math import prod
from typing import TypeAlias

from invocupy.arrays import Array
from invocupy.backends import cuda
from invocupy.backends.cuda import Macros, launch

Sizes: TypeAlias = tuple[int, ...]

_WARPS = 8192  # enough to keep a large GPU busy with sums


def moments(x: Array, mean: Array, var: Array) -> None:
    macros, sizes = _layout(x)
    partial, sizes = _sum("moments", macros, 3, sizes, x)
    args = x, partial, mean, var, *sizes[1:]
    launch("batch_norm/moments:merge_moments", macros, mean.size * 32, *args)


def forward(
    x: Array, scale: Array, shift: Array, residual: Array | None, relu: bool, out: Array
) -> None:
    macros, sizes = _layout(x, residual, out)
    macros |= {"RELU": int(relu), "RESIDUAL": int(residual is not None)}
    threads = x.size // int(macros["VECTOR"])
    launch("batch_norm/forward", macros, threads, x, scale, shift, residual, out, *sizes)


def grad_sums(
    grad: Array, x: Array, out: Array | None, mean: Array, sum_grad: Array, sum_grad_x: Array
) -> None:
    macros, sizes = _layout(grad, x, out)
    macros |= {"MASKED": int(out is not None)}
    partial, (_, channels, _, slices) = _sum("grad_sums", macros, 2, sizes, grad, x, out, mean)
    sums = partial, sum_grad, sum_grad_x, channels, slices
    launch("batch_norm/grad_sums:merge_sums", macros, 2 * channels * 32, *sums)


def grad_x(
    grad: Array, x: Array, out: Array | None, a: Array, b: Array, c: Array, grad_x: Array,
    grad_residual: Array | None,
) -> None:  # fmt: skip
    macros, sizes = _layout(grad, x, out, grad_x, grad_residual)
    macros |= {"MASKED": int(out is not None), "RESIDUAL": int(grad_residual is not None)}
    args = grad, x, out, a, b, c, grad_x, grad_residual, *sizes
    launch("batch_norm/grad_x", macros, x.size // int(macros["VECTOR"]), *args)


def fold(
    mean: Array, var: Array, weight: Array, bias: Array, eps: float, inverse: Array, scale: Array,
    shift: Array,
) -> None:  # fmt: skip
    _each_channel("fold", mean, var, weight, bias, inverse, scale, shift, eps)


def coefficients(
    scale: Array, inverse: Array, mean: Array, sum_grad: Array, sum_grad_x: Array, count: int,
    b: Array, c: Array, grad_weight: Array,
) -> None:  # fmt: skip
    arrays = scale, inverse, mean, sum_grad, sum_grad_x, b, c, grad_weight
    _each_channel("coefficients", *arrays, float(count))


def running(
    old_mean: Array, old_var: Array, mean: Array, var: Array, momentum: float, unbiased: float,
    new_mean: Array, new_var: Array,
) -> None:  # fmt: skip
    arrays = old_mean, old_var, mean, var, new_mean, new_var
    _each_channel("running", *arrays, momentum, unbiased)


def _each_channel(name: str, first: Array, *rest: Array | float) -> None:
    """Launch a kernel with one thread per channel, on arrays (C,) and numbers of one dtype."""
    macros = cuda.element(first.dtype)
    launch(f"batch_norm/channels:{name}", macros, first.size, first, *rest, first.size)


def _sum(
    name: str, macros: Macros, rows: int, sizes: Sizes, x: Array, *others: Array | None
) -> tuple[Array, Sizes]:
    """Launch the first stage of a sum: ``rows`` values per slice, and ``sizes`` with the slices."""
    batch, channels, per_plane = sizes
    slices = cuda.slices(_WARPS, channels, batch * per_plane)
    partial, sizes = cuda.workspace(x, rows, channels, slices), (*sizes, slices)
    args = x, *others, partial, *sizes
    launch(f"batch_norm/{name}", macros, channels * slices * 32, *args, over=batch * per_plane)
    return partial, sizes


def _layout(x: Array, *others: Array | None) -> tuple[Macros, Sizes]:
    """The macros, and (batch, channels, vectors per plane)."""
    batch, channels, *sizes = x.shape
    pixels = prod(sizes)
    vector = cuda.vector(pixels, x, *(array for array in others if array is not None))
    return cuda.element(x.dtype) | {"VECTOR": vector}, (batch, channels, pixels // vector)

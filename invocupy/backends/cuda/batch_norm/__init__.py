"""Batch normalisation: a thread a vector of elements, a warp a slice of a sum, a thread a channel.

Sums over a channel take two kernels: the second puts the slices of the first together.
"""

from __future__ import annotations

from invocupy.arrays import Array
from invocupy.backends import cuda
from invocupy.backends.cuda import launch

_WARPS = 8192  # that keep a large GPU busy with sums


def moments(x: Array, mean: Array, var: Array) -> None:
    macros, (batch, channels, per_plane) = _layout(x)
    slices = cuda.slices(_WARPS, channels, batch * per_plane)
    partial = cuda.workspace(x, 3, channels, slices)
    launch(
        "batch_norm/moments", macros, channels * slices * 32,
        x, partial, batch, channels, per_plane, slices, over=batch * per_plane,
    )  # fmt: skip
    launch(
        "batch_norm/merge_moments", macros, channels * 32,
        x, partial, mean, var, channels, per_plane, slices,
    )  # fmt: skip


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
    macros, (batch, channels, per_plane) = _layout(grad, x, out)
    slices = cuda.slices(_WARPS, channels, batch * per_plane)
    partial = cuda.workspace(x, 2, channels, slices)
    launch(
        "batch_norm/grad_sums", macros | {"MASKED": int(out is not None)}, channels * slices * 32,
        grad, x, out, mean, partial, batch, channels, per_plane, slices, over=batch * per_plane,
    )  # fmt: skip
    threads = 2 * channels * 32
    launch(
        "batch_norm/merge_sums", macros, threads, partial, sum_grad, sum_grad_x, channels, slices
    )


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
    """Start a kernel on arrays (C,) and numbers, all of one dtype."""
    macros = cuda.element(first.dtype)
    launch(f"batch_norm/{name}", macros, first.size, first, *rest, first.size)


def _layout(x: Array, *others: Array | None) -> tuple[dict[str, str | int], tuple[int, int, int]]:
    """Macros, and (batch, channels, vectors in a plane)."""
    batch, channels, height, width = x.shape
    vector = cuda.vector(height * width, x, *(array for array in others if array is not None))
    sizes = batch, channels, height * width // vector
    return cuda.element(x.dtype) | {"VECTOR": vector}, sizes

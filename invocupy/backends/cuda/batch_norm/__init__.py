"""Batch normalisation on the GPU: chooses the specialisation and the number of threads.

Functions: see :mod:`invocupy.backends.reference.batch_norm`. The arithmetic is in the ``.cu`` files
here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from invocupy.arrays import namespace, on_device
from invocupy.backends import cuda
from invocupy.backends.cuda import ceil_div

_WARPS = 8192  # that keep a large GPU busy with sums
_NULL = np.uint64(0)  # a pointer that the specialisation does not use


def moments(x: Any, mean: Any, var: Any) -> None:
    """Mean and biased variance of each channel, in two stages; NaN for channels of no elements."""
    if not x.size:
        mean[...] = np.nan
        var[...] = np.nan
        return
    macros, sizes = _layout(x, x)
    slices = _slices(x, sizes[2])
    partial = _partial(x, 3, slices)
    args: tuple[Any, ...] = (x, partial, *sizes, slices)
    _launch("moments", "moments.cuh", macros, int(sizes[1]) * int(slices) * 32, args, sizes)
    args = (x, partial, mean, var, *sizes[1:], slices)
    _launch("merge_moments", "moments.cuh", macros, int(sizes[1]) * 32, args)


def forward(x: Any, scale: Any, shift: Any, residual: Any, relu: bool, out: Any) -> None:
    """Scale, shift, residual and ReLU in one pass."""
    if not x.size:
        return
    macros, sizes = _layout(x, x, residual, out)
    macros |= {"RELU": int(relu), "RESIDUAL": int(residual is not None)}
    args = (x, scale, shift, _NULL if residual is None else residual, out, *sizes)
    _launch("forward", "", macros, x.size // int(macros["VECTOR"]), args)


def grad_sums(grad: Any, x: Any, out: Any, mean: Any, sum_grad: Any, sum_grad_x: Any) -> None:
    """The two sums of each channel, in two stages."""
    if not x.size:
        sum_grad[...] = 0
        sum_grad_x[...] = 0
        return
    macros, sizes = _layout(x, grad, x, out)
    slices = _slices(x, sizes[2])
    partial = _partial(x, 2, slices)
    masked: dict[str, str | int] = {"MASKED": int(out is not None)}
    args: tuple[Any, ...] = (grad, x, _NULL if out is None else out, mean, partial, *sizes, slices)
    _launch("grad_sums", "", macros | masked, int(sizes[1]) * int(slices) * 32, args, sizes)
    args = (partial, sum_grad, sum_grad_x, sizes[1], slices)
    _launch("merge_sums", "", macros, 2 * int(sizes[1]) * 32, args)


def grad_x(
    grad: Any, x: Any, out: Any, a: Any, b: Any, c: Any, grad_x: Any, grad_residual: Any
) -> None:
    """The gradients of ``x`` and of the residual in one pass."""
    if not x.size:
        return
    macros, sizes = _layout(x, grad, x, out, grad_x, grad_residual)
    macros |= {"MASKED": int(out is not None), "RESIDUAL": int(grad_residual is not None)}
    mask = _NULL if out is None else out
    residual = _NULL if grad_residual is None else grad_residual
    args = (grad, x, mask, a, b, c, grad_x, residual, *sizes)
    _launch("grad_x", "", macros, x.size // int(macros["VECTOR"]), args)


def fold(
    mean: Any, var: Any, weight: Any, bias: Any, eps: float, inverse: Any, scale: Any, shift: Any
) -> None:
    """One thread a channel."""
    _each_channel("fold", (mean, var, weight, bias, inverse, scale, shift), eps)


def coefficients(
    scale: Any, inverse: Any, mean: Any, sum_grad: Any, sum_grad_x: Any, count: int,
    b: Any, c: Any, grad_weight: Any,
) -> None:  # fmt: skip
    """One thread a channel."""
    arrays = scale, inverse, mean, sum_grad, sum_grad_x, b, c, grad_weight
    _each_channel("coefficients", arrays, count)


def running(
    old_mean: Any, old_var: Any, mean: Any, var: Any, momentum: float, unbiased: float,
    new_mean: Any, new_var: Any,
) -> None:  # fmt: skip
    """One thread a channel."""
    arrays = old_mean, old_var, mean, var, new_mean, new_var
    _each_channel("running", arrays, momentum, unbiased)


def _each_channel(name: str, arrays: tuple[Any, ...], *numbers: float) -> None:
    """Start a kernel on arrays (C,) and numbers, all of one dtype."""
    channels, dtype = arrays[0].size, arrays[0].dtype
    if channels:
        files = ("cuda.cuh", f"batch_norm/{name}.cu")
        args = (*arrays, *map(dtype.type, numbers), np.int32(channels))
        cuda.launch(name, files, cuda.element(dtype), channels, args)


def _launch(
    name: str, header: str, macros: dict[str, str | int], threads: int, args: tuple[Any, ...],
    sums_over: Any = (0, 0, 0),
) -> None:  # fmt: skip
    """Start a kernel; one that sums over channels of ``sums_over`` counts all their vectors."""
    own = ("batch_norm.cuh", *header.split(), f"{name}.cu")
    files = ("cuda.cuh", *(f"batch_norm/{file}" for file in own))
    most = int(sums_over[0]) * int(sums_over[2]) + threads
    cuda.launch(name, files, macros, threads, args, most)


def _layout(x: Any, *arrays: Any) -> tuple[dict[str, str | int], tuple[Any, Any, Any]]:
    """Macros, and (batch, channels, vectors in a plane)."""
    batch, channels, height, width = x.shape
    vector = cuda.vector(height * width, *(array for array in arrays if array is not None))
    sizes = np.int32(batch), np.int32(channels), np.int32(height * width // vector)
    return cuda.element(x.dtype) | {"VECTOR": vector}, sizes


def _slices(x: Any, per_plane: Any) -> Any:
    """In how many slices the sum over a channel is cut: no lane gets fewer than four vectors."""
    batch, channels = x.shape[:2]
    return np.int32(max(1, min(ceil_div(_WARPS, channels), batch * int(per_plane) // 128)))


def _partial(x: Any, rows: int, slices: Any) -> Any:
    """The workspace between two stages, (rows, channels, slices)."""
    with on_device(x):
        dtype = np.float64 if x.itemsize == 8 else np.float32
        return namespace(x).empty((rows, x.shape[1], int(slices)), dtype)

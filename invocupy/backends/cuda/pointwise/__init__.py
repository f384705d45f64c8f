"""The 1x1 convolution on CuPy arrays: a strided batch of cuBLAS products, and sums of our own.

Functions: see :mod:`invocupy.backends.reference.pointwise`. cuBLAS is called directly: CuPy's
``matmul`` copies what is transposed, and makes lists of pointers, in launches of their own, for a
weight that all images share.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from invocupy.arrays import namespace, on_device
from invocupy.backends import cuda
from invocupy.backends.cuda import ceil_div

_WARPS = 4096  # that keep a large GPU busy with sums


def forward(x: Any, weight: Any, bias: Any, out: Any) -> None:
    """One product for each image."""
    _product(weight, False, x, False, out)
    if bias is not None:
        out += bias[:, None]


def grad_x(grad: Any, weight: Any, out: Any) -> None:
    """The transpose of :func:`forward`."""
    _product(weight, True, grad, False, out)


def grad_weight(grad: Any, x: Any, out: Any, grad_bias: Any) -> None:
    """One product for each image, then a sum over the images; for the bias over the pixels too."""
    batch, channels, pixels = grad.shape
    accum = np.dtype(np.float64 if x.itemsize == 8 else np.float32)
    xp = namespace(x)
    with on_device(x):
        products = xp.empty((batch, channels, x.shape[1]), accum)
        _product(grad, False, x, True, products)
        _sum_rows(products, out)
        if grad_bias is None:
            return
        vector = cuda.vector(pixels, grad)
        slices = max(1, min(ceil_div(_WARPS, channels), batch * pixels // vector // 128))
        partial = xp.empty((slices, channels), accum)
        macros = cuda.element(x.dtype) | {"VECTOR": vector}
        sizes = (np.int32(n) for n in (batch, channels, pixels // vector, slices))
        threads = slices * channels * 32
        most = batch * pixels // vector + threads
        _launch("sum_planes", macros, threads, (grad, partial, *sizes), most)
        _sum_rows(partial, grad_bias)


def _product(a: Any, turn_a: bool, b: Any, turn_b: bool, out: Any) -> None:
    """``out[n] = a[n] @ b[n]``, each transposed if asked; an ``a`` of two axes is of all n."""
    batch, rows, columns = out.shape
    inner = b.shape[2] if turn_b else b.shape[1]
    # cuBLAS counts along columns: to it each matrix is its transpose, and b comes first.
    shapes = columns, rows, inner
    first = b, turn_b, b.shape[1] * b.shape[2]
    second = a, turn_a, a.shape[1] * a.shape[2] if a.ndim == 3 else 0
    _multiply(shapes, first, second, (out, rows * columns), batch)


def _multiply(
    sizes: tuple[int, int, int], a: tuple[Any, bool, int], b: tuple[Any, bool, int],
    c: tuple[Any, int], batch: int,
) -> None:  # fmt: skip
    """cuBLAS' strided batch of products, of arrays with their transposition and step.

    Sums are float32, or float64 for float64; never TF32.
    """
    from cupy.cuda import cublas, get_cublas_handle, runtime

    kinds = {
        "float16": runtime.CUDA_R_16F,
        "bfloat16": runtime.CUDA_R_16BF,
        "float32": runtime.CUDA_R_32F,
        "float64": runtime.CUDA_R_64F,
    }
    double = c[0].dtype == np.float64
    one, zero = np.array([[1], [0]], np.float64 if double else np.float32)
    operands = (
        (cuda.address(array), kinds[array.dtype.name], array.shape[-1], step)
        for array, step in ((a[0], a[2]), (b[0], b[2]), c)
    )
    first, second, third = operands
    with on_device(c[0]):
        cublas.gemmStridedBatchedEx(
            get_cublas_handle(), int(a[1]), int(b[1]), *sizes, one.ctypes.data, *first,
            *second, zero.ctypes.data, *third, batch,
            cublas.CUBLAS_COMPUTE_64F if double else cublas.CUBLAS_COMPUTE_32F,
            cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip


def _sum_rows(rows: Any, out: Any) -> None:
    """``out`` = the sum of ``rows`` over the first axis."""
    args = (rows, out, np.int32(len(rows)), np.int32(out.size))
    _launch("sum_rows", cuda.element(out.dtype), ceil_div(out.size, 8) * 32, args)


def _launch(name: str, macros: Any, threads: int, args: tuple[Any, ...], most: int = 0) -> None:
    cuda.launch(name, ("cuda.cuh", f"pointwise/{name}.cu"), macros, threads, args, most)

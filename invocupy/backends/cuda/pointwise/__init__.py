"""The 1x1 convolution on CuPy arrays: a batch of cuBLAS products, and kernels of our own for sums.

cuBLAS is called directly: CuPy's ``matmul`` copies transposed matrices, and launches kernels that
list pointers if all images share a weight. If there are more output than input channels, the bias
is the weight of one more input channel, of ones. Small single products, as in dense layers, are a
kernel of our own, because CuPy refuses cuBLAS in a CUDA graph.
"""

from __future__ import annotations

import numpy as np

from invocupy.arrays import Array, namespace, on_device
from invocupy.backends import cuda
from invocupy.backends.cuda import ceil_div, launch

_WARPS = 4096  # enough to keep a large GPU busy with sums
_BLOCKS = 512  # enough to keep it busy with a product
_TILE, _DEPTH = 64, 32  # of a block, as in product.cu
SMALL = 1 << 31  # the most multiply-adds of a product that is not left to cuBLAS


def forward(x: Array, weight: Array, bias: Array | None, out: Array) -> None:
    """One product for each image."""
    if len(x) == 1 and x.size * len(weight) <= SMALL:
        _small(x, weight, out)
    elif bias is not None and _widens(x, len(weight)):
        weight = namespace(x).concatenate([weight, bias[:, None]], axis=1)
        _product(weight, False, _with_ones(x), False, out)
        return
    else:
        _product(weight, False, x, False, out)
    if bias is not None:
        out += bias[:, None]


def grad_x(grad: Array, weight: Array, base: Array | None, out: Array) -> None:
    if base is not None and base is not out:
        out[...] = base
    _product(weight, True, grad, False, out, added=base is not None)


def grad_weight(grad: Array, x: Array, out: Array, grad_bias: Array | None) -> None:
    """One product for each image, summed over the images; for the bias also over the pixels."""
    batch, channels, pixels = grad.shape
    together = grad_bias is not None and _widens(x, channels)
    seen = _with_ones(x) if together else x
    products = cuda.workspace(x, batch, channels, seen.shape[1])
    _product(grad, False, seen, True, products)
    _sum_rows(products, out, grad_bias if together else None)
    if grad_bias is None or together:
        return
    vector = cuda.vector(pixels, grad)
    per_plane = pixels // vector
    slices = cuda.slices(_WARPS, channels, batch * per_plane)
    partial = cuda.workspace(x, slices, channels)
    launch(
        "pointwise/sum_planes", cuda.element(x.dtype) | {"VECTOR": vector}, slices * channels * 32,
        grad, partial, batch, channels, per_plane, slices, over=batch * per_plane,
    )  # fmt: skip
    _sum_rows(partial, grad_bias)


def _small(x: Array, weight: Array, out: Array) -> None:
    """The product of one image, summed in slices if there are too few tiles for a GPU."""
    (rows, inside), columns = weight.shape, x.shape[2]
    tiles = ceil_div(rows, _TILE) * ceil_div(columns, _TILE)
    slices = max(1, min(ceil_div(_BLOCKS, tiles), inside // (4 * _DEPTH)))
    share = ceil_div(ceil_div(inside, slices), _DEPTH) * _DEPTH
    slices = ceil_div(inside, share)
    partial = cuda.workspace(x, slices, rows * columns) if slices > 1 else None
    launch(
        "pointwise/product", cuda.element(x.dtype), tiles * slices * cuda.BLOCK,
        x, weight, out, partial, rows, inside, columns, slices, share,
    )  # fmt: skip
    if partial is not None:
        _sum_rows(partial, out)


def _widens(x: Array, channels: int) -> bool:
    """Whether a bias is cheaper as the weight of one more channel, of ones.

    That copies ``x``, but saves another pass over the result.
    """
    inside: int = x.shape[1]
    return channels > inside + 1


def _with_ones(x: Array) -> Array:
    """``x`` with a channel of ones added."""
    batch, channels, pixels = x.shape
    out = cuda.stored(x, batch, channels + 1, pixels)
    vector = cuda.vector(pixels, x, out)
    threads = out.size // vector
    macros = cuda.element(x.dtype) | {"VECTOR": vector}
    launch("pointwise/with_ones", macros, threads, x, out, batch, channels, pixels // vector)
    return out


def _sum_rows(rows: Array, out: Array, last: Array | None = None) -> None:
    """``out`` = ``rows`` summed over the first axis; with ``last``, that gets their last column."""
    columns = out.size + (0 if last is None else last.size)
    width = rows.shape[-1]
    threads = ceil_div(columns, 8) * 32
    sizes = len(rows), columns, width
    launch("pointwise/sum_rows", cuda.element(out.dtype), threads, rows, out, last, *sizes)


def _product(
    a: Array, turn_a: bool, b: Array, turn_b: bool, out: Array, added: bool = False
) -> None:
    """``out[n] = a[n] @ b[n]``, ``turn_*`` transposes; an ``a`` of two axes is the same for all n.

    ``added``: the product is added to ``out`` in the same pass. Sums are float32, or float64 for
    float64; never TF32.
    """
    from cupy.cuda import cublas, get_cublas_handle, runtime

    kinds = {
        "float16": runtime.CUDA_R_16F,
        "bfloat16": runtime.CUDA_R_16BF,
        "float32": runtime.CUDA_R_32F,
        "float64": runtime.CUDA_R_64F,
    }
    batch, rows, columns = out.shape
    one, beta = np.array([[1], [added]], cuda.accumulator(out))
    # cuBLAS is column-major: it sees each matrix transposed, so b comes first.
    first, second, third = (
        (
            cuda.address(array), kinds[array.dtype.name], array.shape[-1],
            array.size // batch if array.ndim == 3 else 0,  # from one matrix to the next
        )
        for array in (b, a, out)
    )  # fmt: skip
    double = out.dtype == np.float64
    with on_device(out):
        cublas.gemmStridedBatchedEx(
            get_cublas_handle(), int(turn_b), int(turn_a),
            columns, rows, b.shape[2 if turn_b else 1], one.ctypes.data, *first,
            *second, beta.ctypes.data, *third, batch,
            cublas.CUBLAS_COMPUTE_64F if double else cublas.CUBLAS_COMPUTE_32F,
            cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip

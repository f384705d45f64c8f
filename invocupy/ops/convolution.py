"""Convolution and linear map: the same lines serve NumPy and CuPy.

Products of matrices are the backend's of the 1x1 convolution: on the CPU not BLAS, whose threads
and ours would wait for each other's cores. A larger convolution is such products for blocks of
outputs; no more than a block's patches are ever stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from invocupy import backends
from invocupy.arrays import contiguous, is_cupy, namespace, on_device
from invocupy.backends.memory import empty
from invocupy.geometry import IntOrPair, padding_pair, pair
from invocupy.ops.basic import Result
from invocupy.ops.memo import once
from invocupy.ops.windows import Pair, out_size, pad, unpad, windows

_BLOCK = 1 << 22  # bytes of patches that are made at a time: what the caches hold
_BLOCK_ON_GPU = 1 << 28


def linear(x: Any, weight: Any, bias: Any = None) -> Result:
    """``x @ weight.T + bias``: x (N, I), weight (O, I), bias (O,)."""
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x must be (N, I) and weight (O, I) with the same I, got {x.shape} and {weight.shape}"
        )
    value = _product(weight, x.T, bias).T
    return namespace(x).ascontiguousarray(value), (
        lambda grad: _product(grad, weight).astype(x.dtype.newbyteorder("="), copy=False),
        lambda grad: _product(grad.T, x).astype(weight.dtype, copy=False),
        lambda grad: grad.sum(axis=0).astype(bias.dtype, copy=False),
    )


def _product(a: Any, b: Any, offset: Any = None) -> Any:
    """``a @ b + offset[:, None]``: b is one image, and a the weights, of a 1x1 convolution.

    Not BLAS, on the CPU: its threads and ours would wait for each other's cores.
    """
    dtype, work = working_dtypes(a, b, offset)
    value = empty((1, a.shape[0], b.shape[1]), work, b)
    _forward(contiguous(b, work)[None], contiguous(a, work), offset, value)
    return value[0].astype(dtype, copy=False)


def _forward(x: Any, weight: Any, bias: Any, value: Any) -> None:
    """:func:`invocupy.backends.pointwise` forward, also where there is nothing to sum."""
    with on_device(x):
        offset = None if bias is None else contiguous(bias, x.dtype)
        if x.size and value.size:
            backends.of("pointwise", x).forward(x, weight, offset, value)
        else:
            value[...] = 0 if offset is None else offset[:, None]


def working_dtypes(*given: Any) -> tuple[Any, Any]:
    """The dtype of the result, and what the backend computes in."""
    arrays = [array for array in given if array is not None]
    dtype = np.result_type(*(array.dtype for array in arrays)).newbyteorder("=")
    half_on_cpu = dtype == np.float16 and not is_cupy(arrays[0])
    return dtype, np.dtype(np.float32) if half_on_cpu else dtype


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: IntOrPair = 1,
    padding: Any = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Result:
    """``out[n,o,i,j] = bias[o] + sum_cuv weight[o,c,u,v] * x[n,c,i*sh+u*dh-ph,j*sw+v*dw-pw]``."""
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(
            f"x must be (N, C, H, W) and weight (O, C/groups, Kh, Kw), "
            f"got {x.shape} and {weight.shape}"
        )
    _, c, h, w = x.shape
    o, c_group, kernel_h, kernel_w = weight.shape
    if groups < 1 or c % groups or o % groups or c // groups != c_group:
        raise ValueError(
            f"weight {weight.shape} does not fit x {x.shape} with groups={groups}: "
            f"C must be {c_group} * groups and O a multiple of groups"
        )
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    pads = padding_pair(padding, (kernel_h, kernel_w), dilations)
    out_h, out_w = out_size((h, w), (kernel_h, kernel_w), strides, pads, dilations)
    if (kernel_h, kernel_w, groups, *pads) == (1, 1, 1, 0, 0):
        return _pointwise(x, weight, bias, strides)
    sizes = (out_h, out_w), strides, pads, dilations
    if c_group == 1 and o == groups:
        return _depthwise(x, weight, bias, *sizes)
    return _blocked(x, weight, bias, *sizes, groups)


def _blocked(
    x: Any,
    weight: Any,
    bias: Any,
    out: Pair,
    strides: Pair,
    pads: Pair,
    dilations: Pair,
    groups: int,
) -> Result:
    """A product of the weights with what the outputs of a block see: patches, but of a few rows."""
    n, (o, c_group, *kernel) = len(x), weight.shape
    (out_h, out_w), o_group, seen_size = out, o // groups, c_group * kernel[0] * kernel[1]
    xp, (dtype, work) = namespace(x), working_dtypes(x, weight, bias)
    padded = pad(contiguous(x, work), pads, 0)
    matrix = contiguous(weight, work).reshape(groups, o_group, seen_size)
    offset = None if bias is None else contiguous(bias, work).reshape(groups, o_group)
    backend = backends.of("pointwise", x)
    # of the largest block, whole rows: many images, or some of the rows of one
    budget = (_BLOCK_ON_GPU if is_cupy(x) else _BLOCK) // (seen_size * out_w * work.itemsize or 1)
    rows = max(min(budget, out_h), 1)
    images = max(budget // rows, 1)
    blocks = [
        (g, slice(b, min(b + images, n)), slice(i, min(i + rows, out_h)))
        for g in range(groups)
        for b in range(0, n, images)
        for i in range(0, out_h, rows)
    ]
    empty_sum = not (x.size and weight.size and out_h * out_w)

    def outputs(array: Any, block: Any) -> Any:
        """Their part in an array like the result, channels first: (O/g, images, rows, Wo)."""
        g, some, lines = block
        return array[some, g * o_group : (g + 1) * o_group, lines].swapaxes(0, 1)

    def seen_through(array: Any, block: Any) -> Iterator[tuple[int, int, Any]]:
        """Their part in an array like ``padded``, tap by tap: (C/g, images, rows, Wo)."""
        g, some, lines = block
        part = array[some, g * c_group : (g + 1) * c_group, lines.start * strides[0] :]
        taps = windows(
            (kernel[0], kernel[1]), (lines.stop - lines.start, out_w), strides, dilations
        )
        for u, v, window in taps:
            yield u, v, part[window].swapaxes(0, 1)

    def columns(block: Any) -> int:
        _, some, lines = block
        return int((some.stop - some.start) * (lines.stop - lines.start) * out_w)

    def patches(block: Any, fill: bool) -> Any:
        """What the outputs see: (C/g, Kh, Kw, images, rows, Wo)."""
        _, some, lines = block
        shape = (c_group, *kernel, some.stop - some.start, lines.stop - lines.start, out_w)
        seen = empty(shape, work, x)
        if fill:
            for u, v, window in seen_through(padded, block):
                seen[:, u, v] = window
        return seen

    with on_device(x):
        value = empty((n, o, out_h, out_w), dtype, x)
        if empty_sum:
            value[...] = 0 if bias is None else bias[:, None, None]
        for block in () if empty_sum else blocks:
            g, place = block[0], outputs(value, block)
            product = empty((1, o_group, columns(block)), work, x)
            seen = patches(block, True).reshape(1, seen_size, -1)
            backend.forward(seen, matrix[g], None if offset is None else offset[g], product)
            place[...] = product.reshape(place.shape)

    def flat_grad(grad: Any, block: Any) -> Any:
        return contiguous(outputs(grad, block), work).reshape(1, o_group, -1)

    def grad_x(grad: Any) -> Any:
        with on_device(x):
            total = empty(padded.shape, work, x)
            total[...] = 0
            for block in () if empty_sum else blocks:
                seen = patches(block, False)
                flat = seen.reshape(1, seen_size, -1)
                backend.grad_x(flat_grad(grad, block), matrix[block[0]], flat)
                for u, v, window in seen_through(total, block):
                    window += seen[:, u, v]
        return unpad(total, pads, x).astype(x.dtype.newbyteorder("="), copy=False)

    @once
    def parameters(grad: Any) -> tuple[Any, Any]:
        with on_device(x):
            total, total_bias = xp.zeros(matrix.shape, work), xp.zeros((groups, o_group), work)
            share, share_bias = xp.empty(matrix.shape[1:], work), xp.empty(o_group, work)
            for block in () if empty_sum else blocks:
                seen = patches(block, True).reshape(1, seen_size, -1)
                backend.grad_weight(flat_grad(grad, block), seen, share, share_bias)
                total[block[0]] += share
                total_bias[block[0]] += share_bias
        return total, total_bias

    return value, (
        grad_x,
        lambda grad: parameters(grad)[0].reshape(weight.shape).astype(weight.dtype),
        lambda grad: parameters(grad)[1].reshape(o).astype(bias.dtype),
    )


def _depthwise(
    x: Any, weight: Any, bias: Any, out: Pair, strides: Pair, pads: Pair, dilations: Pair
) -> Result:
    """A kernel for each channel: multiply-adds of the image's windows."""
    dtype, work = working_dtypes(x, weight, bias)
    xp, padded = namespace(x), pad(contiguous(x, work), pads, 0)
    wide = contiguous(weight, work)[:, 0, :, :, None, None]  # (C, Kh, Kw, 1, 1)
    taps = list(windows(weight.shape[2:], out, strides, dilations))

    with on_device(x):
        value, product = (empty((*x.shape[:2], *out), work, x) for _ in range(2))
        value[...] = 0 if bias is None else contiguous(bias, work)[:, None, None]
        for u, v, window in taps:
            value += xp.multiply(wide[:, u, v], padded[window], out=product)

    def grad_x(grad: Any) -> Any:
        with on_device(x):
            total, share = empty(padded.shape, work, x), empty(value.shape, work, x)
            total[...] = 0
            for u, v, window in taps:
                total[window] += xp.multiply(wide[:, u, v], grad, out=share)
        return unpad(total, pads, x).astype(x.dtype.newbyteorder("="), copy=False)

    def grad_weight(grad: Any) -> Any:
        with on_device(x):
            total = xp.empty(weight.shape, work)
            share = empty(value.shape, work, x)
            for u, v, window in taps:
                total[:, 0, u, v] = xp.multiply(grad, padded[window], out=share).sum(axis=(0, 2, 3))
        return total.astype(weight.dtype.newbyteorder("="), copy=False)

    return value.astype(dtype, copy=False), (
        grad_x,
        grad_weight,
        lambda grad: grad.sum(axis=(0, 2, 3)).astype(bias.dtype.newbyteorder("="), copy=False),
    )


def _pointwise(x: Any, weight: Any, bias: Any, strides: Pair) -> Result:
    """The 1x1 convolution: a matrix product over channels at every pixel it keeps."""
    dtype, work = working_dtypes(x, weight, bias)
    seen = x[:, :, :: strides[0], :: strides[1]]
    n, c, out_h, out_w = seen.shape
    o = weight.shape[0]
    flat = contiguous(seen, work).reshape(n, c, out_h * out_w)
    matrix = contiguous(weight, work).reshape(o, c)
    value = empty((n, o, out_h * out_w), work, x)
    _forward(flat, matrix, bias, value)
    summing = bool(flat.size and value.size)
    backend = backends.of("pointwise", x)

    def flat_grad(grad: Any) -> Any:
        return contiguous(grad, work).reshape(value.shape)

    def grad_x(grad: Any) -> Any:
        result = empty(seen.shape, work, x)
        with on_device(x):
            if summing:
                backend.grad_x(flat_grad(grad), matrix, result.reshape(flat.shape))
            else:
                result[...] = 0
            result = result.astype(x.dtype.newbyteorder("="), copy=False)
            if strides == (1, 1):
                return result
            whole = namespace(x).zeros(x.shape, result.dtype)
            whole[:, :, :: strides[0], :: strides[1]] = result
            return whole

    @once
    def parameters(grad: Any) -> tuple[Any, Any]:
        with on_device(x):
            make = namespace(x).empty if summing else namespace(x).zeros
            results = make((o, c), work), make(o, work)
            if summing:
                backend.grad_weight(flat_grad(grad), flat, *results)
        return results

    return value.reshape(n, o, out_h, out_w).astype(dtype, copy=False), (
        grad_x,
        lambda grad: parameters(grad)[0].reshape(weight.shape).astype(weight.dtype),
        lambda grad: parameters(grad)[1].astype(bias.dtype),
    )

"""Convolution, linear map and pooling as sums over taps of strided views: no patches are stored.

The same lines serve NumPy and CuPy; the products are BLAS or cuBLAS. 1x1 convolutions, which these
networks consist of, have a backend of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from invocupy import backends
from invocupy.arrays import contiguous, is_cupy, namespace, on_device
from invocupy.backends.memory import empty
from invocupy.geometry import IntOrPair, output_size, padding_pair, pair
from invocupy.ops.basic import Result
from invocupy.ops.memo import once

Pair = tuple[int, int]


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
    dtype, work = _dtypes(a, b, offset)
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


def _dtypes(*given: Any) -> tuple[Any, Any]:
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
    n, c, h, w = x.shape
    o, c_group, kernel_h, kernel_w = weight.shape
    if groups < 1 or c % groups or o % groups or c // groups != c_group:
        raise ValueError(
            f"weight {weight.shape} does not fit x {x.shape} with groups={groups}: "
            f"C must be {c_group} * groups and O a multiple of groups"
        )
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    pads = padding_pair(padding, (kernel_h, kernel_w), dilations)
    out_h, out_w = _out_size((h, w), (kernel_h, kernel_w), strides, pads, dilations)
    if (kernel_h, kernel_w, groups, *pads) == (1, 1, 1, 0, 0):
        return _pointwise(x, weight, bias, strides)
    xp = namespace(x)
    dtype, _ = _dtypes(x, weight, bias)
    pixels = out_h * out_w
    # (N, g, C/g, H + 2*ph, W + 2*pw)
    padded = _pad(x, pads, 0).reshape(n, groups, c_group, h + 2 * pads[0], w + 2 * pads[1])
    taps = list(_windows((kernel_h, kernel_w), (out_h, out_w), strides, dilations))

    def matrix(u: int, v: int) -> Any:
        """Weight of one tap: (g, O/g, C/g)."""
        return xp.ascontiguousarray(weight[:, :, u, v]).reshape(groups, o // groups, c_group)

    def seen(window: Any) -> Any:
        """What all outputs see through one tap: (N, g, C/g, Ho*Wo)."""
        return padded[window].reshape(n, groups, c_group, pixels)

    with on_device(x):
        value, product = (empty((n, groups, o // groups, pixels), dtype, x) for _ in range(2))
        value[...] = 0 if bias is None else bias.reshape(groups, o // groups, 1)
        for u, v, window in taps:
            value += xp.matmul(matrix(u, v), seen(window), out=product)
    value = value.reshape(n, o, out_h, out_w)

    def grad_x(grad: Any) -> Any:
        grad = grad.reshape(n, groups, o // groups, pixels)
        with on_device(x):
            total = empty(padded.shape, dtype, x)
            share = empty((n, groups, c_group, pixels), dtype, x)
            total[...] = 0
            for u, v, window in taps:
                xp.matmul(matrix(u, v).swapaxes(-1, -2), grad, out=share)
                total[window] += share.reshape(n, groups, c_group, out_h, out_w)
        inner = total[..., pads[0] : pads[0] + h, pads[1] : pads[1] + w]
        return inner.reshape(x.shape).astype(x.dtype.newbyteorder("="), copy=False)

    def grad_weight(grad: Any) -> Any:
        grad = grad.reshape(n, groups, o // groups, pixels)
        total = xp.empty(weight.shape, dtype)
        for u, v, window in taps:
            # (N, g, O/g, Ho*Wo) @ (N, g, Ho*Wo, C/g), summed over the batch
            total[:, :, u, v] = (
                (grad @ seen(window).swapaxes(-1, -2)).sum(axis=0).reshape(o, c_group)
            )
        return total.astype(weight.dtype.newbyteorder("="), copy=False)

    def grad_bias(grad: Any) -> Any:
        return grad.sum(axis=(0, 2, 3)).astype(bias.dtype.newbyteorder("="), copy=False)

    return value, (grad_x, grad_weight, grad_bias)


def _pointwise(x: Any, weight: Any, bias: Any, strides: Pair) -> Result:
    """The 1x1 convolution: a matrix product over channels at every pixel it keeps."""
    dtype, work = _dtypes(x, weight, bias)
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


def max_pool2d(
    x: Any, kernel_size: IntOrPair, stride: IntOrPair | None = None, padding: IntOrPair = 0
) -> Result:
    """The largest value in each window; the gradient goes to the first one of equal values."""
    size, strides, pads = _pool_options(x, kernel_size, stride, padding)
    out = _out_size(x.shape[2:], size, strides, pads, (1, 1))
    xp = namespace(x)
    padded = _pad(x, pads, -xp.inf)
    taps = list(_windows(size, out, strides, (1, 1)))
    value = xp.full((*x.shape[:2], *out), -xp.inf, x.dtype)
    winner = xp.full(value.shape, -1, xp.int32)
    inside = _pad(xp.ones((1, 1, *x.shape[2:]), bool), pads, False)
    for index, (_, _, window) in enumerate(taps):
        candidate = padded[window]
        # The first tap inside wins even with -inf: padding never does.
        better = (candidate > value) | ((winner < 0) & inside[window])
        better |= xp.isnan(candidate) & ~xp.isnan(value)
        xp.copyto(value, candidate, where=better)
        xp.copyto(winner, index, where=better)

    def partial(grad: Any) -> Any:
        total = xp.zeros_like(padded)
        for index, (_, _, window) in enumerate(taps):
            total[window] += xp.where(winner == index, grad, grad.dtype.type(0))
        return _unpad(total, pads, x)

    return value, (partial,)


def avg_pool2d(
    x: Any,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Result:
    """The mean of each window; PyTorch's rules for ``ceil_mode`` and ``count_include_pad``."""
    size, strides, pads = _pool_options(x, kernel_size, stride, padding)
    sizes = x.shape[2:]
    out_h, out_w = out = _out_size(sizes, size, strides, pads, (1, 1), ceil_mode)
    xp = namespace(x)
    # Windows may pass the padded edge in ceil mode: pad on, but do not count there.
    beyond = tuple(
        max((n - 1) * s + k - (full + 2 * p), 0)
        for n, s, k, full, p in zip(out, strides, size, sizes, pads, strict=True)
    )
    padded = _pad(x, pads, 0, beyond)
    taps = list(_windows(size, out, strides, (1, 1)))
    counts = [
        xp.asarray(_counted(*options, count_include_pad), dtype=x.dtype)
        for options in zip(out, size, strides, pads, sizes, strict=True)
    ]
    weight = 1 / (counts[0][:, None] * counts[1][None, :])
    total = xp.zeros((*x.shape[:2], out_h, out_w), x.dtype)
    for _, _, window in taps:
        total += padded[window]
    total *= weight

    def partial(grad: Any) -> Any:
        share = grad * weight
        spread = xp.zeros_like(padded)
        for _, _, window in taps:
            spread[window] += share
        return _unpad(spread, pads, x)

    return total, (partial,)


def _counted(out: int, kernel: int, stride: int, pad: int, size: int, padding: bool) -> list[int]:
    """How many elements each window counts along one axis."""
    low, high = (-pad, size + pad) if padding else (0, size)
    starts = [i * stride - pad for i in range(out)]
    return [min(start + kernel, high) - max(start, low) for start in starts]


def _pool_options(
    x: Any, kernel_size: IntOrPair, stride: IntOrPair | None, padding: IntOrPair
) -> tuple[Pair, Pair, Pair]:
    if x.ndim != 4:
        raise ValueError(f"x must have 4 dimensions (N, C, H, W), got shape {x.shape}")
    size, pads = pair("kernel_size", kernel_size, 1), pair("padding", padding, 0)
    if any(2 * p > k for p, k in zip(pads, size, strict=True)):
        raise ValueError(f"padding must be at most half of kernel_size, got {pads} for {size}")
    return size, size if stride is None else pair("stride", stride, 1), pads


def _out_size(
    sizes: Any, kernel: Pair, stride: Pair, pad: Pair, dilation: Pair, ceil_mode: bool = False
) -> Pair:
    result = []
    for n, k, s, p, d in zip(sizes, kernel, stride, pad, dilation, strict=True):
        out = output_size(n, k, s, p, d)
        # In ceil mode a last, partial window counts if it starts inside the image or left padding.
        if ceil_mode and (n + 2 * p - d * (k - 1) - 1) % s and out * s < n + p:
            out += 1
        if out < 1 and n:
            raise ValueError(f"x of {sizes} is too small for kernel size {kernel}, padding {pad}")
        result.append(max(out, 0))
    return result[0], result[1]


def _pad(x: Any, pads: Pair, fill: float, beyond: Pair = (0, 0)) -> Any:
    """``x`` itself where there is nothing to pad."""
    if not any((*pads, *beyond)):
        return x
    (top, left), (more_h, more_w) = pads, beyond
    borders = ((0, 0), (0, 0), (top, top + more_h), (left, left + more_w))
    return namespace(x).pad(x, borders, constant_values=fill)


def _unpad(padded: Any, pads: Pair, x: Any) -> Any:
    return padded[:, :, pads[0] : pads[0] + x.shape[2], pads[1] : pads[1] + x.shape[3]]


def _windows(
    kernel: Pair, out: Pair, stride: Pair, dilation: Pair
) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    """Each tap (u, v) with the window of the padded image that all outputs see through it."""

    def span(tap: int, axis: int) -> slice:
        start = tap * dilation[axis]
        return slice(
            start, start + max(out[axis] - 1, 0) * stride[axis] + (out[axis] > 0), stride[axis]
        )

    for u in range(kernel[0]):
        for v in range(kernel[1]):
            yield u, v, (..., span(u, 0), span(v, 1))

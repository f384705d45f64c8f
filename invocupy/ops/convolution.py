"""Convolution and linear map: shapes and dtypes; what there is to compute is the backends'."""

from __future__ import annotations

from typing import Any

import numpy as np

from invocupy import backends
from invocupy.arrays import check, contiguous, is_cupy, namespace, native, on_device, wide
from invocupy.backends.memory import empty
from invocupy.backends.windows import Pair
from invocupy.geometry import IntOrPair, integer, padding_pair, pair
from invocupy.ops.basic import Result, total
from invocupy.ops.memo import each
from invocupy.ops.windows import out_size

_ROWS = 1024  # of a product that is summed in one go


def linear(x: Any, weight: Any, bias: Any = None) -> Result:
    """``x @ weight.T + bias``: x (N, I), weight (O, I), bias (O,)."""
    check(x=x, weight=weight, **({} if bias is None else {"bias": bias}))
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x must be (N, I) and weight (O, I) with the same I, got {x.shape} and {weight.shape}"
        )
    _check_bias(bias, weight)
    value = _product(weight, x.T, bias).T
    dtype, _ = working_dtypes(x, weight, bias)

    def grad_x(grad: Any) -> Any:
        with on_device(x):
            return native(_product(grad, weight), x)

    def grad_weight(grad: Any) -> Any:
        with on_device(x):
            return native(_over_rows(grad, x), weight)

    def grad_bias(grad: Any) -> Any:
        with on_device(x):
            return native(total(grad, 0), bias)

    return contiguous(value, dtype), (grad_x, grad_weight, grad_bias)


def _over_rows(grad: Any, x: Any) -> Any:
    """``grad.T @ x``, in blocks of rows, since the rounding errors of one long sum would add up."""
    result = _product(grad[:_ROWS].T, x[:_ROWS])
    if len(x) > _ROWS:
        result = result.astype(wide(result.dtype) or result.dtype, copy=False)
        for i in range(_ROWS, len(x), _ROWS):
            result += _product(grad[i : i + _ROWS].T, x[i : i + _ROWS])
    return result


def _product(a: Any, b: Any, offset: Any = None) -> Any:
    """``a @ b + offset[:, None]``, in the type that it is computed in.

    b is one image, and a the weights, of a 1x1 convolution.

    Not BLAS, on the CPU: its threads and ours would wait for each other's cores.
    """
    _, work = working_dtypes(a, b, offset)
    value = empty((1, a.shape[0], b.shape[1]), work, b)
    _forward(contiguous(b, work)[None], contiguous(a, work), offset, value)
    return value[0]


def _forward(x: Any, weight: Any, bias: Any, value: Any) -> None:
    """:func:`invocupy.backends.reference.pointwise` forward, also where there is nothing to sum."""
    with on_device(x):
        offset = None if bias is None else contiguous(bias, x.dtype)
        if x.size and value.size:
            backends.of("pointwise", x).forward(x, weight, offset, value)
        else:
            value[...] = 0 if offset is None else offset[:, None]


def _check_bias(bias: Any, weight: Any) -> None:
    """The backends take it to be as long as weight: they would read past the end of a shorter."""
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have shape {weight.shape[:1]} for weight {weight.shape}, got {bias.shape}"
        )


def working_dtypes(*given: Any) -> tuple[Any, Any]:
    """The dtype of the result, and what the backend computes in."""
    arrays = [array for array in given if array is not None]
    first = arrays[0].dtype
    if (
        first.char in "fd"
        and first.isnative
        and [a.dtype for a in arrays].count(first) == len(arrays)
    ):
        return first, first  # nearly always, and much faster
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
    check(x=x, weight=weight, **({} if bias is None else {"bias": bias}))
    if x.ndim != 4 or weight.ndim != 4:
        raise ValueError(
            f"x must be (N, C, H, W) and weight (O, C/groups, Kh, Kw), "
            f"got {x.shape} and {weight.shape}"
        )
    _, c, h, w = x.shape
    o, c_group, kernel_h, kernel_w = weight.shape
    groups = integer("groups", groups, 1)
    if c % groups or o % groups or c // groups != c_group:
        raise ValueError(
            f"weight {weight.shape} does not fit x {x.shape} with groups={groups}: "
            f"C must be {c_group} * groups and O a multiple of groups"
        )
    if kernel_h < 1 or kernel_w < 1:
        raise ValueError(f"weight must have at least one tap, got shape {weight.shape}")
    _check_bias(bias, weight)
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    pads = padding_pair(padding, (kernel_h, kernel_w), dilations)
    out_h, out_w = out_size((h, w), (kernel_h, kernel_w), strides, pads, dilations)
    if (kernel_h, kernel_w, groups, *pads) == (1, 1, 1, 0, 0) and (
        strides == (1, 1) or is_cupy(x)  # there, the pixels that are kept are copied
    ):
        return _pointwise(x, weight, bias, strides)
    dtype, work = working_dtypes(x, weight, bias)
    seen, taps, window = contiguous(x, work), contiguous(weight, work), (strides, pads, dilations)
    backend = backends.of("convolution", x)
    value = empty((len(x), o, out_h, out_w), work, x)
    summing = bool(x.size and weight.size and value.size)
    with on_device(x):
        if summing:
            offset = None if bias is None else contiguous(bias, work)
            backend.forward(seen, taps, offset, window, value)
        else:
            value[...] = 0 if bias is None else bias[:, None, None]

    def grad_x(grad: Any) -> Any:
        result = empty(x.shape, work, x)
        with on_device(x):
            if summing:
                backend.grad_x(contiguous(grad, work), taps, window, result)
            else:
                result[...] = 0
        return native(result, x)

    @each
    def parameters(grad: Any) -> tuple[Any, Any]:
        with on_device(x):
            make = namespace(x).empty if summing else namespace(x).zeros
            results = make(weight.shape, work), None if bias is None else make(o, work)
            if summing:
                backend.grad_weight(contiguous(grad, work), seen, window, *results)
        return results

    return value.astype(dtype, copy=False), (
        grad_x,
        lambda grad: native(parameters(grad, 0), weight),
        lambda grad: native(parameters(grad, 1), bias),
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
            result = native(result, x)
            if strides == (1, 1):
                return result
            whole = namespace(x).zeros(x.shape, result.dtype)
            whole[:, :, :: strides[0], :: strides[1]] = result
            return whole

    @each
    def parameters(grad: Any) -> tuple[Any, Any]:
        with on_device(x):
            make = namespace(x).empty if summing else namespace(x).zeros
            results = make(weight.shape, work), None if bias is None else make(o, work)
            if summing:
                backend.grad_weight(flat_grad(grad), flat, results[0].reshape(o, c), results[1])
        return results

    return value.reshape(n, o, out_h, out_w).astype(dtype, copy=False), (
        grad_x,
        lambda grad: native(parameters(grad, 0), weight),
        lambda grad: native(parameters(grad, 1), bias),
    )

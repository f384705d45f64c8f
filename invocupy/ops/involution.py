"""Involution and its fused form: checks, promotion, layouts; the work is in the backends."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from invocupy import backends
from invocupy.arrays import check, check_out, contiguous, is_cupy, namespace, native, on_device
from invocupy.backends import memory
from invocupy.geometry import Geometry, IntOrPair, Padding, fused_geometry
from invocupy.ops.basic import Result
from invocupy.ops.memo import each


def involution(
    x: Any,
    kernel: Any,
    *,
    stride: IntOrPair = 1,
    padding: Padding = "same",
    dilation: IntOrPair = 1,
    out: Any = None,
) -> Result:
    """``sum_uv kernel[n, c//(C/G), u, v, i, j] * x[n, c, i*sh+u*dh-ph, j*sw+v*dw-pw]``."""
    check(x=x, kernel=kernel)
    g = Geometry.of(x.shape, kernel.shape, stride, padding, dilation)
    dtype, work = _dtypes(x, kernel)
    if out is not None:
        check_out(out, g.out_shape, dtype, x=x, kernel=kernel)
    wide_x, wide_kernel = contiguous(x, work), contiguous(kernel, work)
    backend = backends.of("involution", x)

    with on_device(x):
        value = _result(out, g.out_shape, dtype, work, x)
        _run(backend.forward, (wide_x, wide_kernel), g, (value,))
        value = _finish(value, out, dtype)

    def grad_x(grad: Any) -> Any:
        with on_device(x):
            result = memory.empty(g.x_shape, work, x)
            _run(backend.grad_x, (contiguous(grad, work), wide_kernel), g, (result,))
            return native(result, x)

    def grad_kernel(grad: Any) -> Any:
        with on_device(x):
            result = memory.empty(g.kernel_shape, work, x)
            _run(backend.grad_kernel, (contiguous(grad, work), wide_x), g, (result,))
            return native(result, kernel)

    return value, (grad_x, grad_kernel)


def involution_backward(
    grad_out: Any,
    x: Any,
    kernel: Any,
    *,
    stride: IntOrPair = 1,
    padding: Padding = "same",
    dilation: IntOrPair = 1,
) -> tuple[Any, Any]:
    """Both gradients of :func:`invocupy.involution`, without computing its value.

    ``grad_x[n,c,p,q] = sum kernel[n, c//(C/G), u, v, i, j] * grad_out[n, c, i, j]`` over the taps
    and outputs that saw pixel (p, q), and
    ``grad_kernel[n,g,u,v,i,j] = sum_c grad_out[n,c,i,j] * x[n, c, i*sh+u*dh-ph, j*sw+v*dw-pw]``
    over the channels c of group g (arXiv 2103.06255, eq. 4, differentiated). Both are gathers:
    the same call gives the same bits.

    Parameters
    ----------
    grad_out : array (N, C, Ho, Wo), float
        Gradient of the result.
    x : array (N, C, H, W), float
    kernel : array (N, G, Kh, Kw, Ho, Wo), float
    stride, padding, dilation
        As in :func:`invocupy.involution`.

    Returns
    -------
    grad_x : array (N, C, H, W), dtype of ``x``
    grad_kernel : array (N, G, Kh, Kw, Ho, Wo), dtype of ``kernel``

    Raises
    ------
    TypeError, ValueError
        As :func:`invocupy.involution`.

    Examples
    --------
    >>> import numpy as np
    >>> import invocupy
    >>> x, kernel = np.ones((1, 1, 2, 2)), np.ones((1, 1, 1, 1, 2, 2))
    >>> grad_x, grad_kernel = invocupy.involution_backward(2 * x, x, kernel)
    >>> grad_x[0, 0, 0], grad_kernel.shape
    (array([2., 2.]), (1, 1, 1, 1, 2, 2))
    """
    check(grad_out=grad_out, x=x, kernel=kernel)
    g = Geometry.of(x.shape, kernel.shape, stride, padding, dilation)
    g.check_grad(grad_out)
    _, work = _dtypes(x, kernel)
    backend = backends.of("involution", x)
    grad = contiguous(grad_out, work)
    with on_device(x):
        grad_x = memory.empty(g.x_shape, work, x)
        grad_kernel = memory.empty(g.kernel_shape, work, x)
        _run(backend.grad_x, (grad, contiguous(kernel, work)), g, (grad_x,))
        _run(backend.grad_kernel, (grad, contiguous(x, work)), g, (grad_kernel,))
        return (
            native(grad_x, x),
            native(grad_kernel, kernel),
        )


def fused_involution(
    x: Any,
    features: Any,
    span_weight: Any,
    span_bias: Any = None,
    *,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    padding: Padding = "same",
    dilation: IntOrPair = 1,
    out: Any = None,
) -> Result:
    """:func:`involution`, ``kernel = span_weight @ features + span_bias``, never stored whole."""
    inputs = _fused_inputs(x, features, span_weight, span_bias)
    check(**inputs)
    g = fused_geometry(
        x.shape, features.shape, span_weight.shape, None if span_bias is None else span_bias.shape,
        kernel_size, stride, padding, dilation,
    )  # fmt: skip
    dtype, work = _dtypes(*inputs.values())
    if out is not None:
        check_out(out, g.out_shape, dtype, **inputs)
    backend = backends.of("involution", x)
    wide_x, wide_features, weight, bias = _fused_operands(inputs, work)

    with on_device(x):
        value = _result(out, g.out_shape, dtype, work, x)
        _run(backend.fused_forward, (wide_x, wide_features, weight, bias), g, (value,))
        value = _finish(value, out, dtype)

    def grad_x(grad: Any) -> Any:
        with on_device(x):
            result = memory.empty(g.x_shape, work, x)
            operands = (contiguous(grad, work), wide_features, weight, bias)
            _run(backend.fused_grad_x, operands, g, (result,))
            return native(result, x)

    @each
    def span(grad: Any) -> Any:
        with on_device(x):
            operands = contiguous(grad, work), wide_x, wide_features, weight
            return _span_gradients(backend, *operands, g)

    return value, (
        grad_x,
        lambda grad: native(span(grad, 0), features),
        lambda grad: native(span(grad, 1), span_weight),
        lambda grad: native(span(grad, 2), span_bias),
    )


def fused_involution_backward(
    grad_out: Any,
    x: Any,
    features: Any,
    span_weight: Any,
    span_bias: Any = None,
    *,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    padding: Padding = "same",
    dilation: IntOrPair = 1,
) -> tuple[Any, Any, Any, Any]:
    """All gradients of :func:`invocupy.fused_involution`, without computing its value.

    The gradient of the generated kernel, as in :func:`invocupy.involution_backward`, is pushed
    through the 1x1 convolution piece by piece and never stored whole:
    ``grad_features = span_weight.T @ grad_kernel``, ``grad_span_weight = sum grad_kernel @
    features.T``, ``grad_span_bias = sum grad_kernel``.

    Parameters
    ----------
    grad_out : array (N, C, Ho, Wo), float
        Gradient of the result.
    x, features, span_weight, span_bias, kernel_size, stride, padding, dilation
        As in :func:`invocupy.fused_involution`.

    Returns
    -------
    grad_x, grad_features, grad_span_weight : arrays, shapes and dtypes of the arguments
    grad_span_bias : array (G*Kh*Kw,) or None
        ``None`` without a bias.

    Raises
    ------
    TypeError, ValueError
        As :func:`invocupy.involution`.

    Examples
    --------
    >>> import numpy as np
    >>> import invocupy
    >>> x, features, weight = np.ones((1, 2, 4, 4)), np.ones((1, 3, 4, 4)), np.ones((9, 3))
    >>> grads = invocupy.fused_involution_backward(x, x, features, weight, kernel_size=3)
    >>> [None if grad is None else grad.shape for grad in grads]
    [(1, 2, 4, 4), (1, 3, 4, 4), (9, 3), None]
    """
    inputs = _fused_inputs(x, features, span_weight, span_bias)
    check(grad_out=grad_out, **inputs)
    g = fused_geometry(
        x.shape, features.shape, span_weight.shape, None if span_bias is None else span_bias.shape,
        kernel_size, stride, padding, dilation,
    )  # fmt: skip
    g.check_grad(grad_out)
    _, work = _dtypes(*inputs.values())
    backend = backends.of("involution", x)
    wide_x, wide_features, weight, bias = _fused_operands(inputs, work)
    grad = contiguous(grad_out, work)
    with on_device(x):
        grad_x = memory.empty(g.x_shape, work, x)
        _run(backend.fused_grad_x, (grad, wide_features, weight, bias), g, (grad_x,))
        span = _span_gradients(backend, grad, wide_x, wide_features, weight, g)
        gradients = [
            native(result, like)
            for result, like in zip((grad_x, *span), inputs.values(), strict=False)
        ]
    if span_bias is None:
        gradients.append(None)
    return gradients[0], gradients[1], gradients[2], gradients[3]


def _fused_inputs(x: Any, features: Any, span_weight: Any, span_bias: Any) -> dict[str, Any]:
    inputs = {"x": x, "features": features, "span_weight": span_weight}
    return inputs if span_bias is None else {**inputs, "span_bias": span_bias}


def _fused_operands(inputs: dict[str, Any], work: Any) -> tuple[Any, Any, Any, Any]:
    x, features, weight, *bias = (contiguous(array, work) for array in inputs.values())
    with on_device(x):
        return x, features, weight, bias[0] if bias else namespace(x).zeros(len(weight), work)


def _span_gradients(
    backend: Any, grad: Any, x: Any, features: Any, weight: Any, g: Geometry
) -> tuple[Any, ...]:
    shapes = features.shape, weight.shape, weight.shape[:1]
    results = tuple(memory.empty(shape, x.dtype, x) for shape in shapes)
    _run(backend.fused_grad_span, (grad, x, features, weight), g, results)
    return results


def _dtypes(*inputs: Any) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """The dtype of the result, by NumPy's promotion, and the one that the backend computes in."""
    return _promoted(is_cupy(inputs[0]), *(array.dtype for array in inputs))


@cache
def _promoted(on_gpu: bool, *given: np.dtype[Any]) -> tuple[np.dtype[Any], np.dtype[Any]]:
    dtype = np.result_type(*given).newbyteorder("=")
    return dtype, np.dtype(np.float32) if dtype == np.float16 and not on_gpu else dtype


def _result(out: Any, shape: tuple[int, ...], dtype: Any, work: Any, x: Any) -> Any:
    """``out`` itself where the backend can write into it, else a new array."""
    if out is not None and work == dtype and contiguous(out, work) is out:
        return out
    return memory.empty(shape, work, x)


def _finish(value: Any, out: Any, dtype: Any) -> Any:
    if out is None:
        return value.astype(dtype, copy=False)
    if value is not out:
        out[...] = value
    return out


def _run(function: Callable[..., None], inputs: Any, g: Geometry, results: Any) -> None:
    """Call a backend; where nothing is summed, because something is empty, the result is zero."""
    if all(array.size for array in inputs):
        function(*inputs, g, *results)
    else:
        for result in results:
            result[...] = 0

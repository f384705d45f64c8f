"""Involution in plain array code: the specification, public so that users can test against it.

The functions have the signatures of their namesakes in :mod:`invocupy` and give the same results
to rounding, by the shortest code that can be read as the formula. They work on NumPy and CuPy
arrays, are slow, and hold the whole generated kernel in memory.
"""

from __future__ import annotations

from typing import Any

from invocupy.arrays import Array, check, check_out, contiguous, namespace, on_device
from invocupy.backends.reference import involution as _reference
from invocupy.geometry import Geometry, IntOrPair, Padding, fused_geometry


def involution(
    x: Array,
    kernel: Array,
    *,
    stride: IntOrPair = 1,
    padding: Padding = "same",
    dilation: IntOrPair = 1,
    out: Array | None = None,
) -> Array:
    """Involution, as :func:`invocupy.involution`, by a loop over the taps.

    ``out[n,c,i,j] = sum_uv kernel[n, c//(C/G), u, v, i, j] * x[n, c, i*sh+u*dh-ph, j*sw+v*dw-pw]``
    with zero outside ``x`` (Li et al., arXiv 2103.06255, eq. 4).

    Parameters
    ----------
    x : array (N, C, H, W), float
    kernel : array (N, G, Kh, Kw, Ho, Wo), float
    stride, dilation : int or pair
    padding : int, pair, "same" or "valid"
    out : array (N, C, Ho, Wo), optional

    Returns
    -------
    array (N, C, Ho, Wo)

    Raises
    ------
    TypeError, ValueError
        As :func:`invocupy.involution`.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> box = np.ones((1, 1, 3, 3, 3, 3))
    >>> involution(x, box)[0, 0]
    array([[ 8., 15., 12.],
           [21., 36., 27.],
           [20., 33., 24.]])
    """
    check(x=x, kernel=kernel)
    g = Geometry.of(x.shape, kernel.shape, stride, padding, dilation)
    xp = namespace(x)
    dtype = xp.result_type(x.dtype, kernel.dtype)
    if out is not None:
        check_out(out, g.out_shape, dtype, x=x, kernel=kernel)
    with on_device(x):
        result = xp.empty(g.out_shape, dtype) if out is None else out
        _reference.forward(contiguous(x, dtype), contiguous(kernel, dtype), g, result)
    return result


def involution_backward(
    grad_out: Array,
    x: Array,
    kernel: Array,
    *,
    stride: IntOrPair = 1,
    padding: Padding = "same",
    dilation: IntOrPair = 1,
) -> tuple[Array, Array]:
    """Both gradients of :func:`involution`.

    ``grad_x`` is the transpose of involution in ``x``;
    ``grad_kernel[n,g,u,v,i,j] = sum_c grad_out[n,c,i,j] * x[n,c,i*sh+u*dh-ph,j*sw+v*dw-pw]`` over
    the channels c of group g.

    Parameters
    ----------
    grad_out : array (N, C, Ho, Wo), float
    x : array (N, C, H, W), float
    kernel : array (N, G, Kh, Kw, Ho, Wo), float
    stride, padding, dilation
        As in :func:`involution`.

    Returns
    -------
    grad_x : array (N, C, H, W), dtype of ``x``
    grad_kernel : array (N, G, Kh, Kw, Ho, Wo), dtype of ``kernel``

    Raises
    ------
    TypeError, ValueError
        As :func:`invocupy.involution_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, kernel = np.ones((1, 1, 2, 2)), np.ones((1, 1, 1, 1, 2, 2))
    >>> grad_x, grad_kernel = involution_backward(2 * x, x, kernel)
    >>> grad_x[0, 0, 0], grad_kernel.shape
    (array([2., 2.]), (1, 1, 1, 1, 2, 2))
    """
    check(grad_out=grad_out, x=x, kernel=kernel)
    g = Geometry.of(x.shape, kernel.shape, stride, padding, dilation)
    g.check_grad(grad_out)
    xp = namespace(x)
    work = xp.result_type(x.dtype, kernel.dtype)
    with on_device(x):
        grad_x, grad_kernel = xp.empty(g.x_shape, x.dtype), xp.empty(g.kernel_shape, kernel.dtype)
        grad = contiguous(grad_out, work)
        _reference.grad_x(grad, contiguous(kernel, work), g, grad_x)
        _reference.grad_kernel(grad, contiguous(x, work), g, grad_kernel)
    return grad_x, grad_kernel


def fused_involution(
    x: Array,
    features: Array,
    span_weight: Array,
    span_bias: Array | None = None,
    *,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    padding: Padding = "same",
    dilation: IntOrPair = 1,
    out: Array | None = None,
) -> Array:
    """:func:`involution` whose kernel a 1x1 convolution makes from ``features``.

    ``kernel = einsum("kf,nfhw->nkhw", span_weight, features) + span_bias``.

    Parameters
    ----------
    x : array (N, C, H, W), float
    features : array (N, F, Ho, Wo), float
    span_weight : array (G*Kh*Kw, F), float
    span_bias : array (G*Kh*Kw,), float, optional
    kernel_size : int or pair
    stride, padding, dilation, out
        As in :func:`involution`.

    Returns
    -------
    array (N, C, Ho, Wo)

    Raises
    ------
    TypeError, ValueError
        As :func:`invocupy.fused_involution`.

    Examples
    --------
    >>> import numpy as np
    >>> x, features = np.ones((1, 2, 4, 4)), np.ones((1, 3, 4, 4))
    >>> fused_involution(x, features, np.ones((9, 3)), kernel_size=3)[0, 0, 1, 1]
    np.float64(27.0)
    """
    inputs = _inputs(x, features, span_weight, span_bias)
    check(**inputs)
    shapes = x.shape, features.shape, span_weight.shape
    bias_shape = None if span_bias is None else span_bias.shape
    g = fused_geometry(*shapes, bias_shape, kernel_size, stride, padding, dilation)
    xp = namespace(x)
    dtype = xp.result_type(*(array.dtype for array in inputs.values()))
    if out is not None:
        check_out(out, g.out_shape, dtype, **inputs)
    with on_device(x):
        result = xp.empty(g.out_shape, dtype) if out is None else out
        bias = xp.zeros(len(span_weight), dtype) if span_bias is None else span_bias
        wide_x, wide_features, weight, wide_bias = (
            contiguous(array, dtype) for array in (x, features, span_weight, bias)
        )
        _reference.fused_forward(wide_x, wide_features, weight, wide_bias, g, result)
    return result


def fused_involution_backward(
    grad_out: Array,
    x: Array,
    features: Array,
    span_weight: Array,
    span_bias: Array | None = None,
    *,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    padding: Padding = "same",
    dilation: IntOrPair = 1,
) -> tuple[Array, Array, Array, Array | None]:
    """All gradients of :func:`fused_involution`.

    Those of :func:`involution_backward`, pushed through the span.

    Parameters
    ----------
    grad_out : array (N, C, Ho, Wo), float
    x, features, span_weight, span_bias, kernel_size, stride, padding, dilation
        As in :func:`fused_involution`.

    Returns
    -------
    grad_x, grad_features, grad_span_weight : arrays, shapes and dtypes of the arguments
    grad_span_bias : array (G*Kh*Kw,) or None
        ``None`` without a bias.

    Raises
    ------
    TypeError, ValueError
        As :func:`invocupy.fused_involution_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, features, weight = np.ones((1, 2, 4, 4)), np.ones((1, 3, 4, 4)), np.ones((9, 3))
    >>> grads = fused_involution_backward(x, x, features, weight, kernel_size=3)
    >>> [None if grad is None else grad.shape for grad in grads]
    [(1, 2, 4, 4), (1, 3, 4, 4), (9, 3), None]
    """
    inputs = _inputs(x, features, span_weight, span_bias)
    check(grad_out=grad_out, **inputs)
    shapes = x.shape, features.shape, span_weight.shape
    bias_shape = None if span_bias is None else span_bias.shape
    g = fused_geometry(*shapes, bias_shape, kernel_size, stride, padding, dilation)
    g.check_grad(grad_out)
    xp = namespace(x)
    work = xp.result_type(*(array.dtype for array in inputs.values()))
    with on_device(x):
        bias = xp.zeros(len(span_weight), work) if span_bias is None else span_bias
        results = [xp.empty(a.shape, a.dtype) for a in (x, features, span_weight, bias)]
        wide_x, wide_features, weight, wide_bias, grad = (
            contiguous(array, work) for array in (x, features, span_weight, bias, grad_out)
        )
        _reference.fused_grad_x(grad, wide_features, weight, wide_bias, g, results[0])
        _reference.fused_grad_span(grad, wide_x, wide_features, weight, g, *results[1:])
    return results[0], results[1], results[2], None if span_bias is None else results[3]


def _inputs(x: Any, features: Any, span_weight: Any, span_bias: Any) -> dict[str, Any]:
    inputs = {"x": x, "features": features, "span_weight": span_weight}
    return inputs if span_bias is None else {**inputs, "span_bias": span_bias}

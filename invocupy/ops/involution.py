"""Involution and its fused form: checks and shapes; the work is in the backends."""

from __future__ import annotations

from invocupy.arrays import Array, check, check_out, namespace, on_device
from invocupy.geometry import Geometry, IntOrTuple, Padding, fused_geometry
from invocupy.ops.call import Call, given
from invocupy.ops.declaration import Result, Vjp, op
from invocupy.ops.memo import each, sharing


@op(reads="x kernel others")
def involution(
    x: Array,
    kernel: Array,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
    out: Array | None = None,
) -> Result:
    """Involution: every pixel has its own kernel, shared by a group of channels.

    In one, two or three dimensions: ``x`` is (N, C, *S) with S = (W,), (H, W) or (D, H, W), a
    position i and a tap u have an index for each spatial axis, and
    ``out[n,c,i] = sum_u kernel[n, c//(C/G), u, i] * x[n, c, i*stride + u*dilation - padding]``
    with zero outside ``x``; a correlation, without a flip (Li et al., CVPR 2021, arXiv 2103.06255,
    eq. 4). Along each axis, ``O = floor((S + 2*padding - dilation*(K-1) - 1) / stride) + 1``.

    Parameters
    ----------
    x : array or Tensor (N, C, *S)
        float32 or float64; float16 too (computed in float32 on the CPU), and bfloat16 on the GPU.
        Any strides and byte order; not modified.
    kernel : array or Tensor (N, G, *K, *O)
        The kernel of each output pixel: (N, G, Kh, Kw, Ho, Wo) for an image. G divides C; channel
        c uses group ``c // (C // G)``.
    stride, dilation : int or tuple
        A tuple has an integer for each spatial axis.
    padding : int, tuple, "same" or "valid"
        Zeros around ``x``. ``"same"`` is ``dilation*(K-1)//2`` on each side, for odd K.
    out : array (N, C, *O), optional
        The array for the result: exact shape, dtype and library, without overlap with the inputs.
        Plain arrays only.

    Returns
    -------
    array or Tensor (N, C, *O)
        New and C-contiguous (or ``out``), of the promoted dtype, on the device of ``x``.

    Raises
    ------
    TypeError
        For anything but floating NumPy or CuPy arrays (and Tensors), a masked array, or a mix of
        libraries.
    ValueError
        For shapes or options that do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> import invocupy
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> box = np.ones((1, 1, 3, 3, 3, 3))
    >>> invocupy.involution(x, box)[0, 0]
    array([[ 8., 15., 12.],
           [21., 36., 27.],
           [20., 33., 24.]])
    >>> invocupy.involution(np.ones((1, 8, 4, 5, 6)), np.ones((1, 2, 3, 3, 3, 4, 5, 6))).shape
    (1, 8, 4, 5, 6)
    """
    check(x=x, kernel=kernel)
    g = Geometry.of(x.shape, kernel.shape, stride, padding, dilation)
    call, vjps = _involution(x, kernel, g)
    if out is not None:
        check_out(out, g.out_shape, call.dtype, x=x, kernel=kernel)
    return call.value("forward", (g,), g.out_shape, out), vjps


def involution_backward(
    grad_out: Array,
    x: Array,
    kernel: Array,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
) -> tuple[Array, Array]:
    """Both gradients of :func:`invocupy.involution`, without computing its value.

    ``grad_x[n,c,p] = sum kernel[n, c//(C/G), u, i] * grad_out[n,c,i]`` over the taps u and outputs
    i that use pixel p, and
    ``grad_kernel[n,g,u,i] = sum_c grad_out[n,c,i] * x[n, c, i*stride + u*dilation - padding]`` over
    the channels c of group g (arXiv 2103.06255, eq. 4, differentiated). Both are gathers: the same
    call gives the same bits.

    Parameters
    ----------
    grad_out : array (N, C, *O), float
        Gradient of the result.
    x, kernel, stride, padding, dilation
        As in :func:`invocupy.involution`.

    Returns
    -------
    grad_x : array (N, C, *S), dtype of ``x``
    grad_kernel : array (N, G, *K, *O), dtype of ``kernel``

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
    _, (grad_x, grad_kernel) = _involution(x, kernel, g)
    return grad_x(grad_out), grad_kernel(grad_out)


def _involution(x: Array, kernel: Array, g: Geometry) -> tuple[Call, tuple[Vjp, Vjp]]:
    call = Call("involution", x, kernel)
    seen, taps = call.inputs
    return call, (
        lambda grad: call.gradient("grad_x", grad, (taps,), (g,), x),
        lambda grad: call.gradient("grad_kernel", grad, (seen,), (g,), kernel),
    )


@op()
def fused_involution(
    x: Array,
    features: Array,
    span_weight: Array,
    span_bias: Array | None = None,
    *,
    kernel_size: IntOrTuple,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
    out: Array | None = None,
) -> Result:
    """Involution with a kernel generated on the fly by a 1x1 convolution, and never stored whole.

    Equals :func:`involution` with
    ``kernel = einsum("kf,nf...->nk...", span_weight, features)``, plus ``span_bias`` for each k,
    reshaped to (N, G, *K, *O): the last step of the paper's kernel generator (arXiv 2103.06255,
    algorithm 1). With T taps (the product of K), the whole kernel would be ``G*T/C`` times the size
    of ``x``; neither this function nor its gradients ever hold it.

    Parameters
    ----------
    x : array or Tensor (N, C, *S), float
        As in :func:`involution`.
    features : array or Tensor (N, F, *O), float
        The input of the 1x1 convolution: F values for each output pixel.
    span_weight : array or Tensor (G*T, F), float
        Row ``g*T + t`` generates tap t of group g; for an image, (u, v) is tap ``t = u*Kw + v``.
    span_bias : array or Tensor (G*T,), float, optional
        Added to each tap.
    kernel_size : int or tuple
        K; a tuple has an integer for each spatial axis.
    stride, padding, dilation, out
        As in :func:`involution`.

    Returns
    -------
    array or Tensor (N, C, *O)

    Raises
    ------
    TypeError, ValueError
        As :func:`involution`.

    Examples
    --------
    >>> import numpy as np
    >>> import invocupy
    >>> x, features = np.ones((1, 2, 4, 4)), np.ones((1, 3, 4, 4))
    >>> float(invocupy.fused_involution(x, features, np.ones((9, 3)), kernel_size=3)[0, 0, 1, 1])
    27.0
    """
    inputs = given(x=x, features=features, span_weight=span_weight, span_bias=span_bias)
    check(**inputs)
    g = fused_geometry(
        x.shape, features.shape, span_weight.shape, None if span_bias is None else span_bias.shape,
        kernel_size, stride, padding, dilation,
    )  # fmt: skip
    call, vjps = _fused(x, features, span_weight, span_bias, g)
    if out is not None:
        check_out(out, g.out_shape, call.dtype, **inputs)
    return call.value("fused_forward", (g,), g.out_shape, out), vjps


def fused_involution_backward(
    grad_out: Array,
    x: Array,
    features: Array,
    span_weight: Array,
    span_bias: Array | None = None,
    *,
    kernel_size: IntOrTuple,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
) -> tuple[Array, Array, Array, Array | None]:
    """All gradients of :func:`invocupy.fused_involution`, without computing its value.

    The gradient of the generated kernel, as in :func:`invocupy.involution_backward`, is propagated
    through the 1x1 convolution in pieces and never stored whole:
    ``grad_features = span_weight.T @ grad_kernel``, ``grad_span_weight = sum grad_kernel @
    features.T``, ``grad_span_bias = sum grad_kernel``.

    Parameters
    ----------
    grad_out : array (N, C, *O), float
        Gradient of the result.
    x, features, span_weight, span_bias, kernel_size, stride, padding, dilation
        As in :func:`invocupy.fused_involution`.

    Returns
    -------
    grad_x, grad_features, grad_span_weight : arrays, shapes and dtypes of the arguments
    grad_span_bias : array (G*T,) or None
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
    inputs = given(x=x, features=features, span_weight=span_weight, span_bias=span_bias)
    check(grad_out=grad_out, **inputs)
    g = fused_geometry(
        x.shape, features.shape, span_weight.shape, None if span_bias is None else span_bias.shape,
        kernel_size, stride, padding, dilation,
    )  # fmt: skip
    g.check_grad(grad_out)
    _, vjps = _fused(x, features, span_weight, span_bias, g)
    with sharing(grad_out):
        grads = [vjp(grad_out) for vjp in vjps]
    return grads[0], grads[1], grads[2], None if span_bias is None else grads[3]


def _fused(
    x: Array, features: Array, weight: Array, bias: Array | None, g: Geometry
) -> tuple[Call, tuple[Vjp, ...]]:
    call = Call("involution", x, features, weight, bias)
    if bias is None:
        with on_device(x):
            bias = call.inputs[3] = namespace(x).zeros(len(weight), call.work)
    seen, *span = call.inputs
    like = features, weight, bias

    @each
    def grads(grad: Array) -> list[Array]:
        return call.gradients("fused_grad_span", grad, (seen, *span[:2]), (g,), *like)

    return call, (
        lambda grad: call.gradient("fused_grad_x", grad, span, (g,), x),
        lambda grad: grads(grad, 0),
        lambda grad: grads(grad, 1),
        lambda grad: grads(grad, 2),
    )

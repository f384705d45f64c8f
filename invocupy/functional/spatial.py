"""Operators that see more than one pixel: involution, convolution, attention, pooling."""

from __future__ import annotations

from typing import Any

from invocupy import ops
from invocupy.autograd import Tensor, apply
from invocupy.geometry import IntOrPair, Padding


def involution(
    x: Any,
    kernel: Any,
    *,
    stride: IntOrPair = 1,
    padding: Padding = "same",
    dilation: IntOrPair = 1,
    out: Any = None,
) -> Any:
    """Involution: a convolution whose kernel differs at each pixel and is shared by channels.

    ``out[n,c,i,j] = sum_uv kernel[n, c//(C/G), u, v, i, j] * x[n, c, i*sh+u*dh-ph, j*sw+v*dw-pw]``
    with zero outside ``x``; a correlation, without a flip (Li et al., CVPR 2021, arXiv 2103.06255,
    eq. 4). ``Ho = floor((H + 2*ph - dh*(Kh-1) - 1) / sh) + 1``, and so ``Wo``.

    Parameters
    ----------
    x : array or Tensor (N, C, H, W)
        float32 or float64; float16 too (computed in float32 on the CPU), and bfloat16 on the GPU.
        Any strides, any byte order; never written to.
    kernel : array or Tensor (N, G, Kh, Kw, Ho, Wo)
        The kernel of each output pixel. G divides C; channel c uses group ``c // (C // G)``.
    stride, dilation : int or pair
    padding : int, pair, "same" or "valid"
        Zeros around ``x``. ``"same"`` is ``dilation*(K-1)//2`` on each side, for odd K.
    out : array (N, C, Ho, Wo), optional
        Where to put the result: exact shape, dtype and library, apart from the inputs' memory.
        Plain arrays only.

    Returns
    -------
    array or Tensor (N, C, Ho, Wo)
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
    """
    _refuse_out(out, x, kernel)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "out": out}
    return apply(ops.involution, x, kernel, **options)


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
) -> Any:
    """Involution whose kernel is made on the fly by a 1x1 convolution, and never stored whole.

    Equals :func:`involution` with
    ``kernel = einsum("kf,nfhw->nkhw", span_weight, features) + span_bias`` reshaped to
    (N, G, Kh, Kw, Ho, Wo): the last step of the paper's kernel generator (arXiv 2103.06255,
    algorithm 1). The whole kernel would be ``G*Kh*Kw/C`` times the size of ``x``; neither this
    function nor its gradients ever hold it.

    Parameters
    ----------
    x : array or Tensor (N, C, H, W), float
    features : array or Tensor (N, F, Ho, Wo), float
        What the kernel is made from, F values for each output pixel.
    span_weight : array or Tensor (G*Kh*Kw, F), float
        Row ``g*Kh*Kw + u*Kw + v`` makes tap (u, v) of group g.
    span_bias : array or Tensor (G*Kh*Kw,), float, optional
    kernel_size : int or pair
    stride, padding, dilation, out
        As in :func:`involution`.

    Returns
    -------
    array or Tensor (N, C, Ho, Wo)

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
    _refuse_out(out, x, features, span_weight, span_bias)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "out": out}
    operands = (x, features, span_weight, span_bias)
    return apply(ops.fused_involution, *operands, kernel_size=kernel_size, **options)


def _refuse_out(out: Any, *operands: Any) -> None:
    if out is not None and any(isinstance(operand, Tensor) for operand in operands):
        raise TypeError("out works with plain arrays only: the tape may still need its old content")


def conv2d(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: IntOrPair = 1,
    padding: Padding = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Any:
    """2-D convolution (a correlation, as in every network library).

    ``out[n,o,i,j] = bias[o] + sum_{c,u,v} weight[o,c,u,v] * x[n,c, i*sh+u*dh-ph, j*sw+v*dw-pw]``,
    c over the channels of the group of o.

    Parameters
    ----------
    x : array or Tensor (N, C, H, W), float
    weight : array or Tensor (O, C/groups, Kh, Kw), float
    bias : array or Tensor (O,), optional
    stride, dilation : int or pair
    padding : int, pair, "same" or "valid"
    groups : int

    Returns
    -------
    array or Tensor (N, O, Ho, Wo)

    Raises
    ------
    TypeError
        For arguments that are no arrays of a floating dtype.
    ValueError
        For shapes or options that do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.conv2d(np.ones((1, 2, 3, 3)), np.ones((1, 2, 3, 3)), padding=1)[0, 0]
    array([[ 8., 12.,  8.],
           [12., 18., 12.],
           [ 8., 12.,  8.]])
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return apply(ops.conv2d, x, weight, bias, **options)


def local_self_attention(
    query: Any,
    key: Any,
    value: Any,
    positions: Any = None,
    *,
    kernel_size: IntOrPair,
    heads: int = 1,
    dilation: IntOrPair = 1,
) -> Any:
    """Attention of each pixel to its neighbours: an involution with weights from pairs of pixels.

    ``out[n,c,i,j] = sum_uv A[n,h,u,v,i,j] * value[n, c, i+u*dh-ph, j+v*dw-pw]``, h the head of c,
    ``A = softmax_uv(query[n,h,:,i,j] . (key[n,h,:,i+u*dh-ph,j+v*dw-pw] + positions[h,u,v,:]) /
    sqrt(D))`` (Ramachandran et al., arXiv 1906.05909, but divided by ``sqrt(D)``). Neighbours
    outside of the image have no weight. With keys of zero it is :func:`involution` whose kernel is
    the softmax of a 1x1 convolution of the query.

    Parameters
    ----------
    query, key : array or Tensor (N, heads*D, H, W), float
    value : array or Tensor (N, C, H, W), float
        ``heads`` divides C; channel c uses head ``c // (C // heads)``.
    positions : array or Tensor (heads, Kh, Kw, D), optional
        What is added to the key of each neighbour.
    kernel_size : int or pair
        Odd: the neighbours.
    heads : int
    dilation : int or pair

    Returns
    -------
    array or Tensor (N, C, H, W)

    Raises
    ------
    TypeError, ValueError
        As :func:`involution`.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> nothing, x = np.zeros((1, 2, 1, 4)), np.array([1.0, 2, 3, 4]).reshape(1, 1, 1, 4)
    >>> F.local_self_attention(nothing, nothing, x, kernel_size=(1, 3))[0, 0]
    array([[1.5, 2. , 3. , 3.5]])
    """
    options = {"kernel_size": kernel_size, "heads": heads, "dilation": dilation}
    return apply(ops.local_self_attention, query, key, value, positions, **options)


def self_attention(query: Any, key: Any, value: Any, *, heads: int = 1) -> Any:
    """Attention of each pixel to all pixels.

    ``out[n,c,p] = sum_q softmax_q(query[n,h,:,p] . key[n,h,:,q] / sqrt(D)) * value[n,c,q]``, h the
    head of c, p and q over all H*W pixels (Vaswani et al., arXiv 1706.03762, eq. 1). Stores
    ``heads * (H*W)**2`` weights an image: for comparison, not for large images.

    Parameters
    ----------
    query, key : array or Tensor (N, heads*D, H, W), float
    value : array or Tensor (N, C, H, W), float
        ``heads`` divides C.
    heads : int

    Returns
    -------
    array or Tensor (N, C, H, W)

    Raises
    ------
    TypeError, ValueError
        As :func:`involution`.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> nothing, x = np.zeros((1, 2, 1, 4)), np.array([1.0, 2, 3, 4]).reshape(1, 1, 1, 4)
    >>> F.self_attention(nothing, nothing, x)[0, 0]
    array([[2.5, 2.5, 2.5, 2.5]])
    """
    return apply(ops.self_attention, query, key, value, heads=heads)


def max_pool2d(
    x: Any, kernel_size: IntOrPair, stride: IntOrPair | None = None, padding: IntOrPair = 0
) -> Any:
    """The largest value of each window; padding never wins, the first of equal values does.

    Parameters
    ----------
    x : array or Tensor (N, C, H, W), float
    kernel_size : int or pair
    stride : int or pair, optional
        ``kernel_size`` by default.
    padding : int or pair
        At most half of ``kernel_size``.

    Returns
    -------
    array or Tensor (N, C, Ho, Wo)

    Raises
    ------
    TypeError
        For arguments that are no arrays of a floating dtype.
    ValueError
        For shapes or options that do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.max_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2)[0, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    options = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    return apply(ops.max_pool2d, x, **options)


def avg_pool2d(
    x: Any,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = None,
    padding: IntOrPair = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Any:
    """The mean of each window.

    Parameters
    ----------
    x : array or Tensor (N, C, H, W), float
    kernel_size : int or pair
    stride : int or pair, optional
        ``kernel_size`` by default.
    padding : int or pair
        At most half of ``kernel_size``.
    ceil_mode : bool
        Also take the last, partial window of an axis; only its valid pixels count.
    count_include_pad : bool
        Whether the padding's zeros count in the mean.

    Returns
    -------
    array or Tensor (N, C, Ho, Wo)

    Raises
    ------
    TypeError
        For arguments that are no arrays of a floating dtype.
    ValueError
        For shapes or options that do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.avg_pool2d(np.arange(9.0).reshape(1, 1, 3, 3), 2, ceil_mode=True)[0, 0]
    array([[2. , 3.5],
           [6.5, 8. ]])
    """
    return apply(
        ops.avg_pool2d,
        x,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
    )

"""Every operator on Tensors and on plain arrays: :mod:`invocupy.ops` lifted to the tape.

With a :class:`~invocupy.Tensor` among its array arguments a function returns a Tensor, through
which gradients flow; with NumPy or CuPy arrays it returns an array and records nothing.
"""

from __future__ import annotations

from typing import Any

from invocupy import ops
from invocupy.autograd import Tensor, apply
from invocupy.geometry import IntOrPair, Padding
from invocupy.ops.basic import Axis
from invocupy.ops.normalization import merged_moments
from invocupy.ops.ranks import Comm


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


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """``x @ weight.T + bias``.

    Parameters
    ----------
    x : array or Tensor (N, I), float
    weight : array or Tensor (O, I), float
    bias : array or Tensor (O,), optional

    Returns
    -------
    array or Tensor (N, O)

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.linear(np.ones((1, 3)), np.ones((2, 3)), np.array([0.0, 1.0]))
    array([[3., 4.]])
    """
    return apply(ops.linear, x, weight, bias)


def batch_moments(x: Any) -> tuple[Any, Any]:
    """Mean and biased variance of each channel over batch and image, as plain arrays.

    Parameters
    ----------
    x : array or Tensor (N, C, H, W), float

    Returns
    -------
    mean, var : arrays (C,)
        float64 for float64, else float32.

    Raises
    ------
    ValueError
        If ``x`` has another number of dimensions, or no value.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> mean, var = F.batch_moments(np.arange(4.0).reshape(2, 1, 1, 2))
    >>> float(mean[0]), float(var[0])
    (1.5, 1.25)
    """
    return ops.batch_moments(x.data if isinstance(x, Tensor) else x)


def batch_norm(
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    eps: float = 1e-5,
    *,
    moments: tuple[Any, ...] | None = None,
    residual: Any = None,
    relu: bool = False,
    comm: Comm | None = None,
) -> Any:
    """Batch normalisation, with a residual and ReLU in the same pass if asked.

    ``y = weight * (x - mean) / sqrt(var + eps) + bias``, then ``y + residual``, then
    ``max(y, 0)`` (Ioffe and Szegedy, arXiv 1502.03167).

    Parameters
    ----------
    x : array or Tensor (N, C, H, W), float
    running_mean, running_var : arrays (C,)
        The statistics when not training. Never written to: :class:`invocupy.nn.BatchNorm2d`
        keeps the running averages.
    weight, bias : array or Tensor (C,), optional
        1 and 0 by default.
    training : bool
        Use the statistics of the batch itself (the variance is the biased one), and let the
        gradient flow through them.
    eps : float
    moments : (mean, var), optional
        :func:`batch_moments` of ``x``, where the caller has them already; with ``comm`` also the
        number of values a channel, of all ranks.
    residual : array or Tensor (N, C, H, W), optional
    relu : bool
    comm : communicator, optional
        In training the batch is that of all its ranks together, of which ``x`` is this one's
        share, perhaps an empty one: all ranks must call this, forward and backward.

    Returns
    -------
    array or Tensor (N, C, H, W)

    Raises
    ------
    ValueError
        If ``x`` has another number of dimensions, or statistics are missing.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.batch_norm(np.array([-1.0, 1.0]).reshape(2, 1, 1, 1), training=True, eps=0.0).ravel()
    array([-1.,  1.])
    """
    data = x.data if isinstance(x, Tensor) else x
    if not training:
        moments = running_mean, running_var
    elif moments is None:
        moments = ops.batch_moments(data) if comm is None else merged_moments(data, comm)
    mean, var, *rest = moments
    if mean is None or var is None:
        raise ValueError("running_mean and running_var are needed when not training")
    mean, var = (s.data if isinstance(s, Tensor) else s for s in (mean, var))
    weight = weight if weight is not None else mean * 0 + 1
    bias = bias if bias is not None else mean * 0
    options = {"mean": mean, "var": var, "training": training, "eps": eps, "relu": relu}
    ranks = {"comm": comm, "count": rest[0] if rest else None}
    return apply(ops.batch_norm, x, weight, bias, residual, **options, **ranks)


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


def softmax(x: Any, axis: int = -1) -> Any:
    """``exp(x) / sum(exp(x))`` along ``axis``, shifted by the maximum so that nothing overflows.

    Parameters
    ----------
    x : array or Tensor, float
    axis : int

    Returns
    -------
    array or Tensor, shape of ``x``

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.softmax(np.array([[1000.0, 1000.0]]))
    array([[0.5, 0.5]])
    """
    return apply(ops.softmax, x, axis=axis)


def log_softmax(x: Any, axis: int = -1) -> Any:
    """The logarithm of :func:`softmax`, without its underflow.

    Parameters
    ----------
    x : array or Tensor, float
    axis : int

    Returns
    -------
    array or Tensor, shape of ``x``

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.log_softmax(np.array([[0.0, 1000.0]]))
    array([[-1000.,     0.]])
    """
    return apply(ops.log_softmax, x, axis=axis)


def cross_entropy(logits: Any, labels: Any, label_smoothing: float = 0.0) -> Any:
    """The mean over the batch of the cross-entropy between labels and softmax(logits).

    ``-sum_k target[k] * log_softmax(logits)[k]`` with ``target`` one at the label, blended with
    the uniform distribution by ``label_smoothing``. It takes *logits*: a softmax before it would
    be a second one.

    Parameters
    ----------
    logits : array or Tensor (N, K), float
    labels : integer array (N,)
        In [0, K); checked for NumPy arrays, not for CuPy's (that would wait for the GPU).
    label_smoothing : float
        In [0, 1].

    Returns
    -------
    array or Tensor ()

    Raises
    ------
    TypeError
        For labels that are no array of the library of ``logits``.
    ValueError
        For shapes, labels or a smoothing that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> round(float(F.cross_entropy(np.zeros((2, 4)), np.array([0, 3]))), 4)  # log 4
    1.3863
    """
    return apply(ops.cross_entropy, logits, labels, label_smoothing=label_smoothing)


def add(a: Any, b: Any) -> Any:
    """``a + b``, broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.add(np.ones(2), 1.0)
    array([2., 2.])
    """
    return apply(ops.add, a, b)


def subtract(a: Any, b: Any) -> Any:
    """``a - b``, broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.subtract(np.ones(2), 1.0)
    array([0., 0.])
    """
    return apply(ops.subtract, a, b)


def multiply(a: Any, b: Any) -> Any:
    """``a * b``, broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.multiply(np.ones(2), 3.0)
    array([3., 3.])
    """
    return apply(ops.multiply, a, b)


def divide(a: Any, b: Any) -> Any:
    """``a / b``, broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.divide(np.ones(2), 2.0)
    array([0.5, 0.5])
    """
    return apply(ops.divide, a, b)


def power(a: Any, b: Any) -> Any:
    """``a ** b``, broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.power(np.array([2.0, 3.0]), 2)
    array([4., 9.])
    """
    return apply(ops.power, a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger of two, broadcast; where they are equal each gets half of the gradient.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.maximum(np.array([-1.0, 2.0]), 0.0)
    array([0., 2.])
    """
    return apply(ops.maximum, a, b)


def matmul(a: Any, b: Any) -> Any:
    """``a @ b`` for 2 or more dimensions, broadcast over the leading ones.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.matmul(np.ones((1, 2)), np.ones((2, 1)))
    array([[2.]])
    """
    return apply(ops.matmul, a, b)


def negative(x: Any) -> Any:
    """``-x``.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.negative(np.ones(1))
    array([-1.])
    """
    return apply(ops.negative, x)


def absolute(x: Any) -> Any:
    """``|x|``; the gradient at 0 is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.absolute(np.array([-2.0]))
    array([2.])
    """
    return apply(ops.absolute, x)


def exp(x: Any) -> Any:
    """``e ** x``.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.exp(np.zeros(1))
    array([1.])
    """
    return apply(ops.exp, x)


def log(x: Any) -> Any:
    """The natural logarithm.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.log(np.ones(1))
    array([0.])
    """
    return apply(ops.log, x)


def sqrt(x: Any) -> Any:
    """The square root.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.sqrt(np.array([4.0]))
    array([2.])
    """
    return apply(ops.sqrt, x)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.tanh(np.zeros(1))
    array([0.])
    """
    return apply(ops.tanh, x)


def relu(x: Any) -> Any:
    """``max(x, 0)``; NaN stays NaN, the gradient at 0 is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    return apply(ops.relu, x)


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:  # noqa: A001
    """The sum over ``axis`` (all axes by default).

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.sum(np.ones((2, 3)), axis=1)
    array([3., 3.])
    """
    return apply(ops.sum, x, axis=axis, keepdims=keepdims)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The mean over ``axis`` (all axes by default).

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.mean(np.ones((2, 3)), axis=0)
    array([1., 1., 1.])
    """
    return apply(ops.mean, x, axis=axis, keepdims=keepdims)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:  # noqa: A001
    """The largest value over ``axis``; equal ones share the gradient evenly.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.max(np.array([[1.0, 3.0], [2.0, 0.0]]), axis=1)
    array([3., 2.])
    """
    return apply(ops.max, x, axis=axis, keepdims=keepdims)


def reshape(x: Any, shape: tuple[int, ...]) -> Any:
    """The same elements in another shape; one size may be -1.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.reshape(np.zeros((2, 3)), (3, -1)).shape
    (3, 2)
    """
    return apply(ops.reshape, x, shape=shape)


def flatten(x: Any, start: int = 1) -> Any:
    """All axes from ``start`` on joined into one; the batch axis stays by default.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.flatten(np.zeros((2, 3, 4))).shape
    (2, 12)
    """
    size = 1
    for n in x.shape[start:]:
        size *= n
    return apply(ops.reshape, x, shape=(*x.shape[:start], size))


def transpose(x: Any, axes: tuple[int, ...] | None = None) -> Any:
    """The axes in another order (reversed by default).

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.transpose(np.zeros((2, 3, 4)), (0, 2, 1)).shape
    (2, 4, 3)
    """
    return apply(ops.transpose, x, axes=axes)


def concatenate(parts: Any, axis: int = 0) -> Any:
    """The arrays or Tensors joined along ``axis``.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.concatenate([np.zeros((1, 2)), np.ones((1, 2))]).shape
    (2, 2)
    """
    return apply(ops.concatenate, *parts, axis=axis)

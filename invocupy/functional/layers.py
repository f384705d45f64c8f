"""Linear maps, norms, and what ends in a loss."""

from __future__ import annotations

from typing import Any

from invocupy import ops
from invocupy.autograd import Tensor, apply
from invocupy.ops.normalization import merged_moments
from invocupy.ops.ranks import Comm


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
    TypeError
        For arguments that are no arrays of a floating dtype.
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
    TypeError
        For arguments that are no arrays of a floating dtype.
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
    TypeError
        For arguments that are no arrays of a floating dtype.
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


def softmax(x: Any, axis: int = -1) -> Any:
    """``exp(x) / sum(exp(x))`` along ``axis``, shifted by the maximum so that nothing overflows.

    An entry of -inf gets 0. Where all entries are -inf the result is NaN.

    Parameters
    ----------
    x : array or Tensor, float
    axis : int

    Returns
    -------
    array or Tensor, shape of ``x``

    Raises
    ------
    ValueError
        If ``x`` has no entries along ``axis``, or no such axis.

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

    An entry of -inf stays -inf. Where all entries are -inf the result is NaN.

    Parameters
    ----------
    x : array or Tensor, float
    axis : int

    Returns
    -------
    array or Tensor, shape of ``x``

    Raises
    ------
    ValueError
        If ``x`` has no entries along ``axis``, or no such axis.

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
    the uniform distribution by ``label_smoothing``; a class whose target is 0 is left out, also if
    its logit is -inf. It takes *logits*: a softmax before it would be a second one.

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

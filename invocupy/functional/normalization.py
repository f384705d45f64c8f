"""Batch normalisation: computes the statistics for the op."""

from __future__ import annotations

from typing import Any

from invocupy import ops
from invocupy.arrays import Array, namespace, on_device
from invocupy.autograd import Tensor, apply
from invocupy.ops.normalization import merged_moments
from invocupy.ops.ranks import Comm


def batch_moments(x: Array | Tensor) -> tuple[Array, Array]:
    """Mean and biased variance of each channel over batch and image, as plain arrays.

    Parameters
    ----------
    x : array or Tensor (N, C, *S), float
        With any number of spatial axes, also none.

    Returns
    -------
    mean, var : arrays (C,)
        float64 for float64, else float32.

    Raises
    ------
    TypeError
        For arguments that are not floating-point arrays.
    ValueError
        If ``x`` has fewer than two dimensions, or no value.

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
    x: Array | Tensor,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | Tensor | None = None,
    bias: Array | Tensor | None = None,
    training: bool = False,
    eps: float = 1e-5,
    *,
    moments: tuple[Any, ...] | None = None,
    residual: Array | Tensor | None = None,
    relu: bool = False,
    comm: Comm | None = None,
) -> Any:
    """Batch normalisation, optionally with a residual and ReLU in the same pass.

    ``y = weight * (x - mean) / sqrt(var + eps) + bias``, then ``y + residual``, then
    ``max(y, 0)`` (Ioffe and Szegedy, arXiv 1502.03167).

    Parameters
    ----------
    x : array or Tensor (N, C, *S), float
        With any number of spatial axes, also none.
    running_mean, running_var : arrays (C,)
        The statistics when not training. They are not modified: :class:`invocupy.nn.BatchNorm2d`
        updates the running averages.
    weight, bias : array or Tensor (C,), optional
        1 and 0 by default.
    training : bool
        Use the statistics of the batch itself (with the biased variance), and differentiate through
        them.
    eps : float
        Added to the variance.
    moments : (mean, var), optional
        :func:`batch_moments` of ``x``, if already computed; with ``comm`` also the number of values
        per channel, of all ranks.
    residual : array or Tensor (N, C, *S), optional
        Added to the result.
    relu : bool
        Whether a ReLU follows.
    comm : communicator, optional
        In training the batch is that of all ranks together, and ``x`` is the share of this rank,
        which may be empty. All ranks must call this function, forward and backward.

    Returns
    -------
    array or Tensor (N, C, *S)

    Raises
    ------
    TypeError
        For arguments that are not floating-point arrays.
    ValueError
        If ``x`` has fewer than two dimensions, or statistics are missing.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import functional as F
    >>> F.batch_norm(np.array([-1.0, 1.0]).reshape(2, 1, 1, 1), training=True, eps=0.0).ravel()
    array([-1.,  1.])
    """
    if not training:
        moments = running_mean, running_var
    elif moments is None:
        data = x.data if isinstance(x, Tensor) else x
        moments = ops.batch_moments(data) if comm is None else merged_moments(data, comm)
    mean, var, *rest = moments
    if mean is None or var is None:
        raise ValueError("running_mean and running_var are needed when not training")
    mean, var = (s.data if isinstance(s, Tensor) else s for s in (mean, var))
    with on_device(mean):
        weight = weight if weight is not None else namespace(mean).ones_like(mean)
        bias = bias if bias is not None else namespace(mean).zeros_like(mean)
    options = {"mean": mean, "var": var, "training": training, "eps": eps, "relu": relu}
    ranks = {"comm": comm, "count": rest[0] if rest else None}
    return apply(ops.batch_norm, x, weight, bias, residual, **options, **ranks)

"""Softmax and cross-entropy, shifted by the maximum so that nothing overflows.

Half types are computed in float32. An entry of -inf has the probability 0; where all entries are
-inf there is no distribution, and its probabilities are NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from invocupy.arrays import Array, is_cupy, namespace, wide
from invocupy.geometry import number
from invocupy.ops.declaration import Result, no_gradient, op
from invocupy.ops.reductions import check_some, total


@op()
def softmax(x: Array, axis: int = -1) -> Result:
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

    >>> F.softmax(np.array([[1000.0, 1000.0]]))
    array([[0.5, 0.5]])
    """
    shifted = _shifted(x, axis)
    exact = namespace(x).exp(shifted)
    exact /= total(exact, axis, keepdims=True)
    value = _as(x, exact)

    def vjp(grad: Array) -> Any:
        share = grad * value
        return _as(x, value * (grad - total(share, axis, keepdims=True)))

    return value, (vjp,)


@op()
def log_softmax(x: Array, axis: int = -1) -> Result:
    """The logarithm of :func:`softmax`, without its underflow.

    An entry of -inf stays -inf. Where all entries are -inf the result is NaN.

    Parameters
    ----------
    x, axis
        As in :func:`softmax`, which raises the same.

    Returns
    -------
    array or Tensor, shape of ``x``

    >>> F.log_softmax(np.array([[0.0, 1000.0]]))
    array([[-1000.,     0.]])
    """
    value = _as(x, _log_softmax(x, axis))

    def vjp(grad: Array) -> Any:
        return _as(x, grad - namespace(x).exp(value) * total(grad, axis, keepdims=True))

    return value, (vjp,)


@op()
def cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Result:
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

    >>> round(float(F.cross_entropy(np.zeros((2, 4)), np.array([0, 3]))), 4)  # log 4
    1.3863
    """
    xp = namespace(logits)
    if not isinstance(labels, xp.ndarray):
        raise TypeError(
            f"labels must be a {'CuPy' if is_cupy(logits) else 'NumPy'} array like logits, "
            f"got {type(labels).__name__}: convert them with asarray"
        )
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"logits must be (N, K) floats and labels (N,) integers, "
            f"got {logits.shape} and {labels.shape} of {labels.dtype}: give the number of the "
            "class of each sample (of one-hot rows, labels.argmax(axis=1))"
        )
    smoothing = number("label_smoothing", label_smoothing, 0, 1)
    count, classes = logits.shape
    # On the GPU this check would wait for the device in every step.
    if not is_cupy(labels) and count and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"labels must be in [0, {classes}), got {labels.min()} to {labels.max()}")
    log_p = _log_softmax(logits, 1)
    rows, off = xp.arange(count), smoothing / classes
    # not 0 times what may be -inf
    each = xp.zeros(count, log_p.dtype)
    if smoothing < 1:
        each = (smoothing - 1.0) * log_p[rows, labels]
    if off:
        each -= off * log_p.sum(axis=1)
    value = _as(logits, xp.asarray(each.sum() / max(count, 1)))

    def vjp(grad: Array) -> Any:
        result = xp.exp(log_p) - off
        result[rows, labels] -= 1.0 - smoothing
        result *= grad.astype(wide(grad.dtype) or grad.dtype, copy=False) / max(count, 1)
        return _as(logits, result)

    return value, (vjp, no_gradient("labels"))


def _shifted(x: Array, axis: int) -> Any:
    """``x - max(x)``, in float32 for half types."""
    check_some(x, axis)
    x = x.astype(wide(x.dtype) or x.dtype, copy=False)
    with np.errstate(over="ignore"):  # further apart than a number can say: -inf, probability 0
        return x - x.max(axis=axis, keepdims=True)


def _log_softmax(x: Array, axis: int) -> Any:
    xp = namespace(x)
    shifted = _shifted(x, axis)
    return shifted - xp.log(total(xp.exp(shifted), axis, keepdims=True))


def _as(x: Array, value: Any) -> Any:
    """``value`` in the dtype of ``x`` for half types; -inf for the logarithms past its range."""
    if not wide(x.dtype):
        return value
    with np.errstate(over="ignore"):
        return value.astype(x.dtype, copy=False)

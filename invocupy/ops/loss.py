"""Softmax and cross-entropy, shifted by the maximum so that nothing overflows.

Half types are computed in float32. An entry of -inf has the probability 0; where all entries are
-inf there is no distribution, and its probabilities are NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from invocupy.arrays import is_cupy, namespace, wide
from invocupy.geometry import number
from invocupy.ops.basic import Result, check_some, total


def softmax(x: Any, axis: int = -1) -> Result:
    """``exp(x) / sum exp(x)``."""
    shifted = _shifted(x, axis)
    exact = namespace(x).exp(shifted)
    exact /= total(exact, axis, keepdims=True)
    value = _as(x, exact)

    def partial(grad: Any) -> Any:
        share = grad * value
        return _as(x, value * (grad - total(share, axis, keepdims=True)))

    return value, (partial,)


def log_softmax(x: Any, axis: int = -1) -> Result:
    """``x - log sum exp(x)``."""
    value = _as(x, _log_softmax(x, axis))

    def partial(grad: Any) -> Any:
        return _as(x, grad - namespace(x).exp(value) * total(grad, axis, keepdims=True))

    return value, (partial,)


def cross_entropy(logits: Any, labels: Any, *, label_smoothing: float = 0.0) -> Result:
    """The mean over the batch of ``-sum_k target[k] * log_softmax(logits)[k]``.

    ``target`` is 1 at the label, blended with the uniform distribution by ``label_smoothing``.
    Classes whose target is 0 are left out.
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
    rows = xp.arange(count)
    off = smoothing / classes if classes else 0.0
    if smoothing < 1:
        each = (smoothing - 1.0) * log_p[rows, labels]
    else:
        each = xp.zeros(count, log_p.dtype)
    if off:
        each -= off * log_p.sum(axis=1)
    value = _as(logits, xp.asarray(each.sum() / max(count, 1)))

    def partial(grad: Any) -> Any:
        result = xp.exp(log_p) - off
        result[rows, labels] -= 1.0 - smoothing
        result *= grad.astype(wide(grad.dtype) or grad.dtype, copy=False) / max(count, 1)
        return _as(logits, result)

    def no_partial(grad: Any) -> Any:
        raise TypeError("labels have no gradient")

    return value, (partial, no_partial)


def _shifted(x: Any, axis: int) -> Any:
    """``x - max(x)``, in float32 for half types."""
    check_some(x, axis)
    x = x.astype(wide(x.dtype) or x.dtype, copy=False)
    with np.errstate(over="ignore"):  # further apart than a number can say: -inf, probability 0
        return x - x.max(axis=axis, keepdims=True)


def _log_softmax(x: Any, axis: int) -> Any:
    xp = namespace(x)
    shifted = _shifted(x, axis)
    return shifted - xp.log(total(xp.exp(shifted), axis, keepdims=True))


def _as(x: Any, value: Any) -> Any:
    """``value`` in the dtype of ``x`` for half types; -inf for the logarithms past its range."""
    if not wide(x.dtype):
        return value
    with np.errstate(over="ignore"):
        return value.astype(x.dtype, copy=False)

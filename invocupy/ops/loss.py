"""Softmax and cross-entropy, shifted by the maximum so that nothing overflows."""

from __future__ import annotations

from typing import Any

from invocupy.arrays import is_cupy, namespace
from invocupy.ops.basic import Result


def softmax(x: Any, axis: int = -1) -> Result:
    """``exp(x) / sum exp(x)``."""
    value = _softmax(x, axis)

    def partial(grad: Any) -> Any:
        return value * (grad - (grad * value).sum(axis=axis, keepdims=True))

    return value, (partial,)


def log_softmax(x: Any, axis: int = -1) -> Result:
    """``x - log sum exp(x)``."""
    xp = namespace(x)
    shifted = x - x.max(axis=axis, keepdims=True)
    value = shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))
    return value, (lambda grad: grad - xp.exp(value) * grad.sum(axis=axis, keepdims=True),)


def cross_entropy(logits: Any, labels: Any, *, label_smoothing: float = 0.0) -> Result:
    """The mean over the batch of ``-sum_k target[k] * log_softmax(logits)[k]``.

    ``target`` is 1 at the label, blended with the uniform distribution by ``label_smoothing``.
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
            f"got {logits.shape} and {labels.shape} of {labels.dtype}"
        )
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    count, classes = logits.shape
    # On the GPU this check would wait for the device in every step.
    if not is_cupy(labels) and count and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"labels must be in [0, {classes}), got {labels.min()} to {labels.max()}")
    log_p, _ = log_softmax(logits)
    rows = xp.arange(count)
    off = label_smoothing / classes if classes else 0.0
    picked = log_p[rows, labels]
    each = (label_smoothing - 1.0) * picked - off * log_p.sum(axis=1)
    value = xp.asarray(each.sum() / max(count, 1))

    def partial(grad: Any) -> Any:
        result = xp.exp(log_p) - off
        result[rows, labels] -= 1.0 - label_smoothing
        result *= grad / count
        return result

    def no_partial(grad: Any) -> Any:
        raise TypeError("labels have no gradient")

    return value, (partial, no_partial)


def _softmax(x: Any, axis: int) -> Any:
    value = namespace(x).exp(x - x.max(axis=axis, keepdims=True))
    value /= value.sum(axis=axis, keepdims=True)
    return value

"""Softmax and cross-entropy, shifted by the maximum so that nothing overflows.

Half types are computed in float32. An entry of -inf has the probability 0; where all entries are
-inf there is no distribution, and its probabilities are NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from invocupy.arrays import FLOATS, Array, check, is_cupy, namespace, wide
from invocupy.geometry import number
from invocupy.messages import shown
from invocupy.ops.declaration import Result, no_gradient, op
from invocupy.ops.reductions import check_some, masked, total


@op(reads="value")
def softmax(x: Array, axis: int = -1) -> Result:
    """``exp(x) / sum(exp(x))`` along ``axis``, shifted by the maximum so that nothing overflows.

    An entry of -inf gets 0. Where all entries are -inf the result is NaN.

    Parameters
    ----------
    x : array or Tensor, float
        Of any shape.
    axis : int
        The axis of the classes.

    Returns
    -------
    array or Tensor, shape of ``x``

    Raises
    ------
    TypeError
        For arguments that are not floating-point arrays.
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


@op(reads="value")
def log_softmax(x: Array, axis: int = -1) -> Result:
    """The logarithm of :func:`softmax`, without its underflow.

    An entry of -inf stays -inf. Where all entries are -inf the result is NaN.

    Parameters
    ----------
    x, axis
        As in :func:`softmax`, with the same errors.

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


@op(reads="labels")
def cross_entropy(
    logits: Array,
    labels: Array,
    label_smoothing: float = 0.0,
    *,
    weight: Array | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
) -> Result:
    """The cross-entropy between labels and softmax(logits), as PyTorch's.

    ``-sum_k weight[k] * target[k] * log_softmax(logits)[k]`` with ``target`` one at the label, or
    the soft labels, blended with the uniform distribution by ``label_smoothing``. A class whose
    weight or target is 0 is left out, also if its logit is -inf. It expects *logits* and includes
    the softmax.

    ``"mean"`` divides the sum by the sum of ``weight[label]`` over the labels that count; of soft
    labels by their number. It is NaN where no label counts (the gradient is 0 then), and 0 for an
    empty batch.

    Parameters
    ----------
    logits : array or Tensor (N, K, *S), float
        A score for each class.
    labels : array or Tensor
        Integers (N, *S) in [0, K); checked for NumPy arrays, not for CuPy's (that would wait for
        the GPU). Or soft labels: floats of the shape of ``logits``, the share of each class, which
        have a gradient; they are computed with in the dtype of ``logits``.
    label_smoothing : float
        In [0, 1].
    weight : array (K,), float, optional
        Of the classes, from 0 on; a constant, without a gradient.
    ignore_index : int, optional
        Labels of this number do not count. None: all count, which saves a GPU some launches.
    reduction : str
        ``"mean"``, ``"sum"``, or ``"none"`` for a loss (N, *S) of each label.

    Returns
    -------
    array or Tensor () or (N, *S)

    Raises
    ------
    TypeError
        For logits that are not a floating-point array, and labels or a weight that are not an array
        of its library.
    ValueError
        For shapes, labels, weights or options that do not fit, or an ``ignore_index`` from 0 on
        with soft labels.

    >>> round(float(F.cross_entropy(np.zeros((2, 4)), np.array([0, 3]))), 4)  # log 4
    1.3863
    >>> pixels = np.zeros((1, 3, 2, 2)), np.array([[[0, 1], [2, -100]]])  # of an image
    >>> F.cross_entropy(*pixels, reduction="none").round(4)
    array([[[1.0986, 1.0986],
            [1.0986, 0.    ]]])
    """
    _check_loss(logits, labels, weight, ignore_index, reduction)
    xp, smoothing = namespace(logits), number("label_smoothing", label_smoothing, 0, 1)
    classes, soft = logits.shape[1], labels.ndim == logits.ndim
    log_p = _log_softmax(logits, 1).reshape(len(logits), classes, -1 if logits.size else 0)
    exact, count, off = log_p.dtype, log_p.size // classes, smoothing / classes
    factors: Any = None if weight is None else weight.astype(exact)[:, None]
    own: Any = None  # weights of the labels
    counted = False
    kept: Any = None  # which labels count, where some may not
    divisor: Any = max(count, 1) if reduction == "mean" else 1
    if soft:
        target = (1.0 - smoothing) * labels.reshape(log_p.shape).astype(exact) + off
        target = target if factors is None else target * factors
        each, whole = -total(_times(log_p, target), 1), total(target, 1, keepdims=True)
    else:
        labels = labels.reshape(len(log_p), log_p.shape[2])
        kept = _kept(labels, _labelled(logits), classes, ignore_index)
        if kept is not None:
            labels = xp.where(kept, labels, 0)
        at = xp.arange(len(log_p))[:, None], labels, xp.arange(log_p.shape[2])
        own = None if factors is None else factors[labels, 0]
        each = xp.zeros(labels.shape, exact)
        if smoothing < 1:  # not 0 times what may be -inf
            each = (smoothing - 1.0) * (log_p[at] if own is None else _times(log_p[at], own))
        if off:
            each -= off * total(log_p if factors is None else _times(log_p, factors), 1)
        if kept is not None:
            each = masked(each, kept)
        if counted := bool(reduction == "mean" and count and not (own is kept is None)):
            counts: Any = kept if own is None else own if kept is None else own * kept
            divisor = counts.sum(dtype=exact)
    if counted:
        with np.errstate(invalid="ignore"):
            if own is not None:  # labels of weight 0 do not count, smoothed or not
                each = each * (divisor != 0)
            value = each.sum() / divisor
    else:
        value = each.sum() / divisor if reduction != "none" else each.reshape(_labelled(logits))

    def scaled(grad: Array, result: Any) -> Any:
        """``result`` (N, K, S) times the gradient of each label's loss, 0 where none counts."""
        grad = grad.astype(exact, copy=False)
        grad = grad.reshape(len(log_p), 1, log_p.shape[2]) if reduction == "none" else grad
        if kept is not None:
            result = masked(result, kept[:, None])
        result *= grad / (xp.where(divisor == 0, np.inf, divisor) if counted else divisor)
        return result.reshape(logits.shape)

    def vjp(grad: Array) -> Any:
        result = xp.exp(log_p)
        if soft:
            result = result * whole - target
        elif own is None:
            result -= off
            result[at] -= 1.0 - smoothing
        else:
            result *= (1.0 - smoothing) * own[:, None] + off * total(factors)
            result -= off * factors
            result[at] -= (1.0 - smoothing) * own
        return _as(logits, scaled(grad, result))

    def vjp_labels(grad: Array) -> Any:
        slope = _times(log_p, smoothing - 1.0)
        slope = slope if factors is None else _times(slope, factors)
        return scaled(grad, slope).astype(labels.dtype, copy=False)

    return _as(logits, xp.asarray(value)), (vjp, vjp_labels if soft else no_gradient("labels"))


def _labelled(logits: Array) -> tuple[int, ...]:
    """The shape of integer labels."""
    return (*logits.shape[:1], *logits.shape[2:])


def _times(array: Any, factor: Any) -> Any:
    """``array * factor``, 0 where the factor is 0, whatever the array has there."""
    return masked(array, factor != 0) * factor


def _check_loss(
    logits: Array, labels: Array, weight: Array | None, ignore_index: int | None, reduction: str
) -> None:
    """Refuse what :func:`cross_entropy` cannot take, but for the values of labels."""
    check(logits=logits)
    library = "CuPy" if is_cupy(logits) else "NumPy"
    for name, array in (("labels", labels), ("weight", weight))[: 1 if weight is None else 2]:
        known = isinstance(array, namespace(logits).ndarray)
        if not known or isinstance(array, np.ma.MaskedArray):
            raise TypeError(
                f"{name} must be a {library} array like logits, "
                f"got {type(array).__name__}: convert them with asarray"
            )
    hard = logits.ndim >= 2 and labels.shape == _labelled(logits) and labels.dtype.kind in "iu"
    soft = logits.ndim >= 2 and labels.shape == logits.shape and labels.dtype.name in FLOATS
    if not (hard or soft):
        raise ValueError(
            "logits must be (N, K) floats and labels (N,) integers, both with the same axes behind "
            "if there are more, or labels floats of the shape of logits, "
            f"got {logits.shape} and {labels.shape} of {labels.dtype}: give the number of the "
            "class of each sample (of one-hot rows, labels.argmax(axis=1))"
        )
    if ignore_index is not None:
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, np.integer)):
            raise ValueError(f"ignore_index must be an integer or None, got {shown(ignore_index)}")
        if soft and ignore_index >= 0:
            raise ValueError(
                f"ignore_index must be below 0 or None for soft labels, got {ignore_index}: "
                "labels of shares 0 do not count"
            )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {shown(reduction)}")
    if weight is None:
        return
    if weight.shape != logits.shape[1:2] or weight.dtype.name not in FLOATS:
        raise ValueError(
            f"weight must be floats of shape {logits.shape[1:2]}, one a class, "
            f"got {weight.shape} of {weight.dtype}"
        )
    if not is_cupy(weight) and not ((weight >= 0) & np.isfinite(weight)).all():
        raise ValueError(f"weight must be finite numbers >= 0, got {shown(weight)}")


def _kept(labels: Array, shape: tuple[int, ...], classes: int, ignored: int | None) -> Any:
    """Which labels count, None for all; ValueError for one out of range, at its place in ``shape``.

    On the GPU the look at the labels would wait for the device in every step.
    """
    on_host, outside = not is_cupy(labels), ignored is None or not 0 <= ignored < classes
    if on_host and outside and (not labels.size or 0 <= labels.min() <= labels.max() < classes):
        return None  # nearly always, so the rest is not even looked at
    limits = np.iinfo(labels.dtype)
    if ignored is not None and not limits.min <= ignored <= limits.max:
        ignored = None
    if on_host:
        wrong = (labels < 0) | (labels >= classes)
        if ignored is not None:
            wrong &= labels != ignored
        if wrong.any():
            first = int(np.argmax(wrong))
            place = ", ".join(str(i) for i in np.unravel_index(first, shape))
            known = labels if ignored is None else labels[labels != ignored]
            raise ValueError(
                f"labels must be in [0, {classes}), got {known.min()} to {known.max()}: "
                f"labels[{place}] is {labels.flat[first]}"
                + ("" if ignored is None else f" (only ignore_index {ignored} may be outside)")
            )
    return None if ignored is None else labels != ignored


def _shifted(x: Array, axis: int) -> Any:
    """``x - max(x)``, in float32 for half types."""
    check(x=x)  # differences of integers would wrap around
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

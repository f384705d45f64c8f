"""A 1x1 convolution from few channels to many, the norm of its result and a ReLU."""

from __future__ import annotations

from typing import Any

from invocupy.arrays import Array, namespace, widen


def forward(
    x: Array, weight: Array, bias: Array | None, gamma: Array, beta: Array, eps: float, relu: bool,
    out: Array, mean: Array, var: Array, kept: Array,
) -> None:  # fmt: skip
    xp, c, weight = namespace(x), x.shape[1], widen(weight)
    center, covariance, folded = _parts(kept, c)
    center[...] = widen(x).mean(axis=(0, 2))
    apart = widen(x) - center[:, None]
    covariance[...] = (apart @ apart.swapaxes(1, 2)).mean(axis=0) / x.shape[2]
    mean[...] = weight @ center + (0 if bias is None else widen(bias))
    var[...] = ((weight @ covariance) * weight).sum(axis=1)
    folded[:, :c] = (widen(gamma) / xp.sqrt(var + eps))[:, None] * weight
    folded[:, c] = widen(beta)
    z = _normed(apart, folded)
    out[...] = xp.maximum(z, 0) if relu else z


def backward(
    grad: Array, x: Array, weight: Array, gamma: Array, kept: Array, eps: float, relu: bool,
    grad_x: Array, grad_weight: Array, grad_bias: Array, grad_gamma: Array, grad_beta: Array,
) -> None:  # fmt: skip
    xp, c, weight = namespace(x), x.shape[1], widen(weight)
    center, covariance, folded = _parts(kept, c)
    apart, h = widen(x) - center[:, None], widen(grad)
    if relu:
        h = xp.where(_normed(apart, folded).astype(x.dtype) > 0, h, h.dtype.type(0))
    total, first = h.sum(axis=(0, 2)), (h @ apart.swapaxes(1, 2)).sum(axis=0)
    scatter = weight @ covariance.T
    inverse = 1 / xp.sqrt((scatter * weight).sum(axis=1) + eps)
    scale, count = widen(gamma) * inverse, x.size // c
    total_x = (weight * first).sum(axis=1)
    slope = -scale * inverse * inverse * total_x / count
    grad_weight[...] = scale[:, None] * first + (slope * count)[:, None] * scatter
    grad_bias[...] = 0
    grad_gamma[...], grad_beta[...] = total_x * inverse, total
    by_x, by_one = weight.T @ (slope[:, None] * weight), weight.T @ (scale * total / count)
    grad_x[...] = folded[:, :c].T @ h + by_x @ apart - by_one[:, None]


def _parts(kept: Array, c: int) -> tuple[Array, Array, Array]:
    """Mean and covariance of x, and the folded weights."""
    return kept[:c], kept[c : c + c * c].reshape(c, c), kept[c + c * c :].reshape(-1, c + 1)


def _normed(apart: Array, folded: Array) -> Any:
    return folded[:, :-1] @ apart + folded[:, -1:]

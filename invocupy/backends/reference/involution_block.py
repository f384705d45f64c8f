"""A block of the article's network: perceptron, sum of involutions, and x."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from invocupy.arrays import Array, namespace
from invocupy.backends.reference import involution_sum, perceptron
from invocupy.backends.signatures import Kept, Perceptron
from invocupy.geometry import Geometry


def forward(
    x: Array, parameters: Sequence[Array], moments: Sequence[Array],
    eps: tuple[float, float, float], relu: bool, g: Geometry, out: Array,
) -> None:  # fmt: skip
    expand, offset = _fold(x, parameters[:4], moments[:2], eps[0])
    reduce, bias = _fold(x, parameters[4:8], moments[2:4], eps[1])
    project, shift = _fold(x, parameters[10:], moments[4:], eps[2])
    span, span_bias = parameters[8].reshape(len(parameters[8]), -1), parameters[9]
    xp, features, pixels = namespace(x), len(reduce), prod(g.size)
    z, shares = xp.empty((g.batch, features, pixels), x.dtype), xp.empty(g.x_shape, x.dtype)
    weights = Perceptron(expand, offset, reduce, bias, project)
    flat, flat_shares = (a.reshape(*a.shape[:2], pixels) for a in (x, shares))
    perceptron.forward(flat, weights, g.groups, z, flat_shares)
    one, zero = xp.ones(features, x.dtype), xp.zeros(features, x.dtype)
    z = z.reshape(g.batch, features, *g.size)
    involution_sum.forward(shares, z, one, zero, span, span_bias, shift, g, out)
    if relu:
        xp.maximum(out, 0, out=out)
    out += x


def train(
    x: Array, parameters: Sequence[Array], eps: tuple[float, float, float], relu: bool,
    g: Geometry, out: Array, kept: Kept,
) -> None:  # fmt: skip
    xp, parts = namespace(x), _statistics(x, parameters, kept)
    expand, bias, _, _, reduce, reduce_bias, _, _, span, span_bias, project, shift = (
        p.reshape(len(p), -1) for p in parameters[:12]
    )
    flat = x.reshape(*x.shape[:2], -1)
    parts[0][...] = flat.mean(axis=(0, 2))
    apart = flat - parts[0][:, None]
    parts[1][...] = ((apart @ apart.swapaxes(1, 2)).mean(axis=0) / flat.shape[2]).ravel()
    hidden = expand @ flat + bias
    _moments(hidden, *parts[2:4])
    hidden = xp.maximum(_normed(hidden, parameters[2:4], parts[2:4], eps[0]), 0)
    eye, zero = xp.eye(len(expand), dtype=x.dtype), xp.zeros(len(expand), x.dtype)
    weights = Perceptron(eye, zero, reduce, reduce_bias[:, 0], project)
    reduced, shares = (a.reshape(*a.shape[:2], -1) for a in (kept.reduced, kept.shares))
    perceptron.forward(hidden, weights, g.groups, reduced, shares)
    _moments(reduced, *parts[4:6])
    involution_sum.forward(
        kept.shares, kept.reduced, *_scale_shift(parameters[6:8], parts[4:6], eps[1]), span,
        span_bias[:, 0], shift[:, 0], g, kept.projected,
    )  # fmt: skip
    projected = kept.projected.reshape(flat.shape)
    _moments(projected, *parts[6:])
    value = _normed(projected, parameters[12:], parts[6:], eps[2])
    out[...] = x + (xp.maximum(value, 0) if relu else value).reshape(x.shape)


def gradients(
    grad: Array, x: Array, parameters: Sequence[Array], kept: Kept,
    eps: tuple[float, float, float], relu: bool, g: Geometry, grad_x: Array,
    grads: Sequence[Array],
) -> None:  # fmt: skip
    xp, parts = namespace(x), _statistics(x, parameters, kept)
    expand, bias, _, _, reduce, _, _, _, span, span_bias, project = (
        p.reshape(len(p), -1) for p in parameters[:11]
    )
    flat, reduced, projected, passed = (
        a.reshape(*a.shape[:2], -1) for a in (x, kept.reduced, kept.projected, grad)
    )
    if relu:
        passed = passed * (_normed(projected, parameters[12:], parts[6:], eps[2]) > 0)
    back = _norm_back(passed, projected, parameters[12], parts[6:], eps[2], grads[12:])
    grad_shares, grad_normed = xp.empty_like(kept.shares), xp.empty_like(kept.reduced)
    grad_span = xp.empty(span.shape, x.dtype)
    scale_shift = _scale_shift(parameters[6:8], parts[4:6], eps[1])
    involution_sum.backward(
        back.reshape(x.shape), kept.shares, kept.reduced, *scale_shift, span, span_bias[:, 0], g,
        grad_shares, grad_normed, grad_span, grads[9],
    )  # fmt: skip
    grads[8][...] = grad_span.reshape(grads[8].shape)
    back = _norm_back(
        grad_normed.reshape(reduced.shape), reduced, parameters[6], parts[4:6], eps[1], grads[6:8]
    )
    before = expand @ flat + bias
    normed = _normed(before, parameters[2:4], parts[2:4], eps[0])
    eye, zero = xp.eye(len(expand), dtype=x.dtype), xp.zeros(len(expand), x.dtype)
    weights = Perceptron(eye, zero, reduce, xp.zeros(len(reduce), x.dtype), project)
    found = Perceptron(*(xp.empty_like(weight) for weight in weights))
    grad_hidden = xp.empty_like(normed)
    perceptron.backward(
        back, grad_shares.reshape(*grad_shares.shape[:2], -1), normed, weights, g.groups,
        grad_hidden, found,
    )  # fmt: skip
    back = _norm_back(grad_hidden, before, parameters[2], parts[2:4], eps[0], grads[2:4])
    for i, value in ((0, (back @ flat.swapaxes(1, 2)).sum(axis=0)), (4, found.dense)):
        grads[i][...] = value.reshape(grads[i].shape)
    grads[10][...] = found.grouped.reshape(grads[10].shape)
    for i in (1, 5, 11):
        grads[i][...] = 0
    grad_x[...] = grad + (expand.T @ back).reshape(x.shape)


def running(stats: Array, old: Any, momenta: Any, unbiased: float, new: Any) -> None:
    channels, reduced, hidden = (len(old[i][0]) for i in (2, 1, 0))
    parts = [stats[part] for part in Kept.statistics(channels, hidden, reduced)[2:]]
    for i, momentum in enumerate(momenta):
        batch = parts[2 * i], parts[2 * i + 1] * unbiased
        for k in (0, 1):
            new[i][k][...] = (1 - momentum) * old[i][k] + momentum * batch[k]
        new[i][2][...] = old[i][2] + 1


def _statistics(x: Array, parameters: Sequence[Array], kept: Kept) -> list[Array]:
    parts = Kept.statistics(x.shape[1], len(parameters[0]), len(parameters[4]))
    return [kept.stats[part] for part in parts]


def _moments(z: Array, mean: Array, var: Array) -> None:
    mean[...] = z.mean(axis=(0, 2))
    var[...] = z.var(axis=(0, 2))


def _scale_shift(norm: Any, moments: Any, eps: float) -> tuple[Array, Array]:
    """A norm as ``scale * z + shift``."""
    (gamma, beta), (mean, var) = norm, moments
    scale = gamma / (var + eps) ** 0.5
    return scale, beta - mean * scale


def _normed(z: Array, norm: Any, moments: Any, eps: float) -> Any:
    scale, shift = _scale_shift(norm, moments, eps)
    return scale[:, None] * z + shift[:, None]


def _norm_back(grad: Array, z: Array, gamma: Array, moments: Any, eps: float, grads: Any) -> Any:
    """The gradient of z, through its moments too; those of the norm's parameters go to grads."""
    mean, var = moments
    inverse = (var + eps) ** -0.5
    unit = (z - mean[:, None]) * inverse[:, None]
    grads[0][...], grads[1][...] = (grad * unit).sum(axis=(0, 2)), grad.sum(axis=(0, 2))
    count = z.shape[0] * z.shape[2]
    rest = (grads[1][:, None] + unit * grads[0][:, None]) / count
    return (gamma * inverse)[:, None] * (grad - rest)


def _fold(x: Array, convolution: Any, moments: Any, eps: float) -> tuple[Array, Array]:
    """Weight and bias of a 1x1 convolution with the norm after it, in the dtype of x."""
    (weight, bias, scale, shift), (mean, var) = convolution, moments
    factor = scale / (var.astype("float64") + eps) ** 0.5
    folded = factor[:, None] * weight.reshape(len(weight), -1), factor * (bias - mean) + shift
    return folded[0].astype(x.dtype), folded[1].astype(x.dtype)

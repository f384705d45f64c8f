"""A block of the article's network in evaluation: perceptron, sum of involutions, and x."""

from __future__ import annotations

from math import prod
from typing import Any

from invocupy.arrays import Array, namespace
from invocupy.backends.reference import involution_sum, perceptron
from invocupy.backends.signatures import Perceptron
from invocupy.geometry import Geometry


def forward(
    x: Array, parameters: tuple[Array, ...], moments: tuple[Array, ...],
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


def _fold(x: Array, convolution: Any, moments: Any, eps: float) -> tuple[Array, Array]:
    """Weight and bias of a 1x1 convolution with the norm after it, in the dtype of x."""
    (weight, bias, scale, shift), (mean, var) = convolution, moments
    factor = scale / (var.astype("float64") + eps) ** 0.5
    folded = factor[:, None] * weight.reshape(len(weight), -1), factor * (bias - mean) + shift
    return folded[0].astype(x.dtype), folded[1].astype(x.dtype)

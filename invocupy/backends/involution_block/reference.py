"""The block in plain array code, for NumPy and CuPy: the specification."""

from __future__ import annotations

from typing import Any

from invocupy.arrays import namespace
from invocupy.backends.involution_sum import reference as involution_sum
from invocupy.backends.perceptron import reference as perceptron
from invocupy.geometry import Geometry


def forward(
    x: Any, parameters: tuple[Any, ...], moments: tuple[Any, ...], eps: tuple[float, float, float],
    relu: bool, g: Geometry, out: Any,
) -> None:  # fmt: skip
    """The perceptron, the sum of involutions, and x."""
    expand, offset = _fold(x, parameters[:4], moments[:2], eps[0])
    reduce, bias = _fold(x, parameters[4:8], moments[2:4], eps[1])
    project, shift = _fold(x, parameters[10:], moments[4:], eps[2])
    span, span_bias = parameters[8].reshape(len(parameters[8]), -1), parameters[9]
    xp, features, pixels = namespace(x), len(reduce), g.height * g.width
    z, shares = xp.empty((g.batch, features, pixels), x.dtype), xp.empty(g.x_shape, x.dtype)
    perceptron.forward(
        x.reshape(*x.shape[:2], pixels), expand, offset, reduce, bias, project, g.groups, z,
        shares.reshape(g.batch, g.channels, pixels),
    )  # fmt: skip
    one, zero = xp.ones(features, x.dtype), xp.zeros(features, x.dtype)
    z = z.reshape(g.batch, features, g.height, g.width)
    involution_sum.forward(shares, z, one, zero, span, span_bias, shift, g, out)
    if relu:
        xp.maximum(out, 0, out=out)
    out += x


def _fold(x: Any, convolution: Any, moments: Any, eps: float) -> tuple[Any, Any]:
    """Weight and bias of a 1x1 convolution with the norm after it, in the dtype of x."""
    (weight, bias, scale, shift), (mean, var) = convolution, moments
    factor = scale / (var.astype("float64") + eps) ** 0.5
    folded = factor[:, None] * weight.reshape(len(weight), -1), factor * (bias - mean) + shift
    return folded[0].astype(x.dtype), folded[1].astype(x.dtype)

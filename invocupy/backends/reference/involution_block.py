"""A block of the article's network whose norms have given moments, as in evaluation, in one pass.

``parameters`` are the 14 of :func:`invocupy.ops.block.involution_block`, in its order: 1x1
convolutions C to D, D to F, F to G*Kh*Kw and D to C channels, and three norms; ``moments`` are mean
and variance of each norm, ``eps`` their three numbers. The norms fold into the weights before them,
so that what is computed on x (N, C, H, W) is

::

    h      = max(0, expand @ x + offset)                      (N, D, H, W)
    kernel = span @ max(0, reduce @ h + bias) + span_bias     as (N, G, Kh, Kw, H, W)
    s[n,j*C+o] = sum over channels d of group j of project[o,d] * h[n,d]

    forward(x, parameters, moments, eps, relu, g, out)
                    out[n,o] = x[n,o] + act(shift[o] + sum over groups j of
                               involution of s[n,j*C+o] with kernel[n,j])

``act`` is a ReLU with ``relu``, else nothing; ``g`` is the geometry of the involution of s: stride
1, and a padding that keeps the size.
"""

from __future__ import annotations

from typing import Any

from invocupy.arrays import namespace
from invocupy.backends.contract import Perceptron
from invocupy.backends.reference import involution_sum, perceptron
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
        x.reshape(*x.shape[:2], pixels), Perceptron(expand, offset, reduce, bias, project),
        g.groups, z, shares.reshape(g.batch, g.channels, pixels),
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

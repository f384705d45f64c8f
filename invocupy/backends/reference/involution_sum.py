"""Fused involution, its results summed over the groups."""

from __future__ import annotations

from typing import Any

from invocupy.arrays import Array, namespace
from invocupy.backends.reference import involution as one
from invocupy.geometry import Geometry


def forward(
    x: Array, z: Array, scale: Array, shift: Array, weight: Array, bias: Array, offset: Array,
    g: Geometry, out: Array,
) -> None:  # fmt: skip
    split = namespace(x).empty(g.x_shape, x.dtype)
    one.fused_forward(x, _features(z, scale, shift), weight, bias, g, split)
    out[...] = _by_group(split, g).sum(axis=1) + offset[:, None, None]


def backward(
    grad: Array, x: Array, z: Array, scale: Array, shift: Array, weight: Array, bias: Array,
    g: Geometry, grad_x: Array, grad_z: Array, grad_weight: Array, grad_bias: Array,
) -> None:  # fmt: skip
    """Each group's result has the gradient of the sum."""
    features, split = _features(z, scale, shift), namespace(x).empty(g.x_shape, x.dtype)
    _by_group(split, g)[...] = grad[:, None]
    one.fused_grad_x(split, features, weight, bias, g, grad_x)
    one.fused_grad_span(split, x, features, weight, g, grad_z, grad_weight, grad_bias)
    grad_z *= features > 0


def _features(z: Array, scale: Array, shift: Array) -> Any:
    return namespace(z).maximum(scale[:, None, None] * z + shift[:, None, None], 0)


def _by_group(x: Array, g: Geometry) -> Any:
    return x.reshape(g.batch, g.groups, g.channels_per_group, *g.size)

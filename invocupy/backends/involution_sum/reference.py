"""The sum of involutions in plain array code, for NumPy and CuPy: the specification."""

from __future__ import annotations

from typing import Any

from invocupy.arrays import namespace
from invocupy.backends.far import bounded
from invocupy.backends.involution import reference as one
from invocupy.geometry import Geometry


@bounded("oooowwo", "o", same=True)
def forward(
    x: Any, z: Any, scale: Any, shift: Any, weight: Any, bias: Any, offset: Any, g: Geometry,
    out: Any,
) -> None:  # fmt: skip
    """The involution with a stored kernel, then the sum."""
    split = namespace(x).empty(g.x_shape, x.dtype)
    one.fused_forward(x, _features(z, scale, shift), weight, bias, g, split)
    out[...] = _by_group(split, g).sum(axis=1) + offset[:, None, None]


@bounded("oooooww", "ooww", same=True)
def backward(
    grad: Any, x: Any, z: Any, scale: Any, shift: Any, weight: Any, bias: Any, g: Geometry,
    grad_x: Any, grad_z: Any, grad_weight: Any, grad_bias: Any,
) -> None:  # fmt: skip
    """Each group's result has the gradient of the sum."""
    xp, features = namespace(x), _features(z, scale, shift)
    split = xp.empty(g.x_shape, x.dtype)
    _by_group(split, g)[...] = grad[:, None]
    one.fused_grad_x(split, features, weight, bias, g, grad_x)
    one.fused_grad_span(split, x, features, weight, g, grad_z, grad_weight, grad_bias)
    grad_z *= features > 0


def _features(z: Any, scale: Any, shift: Any) -> Any:
    return namespace(z).maximum(scale[:, None, None] * z + shift[:, None, None], 0)


def _by_group(x: Any, g: Geometry) -> Any:
    return x.reshape(g.batch, g.groups, g.channels_per_group, g.height, g.width)

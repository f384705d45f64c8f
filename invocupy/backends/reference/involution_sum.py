"""Involution whose kernel is made on the fly, its results summed over the groups.

What a block of the article's network does after its 1x1 convolution has been moved before the
involution: x (N, G*O, H, W) holds O channels for each group, and the groups' results are added up.
The kernel is never stored; z (N, F, H, W) is what it is made from, before norm and ReLU.

::

    f[n,f,p] = max(0, scale[f] * z[n,f,p] + shift[f])
    kernel   = weight @ f + bias, as (N, G, Kh, Kw, H, W)

    forward(x, z, scale, shift, weight, bias, offset, g, out)
                    out[n,o] = offset[o] + sum over groups j of
                               involution of x[n,j*O+o] with kernel[n,j]
    backward(grad, x, z, scale, shift, weight, bias, g,
             grad_x, grad_z, grad_weight, grad_bias)
                    all gradients in one pass; grad_z is that of scale * z + shift, those of
                    parameters are float64

``g`` is the geometry of the involution of x: stride 1, and a padding that keeps the size.
"""

from __future__ import annotations

from typing import Any

from invocupy.arrays import namespace
from invocupy.backends.far import bounded
from invocupy.backends.reference import involution as one
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

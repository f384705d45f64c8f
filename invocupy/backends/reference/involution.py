"""The kernels of involution; ``g`` is a :class:`~invocupy.geometry.Geometry`.

::

    forward(x, kernel, g, out)          out[n,c,i,j] = sum_uv kernel[n,c//(C/G),u,v,i,j]
                                                       * x[n,c,i*sh+u*dh-ph,j*sw+v*dw-pw]
    grad_x(grad, kernel, g, out)        gradient of x from the gradient of the result
    grad_kernel(grad, x, g, out)        gradient of kernel
    fused_forward(x, features, weight, bias, g, out)
    fused_grad_x(grad, features, weight, bias, g, out)
    fused_grad_span(grad, x, features, weight, g, grad_features, grad_weight, grad_bias)

In the fused functions ``kernel = einsum("kf,nfij->nkij", weight, features) + bias`` reshaped to
(N, G, Kh, Kw, Ho, Wo); it is never stored whole (but in the reference).

Nothing here is fast: a direct reading of the formulas, tap by tap. Half types are computed in
float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from invocupy.arrays import namespace
from invocupy.geometry import Geometry


def forward(x: Any, kernel: Any, g: Geometry, out: Any) -> None:
    """``out = sum over taps of kernel[tap] * (x seen through the tap)``."""
    taps = _wide(kernel)
    padded = _pad(_wide(x), g)
    total = namespace(x).zeros(_grouped(g, g.out_h, g.out_w), padded.dtype)
    for u, v, seen in _taps(g):
        # (N, G, 1, Ho, Wo) * (N, G, C/G, Ho, Wo)
        total += taps[:, :, None, u, v] * padded[seen]
    out[...] = total.reshape(g.out_shape)


def grad_x(grad: Any, kernel: Any, g: Geometry, out: Any) -> None:
    """The transpose of :func:`forward` in ``x``: each tap puts its share back where it looked."""
    taps, grad = _wide(kernel), _wide(grad).reshape(_grouped(g, g.out_h, g.out_w))
    height, width = g.height + 2 * g.pad_h, g.width + 2 * g.pad_w
    padded = namespace(grad).zeros(_grouped(g, height, width), grad.dtype)
    for u, v, seen in _taps(g):
        padded[seen] += taps[:, :, None, u, v] * grad
    inner = padded[..., g.pad_h : g.pad_h + g.height, g.pad_w : g.pad_w + g.width]
    out[...] = inner.reshape(g.x_shape)


def grad_kernel(grad: Any, x: Any, g: Geometry, out: Any) -> None:
    """``out[tap] = sum over the group's channels of grad * (x seen through the tap)``."""
    grad = _wide(grad).reshape(_grouped(g, g.out_h, g.out_w))
    padded = _pad(_wide(x), g)
    for u, v, seen in _taps(g):
        out[:, :, u, v] = (grad * padded[seen]).sum(axis=2)


def fused_forward(x: Any, features: Any, weight: Any, bias: Any, g: Geometry, out: Any) -> None:
    """:func:`forward` with ``kernel = weight @ features + bias``."""
    forward(x, _span(features, weight, bias, g), g, out)


def fused_grad_x(grad: Any, features: Any, weight: Any, bias: Any, g: Geometry, out: Any) -> None:
    """:func:`grad_x` with ``kernel = weight @ features + bias``."""
    grad_x(grad, _span(features, weight, bias, g), g, out)


def fused_grad_span(
    grad: Any, x: Any, features: Any, weight: Any, g: Geometry,
    grad_features: Any, grad_weight: Any, grad_bias: Any,
) -> None:  # fmt: skip
    """:func:`grad_kernel` pushed through the 1x1 convolution that makes the kernel."""
    xp = namespace(x)
    wide = _wide(features)
    taps = xp.empty(g.kernel_shape, wide.dtype)
    grad_kernel(grad, x, g, taps)
    taps = taps.reshape(g.batch, weight.shape[0], g.out_h, g.out_w)
    grad_features[...] = xp.einsum("kf,nkij->nfij", _wide(weight), taps)
    grad_weight[...] = xp.einsum("nkij,nfij->kf", taps, wide)
    grad_bias[...] = taps.sum(axis=(0, 2, 3))


def _span(features: Any, weight: Any, bias: Any, g: Geometry) -> Any:
    """The whole generated kernel (N, G, Kh, Kw, Ho, Wo); only the reference may hold it."""
    xp = namespace(features)
    kernel = xp.einsum("kf,nfij->nkij", _wide(weight), _wide(features))
    return (kernel + _wide(bias)[:, None, None]).reshape(g.kernel_shape)


def _wide(array: Any) -> Any:
    """Half types in float32; float32 and float64 as they are."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def _grouped(g: Geometry, height: int, width: int) -> tuple[int, int, int, int, int]:
    return g.batch, g.groups, g.channels_per_group, height, width


def _pad(x: Any, g: Geometry) -> Any:
    """(N, C, H, W) -> (N, G, C/G, H + 2*ph, W + 2*pw), zero outside ``x``."""
    return namespace(x).pad(
        x.reshape(_grouped(g, g.height, g.width)),
        ((0, 0), (0, 0), (0, 0), (g.pad_h, g.pad_h), (g.pad_w, g.pad_w)),
    )


def _taps(g: Geometry) -> Iterator[tuple[int, int, tuple[Any, ...]]]:
    """Each tap (u, v) with the window of the padded image that all outputs see through it."""
    for u in range(g.kernel_h):
        for v in range(g.kernel_w):
            top, left = u * g.dilation_h, v * g.dilation_w
            rows = slice(top, top + max(g.out_h - 1, 0) * g.stride_h + (g.out_h > 0), g.stride_h)
            columns = slice(
                left, left + max(g.out_w - 1, 0) * g.stride_w + (g.out_w > 0), g.stride_w
            )
            yield u, v, (..., rows, columns)

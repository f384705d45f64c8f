"""Involution, tap by tap, and its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from invocupy.arrays import Array, namespace, widen
from invocupy.backends.windows import pad, unpad, windows
from invocupy.geometry import Geometry


def forward(x: Array, kernel: Array, g: Geometry, out: Array) -> None:
    """Each tap multiplies its slice of the kernel with what it sees of x."""
    taps, padded = widen(kernel), _padded(widen(x), g)
    total: Any = 0
    for tap, seen in _taps(g):
        # (N, G, 1, *O) * (N, G, C/G, *O)
        total = total + taps[:, :, None, *tap] * padded[seen]
    out[...] = total.reshape(g.out_shape)


def grad_x(grad: Array, kernel: Array, g: Geometry, out: Array) -> None:
    """Each tap adds its share to the pixels that it read."""
    taps, grad = widen(kernel), _by_group(widen(grad), g)
    padded = _padded(namespace(grad).zeros(g.x_shape, grad.dtype), g)
    for tap, seen in _taps(g):
        padded[seen] += taps[:, :, None, *tap] * grad
    inside = padded.reshape(g.batch, g.channels, *padded.shape[3:])
    out[...] = unpad(inside, g.padding, out)


def grad_kernel(grad: Array, x: Array, g: Geometry, out: Array) -> None:
    grad, padded = _by_group(widen(grad), g), _padded(widen(x), g)
    for tap, seen in _taps(g):
        out[:, :, *tap] = (grad * padded[seen]).sum(axis=2)


def fused_forward(
    x: Array, features: Array, weight: Array, bias: Array, g: Geometry, out: Array
) -> None:
    forward(x, _span(features, weight, bias, g), g, out)


def fused_grad_x(
    grad: Array, features: Array, weight: Array, bias: Array, g: Geometry, out: Array
) -> None:
    grad_x(grad, _span(features, weight, bias, g), g, out)


def fused_grad_span(
    grad: Array, x: Array, features: Array, weight: Array, g: Geometry,
    grad_features: Array, grad_weight: Array, grad_bias: Array,
) -> None:  # fmt: skip
    xp, features = namespace(x), widen(features)
    taps = xp.empty(g.kernel_shape, features.dtype)
    grad_kernel(grad, x, g, taps)
    taps = taps.reshape(g.batch, len(weight), *g.out)
    grad_features[...] = xp.einsum("kf,nk...->nf...", widen(weight), taps)
    taps, features = (a.reshape(*a.shape[:2], prod(g.out)) for a in (taps, features))
    grad_weight[...] = xp.einsum("nkp,nfp->kf", taps, features)
    grad_bias[...] = taps.sum(axis=(0, 2))


def _span(features: Array, weight: Array, bias: Array, g: Geometry) -> Any:
    """The whole generated kernel; only the reference may hold it."""
    kernel = namespace(features).einsum("kf,nf...->nk...", widen(weight), widen(features))
    return (kernel + widen(bias).reshape(-1, *(1 for _ in g.out))).reshape(g.kernel_shape)


def _padded(x: Array, g: Geometry) -> Any:
    return _by_group(pad(x, g.padding, 0), g)


def _by_group(x: Array, g: Geometry) -> Any:
    """(N, C, ...) as (N, G, C/G, ...)."""
    return x.reshape(g.batch, g.groups, g.channels_per_group, *x.shape[2:])


def _taps(g: Geometry) -> Iterator[tuple[Any, Any]]:
    """Each tap, and what all outputs see through it of the padded image."""
    return windows(g.kernel, g.out, g.stride, g.dilation)

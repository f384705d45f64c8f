"""Convolution, tap by tap, and its gradients."""

from __future__ import annotations

from typing import Any

from invocupy.arrays import Array, namespace, widen
from invocupy.backends.windows import Window, pad, unpad, windows


def forward(x: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> None:
    xp, (stride, pads, dilation), taps = namespace(x), window, _taps(weight, x)
    padded = pad(widen(x), pads, 0)
    total: Any = 0
    for tap, seen in windows(weight.shape[2:], out.shape[2:], stride, dilation):
        looks = _grouped(padded[seen], len(taps))
        total = total + xp.einsum("goc,ngc...->ngo...", taps[..., *tap], looks)
    offset = 0 if bias is None else widen(bias).reshape(-1, *(1 for _ in pads))
    out[...] = total.reshape(out.shape) + offset


def grad_x(grad: Array, weight: Array, window: Window, out: Array) -> None:
    """Each tap adds its share to the pixels that it read."""
    xp, (stride, pads, dilation), taps = namespace(grad), window, _taps(weight, out)
    total, grad = pad(xp.zeros_like(widen(out)), pads, 0), _grouped(widen(grad), len(taps))
    for tap, seen in windows(weight.shape[2:], grad.shape[3:], stride, dilation):
        share = xp.einsum("goc,ngo...->ngc...", taps[..., *tap], grad)
        total[seen] += share.reshape(total[seen].shape)
    out[...] = unpad(total, pads, out)


def grad_weight(grad: Array, x: Array, window: Window, out: Array, grad_bias: Array | None) -> None:
    xp, (stride, pads, dilation) = namespace(x), window
    padded, groups = pad(widen(x), pads, 0), x.shape[1] // out.shape[1]
    grad = _grouped(widen(grad), groups)
    pixels = grad.reshape(*grad.shape[:3], -1)
    for tap, seen in windows(out.shape[2:], grad.shape[3:], stride, dilation):
        looks = _grouped(padded[seen], groups)
        looks = looks.reshape(*looks.shape[:3], -1)
        out[:, :, *tap] = xp.einsum("ngop,ngcp->goc", pixels, looks).reshape(out.shape[:2])
    if grad_bias is not None:
        grad_bias[...] = pixels.sum(axis=(0, 3)).reshape(-1)


def _grouped(array: Array, groups: int) -> Any:
    """(N, C, *S) as (N, G, C/G, *S)."""
    return array.reshape(len(array), groups, -1, *array.shape[2:])


def _taps(weight: Array, x: Array) -> Any:
    """(O, C/G, *K) as (G, O/G, C/G, *K)."""
    groups = x.shape[1] // weight.shape[1]
    return widen(weight).reshape(groups, -1, *weight.shape[1:])

"""Convolution of x (N, C, H, W) with weight (O, C/groups, Kh, Kw), zero outside x.

``window`` is (stride, padding, dilation), a pair each; ``bias`` and ``grad_bias`` may be ``None``.

::

    forward(x, weight, bias, window, out)
                    out[n,o,i,j] = bias[o] + sum over c, u, v of
                                   weight[o,c,u,v] * x[n,c,i*sh+u*dh-ph,j*sw+v*dw-pw]
    grad_x(grad, weight, window, out)
    grad_weight(grad, x, window, out, grad_bias)

Nothing here is fast: a direct reading of the formula, tap by tap. Half types are computed in
float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from invocupy.arrays import namespace
from invocupy.backends.far import bounded_windows
from invocupy.backends.windows import pad, unpad, windows


@bounded_windows("xkb", "o")
def forward(x: Any, weight: Any, bias: Any, window: Any, out: Any) -> None:
    """A sum over the taps."""
    xp, (stride, pads, dilation), taps = namespace(x), window, _taps(weight, x)
    padded = pad(_wide(x), pads, 0)
    total: Any = 0
    for u, v, seen in windows(weight.shape[2:], out.shape[2:], stride, dilation):
        looks = _grouped(padded[seen], len(taps))
        total = total + xp.einsum("goc,ngcij->ngoij", taps[..., u, v], looks)
    out[...] = total.reshape(out.shape) + (0 if bias is None else _wide(bias)[:, None, None])


@bounded_windows("ok", "x")
def grad_x(grad: Any, weight: Any, window: Any, out: Any) -> None:
    """The transpose of :func:`forward` in ``x``: each tap puts its share back where it looked."""
    xp, (stride, pads, dilation), taps = namespace(grad), window, _taps(weight, out)
    total, grad = pad(xp.zeros_like(_wide(out)), pads, 0), _grouped(_wide(grad), len(taps))
    for u, v, seen in windows(weight.shape[2:], grad.shape[3:], stride, dilation):
        share = xp.einsum("goc,ngoij->ngcij", taps[..., u, v], grad)
        total[seen] += share.reshape(total[seen].shape)
    out[...] = unpad(total, pads, out)


@bounded_windows("ox", "kb")
def grad_weight(grad: Any, x: Any, window: Any, out: Any, grad_bias: Any) -> None:
    """Each tap's sum of products of ``grad`` with what it sees."""
    xp, (stride, pads, dilation) = namespace(x), window
    padded, groups = pad(_wide(x), pads, 0), x.shape[1] // out.shape[1]
    grad = _grouped(_wide(grad), groups)
    for u, v, seen in windows(out.shape[2:], grad.shape[3:], stride, dilation):
        looks = _grouped(padded[seen], groups)
        out[:, :, u, v] = xp.einsum("ngoij,ngcij->goc", grad, looks).reshape(out.shape[:2])
    if grad_bias is not None:
        grad_bias[...] = grad.sum(axis=(0, 3, 4)).reshape(-1)


def _wide(array: Any) -> Any:
    """Half types in float32; float32 and float64 as they are."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def _grouped(array: Any, groups: int) -> Any:
    """(N, C, H, W) as (N, G, C/G, H, W)."""
    return array.reshape(len(array), groups, -1, *array.shape[2:])


def _taps(weight: Any, x: Any) -> Any:
    """(O, C/G, Kh, Kw) as (G, O/G, C/G, Kh, Kw)."""
    groups = x.shape[1] // weight.shape[1]
    return _wide(weight).reshape(groups, -1, *weight.shape[1:])

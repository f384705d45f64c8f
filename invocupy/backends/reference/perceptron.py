"""A perceptron at each pixel, whose wide hidden layer is never stored; x is (N, C, P).

``h = relu(first @ x + offset)`` has D channels in G groups of D / G. Two linear maps read it: a
*dense* one, and a *grouped* one that maps each group by itself, with its own columns of
``grouped`` (O, D) and without a bias.

::

    covariance(x, mean, out)            out[c,d] = mean over images and pixels of
                                        (x[c] - mean[c]) * (x[d] - mean[d]), float64
    forward(x, first, offset, dense, bias, grouped, groups, out, out_grouped)
                                        out[n,f,p] = bias[f] + sum_d dense[f,d] * h[n,d,p]
                                        out_grouped[n,g*O+o,p] = sum over d of group g
                                                                 of grouped[o,d] * h[n,d,p]
    backward(grad, grad_grouped, x, first, offset, dense, grouped, groups,
             grad_x, grad_first, grad_offset, grad_dense, grad_bias, grad_weight)
                                        all gradients in one pass; grad_weight is that of grouped.
                                        Those of parameters are float64.
"""

from __future__ import annotations

from typing import Any

from invocupy.arrays import namespace


def covariance(x: Any, mean: Any, out: Any) -> None:
    """Products of all pairs of channels, averaged."""
    apart = x.astype(out.dtype) - mean[:, None]
    out[...] = (apart @ apart.swapaxes(1, 2)).mean(axis=0) / x.shape[2]


def forward(
    x: Any, first: Any, offset: Any, dense: Any, bias: Any, grouped: Any, groups: int,
    out: Any, out_grouped: Any,
) -> None:  # fmt: skip
    """The hidden layer, and both maps of it."""
    h = _hidden(x, first, offset)
    out[...] = dense @ h + bias[:, None]
    # (G, O, D/G) @ (N, G, D/G, P)
    value = _by_group(grouped, groups) @ h.reshape(len(h), groups, -1, h.shape[2])
    out_grouped[...] = value.reshape(out_grouped.shape)


def backward(
    grad: Any, grad_grouped: Any, x: Any, first: Any, offset: Any, dense: Any, grouped: Any,
    groups: int, grad_x: Any, grad_first: Any, grad_offset: Any, grad_dense: Any, grad_bias: Any,
    grad_weight: Any,
) -> None:  # fmt: skip
    """From the gradients of both results back to everything."""
    h = _hidden(x, first, offset)
    by_group = h.reshape(len(h), groups, -1, h.shape[2])
    split = grad_grouped.reshape(len(h), groups, -1, h.shape[2])
    back = (_by_group(grouped, groups).swapaxes(1, 2) @ split).reshape(h.shape)
    grad_h = (dense.T @ grad + back) * (h > 0)
    grad_x[...] = first.T @ grad_h
    grad_first[...] = (grad_h @ x.swapaxes(1, 2)).sum(axis=0)
    grad_offset[...] = grad_h.sum(axis=(0, 2))
    grad_dense[...] = (grad @ h.swapaxes(1, 2)).sum(axis=0)
    grad_bias[...] = grad.sum(axis=(0, 2))
    # (N, G, O, P) @ (N, G, P, D/G) -> (G, O, D/G)
    products = (split @ by_group.swapaxes(2, 3)).sum(axis=0)
    grad_weight[...] = products.swapaxes(0, 1).reshape(grad_weight.shape)


def _hidden(x: Any, first: Any, offset: Any) -> Any:
    return namespace(x).maximum(first @ x + offset[:, None], 0)


def _by_group(grouped: Any, groups: int) -> Any:
    """(O, D) as (G, O, D/G)."""
    return grouped.reshape(len(grouped), groups, -1).swapaxes(0, 1)

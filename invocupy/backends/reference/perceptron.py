"""A perceptron at each pixel, whose wide hidden layer is never stored; x is (N, C, P).

``h = relu(first @ x + offset)`` has D channels in G groups of D / G. Two linear maps read it: a
*dense* one, and a *grouped* one that maps each group by itself, with its own columns of
``grouped`` (O, D) and without a bias.

::

    covariance(x, mean, out)            out[c,d] = mean over images and pixels of
                                        (x[c] - mean[c]) * (x[d] - mean[d]), float64
    forward(x, weights, groups, out, out_grouped)
                                        out[n,f,p] = bias[f] + sum_d dense[f,d] * h[n,d,p]
                                        out_grouped[n,g*O+o,p] = sum over d of group g
                                                                 of grouped[o,d] * h[n,d,p]
    backward(grad, grad_grouped, x, weights, groups, grad_x, grad_weights)
                                        all gradients in one pass; grad_weights are float64.

``weights`` and ``grad_weights`` are a :class:`~invocupy.backends.contract.Perceptron`.
"""

from __future__ import annotations

from typing import Any

from invocupy.arrays import namespace
from invocupy.backends.contract import Perceptron


def covariance(x: Any, mean: Any, out: Any) -> None:
    """Products of all pairs of channels, averaged."""
    apart = x.astype(out.dtype) - mean[:, None]
    out[...] = (apart @ apart.swapaxes(1, 2)).mean(axis=0) / x.shape[2]


def forward(x: Any, weights: Perceptron, groups: int, out: Any, out_grouped: Any) -> None:
    """The hidden layer, and both maps of it."""
    first, offset, dense, bias, grouped = weights
    h = _hidden(x, first, offset)
    out[...] = dense @ h + bias[:, None]
    # (G, O, D/G) @ (N, G, D/G, P)
    value = _by_group(grouped, groups) @ h.reshape(len(h), groups, -1, h.shape[2])
    out_grouped[...] = value.reshape(out_grouped.shape)


def backward(
    grad: Any, grad_grouped: Any, x: Any, weights: Perceptron, groups: int,
    grad_x: Any, grad_weights: Perceptron,
) -> None:  # fmt: skip
    """From the gradients of both results back to everything."""
    first, offset, dense, _, grouped = weights
    h = _hidden(x, first, offset)
    by_group = h.reshape(len(h), groups, -1, h.shape[2])
    split = grad_grouped.reshape(len(h), groups, -1, h.shape[2])
    back = (_by_group(grouped, groups).swapaxes(1, 2) @ split).reshape(h.shape)
    grad_h = (dense.T @ grad + back) * (h > 0)
    grad_x[...] = first.T @ grad_h
    grad_weights.first[...] = (grad_h @ x.swapaxes(1, 2)).sum(axis=0)
    grad_weights.offset[...] = grad_h.sum(axis=(0, 2))
    grad_weights.dense[...] = (grad @ h.swapaxes(1, 2)).sum(axis=0)
    grad_weights.bias[...] = grad.sum(axis=(0, 2))
    # (N, G, O, P) @ (N, G, P, D/G) -> (G, O, D/G)
    products = (split @ by_group.swapaxes(2, 3)).sum(axis=0)
    grad_weights.grouped[...] = products.swapaxes(0, 1).reshape(grouped.shape)


def _hidden(x: Any, first: Any, offset: Any) -> Any:
    return namespace(x).maximum(first @ x + offset[:, None], 0)


def _by_group(grouped: Any, groups: int) -> Any:
    """(O, D) as (G, O, D/G)."""
    return grouped.reshape(len(grouped), groups, -1).swapaxes(0, 1)

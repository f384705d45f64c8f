"""A perceptron at each pixel: a hidden layer in groups, a dense and a grouped map of it."""

from __future__ import annotations

from typing import Any

from invocupy.arrays import Array, namespace
from invocupy.backends.signatures import Perceptron


def covariance(x: Array, mean: Array, out: Array) -> None:
    apart = x.astype(out.dtype) - mean[:, None]
    out[...] = (apart @ apart.swapaxes(1, 2)).mean(axis=0) / x.shape[2]


def forward(x: Array, weights: Perceptron, groups: int, out: Array, out_grouped: Array) -> None:
    h = _hidden(x, weights)
    out[...] = weights.dense @ h + weights.bias[:, None]
    # (G, O, D/G) @ (N, G, D/G, P)
    value = _by_group(weights.grouped, groups) @ h.reshape(len(h), groups, -1, h.shape[2])
    out_grouped[...] = value.reshape(out_grouped.shape)


def backward(
    grad: Array, grad_grouped: Array, x: Array, weights: Perceptron, groups: int, grad_x: Array,
    grad_weights: Perceptron,
) -> None:  # fmt: skip
    h = _hidden(x, weights)
    by_group = h.reshape(len(h), groups, -1, h.shape[2])
    split = grad_grouped.reshape(len(h), groups, -1, h.shape[2])
    back = (_by_group(weights.grouped, groups).swapaxes(1, 2) @ split).reshape(h.shape)
    grad_h = (weights.dense.T @ grad + back) * (h > 0)
    grad_x[...] = weights.first.T @ grad_h
    grad_weights.first[...] = (grad_h @ x.swapaxes(1, 2)).sum(axis=0)
    grad_weights.offset[...] = grad_h.sum(axis=(0, 2))
    grad_weights.dense[...] = (grad @ h.swapaxes(1, 2)).sum(axis=0)
    grad_weights.bias[...] = grad.sum(axis=(0, 2))
    # (N, G, O, P) @ (N, G, P, D/G) -> (G, O, D/G)
    products = (split @ by_group.swapaxes(2, 3)).sum(axis=0)
    grad_weights.grouped[...] = products.swapaxes(0, 1).reshape(weights.grouped.shape)


def _hidden(x: Array, weights: Perceptron) -> Any:
    return namespace(x).maximum(weights.first @ x + weights.offset[:, None], 0)


def _by_group(grouped: Array, groups: int) -> Any:
    """(O, D) as (G, O, D/G)."""
    return grouped.reshape(len(grouped), groups, -1).swapaxes(0, 1)

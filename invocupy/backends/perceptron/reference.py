"""The perceptron in plain array code, for NumPy and CuPy: the specification."""

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

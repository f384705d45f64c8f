"""Calls of the CUDA backend of expansion: problems as in ``cases.py``."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from invocupy.backends.cuda import expansion as device
from invocupy.backends.reference import expansion as reference

from .cases import DTYPES, Problem, aligned, poisoned

FUNCTIONS = ("forward", "backward")
EPS = 1e-3


def expansion(
    function: str, dtype: str = "float32", *, batch: int = 2, channels: int = 3, hidden: int = 18,
    pixels: int = 297, relu: bool = True, bias: bool = True, mean: float = 2, seed: int = 0,
    offset: int = 0,
) -> Problem:  # fmt: skip
    """A call of ``forward`` or ``backward``, on x with this mean."""
    c, d, n, kind = channels, hidden, batch * pixels, DTYPES[dtype]
    sums = np.dtype(np.float64 if kind.itemsize == 8 else np.float32)
    random = np.random.default_rng(seed)
    shapes = (batch, c, pixels), (d, c), (d,), (d,), (d,)
    x, weight, shift, gamma, beta = (random.standard_normal(s).astype(kind) for s in shapes)
    x += kind.type(mean)
    given, out = (x, weight, shift if bias else None, gamma, beta), (batch, d, pixels)
    kept = np.empty((c + d) * (c + 1))
    if function == "forward":
        inputs: list[Any] = [*given, EPS, relu]
        fills = [(out, kind), ((d,), sums), ((d,), sums), (kept.shape, sums)]
    else:
        wide = [None if a is None else a.astype(np.float64) for a in given]
        reference.forward(*wide, EPS, relu, np.empty(out), np.empty(d), np.empty(d), kept)
        grad = random.standard_normal(out).astype(kind)
        inputs = [grad, x, weight, gamma, kept.astype(sums), EPS, relu]
        fills = [(shape, kind) for shape in (*shapes[:2], (d,), (d,), (d,))]
    terms = 16 + 4 * c + d + n

    def forward(inputs: list[Any]) -> list[Any]:
        x, weight, shift, gamma, beta, *_ = inputs
        flat, size = x.swapaxes(0, 1).reshape(c, -1), np.abs(weight)
        var, center = flat.var(axis=1), np.abs(flat).mean(axis=1)
        # Chan, Golub and LeVeque: the condition of a variance is sqrt(1 + mean^2 / var).
        spread = (var * (var + flat.mean(axis=1) ** 2)) ** 0.25
        exact = np.einsum("di,ij,dj->d", weight, np.cov(flat, bias=True).reshape(c, c), weight)
        moved = (size @ spread) ** 2
        scale = np.abs(gamma) * (exact + EPS) ** -0.5 * (1 + moved / (exact + EPS))
        folded = np.column_stack([scale[:, None] * size, np.abs(beta)])
        value = folded[:, :c] @ (np.abs(x) + center[:, None]) + folded[:, c:]
        parts = center, np.outer(spread, spread).ravel(), folded.ravel()
        offset = 0 if shift is None else np.abs(shift)
        return [value, size @ center + offset, moved, np.concatenate(parts)]

    def backward(inputs: list[Any]) -> list[Any]:
        grad, x, weight, gamma, kept, *_ = inputs
        center, covariance = kept[:c], kept[c : c + c * c].reshape(c, c)
        folded, size = kept[c + c * c :].reshape(d, c + 1), np.abs(weight)
        apart = x - center[:, None]
        passed = folded[:, :c] @ apart + folded[:, c:] > 0
        h, apart = np.abs(grad) * (passed | (not relu)), np.abs(apart)
        total, first = h.sum(axis=(0, 2)), np.einsum("ndp,ncp->dc", h, apart)
        inverse = (((weight @ covariance) * weight).sum(axis=1) + EPS) ** -0.5
        moved = size @ np.abs(covariance)
        by = inverse * (1 + (moved * size).sum(axis=1) * inverse**2)
        scale, total_x = np.abs(gamma) * by, (size * first).sum(axis=1)
        slope = scale * inverse**2 * total_x / n
        direct = np.abs(folded[:, :c]).T @ h
        half = float(ml_dtypes.finfo(kind).eps) / 2 if kind.itemsize == 2 else 0
        rest = (size.T @ (slope[:, None] * size)) @ apart + (size.T @ (scale * total / n))[:, None]
        return [
            # what grad_expand hands to grad_x is rounded to a half type
            direct * (1 + half * 2.0**24 / terms) + rest,
            scale[:, None] * first + (slope * n)[:, None] * moved,
            np.zeros(d), total_x * by, total,
        ]  # fmt: skip

    return Problem(
        name=f"expansion.{function} {dtype} {(batch, c, d, pixels)} relu={relu} bias={bias}",
        device=lambda i, r: getattr(device, function)(*i, *r),
        reference=lambda i, r: getattr(reference, function)(*i, *r),
        inputs=[aligned(a, offset) if isinstance(a, np.ndarray) else a for a in inputs],
        results=lambda: [poisoned(*fill, offset) for fill in fills],
        magnitudes={"forward": forward, "backward": backward}[function],
        terms=terms,
    )

"""Involution on the CPU: serial Numba kernels over tasks, run by the thread pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from functools import lru_cache
from typing import Any

import numpy as np

from invocupy.backends import threads
from invocupy.backends.jit import carray, jit, next_task, pointer
from invocupy.geometry import Geometry

_GRAIN = 1 << 17  # multiply-adds per thread below which a helper does not pay
_CHUNK = 512  # output columns whose generated kernel is held at a time
_PARTS = 16  # weight gradients are summed in so many parts, whatever the number of threads


def forward(x: Any, kernel: Any, g: Geometry, out: Any) -> None:
    """``out = sum over taps of kernel[tap] * (x seen through the tap)``."""
    _run(_forward(x.dtype.type), g.batch * g.groups, g, 0, x, kernel, out)


def grad_x(grad: Any, kernel: Any, g: Geometry, out: Any) -> None:
    """The transpose of :func:`forward` in ``x``."""
    _run(_grad_x(grad.dtype.type), g.batch * g.groups, g, 0, grad, kernel, out)


def grad_kernel(grad: Any, x: Any, g: Geometry, out: Any) -> None:
    """``out[tap] = sum over the group's channels of grad * (x seen through the tap)``."""
    _run(_grad_kernel(x.dtype.type), g.batch * g.groups, g, 0, grad, x, out)


def fused_forward(x: Any, features: Any, weight: Any, bias: Any, g: Geometry, out: Any) -> None:
    """:func:`forward` with ``kernel = weight @ features + bias``, a chunk of a row at a time."""
    span = g.kernel_h * g.kernel_w * min(_CHUNK, max(g.out_w, 1))
    _run(
        _fused_forward(x.dtype.type), g.batch * g.groups * g.out_h, g, span, x, features, weight,
        bias, out, features.shape[1],
    )  # fmt: skip


def fused_grad_x(
    grad: Any, features: Any, weight: Any, bias: Any, g: Geometry, out: Any
) -> None:
    """:func:`grad_x` with ``kernel = weight @ features + bias``, a chunk of a row at a time."""
    span = g.kernel_h * g.kernel_w * min(_CHUNK, max(g.out_w, 1))
    _run(
        _fused_grad_x(grad.dtype.type), g.batch * g.groups, g, span, grad, features, weight, bias,
        out, features.shape[1],
    )  # fmt: skip


def fused_grad_span(
    grad: Any, x: Any, features: Any, weight: Any, g: Geometry,
    grad_features: Any, grad_weight: Any, grad_bias: Any,
) -> None:  # fmt: skip
    """:func:`grad_kernel` pushed through the 1x1 convolution that makes the kernel."""
    rows, width = weight.shape
    tasks = min(_PARTS, g.batch * g.out_h)
    parts = np.zeros((tasks, rows, width + 1), x.dtype)  # weight gradient, bias gradient
    span = g.kernel_h * g.kernel_w * min(_CHUNK, max(g.out_w, 1))
    _run(
        _fused_grad_span(x.dtype.type), tasks, g, span, grad, x, features, weight,
        grad_features, parts, width, tasks,
    )  # fmt: skip
    total = parts.sum(axis=0)
    grad_weight[...], grad_bias[...] = total[:, :-1], total[:, -1]


def _run(kernel: Any, tasks: int, g: Geometry, span: int, *arguments: Any) -> None:
    """Run ``kernel`` over ``tasks`` tasks: sizes, then the arrays' addresses and further sizes."""
    if tasks == 0:
        return
    counter = np.zeros(1, np.int64)
    places = tuple(
        a.ctypes.data if isinstance(a, np.ndarray) else a for a in (counter, *arguments)
    )
    sizes, span_bytes = astuple(g), span * arguments[0].dtype.itemsize

    def call(keep: Any = arguments) -> None:
        kernel(sizes, tasks, threads.scratch(span_bytes), *places)

    products = g.batch * g.channels * g.out_h * g.out_w * g.kernel_h * g.kernel_w
    threads.run(call, min(threads.get_num_threads(), tasks, products // _GRAIN + 1) - 1)


@lru_cache(maxsize=None)
def _forward(dtype: Any) -> Callable[..., None]:
    @jit
    def kernel(g, tasks, scratch, counter, x_at, kernel_at, out_at):  # type: ignore[no-untyped-def]
        n_, c_, g_, h_, w_, kh, kw, ho, wo, sh, sw, ph, pw, dh, dw = g
        x = carray(pointer(x_at, dtype), (n_ * c_, h_, w_))
        taps = carray(pointer(kernel_at, dtype), (n_ * g_, kh, kw, ho, wo))
        out = carray(pointer(out_at, dtype), (n_ * c_, ho, wo))
        d = c_ // g_
        while True:
            t = next_task(counter)
            if t >= tasks:
                return
            for c in range(t * d, t * d + d):
                for i in range(ho):
                    out[c, i, :] = 0
                    _gather_row(x[c], taps[t, :, :, i, :], out[c, i], i, 0, sh, sw, ph, pw, dh, dw)

    return kernel


@lru_cache(maxsize=None)
def _grad_x(dtype: Any) -> Callable[..., None]:
    @jit
    def kernel(g, tasks, scratch, counter, grad_at, kernel_at, out_at):  # type: ignore[no-untyped-def]
        n_, c_, g_, h_, w_, kh, kw, ho, wo, sh, sw, ph, pw, dh, dw = g
        grad = carray(pointer(grad_at, dtype), (n_ * c_, ho, wo))
        taps = carray(pointer(kernel_at, dtype), (n_ * g_, kh, kw, ho, wo))
        out = carray(pointer(out_at, dtype), (n_ * c_, h_, w_))
        d = c_ // g_
        while True:
            t = next_task(counter)
            if t >= tasks:
                return
            for c in range(t * d, t * d + d):
                out[c] = 0
                for i in range(ho):
                    _scatter_row(grad[c, i], taps[t, :, :, i, :], out[c], i, 0, sh, sw, ph, pw, dh, dw)

    return kernel


@lru_cache(maxsize=None)
def _grad_kernel(dtype: Any) -> Callable[..., None]:
    @jit
    def kernel(g, tasks, scratch, counter, grad_at, x_at, out_at):  # type: ignore[no-untyped-def]
        n_, c_, g_, h_, w_, kh, kw, ho, wo, sh, sw, ph, pw, dh, dw = g
        grad = carray(pointer(grad_at, dtype), (n_ * c_, ho, wo))
        x = carray(pointer(x_at, dtype), (n_ * c_, h_, w_))
        out = carray(pointer(out_at, dtype), (n_ * g_, kh, kw, ho, wo))
        d = c_ // g_
        while True:
            t = next_task(counter)
            if t >= tasks:
                return
            for i in range(ho):
                out[t, :, :, i, :] = 0
                for c in range(t * d, t * d + d):
                    _correlate_row(grad[c, i], x[c], out[t, :, :, i, :], i, 0, sh, sw, ph, pw, dh, dw)

    return kernel


@lru_cache(maxsize=None)
def _fused_forward(dtype: Any) -> Callable[..., None]:
    @jit
    def kernel(  # type: ignore[no-untyped-def]
        g, tasks, scratch, counter, x_at, features_at, weight_at, bias_at, out_at, f_
    ):
        n_, c_, g_, h_, w_, kh, kw, ho, wo, sh, sw, ph, pw, dh, dw = g
        x = carray(pointer(x_at, dtype), (n_ * c_, h_, w_))
        features = carray(pointer(features_at, dtype), (n_, f_, ho, wo))
        weight = carray(pointer(weight_at, dtype), (g_, kh, kw, f_))
        bias = carray(pointer(bias_at, dtype), (g_, kh, kw))
        out = carray(pointer(out_at, dtype), (n_ * c_, ho, wo))
        d = c_ // g_
        while True:
            t = next_task(counter)
            if t >= tasks:
                return
            ng, i = t // ho, t % ho
            for c in range(ng * d, ng * d + d):
                out[c, i, :] = 0
            for first in range(0, wo, _CHUNK):
                last = min(first + _CHUNK, wo)
                span = carray(pointer(scratch, dtype), (kh, kw, last - first))
                _generate(features[ng // g_, :, i, first:last], weight[ng % g_], bias[ng % g_], span)
                for c in range(ng * d, ng * d + d):
                    _gather_row(x[c], span, out[c, i, first:last], i, first, sh, sw, ph, pw, dh, dw)

    return kernel


@lru_cache(maxsize=None)
def _fused_grad_x(dtype: Any) -> Callable[..., None]:
    @jit
    def kernel(  # type: ignore[no-untyped-def]
        g, tasks, scratch, counter, grad_at, features_at, weight_at, bias_at, out_at, f_
    ):
        n_, c_, g_, h_, w_, kh, kw, ho, wo, sh, sw, ph, pw, dh, dw = g
        grad = carray(pointer(grad_at, dtype), (n_ * c_, ho, wo))
        features = carray(pointer(features_at, dtype), (n_, f_, ho, wo))
        weight = carray(pointer(weight_at, dtype), (g_, kh, kw, f_))
        bias = carray(pointer(bias_at, dtype), (g_, kh, kw))
        out = carray(pointer(out_at, dtype), (n_ * c_, h_, w_))
        d = c_ // g_
        while True:
            t = next_task(counter)
            if t >= tasks:
                return
            for c in range(t * d, t * d + d):
                out[c] = 0
            for i in range(ho):
                for first in range(0, wo, _CHUNK):
                    last = min(first + _CHUNK, wo)
                    span = carray(pointer(scratch, dtype), (kh, kw, last - first))
                    _generate(features[t // g_, :, i, first:last], weight[t % g_], bias[t % g_], span)
                    for c in range(t * d, t * d + d):
                        _scatter_row(
                            grad[c, i, first:last], span, out[c], i, first, sh, sw, ph, pw, dh, dw
                        )

    return kernel


@lru_cache(maxsize=None)
def _fused_grad_span(dtype: Any) -> Callable[..., None]:
    @jit
    def kernel(  # type: ignore[no-untyped-def]
        g, tasks, scratch, counter, grad_at, x_at, features_at, weight_at, grad_features_at,
        parts_at, f_, parts_count
    ):  # fmt: skip
        n_, c_, g_, h_, w_, kh, kw, ho, wo, sh, sw, ph, pw, dh, dw = g
        grad = carray(pointer(grad_at, dtype), (n_ * c_, ho, wo))
        x = carray(pointer(x_at, dtype), (n_ * c_, h_, w_))
        features = carray(pointer(features_at, dtype), (n_, f_, ho, wo))
        weight = carray(pointer(weight_at, dtype), (g_, kh, kw, f_))
        grad_features = carray(pointer(grad_features_at, dtype), (n_, f_, ho, wo))
        parts = carray(pointer(parts_at, dtype), (parts_count, g_, kh, kw, f_ + 1))
        d = c_ // g_
        rows = n_ * ho
        while True:
            t = next_task(counter)
            if t >= tasks:
                return
            for row in range(rows * t // tasks, rows * (t + 1) // tasks):
                n, i = row // ho, row % ho
                grad_features[n, :, i, :] = 0
                for first in range(0, wo, _CHUNK):
                    last = min(first + _CHUNK, wo)
                    span = carray(pointer(scratch, dtype), (kh, kw, last - first))
                    for q in range(g_):
                        span[:] = 0
                        for c in range((n * g_ + q) * d, (n * g_ + q + 1) * d):
                            _correlate_row(
                                grad[c, i, first:last], x[c], span, i, first, sh, sw, ph, pw, dh, dw
                            )
                        for u in range(kh):
                            for v in range(kw):
                                for f in range(f_):
                                    total = dtype(0)
                                    for j in range(last - first):
                                        total += span[u, v, j] * features[n, f, i, first + j]
                                        grad_features[n, f, i, first + j] += (
                                            weight[q, u, v, f] * span[u, v, j]
                                        )
                                    parts[t, q, u, v, f] += total
                                total = dtype(0)
                                for j in range(last - first):
                                    total += span[u, v, j]
                                parts[t, q, u, v, f_] += total

    return kernel


@jit
def _generate(features, weight, bias, span):  # type: ignore[no-untyped-def]
    """span (Kh, Kw, columns) = weight (Kh, Kw, F) @ features (F, columns) + bias (Kh, Kw)."""
    for u in range(span.shape[0]):
        for v in range(span.shape[1]):
            span[u, v, :] = bias[u, v]
            for f in range(features.shape[0]):
                for j in range(span.shape[2]):
                    span[u, v, j] += weight[u, v, f] * features[f, j]


@jit
def _gather_row(x, taps, out, i, first, sh, sw, ph, pw, dh, dw):  # type: ignore[no-untyped-def]
    """Add to one row of ``out``, from output column ``first`` on, what all taps (Kh, Kw, columns) give."""
    for u in range(taps.shape[0]):
        y = i * sh + u * dh - ph
        if 0 <= y < x.shape[0]:
            for v in range(taps.shape[1]):
                left = first * sw + v * dw - pw
                low, high = _inside(left, sw, x.shape[1], out.shape[0])
                for j in range(low, high):
                    out[j] += taps[u, v, j] * x[y, left + j * sw]


@jit
def _scatter_row(grad, taps, out, i, first, sh, sw, ph, pw, dh, dw):  # type: ignore[no-untyped-def]
    """Put one row of ``grad``, from output column ``first`` on, back to where the taps looked."""
    for u in range(taps.shape[0]):
        y = i * sh + u * dh - ph
        if 0 <= y < out.shape[0]:
            for v in range(taps.shape[1]):
                left = first * sw + v * dw - pw
                low, high = _inside(left, sw, out.shape[1], grad.shape[0])
                for j in range(low, high):
                    out[y, left + j * sw] += taps[u, v, j] * grad[j]


@jit
def _correlate_row(grad, x, taps, i, first, sh, sw, ph, pw, dh, dw):  # type: ignore[no-untyped-def]
    """Add to ``taps`` (Kh, Kw, columns) the products of one row of ``grad`` with what each tap saw."""
    for u in range(taps.shape[0]):
        y = i * sh + u * dh - ph
        if 0 <= y < x.shape[0]:
            for v in range(taps.shape[1]):
                left = first * sw + v * dw - pw
                low, high = _inside(left, sw, x.shape[1], grad.shape[0])
                for j in range(low, high):
                    taps[u, v, j] += grad[j] * x[y, left + j * sw]


@jit
def _inside(left, step, width, count):  # type: ignore[no-untyped-def]
    """The range of j in [0, count) with 0 <= left + j * step < width."""
    low = max(0, -(left // step))
    return low, max(low, min(count, (width - left + step - 1) // step))

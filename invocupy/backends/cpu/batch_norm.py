"""Batch normalisation on the CPU: each pass reads every array once, a plane at a time.

Sums are taken in float64 (the conversion hides behind the memory), in an order that depends on the
sizes alone: each segment of a plane by itself, segments and images then added by NumPy.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from invocupy.arrays import Array
from invocupy.backends.cpu.access import plus, pointer, read
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.pool import launch
from invocupy.backends.reference.batch_norm import coefficients as coefficients
from invocupy.backends.reference.batch_norm import fold as fold
from invocupy.backends.reference.batch_norm import running as running

_ZERO = {32: np.float32(0), 64: np.float64(0)}  # an int would be compared in float64
_SEGMENT = 1 << 13  # elements that are summed at a time: they stay in L1 for a second pass
_TASK = 1 << 15  # elements a thread takes at least: two that walk side by side slow each other down


# sizes, and arrays of a pass, which has some of them: ``a``, ``b`` and ``c`` are (C,), ``out`` is
# that of the forward pass, ``residual`` may be its gradient
Call = namedtuple(
    "Call",
    "channels pixels segments each x result a b residual grad out c",
    defaults=(None, None, None, None, None, None),
)


def moments(x: Array, mean: Array, var: Array) -> None:
    """Mean and squared distance from it for each segment, then merged (Chan, Golub, LeVeque)."""
    sizes = _sizes(x.shape[2] * x.shape[3])
    parts = np.empty((2, *x.shape[:2], len(sizes)), np.float64)
    _launch(_moments(8 * x.itemsize), 2, x, parts)
    count = x.size // x.shape[1]
    middle = (parts[0] * sizes).sum(axis=(0, 2)) / count
    mean[...] = middle
    apart = ((parts[0] - middle[:, None]) ** 2 * sizes).sum(axis=(0, 2))
    var[...] = (parts[1].sum(axis=(0, 2)) + apart) / count


def forward(
    x: Array, scale: Array, shift: Array, residual: Array | None, relu: bool, out: Array
) -> None:  # fmt: skip
    """``scale * x + shift (+ residual)``, then ReLU, in one pass."""
    kernel = _forward(8 * x.itemsize, residual is not None, bool(relu))
    _launch(kernel, 2, x, out, scale, shift, residual)


def grad_sums(
    grad: Array, x: Array, out: Array | None, mean: Array, sum_grad: Array, sum_grad_x: Array
) -> None:
    """Both sums in one pass."""
    parts = np.empty((2, *x.shape[:2], len(_sizes(x.shape[2] * x.shape[3]))), np.float64)
    kernel = _grad_sums(8 * x.itemsize, out is not None)
    _launch(kernel, 3, x, parts, mean, None, None, grad, out)
    sum_grad[...], sum_grad_x[...] = parts.sum(axis=(1, 3))


def grad_x(
    grad: Array, x: Array, out: Array | None, a: Array, b: Array, c: Array, grad_x: Array,
    grad_residual: Array | None,
) -> None:  # fmt: skip
    """``a * h + b * x + c``, and ``h`` itself for the residual, in one pass."""
    kernel = _grad_x(8 * x.itemsize, out is not None, grad_residual is not None)
    _launch(kernel, 4, x, grad_x, a, b, grad_residual, grad, out, c)


@cache
def _sizes(pixels: int) -> Array:
    """How many elements each segment of a plane has."""
    return np.diff(np.append(np.arange(0, pixels, _SEGMENT), pixels))


def _launch(kernel: Any, reads: int, x: Array, result: Array, *arrays: Array | None) -> None:
    batch, channels, height, width = x.shape
    pixels = height * width
    segments = batch * channels * -(-pixels // _SEGMENT)
    each = -(-_TASK // min(pixels, _SEGMENT))
    call = Call(channels, pixels, segments, each, x, result, *arrays)
    launch(kernel, -(-segments // each), reads * x.size, 0, call)


def _by_segments(body: Callable[..., None]) -> Any:
    """The task of ``body(first, last, channel, segment, call)`` for some segments."""
    body = jit(body)

    @jit
    def segments(task, turn, scratch, words):
        call = read(words, Call)
        number = -(-call.pixels // _SEGMENT)  # of a plane
        for item in range(task * call.each, min((task + 1) * call.each, call.segments)):
            plane, segment = divmod(item, number)
            first = plane * call.pixels + segment * _SEGMENT
            last = min(first + _SEGMENT, (plane + 1) * call.pixels)
            body(first, last, plane % call.channels, item, call)

    return segments


@cache
def _moments(bits: int) -> Any:
    @_by_segments
    def moments(first, last, channel, segment, call):
        x, parts = pointer(call.x, bits), pointer(call.result, 64)
        total = 0.0
        for i in range(first, last):
            total = plus(total, np.float64(x[i]))
        mean = total / (last - first)
        square = 0.0
        for i in range(first, last):
            apart = np.float64(x[i]) - mean
            square = plus(square, apart * apart)
        parts[segment] = mean
        parts[call.segments + segment] = square

    return moments


@cache
def _forward(bits: int, residual: bool, relu: bool) -> Any:
    zero = _ZERO[bits]

    @_by_segments
    def forward(first, last, channel, segment, call):
        x, added = pointer(call.x, bits), pointer(call.residual, bits)
        out = pointer(call.result, bits)
        scale, shift = pointer(call.a, bits)[channel], pointer(call.b, bits)[channel]
        for i in range(first, last):
            y = scale * x[i] + shift
            if residual:
                y += added[i]
            if relu:
                y = zero if y <= zero else y  # NaN stays NaN
            out[i] = y

    return forward


@cache
def _grad_sums(bits: int, masked: bool) -> Any:
    zero = _ZERO[bits]

    @_by_segments
    def grad_sums(first, last, channel, segment, call):
        grad, x, out = pointer(call.grad, bits), pointer(call.x, bits), pointer(call.out, bits)
        mean, parts = np.float64(pointer(call.a, bits)[channel]), pointer(call.result, 64)
        total = total_x = 0.0
        for i in range(first, last):
            h = np.float64(grad[i])
            if masked:
                h = h if out[i] > zero else 0.0
            total = plus(total, h)
            total_x = plus(total_x, h * (np.float64(x[i]) - mean))
        parts[segment] = total
        parts[call.segments + segment] = total_x

    return grad_sums


@cache
def _grad_x(bits: int, masked: bool, residual: bool) -> Any:
    zero = _ZERO[bits]

    @_by_segments
    def grad_x(first, last, channel, segment, call):
        grad, x, out = pointer(call.grad, bits), pointer(call.x, bits), pointer(call.out, bits)
        grad_x, grad_residual = pointer(call.result, bits), pointer(call.residual, bits)
        a, b = pointer(call.a, bits)[channel], pointer(call.b, bits)[channel]
        c = pointer(call.c, bits)[channel]
        for i in range(first, last):
            h = grad[i]
            if masked:
                h = h if out[i] > zero else zero
            grad_x[i] = a * h + b * x[i] + c
            if residual:
                grad_residual[i] = h

    return grad_x

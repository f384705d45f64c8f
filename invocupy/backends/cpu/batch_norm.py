"""Batch normalisation on the CPU: each pass reads every array once, a plane at a time.

Sums are taken in float64 (the conversion hides behind the memory), in an order that depends on the
sizes alone: each segment of a plane by itself, segments and images then added by NumPy.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

import numpy as np

from invocupy.backends.cpu.access import plus, pointer, read
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.pool import launch
from invocupy.backends.reference.batch_norm import coefficients as coefficients
from invocupy.backends.reference.batch_norm import fold as fold
from invocupy.backends.reference.batch_norm import running as running

_ZERO = {32: np.float32(0), 64: np.float64(0)}  # an int would be compared in float64
_SEGMENT = 1 << 13  # elements that are summed at a time: they stay in L1 for a second look
_TASK = 1 << 15  # elements a thread takes at least: two that walk side by side slow each other down


_Moments = namedtuple("_Moments", "x parts channels pixels count each")

_Forward = namedtuple("_Forward", "x scale shift added out channels pixels count each")


_Sums = namedtuple("_Sums", "grad x out mean parts channels pixels count each")


_Grad = namedtuple("_Grad", "grad x out a b c grad_x grad_residual channels pixels count each")


def moments(x: Any, mean: Any, var: Any) -> None:
    """Mean and squared distance from it for each segment, then merged (Chan, Golub, LeVeque)."""
    sizes = _segments(x.shape[2] * x.shape[3])
    parts = np.empty((2, x.shape[0], x.shape[1], len(sizes)), np.float64)
    _launch(_moments(8 * x.itemsize), x, (x, parts), 2)
    count = x.size // x.shape[1]
    middle = (parts[0] * sizes).sum(axis=(0, 2)) / count
    mean[...] = middle
    apart = ((parts[0] - middle[:, None]) ** 2 * sizes).sum(axis=(0, 2))
    var[...] = (parts[1].sum(axis=(0, 2)) + apart) / count


def forward(x: Any, scale: Any, shift: Any, residual: Any, relu: bool, out: Any) -> None:
    """``scale * x + shift (+ residual)``, then ReLU, in one pass."""
    kernel = _forward(8 * x.itemsize, residual is not None, bool(relu))
    _launch(kernel, x, (x, scale, shift, residual, out), 2)


def grad_sums(grad: Any, x: Any, out: Any, mean: Any, sum_grad: Any, sum_grad_x: Any) -> None:
    """Both sums in one pass."""
    parts = np.empty(
        (2, x.shape[0], x.shape[1], len(_segments(x.shape[2] * x.shape[3]))), np.float64
    )
    _launch(_grad_sums(8 * x.itemsize, out is not None), x, (grad, x, out, mean, parts), 3)
    sum_grad[...], sum_grad_x[...] = parts.sum(axis=(1, 3))


def grad_x(
    grad: Any, x: Any, out: Any, a: Any, b: Any, c: Any, grad_x: Any, grad_residual: Any
) -> None:
    """``a * h + b * x + c``, and ``h`` itself for the residual, in one pass."""
    kernel = _grad_x(8 * x.itemsize, out is not None, grad_residual is not None)
    _launch(kernel, x, (grad, x, out, a, b, c, grad_x, grad_residual), 4)


@cache
def _segments(pixels: int) -> Any:
    """How many elements each segment of a plane has."""
    return np.diff(np.append(np.arange(0, pixels, _SEGMENT), pixels))


def _launch(kernel: Any, x: Any, arguments: tuple[Any, ...], arrays: int) -> None:
    batch, channels, height, width = x.shape
    pixels = height * width
    count = batch * channels * -(-pixels // _SEGMENT)
    each = -(-_TASK // min(pixels, _SEGMENT))
    call = *arguments, channels, pixels, count, each
    launch(kernel, -(-count // each), arrays * x.size, 0, call)


@cache
def _moments(bits: int) -> Any:
    @jit
    def body(task, turn, scratch, words):
        x, parts, _, pixels, count, each = read(words, _Moments)
        x, parts = pointer(x, bits), pointer(parts, 64)
        segments = -(-pixels // _SEGMENT)
        for item in range(task * each, min(task * each + each, count)):
            row, segment = divmod(item, segments)
            first = row * pixels + segment * _SEGMENT
            last = min(first + _SEGMENT, row * pixels + pixels)
            total = 0.0
            for i in range(first, last):
                total = plus(total, np.float64(x[i]))
            mean = total / (last - first)
            square = 0.0
            for i in range(first, last):
                apart = np.float64(x[i]) - mean
                square = plus(square, apart * apart)
            parts[item] = mean
            parts[count + item] = square

    return body


@cache
def _forward(bits: int, residual: bool, relu: bool) -> Any:
    zero = _ZERO[bits]

    @jit
    def body(task, turn, scratch, words):
        x, scale, shift, added, out, channels, pixels, count, each = read(words, _Forward)
        x, added, out = pointer(x, bits), pointer(added, bits), pointer(out, bits)
        scale, shift = pointer(scale, bits), pointer(shift, bits)
        segments = -(-pixels // _SEGMENT)
        for item in range(task * each, min(task * each + each, count)):
            row, segment = divmod(item, segments)
            a, b = scale[row % channels], shift[row % channels]
            first = row * pixels + segment * _SEGMENT
            for i in range(first, min(first + _SEGMENT, row * pixels + pixels)):
                y = a * x[i] + b
                if residual:
                    y += added[i]
                if relu:
                    y = zero if y <= zero else y  # NaN stays NaN
                out[i] = y

    return body


@cache
def _grad_sums(bits: int, masked: bool) -> Any:
    zero = _ZERO[bits]

    @jit
    def body(task, turn, scratch, words):
        grad, x, out, mean, parts, channels, pixels, count, each = read(words, _Sums)
        grad, x, out = pointer(grad, bits), pointer(x, bits), pointer(out, bits)
        mean, parts = pointer(mean, bits), pointer(parts, 64)
        segments = -(-pixels // _SEGMENT)
        for item in range(task * each, min(task * each + each, count)):
            row, segment = divmod(item, segments)
            middle = np.float64(mean[row % channels])
            first = row * pixels + segment * _SEGMENT
            total = total_x = 0.0
            for i in range(first, min(first + _SEGMENT, row * pixels + pixels)):
                h = np.float64(grad[i])
                if masked:
                    h = h if out[i] > zero else 0.0
                total = plus(total, h)
                total_x = plus(total_x, h * (np.float64(x[i]) - middle))
            parts[item] = total
            parts[count + item] = total_x

    return body


@cache
def _grad_x(bits: int, masked: bool, residual: bool) -> Any:
    zero = _ZERO[bits]

    @jit
    def body(task, turn, scratch, words):
        (
            grad, x, out, a, b, c, grad_x, grad_residual, channels, pixels, count, each,
        ) = read(words, _Grad)  # fmt: skip
        grad, x, out = pointer(grad, bits), pointer(x, bits), pointer(out, bits)
        grad_x, grad_residual = pointer(grad_x, bits), pointer(grad_residual, bits)
        a, b, c = pointer(a, bits), pointer(b, bits), pointer(c, bits)
        segments = -(-pixels // _SEGMENT)
        for item in range(task * each, min(task * each + each, count)):
            row, segment = divmod(item, segments)
            k = row % channels
            a_, b_, c_ = a[k], b[k], c[k]
            first = row * pixels + segment * _SEGMENT
            for i in range(first, min(first + _SEGMENT, row * pixels + pixels)):
                h = grad[i]
                if masked:
                    h = h if out[i] > zero else zero
                grad_x[i] = a_ * h + b_ * x[i] + c_
                if residual:
                    grad_residual[i] = h

    return body

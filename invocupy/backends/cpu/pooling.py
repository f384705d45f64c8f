"""Pooling on the CPU: one pass over each plane, in loops along rows that the compiler vectorises.

For the maximum the columns of a plane are first sorted by what remains when they are divided by the
stride: what neighbouring windows see through a tap then lies side by side. Sums are taken down the
columns first, so that they need no such thing.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

import numpy as np

from invocupy.backends.cpu.access import pointer, read
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.pool import launch

_Call = namedtuple(
    "_Call", "first second third table height width rows columns down across row_step step top"
)


def max_pool(x: Any, window: Any, out: Any, winner: Any) -> None:
    """Taps in turn along each row of windows."""
    _launch(
        _max_pool(8 * x.itemsize, 8 * winner.itemsize), (x, out, winner), x, out, window, x.shape[2]
    )


def max_pool_grad(grad: Any, winner: Any, window: Any, out: Any) -> None:
    """Windows in turn: each gives to its winner."""
    kernel = _max_pool_grad(8 * grad.itemsize, 8 * winner.itemsize)
    _launch(kernel, (grad, winner, out), out, grad, window)


def avg_pool(x: Any, scale: Any, window: Any, out: Any) -> None:
    """Sums down the columns, then along the rows."""
    _launch(_avg_pool(8 * x.itemsize), (x, scale, out), x, out, window)


def avg_pool_grad(grad: Any, scale: Any, window: Any, out: Any) -> None:
    """Spread along the rows, then down the columns."""
    _launch(_avg_pool_grad(8 * grad.itemsize), (grad, scale, out), out, grad, window)


def _launch(
    kernel: Any, arrays: tuple[Any, ...], x: Any, out: Any, window: Any, rows: int = 0
) -> None:  # fmt: skip
    """A task for each plane; in scratch are ``rows`` rows of x, sorted, or one as it is."""
    images, channels, height, width = x.shape
    size, (row_step, step), (top, left) = window
    columns = out.shape[3]
    step = step if columns > 1 else 1  # from a single window to no next one, however far
    each = -(-width // step)  # columns of one remainder
    # of each column of a window: from which to before which window it lies in x, and where the
    # first window has it in a row of x as it is, and sorted
    first = np.arange(size[1]) - left
    low, high = -(first // step), (width - 1 - first) // step + 1
    table = [np.maximum(low, 0), np.minimum(high, columns), first, first % step * each - low]
    launch(
        kernel, images * channels, x.size + out.size * size[0] * size[1] // 4,
        (rows * each * step or width) * x.itemsize,
        _Call(
            *arrays, np.stack(table, axis=1), height, width, *out.shape[2:], *size, row_step, step,
            top,
        ),
    )  # fmt: skip


@cache
def _max_pool(bits: int, index_bits: int) -> Any:
    size, index_size = bits // 8, index_bits // 8
    index_kind, whole = -index_bits, {32: np.int32, 64: np.int64}[index_bits]
    least = {32: np.float32, 64: np.float64}[bits](-np.inf)

    @jit
    def body(task, turn, scratch, words):
        w = read(words, _Call)
        x, out, winner = w.first, w.second, w.third
        each = -(-w.width // w.step)  # w.columns of one remainder
        held, table = pointer(scratch, bits), pointer(w.table, -64)
        plane = pointer(x + task * w.height * w.width * size, bits)
        for y in range(w.height):
            for phase in range(w.step):
                to = (y * w.step + phase) * each
                for k in range((w.width - phase + w.step - 1) // w.step):
                    held[to + k] = plane[y * w.width + phase + k * w.step]
        for i in range(w.rows):
            place = (task * w.rows + i) * w.columns
            best = pointer(out + place * size, bits)
            where = pointer(winner + place * index_size, index_kind)
            for j in range(w.columns):
                best[j] = least
                where[j] = -1
            first = i * w.row_step - w.top
            for y in range(max(first, 0), min(first + w.down, w.height)):
                for v in range(w.across):
                    seen = y * w.step * each + table[v * 4 + 3]
                    index = y * w.width + table[v * 4 + 2]
                    for j in range(table[v * 4], table[v * 4 + 1]):
                        value, before = held[seen + j], best[j]
                        better = (value > before) | (where[j] < 0)
                        better |= (value != value) & (before == before)
                        best[j] = value if better else before
                        where[j] = whole(index + j * w.step) if better else where[j]

    return body


@cache
def _max_pool_grad(bits: int, index_bits: int) -> Any:
    size, index_size, index_kind = bits // 8, index_bits // 8, -index_bits

    @jit
    def body(task, turn, scratch, words):
        w = read(words, _Call)
        grad, winner, out = w.first, w.second, w.third
        total = pointer(out + task * w.height * w.width * size, bits)
        for i in range(w.height * w.width):
            total[i] = 0
        share = pointer(grad + task * w.rows * w.columns * size, bits)
        where = pointer(winner + task * w.rows * w.columns * index_size, index_kind)
        for i in range(w.rows * w.columns):
            total[where[i]] += share[i]

    return body


@cache
def _avg_pool(bits: int) -> Any:
    size = bits // 8

    @jit
    def body(task, turn, scratch, words):
        w = read(words, _Call)
        x, scale, out = w.first, w.second, w.third
        held, factor, table = pointer(scratch, bits), pointer(scale, bits), pointer(w.table, -64)
        for i in range(w.rows):
            first, last = (
                max(i * w.row_step - w.top, 0),
                min(i * w.row_step - w.top + w.down, w.height),
            )
            seen = pointer(x + (task * w.height + first) * w.width * size, bits)
            for k in range(w.width):
                held[k] = seen[k]
            for y in range(first + 1, last):
                seen = pointer(x + (task * w.height + y) * w.width * size, bits)
                for k in range(w.width):
                    held[k] += seen[k]
            total = pointer(out + (task * w.rows + i) * w.columns * size, bits)
            for j in range(w.columns):
                total[j] = 0
            for v in range(w.across):
                offset = table[v * 4 + 2]
                for j in range(table[v * 4], table[v * 4 + 1]):
                    total[j] += held[j * w.step + offset]
            for j in range(w.columns):
                total[j] *= factor[i * w.columns + j]

    return body


@cache
def _avg_pool_grad(bits: int) -> Any:
    size = bits // 8

    @jit
    def body(task, turn, scratch, words):
        w = read(words, _Call)
        grad, scale, out = w.first, w.second, w.third
        held, factor, table = pointer(scratch, bits), pointer(scale, bits), pointer(w.table, -64)
        total = pointer(out + task * w.height * w.width * size, bits)
        for i in range(w.height * w.width):
            total[i] = 0
        for i in range(w.rows):
            for k in range(w.width):
                held[k] = 0
            share = pointer(grad + (task * w.rows + i) * w.columns * size, bits)
            for v in range(w.across):
                offset = table[v * 4 + 2]
                for j in range(table[v * 4], table[v * 4 + 1]):
                    held[j * w.step + offset] += share[j] * factor[i * w.columns + j]
            first = i * w.row_step - w.top
            for y in range(max(first, 0), min(first + w.down, w.height)):
                for k in range(w.width):
                    total[y * w.width + k] += held[k]

    return body

"""Pooling on the CPU: one pass over each plane, in loops along rows that the compiler vectorises.

For the maximum the columns of a plane are first sorted by index modulo the stride: then the inputs
of neighbouring windows under one tap are adjacent. Sums are taken along the columns first, and need
no sorting.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

import numpy as np

from invocupy.arrays import Array
from invocupy.backends.cpu.access import pointer, read
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.pool import launch
from invocupy.backends.windows import Window

_TASKS = 64  # into which many planes are cut at least
_LEAST = 4096  # pixels of a task otherwise

# a task is some planes: of x and of the windows' results, or of the gradients of both; ``more`` is
# the winners or the scale
Call = namedtuple(
    "Call",
    "x out more table planes together height width rows columns down across row_step step top",
)
# in the table, of each column of a window: from which to before which window it lies in x, and
# where the first window has it in a row of x as it is, and sorted
LOW, HIGH, FIRST, SORTED, FIELDS = range(5)


def max_pool(x: Array, window: Window, out: Array, winner: Array) -> None:
    """Tap by tap along each row of windows."""
    body = _max_pool(8 * x.itemsize, 8 * winner.itemsize)
    _launch(body, x, out, winner, window, x.shape[2])


def max_pool_grad(grad: Array, winner: Array, window: Window, out: Array) -> None:
    """Window by window: each adds its gradient to its winner."""
    _launch(_max_pool_grad(8 * grad.itemsize, 8 * winner.itemsize), out, grad, winner, window)


def avg_pool(x: Array, scale: Array, window: Window, out: Array) -> None:
    """Sums down the columns, then along the rows."""
    _launch(_avg_pool(8 * x.itemsize, False), x, out, scale, window)


def avg_pool_grad(grad: Array, scale: Array, window: Window, out: Array) -> None:
    """Distribute along the rows, then along the columns."""
    _launch(_avg_pool(8 * grad.itemsize, True), out, grad, scale, window)


def _launch(
    body: Any, x: Array, out: Array, more: Array, window: Window, rows: int = 0
) -> None:  # fmt: skip
    """A task for some planes; in scratch are ``rows`` rows of x, sorted, or one as it is."""
    images, channels, height, width = x.shape
    size, (row_step, step), (top, left) = window
    columns = out.shape[3]
    step = step if columns > 1 else 1  # from a single window to no next one, however far
    each = -(-width // step)  # columns of one remainder
    first = np.arange(size[1]) - left
    low, high = -(first // step), (width - 1 - first) // step + 1
    table = [np.maximum(low, 0), np.minimum(high, columns), first, first % step * each - low]
    planes = images * channels
    together = min(-(-planes // _TASKS), -(-_LEAST // (height * width)))
    sizes = planes, together, height, width, *out.shape[2:], *size, row_step, step, top
    launch(
        body, -(-planes // together), x.size + out.size * size[0] * size[1] // 4,
        (rows * each * step or width) * x.itemsize,
        Call(x, out, more, np.stack(table, axis=1), *sizes),
    )  # fmt: skip


@jit
def planes_of(number, call):
    """From which to before which plane a task goes."""
    return number * call.together, min((number + 1) * call.together, call.planes)


@jit
def rows_seen(i, call):
    """From which to before which row of x a row of windows sees."""
    first = i * call.row_step - call.top
    return max(first, 0), min(first + call.down, call.height)


@cache
def _max_pool(bits: int, index_bits: int) -> Any:
    size, index_size = bits // 8, index_bits // 8
    index_kind, whole = -index_bits, {32: np.int32, 64: np.int64}[index_bits]
    least = {32: np.float32, 64: np.float64}[bits](-np.inf)

    @jit
    def max_pool(number, turn, scratch, words):
        call = read(words, Call)
        width, columns, step = call.width, call.columns, call.step
        each = -(-width // step)  # columns of one remainder
        held, table = pointer(scratch, bits), pointer(call.table, -64)
        for task in range(*planes_of(number, call)):
            plane = pointer(call.x + task * call.height * width * size, bits)
            for y in range(call.height):
                for phase in range(step):
                    to = (y * step + phase) * each
                    for k in range((width - phase + step - 1) // step):
                        held[to + k] = plane[y * width + phase + k * step]
            for i in range(call.rows):
                place = (task * call.rows + i) * columns
                best = pointer(call.out + place * size, bits)
                where = pointer(call.more + place * index_size, index_kind)
                for j in range(columns):
                    best[j] = least
                    where[j] = -1
                for y in range(*rows_seen(i, call)):
                    for v in range(0, call.across * FIELDS, FIELDS):
                        seen = y * step * each + table[v + SORTED]
                        index = y * width + table[v + FIRST]
                        for j in range(table[v + LOW], table[v + HIGH]):
                            value, before = held[seen + j], best[j]
                            better = (value > before) | (where[j] < 0)
                            better |= (value != value) & (before == before)
                            best[j] = value if better else before
                            where[j] = whole(index + j * step) if better else where[j]

    return max_pool


@cache
def _max_pool_grad(bits: int, index_bits: int) -> Any:
    size, index_size, index_kind = bits // 8, index_bits // 8, -index_bits

    @jit
    def max_pool_grad(number, turn, scratch, words):
        call = read(words, Call)
        pixels, windows = call.height * call.width, call.rows * call.columns
        for task in range(*planes_of(number, call)):
            total = pointer(call.x + task * pixels * size, bits)
            share = pointer(call.out + task * windows * size, bits)
            where = pointer(call.more + task * windows * index_size, index_kind)
            for i in range(pixels):
                total[i] = 0
            for i in range(windows):
                total[where[i]] += share[i]

    return max_pool_grad


@cache
def _avg_pool(bits: int, backward: bool) -> Any:
    """Both ways between planes and windows: by a row of x, the sum of those that a row sees."""
    size = bits // 8

    @jit
    def avg_pool(number, turn, scratch, words):
        call = read(words, Call)
        width, columns, step, table = call.width, call.columns, call.step, pointer(call.table, -64)
        held, factor = pointer(scratch, bits), pointer(call.more, bits)
        for task in range(*planes_of(number, call)):
            plane = pointer(call.x + task * call.height * width * size, bits)
            if backward:
                for k in range(call.height * width):
                    plane[k] = 0
            for i in range(call.rows):
                first, last = rows_seen(i, call)
                share = pointer(call.out + (task * call.rows + i) * columns * size, bits)
                for k in range(width):
                    held[k] = 0 if backward else plane[first * width + k]
                if not backward:
                    for y in range(first + 1, last):
                        for k in range(width):
                            held[k] += plane[y * width + k]
                    for j in range(columns):
                        share[j] = 0
                for v in range(0, call.across * FIELDS, FIELDS):
                    for j in range(table[v + LOW], table[v + HIGH]):
                        k = j * step + table[v + FIRST]
                        if backward:
                            held[k] += share[j] * factor[i * columns + j]
                        else:
                            share[j] += held[k]
                if backward:
                    for y in range(first, last):
                        for k in range(width):
                            plane[y * width + k] += held[k]
                else:
                    for j in range(columns):
                        share[j] *= factor[i * columns + j]

    return avg_pool

"""Pooling on the CPU: one pass over each plane, in loops along rows that the compiler vectorises.

For the maximum the columns of a plane are first sorted by what remains when they are divided by the
stride: what neighbouring windows see through a tap then lies side by side. Sums are taken down the
columns first, so that they need no such thing.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from invocupy.backends.cpu.jit import jit, next_task, pointer
from invocupy.backends.cpu.launch import launch


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
        (rows * each * step or width) * x.itemsize, *arrays, np.stack(table, axis=1), height, width,
        *out.shape[2:], *size, row_step, step, top,
    )  # fmt: skip


@cache
def _max_pool(bits: int, index_bits: int) -> Any:
    size, index_size = bits // 8, index_bits // 8
    index_kind, whole = -index_bits, {32: np.int32, 64: np.int64}[index_bits]
    least = {32: np.float32, 64: np.float64}[bits](-np.inf)

    @jit
    def kernel(
        tasks, scratch, counter, x, out, winner, table, height, width, rows, columns, down, across,
        row_step, step, top,
    ):  # fmt: skip
        each = -(-width // step)  # columns of one remainder
        held, table = pointer(scratch, bits), pointer(table, -64)
        while True:
            task = next_task(counter)
            if task >= tasks:
                return
            plane = pointer(x + task * height * width * size, bits)
            for y in range(height):
                for phase in range(step):
                    to = (y * step + phase) * each
                    for k in range((width - phase + step - 1) // step):
                        held[to + k] = plane[y * width + phase + k * step]
            for i in range(rows):
                place = (task * rows + i) * columns
                best = pointer(out + place * size, bits)
                where = pointer(winner + place * index_size, index_kind)
                for j in range(columns):
                    best[j] = least
                    where[j] = -1
                first = i * row_step - top
                for y in range(max(first, 0), min(first + down, height)):
                    for v in range(across):
                        seen = y * step * each + table[v * 4 + 3]
                        index = y * width + table[v * 4 + 2]
                        for j in range(table[v * 4], table[v * 4 + 1]):
                            value, before = held[seen + j], best[j]
                            better = (value > before) | (where[j] < 0)
                            better |= (value != value) & (before == before)
                            best[j] = value if better else before
                            where[j] = whole(index + j * step) if better else where[j]

    return kernel


@cache
def _max_pool_grad(bits: int, index_bits: int) -> Any:
    size, index_size, index_kind = bits // 8, index_bits // 8, -index_bits

    @jit
    def kernel(
        tasks, scratch, counter, grad, winner, out, table, height, width, rows, columns, down,
        across, row_step, step, top,
    ):  # fmt: skip
        while True:
            task = next_task(counter)
            if task >= tasks:
                return
            total = pointer(out + task * height * width * size, bits)
            for i in range(height * width):
                total[i] = 0
            share = pointer(grad + task * rows * columns * size, bits)
            where = pointer(winner + task * rows * columns * index_size, index_kind)
            for i in range(rows * columns):
                total[where[i]] += share[i]

    return kernel


@cache
def _avg_pool(bits: int) -> Any:
    size = bits // 8

    @jit
    def kernel(
        tasks, scratch, counter, x, scale, out, table, height, width, rows, columns, down, across,
        row_step, step, top,
    ):  # fmt: skip
        held, factor, table = pointer(scratch, bits), pointer(scale, bits), pointer(table, -64)
        while True:
            task = next_task(counter)
            if task >= tasks:
                return
            for i in range(rows):
                first, last = max(i * row_step - top, 0), min(i * row_step - top + down, height)
                seen = pointer(x + (task * height + first) * width * size, bits)
                for k in range(width):
                    held[k] = seen[k]
                for y in range(first + 1, last):
                    seen = pointer(x + (task * height + y) * width * size, bits)
                    for k in range(width):
                        held[k] += seen[k]
                total = pointer(out + (task * rows + i) * columns * size, bits)
                for j in range(columns):
                    total[j] = 0
                for v in range(across):
                    offset = table[v * 4 + 2]
                    for j in range(table[v * 4], table[v * 4 + 1]):
                        total[j] += held[j * step + offset]
                for j in range(columns):
                    total[j] *= factor[i * columns + j]

    return kernel


@cache
def _avg_pool_grad(bits: int) -> Any:
    size = bits // 8

    @jit
    def kernel(
        tasks, scratch, counter, grad, scale, out, table, height, width, rows, columns, down,
        across, row_step, step, top,
    ):  # fmt: skip
        held, factor, table = pointer(scratch, bits), pointer(scale, bits), pointer(table, -64)
        while True:
            task = next_task(counter)
            if task >= tasks:
                return
            total = pointer(out + task * height * width * size, bits)
            for i in range(height * width):
                total[i] = 0
            for i in range(rows):
                for k in range(width):
                    held[k] = 0
                share = pointer(grad + (task * rows + i) * columns * size, bits)
                for v in range(across):
                    offset = table[v * 4 + 2]
                    for j in range(table[v * 4], table[v * 4 + 1]):
                        held[j * step + offset] += share[j] * factor[i * columns + j]
                first = i * row_step - top
                for y in range(max(first, 0), min(first + down, height)):
                    for k in range(width):
                        total[y * width + k] += held[k]

    return kernel

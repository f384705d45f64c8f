"""The 1x1 convolution on the CPU: small matrix products in registers, one read of each array.

BLAS is poor at these shapes: with 3 to 64 channels it packs more than it multiplies. Here a chunk
of pixels of all channels is packed so that it stays in cache (the rows of a channel are often a
multiple of 4096 bytes from the next channel's, which is the same place in L1), and micro-kernels
(:mod:`invocupy.backends.products`) hold a block of results in registers. The bias is the weight of
one more channel, which is 1 everywhere.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from invocupy.backends.jit import jit, next_task, pointer
from invocupy.backends.launch import launch
from invocupy.backends.products import (
    BYTES,
    COLUMNS,
    ROWS,
    VECTORS,
    correlate_block,
    multiply_block,
    packed,
)

_CACHE = 1 << 18  # bytes of packed pixels that are worked on at a time: a part of L2
_BLOCK = 40  # channels of each side in a task of the weight gradient: its sums stay in L2
_TASKS = 16  # into which a product is cut at least
PARTS = 32  # weight gradients are summed in so many parts, whatever the number of threads


def forward(x: Any, weight: Any, bias: Any, out: Any) -> None:
    """``out[n] = weight @ x[n] + bias``."""
    batch, channels, pixels = x.shape
    tile = VECTORS * BYTES // x.itemsize
    order, rows = packed(weight, bias), out.shape[1]
    chunk = min(max(_CACHE // (order.shape[1] * tile * x.itemsize), 1), -(-pixels // tile)) * tile
    # few chunks: their rows are shared out as well
    chunks = batch * -(-pixels // chunk)
    groups = min(order.shape[0], -(-_TASKS // chunks))
    bytes_ = order.shape[1] * (chunk * x.itemsize + 64) + BYTES
    launch(
        _forward(8 * x.itemsize), chunks * groups, x.size * rows // 16, bytes_,
        x, order, out, channels, order.shape[1], rows, pixels, chunk, groups,
    )  # fmt: skip


def grad_x(grad: Any, weight: Any, out: Any) -> None:
    """``out[n] = weight.T @ grad[n]``."""
    forward(grad, weight.T, None, out)


def grad_weight(grad: Any, x: Any, out: Any, grad_bias: Any) -> None:
    """Sums over pixels in vector lanes, a block of (o, c) pairs at a time."""
    batch, rows, pixels = grad.shape
    columns = x.shape[1] + 1  # the last one for the bias
    tile = VECTORS * BYTES // x.itemsize
    (row_blocks, height), (column_blocks, width) = _blocks(rows, ROWS), _blocks(columns, COLUMNS)
    # A chunk goes on over the images: the longer, the fewer times sums leave the registers.
    room = _CACHE // ((height + width) * tile * x.itemsize)
    chunk = min(max(room, 1), -(-batch * pixels // tile)) * tile
    units = -(-batch * pixels // chunk)
    blocks = row_blocks * column_blocks
    parts = min(max(PARTS // blocks, 1), units)
    sums = np.empty((parts, rows, columns), np.float64)
    launch(
        _grad_weight(8 * x.itemsize), parts * blocks, grad.size * columns // 16,
        height * width * BYTES + (height + width) * (chunk * x.itemsize + BYTES) + BYTES,
        grad, x, sums, rows, columns, pixels, batch * pixels, chunk, units, row_blocks, height,
        column_blocks, width,
    )  # fmt: skip
    total = sums.sum(axis=0)
    out[...] = total[:, :-1]
    if grad_bias is not None:
        grad_bias[...] = total[:, -1]


def _blocks(channels: int, step: int) -> tuple[int, int]:
    """Into how many blocks channels are cut, and their size, a multiple of those in registers."""
    count = -(-channels // _BLOCK)
    size = -(-channels // count)
    return count, -(-size // step) * step


@cache
def _forward(bits: int) -> Any:
    size = bits // 8
    V, R, S = BYTES // size, VECTORS, ROWS
    tile = R * V

    @jit
    def kernel(
        tasks, scratch, counter, x, weight, out, channels, terms, rows, pixels, chunk, groups
    ):  # fmt: skip
        chunks = -(-pixels // chunk)
        plane = chunk * size + 64
        if terms > channels:
            ones = pointer(scratch + channels * plane, bits)
            for i in range(chunk):
                ones[i] = 1
        while True:
            task = next_task(counter)
            if task >= tasks:
                return
            task, group = divmod(task, groups)
            n, first = task // chunks, task % chunks * chunk
            count = min(chunk, pixels - first)
            whole = count // tile * tile
            source = x + (n * channels * pixels + first) * size
            target = out + (n * rows * pixels + first) * size
            for c in range(channels):
                held = pointer(scratch + c * plane, bits)
                seen = pointer(source + c * pixels * size, bits)
                for i in range(count):
                    held[i] = seen[i]
            blocks = -(-rows // S)
            for b in range(blocks * group // groups, blocks * (group + 1) // groups):
                w, place = weight + b * terms * S * size, target + b * S * pixels * size
                last = min(S, rows - b * S) - 1
                for i in range(0, whole * size, tile * size):
                    multiply_block(
                        terms, w, scratch + i, plane, place + i, pixels * size, last, V,
                        S, R, 0, V, bits,
                    )  # fmt: skip
                for i in range(whole, count, V):
                    multiply_block(
                        terms, w, scratch + i * size, plane, place + i * size, pixels * size,
                        last, min(V, count - i), S, 1, 0, V, bits,
                    )  # fmt: skip

    return kernel


@cache
def _grad_weight(bits: int) -> Any:
    size = bits // 8
    V, R, A, B = BYTES // size, VECTORS, ROWS, COLUMNS
    vector = BYTES
    tile = R * V

    @jit
    def pack(target, row, channels, source, stride, pixels, first, count):
        """``count`` positions from ``first`` on, and zeros up to a whole tile. Rows of the target
        are ``row`` bytes apart, images ``stride``."""
        done = 0
        n, i = divmod(first, pixels)
        while done < count:
            run = min(pixels - i, count - done)
            for q in range(channels):
                held = pointer(target + q * row + done * size, bits)
                seen = pointer(source + n * stride + (q * pixels + i) * size, bits)
                for j in range(run):
                    held[j] = seen[j]
            n, i, done = n + 1, 0, done + run
        for q in range(channels):
            held = pointer(target + q * row, bits)
            for j in range(count, -(-count // tile) * tile):
                held[j] = 0

    @jit
    def kernel(
        tasks, scratch, counter, grad, x, sums, rows, columns, pixels, positions, chunk, units,
        row_blocks, height, column_blocks, width,
    ):  # fmt: skip
        parts = tasks // (row_blocks * column_blocks)
        left = scratch + height * width * vector
        row = chunk * size + vector  # rows of 4096 bytes would all lie in the same place of L1
        right = left + height * row
        total, out = pointer(scratch, bits), pointer(sums, 64)
        plane = pixels * size
        while True:
            task = next_task(counter)
            if task >= tasks:
                return
            block, part = divmod(task, parts)
            o, c = block // column_blocks * height, block % column_blocks * width
            a, b = min(height, rows - o), min(width, columns - c)
            last = c + b == columns
            for i in range(height * width * V):
                total[i] = 0
            for q in range(height + width):  # rows that only fill the block, and the ones
                blank = pointer(left + q * row, bits)
                for k in range(chunk):
                    blank[k] = last and q == height + b - 1
            for unit in range(units * part // parts, units * (part + 1) // parts):
                first = unit * chunk
                count = min(chunk, positions - first)
                pack(left, row, a, grad + o * plane, rows * plane, pixels, first, count)
                pack(
                    right, row, b - last, x + c * plane, (columns - 1) * plane, pixels, first,
                    count,
                )  # fmt: skip
                for i in range(0, height, A):
                    for j in range(0, width, B):
                        correlate_block(
                            -(-count // tile), tile * size, left + i * row, right + j * row, row,
                            scratch + (i * width + j) * vector, width * vector, A, B, R, V, bits,
                        )  # fmt: skip
            for i in range(a):
                for j in range(b):
                    lanes = 0.0
                    for v in range(V):
                        lanes += total[(i * width + j) * V + v]
                    out[(part * rows + o + i) * columns + c + j] = lanes

    return kernel

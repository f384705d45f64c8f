"""The 1x1 convolution on the CPU: small matrix products in registers, one read of each array.

BLAS is poor at these shapes: with 3 to 64 channels it packs more than it multiplies. Here a chunk
of pixels of all channels is packed so that it stays in cache (the rows of a channel are often a
multiple of 4096 bytes from the next channel's, which is the same place in L1), and micro-kernels
(:mod:`invocupy.backends.cpu.products`) hold a block of results in registers. The bias is the weight
of one more channel, which is 1 everywhere.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

import numpy as np

from invocupy.arrays import Array
from invocupy.backends.cpu.access import pointer, read
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.pool import launch
from invocupy.backends.cpu.products import (
    BYTES,
    ROWS,
    VECTORS,
    multiply_block,
    packed,
    transpose_block,
)

_CACHE = 1 << 18  # bytes of packed pixels that are worked on at a time: a part of L2
_BLOCK = 128  # channels of each side in a task of the weight gradient
_POSITIONS = 256  # pixels of the weight gradient that are worked on at a time, at most
_TASKS = 16  # into which a product is cut at least
PARTS = 32  # weight gradients are summed in so many parts, whatever the number of threads

_Forward = namedtuple("_Forward", "x weight out channels terms rows pixels chunk shares")
_GradWeight = namedtuple(
    "_GradWeight",
    "left right sums left_channels rows right_channels columns pixels positions chunk parts height "
    "width",
)


def forward(x: Array, weight: Array, bias: Array | None, out: Array) -> None:
    """``out[n] = weight @ x[n] + bias``."""
    _multiply(packed(weight, bias), x, out)


def grad_x(grad: Array, weight: Array, out: Array) -> None:
    """``out[n] = weight.T @ grad[n]``."""
    _multiply(packed(weight, transposed=True), grad, out)


def _multiply(order: Array, x: Array, out: Array) -> None:
    batch, channels, pixels = x.shape
    blocks, terms, _ = order.shape
    tile = VECTORS * BYTES // x.itemsize
    chunk = min(max(_CACHE // (terms * tile * x.itemsize), 1), -(-pixels // tile)) * tile
    # few chunks: their rows are shared out as well
    chunks = batch * -(-pixels // chunk)
    shares = min(blocks, -(-_TASKS // chunks))
    launch(
        _forward(8 * x.itemsize), chunks * shares, x.size * out.shape[1] // 16,
        terms * (chunk * x.itemsize + 64) + BYTES,
        _Forward(x, order, out, channels, terms, out.shape[1], pixels, chunk, shares),
    )  # fmt: skip


def grad_weight(grad: Array, x: Array, out: Array, grad_bias: Array | None) -> None:
    """A product as well, whose terms are the pixels: both sides are transposed in cache."""
    batch, rows, pixels = grad.shape
    columns = x.shape[1] + (grad_bias is not None)  # the last one, of ones, for the bias
    lanes = BYTES // x.itemsize
    # Vectors go along the side that has more channels.
    left, right = (grad, rows), (x, columns)
    if rows > columns:
        left, right = right, left
    row_blocks, height = _blocks(left[1], ROWS)
    column_blocks, width = _blocks(right[1], lanes)
    room = _CACHE // ((height + width) * x.itemsize)
    chunk = min(max(room // lanes, 1), _POSITIONS // lanes, -(-batch * pixels // lanes)) * lanes
    blocks = row_blocks * column_blocks
    parts = min(max(PARTS // blocks, 1), -(-batch * pixels // chunk))
    sums = np.empty((parts, left[1], right[1]), np.float64)
    elements = (
        (height + chunk) * (width + lanes) + chunk * (height + lanes) + lanes * (chunk + lanes)
    )
    launch(
        _grad_weight(8 * x.itemsize), parts * blocks, grad.size * columns // 16,
        elements * x.itemsize,
        _GradWeight(
            left[0], right[0], sums, left[0].shape[1], left[1], right[0].shape[1], right[1],
            pixels, batch * pixels, chunk, parts, height, width,
        ),
    )  # fmt: skip
    total = sums.sum(axis=0)
    if rows > columns:
        total = total.T
    out[...] = total[:, : x.shape[1]]
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
    def body(task, turn, scratch, words):
        x, weight, out, channels, terms, rows, pixels, chunk, shares = read(words, _Forward)
        plane = chunk * size + 64
        if terms > channels and turn == 0:
            ones = pointer(scratch + channels * plane, bits)
            for i in range(chunk):
                ones[i] = 1
        task, share = divmod(task, shares)
        n, first = divmod(task, -(-pixels // chunk))
        first *= chunk
        count = min(chunk, pixels - first)
        whole = count // tile * tile
        for c in range(channels):
            held = pointer(scratch + c * plane, bits)
            seen = pointer(x + ((n * channels + c) * pixels + first) * size, bits)
            for i in range(count):
                held[i] = seen[i]
        target = out + (n * rows * pixels + first) * size
        blocks = -(-rows // S)
        for b in range(blocks * share // shares, blocks * (share + 1) // shares):
            w, place = weight + b * terms * S * size, target + b * S * pixels * size
            last = min(S, rows - b * S) - 1
            for i in range(0, whole * size, tile * size):
                multiply_block(
                    terms, w, S * size, scratch + i, plane, place + i, pixels * size,
                    last, V, S, R, 0, 0, V, bits,
                )  # fmt: skip
            for i in range(whole, count, V):
                multiply_block(
                    terms, w, S * size, scratch + i * size, plane, place + i * size,
                    pixels * size, last, min(V, count - i), S, 1, 0, 0, V, bits,
                )  # fmt: skip

    return body


@cache
def _grad_weight(bits: int) -> Any:
    size = bits // 8
    V, R, S = BYTES // size, VECTORS, ROWS

    @jit
    def transpose(to, pitch, held, row, source, channels, pixels, first, count, start, width):
        """``count`` positions from ``first`` on, a row of ``to`` each, of channels from ``start``.

        After the last channel there are ones.
        """
        for group in range(start, start + width, V):
            some = min(V, start + width - group)
            real = min(some, channels - group)
            n, i = divmod(first, pixels)
            done = 0
            while done < count:
                run = min(pixels - i, count - done)
                for q in range(real):
                    line = pointer(held + q * row + done * size, bits)
                    place = source + ((n * channels + group + q) * pixels + i) * size
                    seen = pointer(place, bits)
                    for j in range(run):
                        line[j] = seen[j]
                n, i, done = n + 1, 0, done + run
            for q in range(max(real, 0), some):
                line = pointer(held + q * row, bits)
                for j in range(count):
                    line[j] = 1
            for j in range(0, count, V):
                place = to + (group - start) * size + j * pitch
                transpose_block(held + j * size, row, place, pitch, V, bits)

    def multiply_by(R):
        @jit
        def multiply(terms, left, left_row, height, right, right_row, sums):
            """``sums[i, j] += sum of left[t, i] * right[t, j]`` for R vectors of j."""
            for i in range(0, height, S):
                multiply_block(
                    terms, left + i * size, left_row, right, right_row, sums + i * right_row,
                    right_row, S - 1, V, S, R, 0, 1, V, bits,
                )  # fmt: skip

        return multiply

    several, one = multiply_by(R), multiply_by(1)

    @jit
    def body(task, turn, scratch, words):
        (
            left, right, sums, left_channels, rows, right_channels, columns, pixels, positions,
            chunk, parts, height, width,
        ) = read(words, _GradWeight)  # fmt: skip
        # Rows of 4096 bytes would all lie in the same place of L1.
        left_row, right_row, row = height * size + BYTES, width * size + BYTES, chunk * size + BYTES
        left_side = scratch + height * right_row
        right_side = left_side + chunk * left_row
        held = right_side + chunk * right_row
        total, out = pointer(scratch, bits), pointer(sums, 64)
        block, part = divmod(task, parts)
        o, c = divmod(block, -(-columns // width))
        o, c = o * height, c * width
        for i in range(height * right_row // size):
            total[i] = 0
        units, wide = -(-positions // chunk), width // (R * V) * R * V
        for unit in range(units * part // parts, units * (part + 1) // parts):
            first = unit * chunk
            count = min(chunk, positions - first)
            transpose(
                left_side, left_row, held, row, left, left_channels, pixels, first, count, o, height
            )
            transpose(
                right_side, right_row, held, row, right, right_channels, pixels, first, count, c,
                width,
            )  # fmt: skip
            for j in range(0, wide * size, R * V * size):
                several(
                    count, left_side, left_row, height, right_side + j, right_row, scratch + j
                )  # fmt: skip
            for j in range(wide * size, width * size, V * size):
                one(count, left_side, left_row, height, right_side + j, right_row, scratch + j)
        for i in range(min(height, rows - o)):
            for j in range(min(width, columns - c)):
                out[(part * rows + o + i) * columns + c + j] = total[i * (right_row // size) + j]

    return body

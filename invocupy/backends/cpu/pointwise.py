"""The 1x1 convolution on the CPU: small matrix products in registers, one read of each array.

BLAS is slow for these shapes: with 3 to 64 channels it packs more than it multiplies. Here a chunk
of pixels of all channels is packed so that it stays in cache (the rows of a channel are often a
multiple of 4096 bytes from the next channel's, which is the same set of L1), and micro-kernels
(:mod:`invocupy.backends.cpu.contract`) hold a block of results in registers. The bias is the weight
of one more channel, which is 1 everywhere.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

import numpy as np

from invocupy.arrays import Array
from invocupy.backends.cpu.access import Record, pointer, read
from invocupy.backends.cpu.contract import ADD, MR, NR, STORE, ZERO, multiply
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.move import copying, filling, transpose
from invocupy.backends.cpu.order import NONE, SMALL, Order, order, packed, packer
from invocupy.backends.cpu.pool import launch
from invocupy.backends.cpu.vector import VECTOR_BYTES, call

_CACHE = 1 << 18  # bytes of packed pixels that are worked on at a time: a part of L2
_BLOCK = 128  # channels of each side in a task of the weight gradient
_POSITIONS = 256  # pixels of the weight gradient that are worked on at a time, at most
_TASKS = 16  # into which a product is cut at least
PARTS = 32  # of the sums of weight gradients, for any number of threads

_Forward = namedtuple(
    "_Forward",
    "x order weight bias packed out tile part channels terms rows pixels chunk shares",
)
_GradWeight = namedtuple(
    "_GradWeight",
    "left right sums transpose several one left_channels rows right_channels columns pixels "
    "positions chunk parts height width",
)


def forward(x: Array, weight: Array, bias: Array | None, out: Array) -> None:
    """``out[n] = weight @ x[n] + bias``."""
    _multiply(order(*weight.shape, x.itemsize, int(bias is not None)), weight, bias, x, out)


def grad_x(grad: Array, weight: Array, base: Array | None, out: Array) -> None:
    """``out[n] = weight.T @ grad[n]``, and ``base[n]``."""
    in_order = order(*weight.shape, grad.itemsize, transposed=True)
    product = out if base is None else np.empty_like(out)
    _multiply(in_order, weight, None, grad, product)
    if base is not None:
        np.add(base, product, out=out)


def _multiply(
    in_order: Record, weight: Array, bias: Array | None, x: Array, out: Array
) -> None:  # fmt: skip
    batch, channels, pixels = x.shape
    o: Order = in_order.values
    terms = o.width + o.bias
    V, bits = VECTOR_BYTES // x.itemsize, 8 * x.itemsize
    tile = NR * V
    chunk = min(max(_CACHE // (terms * tile * x.itemsize), 1), -(-pixels // tile)) * tile
    # few chunks: their rows are shared out as well
    chunks = batch * -(-pixels // chunk)
    shares = min(o.blocks, -(-_TASKS // chunks))
    small = o.bytes <= SMALL
    call = _Forward(
        x, in_order, weight, bias, None if small else packed(in_order, weight, bias), out,
        *_code(STORE, bits), channels, terms, out.shape[1], pixels, chunk, shares,
    )  # fmt: skip
    scratch = terms * (chunk * x.itemsize + 64) + VECTOR_BYTES + small * o.bytes
    launch(_forward(bits), chunks * shares, x.size * out.shape[1] // 16, scratch, call)


def grad_weight(grad: Array, x: Array, out: Array, grad_bias: Array | None) -> None:
    """A product as well, whose terms are the pixels: both sides are transposed in cache."""
    batch, rows, pixels = grad.shape
    columns = x.shape[1] + (grad_bias is not None)  # the last one, of ones, for the bias
    lanes, bits = VECTOR_BYTES // x.itemsize, 8 * x.itemsize
    # Vectors go along the side that has more channels.
    left, right = (grad, rows), (x, columns)
    if rows > columns:
        left, right = right, left
    row_blocks, height = _blocks(left[1], MR)
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
        _grad_weight(bits), parts * blocks, grad.size * columns // 16,
        elements * x.itemsize,
        _GradWeight(
            left[0], right[0], sums, transpose(lanes, bits),
            *_code(ADD, bits), left[0].shape[1], left[1],
            right[0].shape[1], right[1], pixels, batch * pixels, chunk, parts, height, width,
        ),
    )  # fmt: skip
    total = sums.sum(axis=0)
    if rows > columns:
        total = total.T
    out[...] = total[:, : x.shape[1]]
    if grad_bias is not None:
        grad_bias[...] = total[:, -1]


def _blocks(channels: int, step: int) -> tuple[int, int]:
    """The number of blocks of channels, and their size, a multiple of those in registers."""
    count = -(-channels // _BLOCK)
    size = -(-channels // count)
    return count, -(-size // step) * step


@cache
def _code(end: int, bits: int) -> list[int]:
    """Products of blocks of rows with NR vectors, and with one."""
    return [multiply(MR, R, ZERO, end, 0, 8 * VECTOR_BYTES // bits, bits) for R in (NR, 1)]


@cache
def _forward(bits: int) -> Any:
    size = bits // 8
    V = VECTOR_BYTES // size
    tile, pack, copy, fill = NR * V, packer(bits), copying(bits), filling(bits)

    @jit
    def body(task, turn, scratch, words):
        c = read(words, _Forward)
        weight = c.packed
        if weight == 0:
            weight, scratch = scratch, pack(turn, c.order, c.weight, c.bias, NONE, scratch)
        pixels, plane, block = c.pixels, c.chunk * size + 64, c.terms * MR * size
        if c.terms > c.channels and turn == 0:
            fill(scratch + c.channels * plane, c.chunk, 1)
        task, share = divmod(task, c.shares)
        n, first = divmod(task, -(-pixels // c.chunk))
        first *= c.chunk
        count = min(c.chunk, pixels - first)
        seen = c.x + (n * c.channels * pixels + first) * size
        copy(scratch, plane, seen, pixels * size, c.channels, count, count)
        several = -(-c.rows // MR)
        b0, b1 = several * share // c.shares, several * (share + 1) // c.shares
        weight, rows = weight + b0 * block, min(b1 * MR, c.rows) - b0 * MR
        target = c.out + ((n * c.rows + b0 * MR) * pixels + first) * size
        whole = count // tile * tile
        for i in range(0, whole * size, tile * size):
            call(c.tile, (
                c.terms, weight, MR * size, block, scratch + i, plane, target + i, pixels * size,
                rows, V,
            ))  # fmt: skip
        for i in range(whole, count, V):
            call(c.part, (
                c.terms, weight, MR * size, block, scratch + i * size, plane, target + i * size,
                pixels * size, rows, min(V, count - i),
            ))  # fmt: skip

    return body


@cache
def _grad_weight(bits: int) -> Any:
    size = bits // 8
    V, copy, fill = VECTOR_BYTES // size, copying(bits), filling(bits)

    @jit
    def rows_of(c, to, pitch, held, row, source, channels, first, count, start, width):
        """``count`` positions from ``first`` on, a row of ``to`` each, of channels from ``start``.

        After the last channel there are ones.
        """
        for group in range(start, start + width, V):
            some = min(V, start + width - group)
            real = min(some, channels - group)
            n, i = divmod(first, c.pixels)
            done = 0
            while done < count:
                run = min(c.pixels - i, count - done)
                place = source + ((n * channels + group) * c.pixels + i) * size
                copy(held + done * size, row, place, c.pixels * size, real, run, run)
                n, i, done = n + 1, 0, done + run
            for q in range(max(real, 0), some):
                fill(held + q * row, count, 1)
            for j in range(0, count, V):
                place = to + (group - start) * size + j * pitch
                call(c.transpose, (held + j * size, row, place, pitch))

    @jit
    def body(task, turn, scratch, words):
        c = read(words, _GradWeight)
        # Rows of 4096 bytes would all lie in the same place of L1.
        height, width = c.height * size + VECTOR_BYTES, c.width * size + VECTOR_BYTES
        row = c.chunk * size + VECTOR_BYTES
        left = scratch + c.height * width
        right = left + c.chunk * height
        held = right + c.chunk * width
        total, out = pointer(scratch, bits), pointer(c.sums, 64)
        block, part = divmod(task, c.parts)
        o, k = divmod(block, -(-c.columns // c.width))
        o, k = o * c.height, k * c.width
        fill(scratch, c.height * width // size, 0)
        units = -(-c.positions // c.chunk)
        for unit in range(units * part // c.parts, units * (part + 1) // c.parts):
            first = unit * c.chunk
            count = min(c.chunk, c.positions - first)
            rows_of(c, left, height, held, row, c.left, c.left_channels, first, count, o, c.height)
            rows_of(c, right, width, held, row, c.right, c.right_channels, first, count, k, c.width)
            j = 0
            while j < c.width:
                several = c.width - j >= NR * V
                call(c.several if several else c.one, (
                    count, left, height, MR * size, right + j * size, width, scratch + j * size,
                    width, c.height, V,
                ))  # fmt: skip
                j += NR * V if several else V
        for i in range(min(c.height, c.rows - o)):
            for j in range(min(c.width, c.columns - k)):
                out[(part * c.rows + o + i) * c.columns + k + j] = total[i * (width // size) + j]

    return body

"""The compiled loops of convolution: tiles of positions, and what they see, in cache.

A kernel is a serial function that takes tasks from a shared counter until none is left. Tables of
taps and blocks come in by address. Names: a *tile* is VECTORS vectors of V positions; a *term* is
what it sees through one tap in one channel, or a row of ones for the bias; a *row* is a channel of
the product's result.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from invocupy.backends.cpu.access import pointer, read
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.products import BYTES, COLUMNS, ROWS, VECTORS, multiply_block
from invocupy.backends.cpu.vector import call

TERMS = 256  # of a tile that are multiplied at a time: half of L1
TERM = VECTORS * BYTES  # bytes of one
MARK = 4 * BYTES  # bytes of the offset and masks of a tap, while tiles are packed

# columns of the table of taps: row and column it looks at, its place in the weights, and from which
# to before which position in a row what it sees is inside
Y, X, PLACE, LOW, HIGH, TAP = range(6)
# columns of the table of blocks: from which to before which tap, the first and the number of
# channels, the first and the number of terms
FROM, TO, CHANNEL, CHANNELS, START, COUNT, FIELDS = range(7)


class View(NamedTuple):
    """How positions look at an array (N, channels, height, width)."""

    images: int
    channels: int
    height: int
    width: int
    rows: int  # of positions
    columns: int
    row_step: int  # from one position to the next
    column_step: int
    take: int  # addresses of the micro-kernels that copy what a vector of positions sees
    take_more: int


Order = namedtuple(
    "Order", "taps blocks number weight bias out rows terms group_stride row_stride stride"
)

Forward = namedtuple(
    "Forward",
    "view table blocks number x weight out groups channels terms rows plane first row_step "
    "step tiles chunk chunks shares",
)

GradWeight = namedtuple(
    "GradWeight",
    "over centre view table blocks number grad x sums code groups rows channels columns tiles "
    "chunk units parts bands height width strips",
)


@jit
def run(place, lanes, view):
    """Image, row and column of a position, and how many of ``lanes`` are with it in this row."""
    row, j = divmod(place, view.columns)
    n, i = divmod(row, view.rows)
    return n, i, j, min(lanes, view.columns - j)


@cache
def _pack(bits: int) -> Any:
    size = bits // 8
    V, R = BYTES // size, VECTORS

    @jit
    def pack(to, row, x, place, table, taps, channel, channels, view, marks):
        """What the tile from ``place`` on sees: terms by channel and tap, ``row`` bytes apart."""
        for vector in range(place, place + R * V, V):
            lane = 0
            while lane < V:
                n, i, j, count = run(vector + lane, V - lane, view)
                source = (n * view.channels + channel) * view.height * view.width
                call(view.take_more if lane else view.take, (
                    to + (vector - place) * size, row,
                    x + (source + (j - lane) * view.column_step) * size,
                    view.height * view.width * size, channels, table, taps, i * view.row_step, j,
                    lane, count if n < view.images else 0, view.height, view.width * size, marks,
                ))  # fmt: skip
                lane += count

    return pack


@cache
def order(bits: int) -> Any:
    """Weights in the order of their use: (G, blocks of ROWS rows, terms, ROWS).

    A last block is filled up with its last row.
    """

    @jit
    def body(task, turn, scratch, words):
        (
            taps, blocks, number, weight, bias, out, rows, terms, group_stride, row_stride, stride,
        ) = read(words, Order)  # fmt: skip
        taps, blocks, biased = pointer(taps, -64), pointer(blocks, -64), bias != 0
        weight, bias, out = pointer(weight, bits), pointer(bias, bits), pointer(out, bits)
        several = -(-rows // ROWS)
        group, b = divmod(task, several)
        for m in range(ROWS):
            row = min(b * ROWS + m, rows - 1)
            here = group * group_stride + row * row_stride
            to = task * terms * ROWS + m
            for k in range(0, number * FIELDS, FIELDS):
                first = blocks[k + CHANNEL]
                for c in range(first, first + blocks[k + CHANNELS]):
                    for t in range(blocks[k + FROM], blocks[k + TO]):
                        out[to] = weight[here + c * stride + taps[t * TAP + PLACE]]
                        to += ROWS
            if biased:
                out[to] = bias[group * rows + row]

    return body


@cache
def forward(bits: int) -> Any:
    size = bits // 8
    V, R, S = BYTES // size, VECTORS, ROWS
    tile = R * V
    pack = _pack(bits)

    @jit
    def body(task, turn, scratch, words):
        (
            view, table, blocks, number, x, weight, out, groups, channels, terms, rows, plane,
            first, row_step, step, tiles, chunk, chunks, shares,
        ) = read(words, Forward)  # fmt: skip
        view = read(view, View)
        blocks = pointer(blocks, -64)
        dense = step == 1 and row_step == view.columns
        each = view.rows * view.columns
        marks = scratch + (TERMS + 1) * TERM
        patch = marks + TERMS * MARK
        task, share = divmod(task, shares)
        group, task = divmod(task, chunks)
        b0, b1 = -(-rows // S) * share // shares, -(-rows // S) * (share + 1) // shares
        for place in range(task * chunk * tile, min((task + 1) * chunk, tiles) * tile, tile):
            n, inside = divmod(place, each)
            whole = dense and inside + tile <= each
            target, target_row = patch, TERM
            if whole:
                target = out + ((n * groups + group) * rows * plane + inside) * size
                target_row = plane * size
            for k in range(0, number * FIELDS, FIELDS):
                low, high, count = blocks[k + FROM], blocks[k + TO], blocks[k + CHANNELS]
                start, length = blocks[k + START], blocks[k + COUNT]
                pack(
                    scratch, TERM, x, place, table + low * TAP * 8, high - low,
                    group * channels + blocks[k + CHANNEL], count, view, marks,
                )  # fmt: skip
                if length > (high - low) * count:
                    ones = pointer(scratch + (length - 1) * TERM, bits)
                    for p in range(tile):
                        ones[p] = 1
                for b in range(b0, b1):
                    last = min(S, rows - b * S) - 1
                    w = weight + ((group * -(-rows // S) + b) * terms + start) * S * size
                    if k == 0:
                        multiply_block(
                            length, w, S * size, scratch, TERM, target + b * S * target_row,
                            target_row, last, V, S, R, 0, 0, V, bits,
                        )  # fmt: skip
                    else:
                        multiply_block(
                            length, w, S * size, scratch, TERM, target + b * S * target_row,
                            target_row, last, V, S, R, 0, 1, V, bits,
                        )  # fmt: skip
            if whole:
                continue
            lane = 0
            while lane < tile:
                n, i, j, count = run(place + lane, tile - lane, view)
                if n >= view.images:
                    break
                for r in range(b0 * S, min(b1 * S, rows)):
                    held = pointer(patch + r * TERM + lane * size, bits)
                    index = ((n * groups + group) * rows + r) * plane + first
                    to = pointer(out + (index + i * row_step + j * step) * size, bits)
                    for p in range(count):
                        to[p * step] = held[p]
                lane += count

    return body


@cache
def grad_weight(bits: int) -> Any:
    size = bits // 8
    V, R, A, B = BYTES // size, VECTORS, ROWS, COLUMNS
    tile = R * V
    pack = _pack(bits)

    @jit
    def body(task, turn, scratch, words):
        (
            over, centre, view, table, blocks, number, grad, x, sums, code, groups, rows, channels,
            columns, tiles, chunk, units, parts, bands, height, width, strips,
        ) = read(words, GradWeight)  # fmt: skip
        view = read(view, View)
        over = read(over, View)
        blocks = pointer(blocks, -64)
        row = chunk * TERM + 64  # terms do not fall into the same cache sets
        right = scratch + height * row
        marks = right + width * row
        task, strip = divmod(task, strips)
        task, band = divmod(task, bands)
        part, group = divmod(task, groups)
        first, last = number * strip // strips, number * (strip + 1) // strips
        o = band * height
        a = min(height, rows - o)
        total = sums + ((part * groups + group) * bands + band) * height * columns * 8
        for q in range(a, height):  # rows that only fill the block
            blank = pointer(scratch + q * row, bits)
            for p in range(chunk * tile):
                blank[p] = 0
        for unit in range(units * part // parts, units * (part + 1) // parts):
            place, here = unit * chunk, min(chunk, tiles - unit * chunk)
            for i in range(here):
                pack(
                    scratch + i * TERM, row, grad, (place + i) * tile, centre, np.int64(1),
                    group * rows + o, a, over, marks,
                )  # fmt: skip
            for k in range(first * FIELDS, last * FIELDS, FIELDS):
                low, high, count = blocks[k + FROM], blocks[k + TO], blocks[k + CHANNELS]
                start, length = blocks[k + START], blocks[k + COUNT]
                for i in range(here):
                    pack(
                        right + i * TERM, row, x, (place + i) * tile,
                        table + low * TAP * 8, high - low,
                        group * channels + blocks[k + CHANNEL], count, view, marks,
                    )  # fmt: skip
                b = (high - low) * count
                for q in range(b, -(-length // B) * B):
                    blank = pointer(right + q * row, bits)
                    for p in range(here * tile):
                        blank[p] = q == b and length > b  # ones, for the bias
                for i in range(0, height, A):
                    for j in range(0, length, B):
                        call(code, (
                            here, scratch + i * row, right + j * row, row,
                            total + (i * columns + start + j) * 8, columns * 8,
                        ))  # fmt: skip

    return body

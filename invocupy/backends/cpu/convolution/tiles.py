"""The compiled loops of convolution: tiles of positions, and what they see, in cache.

Names: a *tile* is VECTORS vectors of V positions; a *term* is what it sees through one tap in one
channel, or a row of ones for the bias; a *row* is a channel of the product's result.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

from invocupy.backends.cpu.access import pointer, read
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.products import BYTES, COLUMNS, ROWS, VECTORS, multiply_block
from invocupy.backends.cpu.vector import call

TERMS = 256  # of a tile that are multiplied at a time: half of L1
TERM = VECTORS * BYTES  # bytes of one
MARK = 4 * BYTES  # bytes of the offset and masks of a tap, while tiles are packed

# columns of the table of taps: row and column it looks at, and from which to before which position
# in a row what it sees is inside
Y, X, LOW, HIGH = range(0, 32, 8)
TAP = 32  # bytes


# terms that are multiplied at a time: some channels through some taps, channel by channel, from the
# term ``start`` on; the bias may be one more
Block = namedtuple("Block", "tap taps channel channels start terms")
BLOCK = 8 * len(Block._fields)  # bytes
# how positions (rows, columns) look at an array (images, channels, height, width) through taps, and
# the micro-kernels that copy what a vector of positions sees: the first part of it, and more
View = namedtuple(
    "View",
    "array taps images channels height width rows columns row_step column_step take take_more",
)
Order = namedtuple("Order", "offsets terms weight bias out rows group_step row_step")
Forward = namedtuple(
    "Forward",
    "x blocks number weight out groups rows terms plane first row_step step tiles chunk shares",
)
GradWeight = namedtuple(
    "GradWeight",
    "grad x blocks number sums code groups columns tiles chunk parts height width strips",
)


@jit
def run(place, lanes, view):
    """Image, row and column of a position, and how many of ``lanes`` are with it in this row."""
    row, j = divmod(place, view.columns)
    n, i = divmod(row, view.rows)
    return n, i, j, min(lanes, view.columns - j)


@cache
def _fill(bits: int) -> Any:
    @jit
    def fill(start, count, value):
        values = pointer(start, bits)
        for i in range(count):
            values[i] = value

    return fill


@cache
def _pack(bits: int) -> Any:
    size = bits // 8
    V, R = BYTES // size, VECTORS

    @jit
    def pack(to, row, view, place, tap, taps, channel, channels, marks):
        """What the tile from ``place`` on sees: terms by channel and tap, ``row`` bytes apart."""
        line = view.width * size
        plane = view.height * line
        for vector in range(place, place + R * V, V):
            lane = 0
            while lane < V:
                n, i, j, count = run(vector + lane, V - lane, view)
                source = view.array + (n * view.channels + channel) * plane
                call(view.take_more if lane else view.take, (
                    to + (vector - place) * size, row,
                    source + (j - lane) * view.column_step * size, plane, channels,
                    view.taps + tap * TAP, taps, i * view.row_step, j, lane,
                    count if n < view.images else 0, view.height, line, marks,
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
        given = read(words, Order)
        offsets, weight = pointer(given.offsets, -64), pointer(given.weight, bits)
        bias, out = pointer(given.bias, bits), pointer(given.out, bits)
        group, block = divmod(task, -(-given.rows // ROWS))
        for m in range(ROWS):
            row = min(block * ROWS + m, given.rows - 1)
            here = group * given.group_step + row * given.row_step
            to = task * (given.terms + (given.bias != 0)) * ROWS + m
            for t in range(given.terms):
                out[to + t * ROWS] = weight[here + offsets[t]]
            if given.bias != 0:
                out[to + given.terms * ROWS] = bias[group * given.rows + row]

    return body


@cache
def _multiply(bits: int, end: int) -> Any:
    size = bits // 8
    V, R, S = BYTES // size, VECTORS, ROWS

    @jit
    def multiply(terms, weight, step, rows, first, last, source, target, target_row):
        """Blocks ``first`` to ``last`` of rows of a product, whose weights are ``step`` apart."""
        for b in range(first, last):
            multiply_block(
                terms, weight + b * step, S * size, source, TERM, target + b * S * target_row,
                target_row, min(S, rows - b * S) - 1, V, S, R, 0, end, V, bits,
            )  # fmt: skip

    return multiply


@cache
def _store(bits: int) -> Any:
    size = bits // 8

    @jit
    def store(held, place, tile, group, first, last, view, given):
        """Rows ``first`` to ``last`` of the tile from ``place`` on to where its positions are."""
        lane = 0
        while lane < tile:
            n, i, j, count = run(place + lane, tile - lane, view)
            if n >= view.images:
                break
            at = given.first + i * given.row_step + j * given.step
            for r in range(first, last):
                row = pointer(held + r * TERM + lane * size, bits)
                index = ((n * given.groups + group) * given.rows + r) * given.plane + at
                to = pointer(given.out + index * size, bits)
                for p in range(count):
                    to[p * given.step] = row[p]
            lane += count

    return store


@cache
def forward(bits: int) -> Any:
    size = bits // 8
    tile, S = TERM // size, ROWS
    pack, fill, store = _pack(bits), _fill(bits), _store(bits)
    multiply, multiply_more = _multiply(bits, 0), _multiply(bits, 1)

    @jit
    def body(task, turn, scratch, words):
        given = read(words, Forward)
        view, rows, groups = read(given.x, View), given.rows, given.groups
        dense = given.step == 1 and given.row_step == view.columns
        each, channels = view.rows * view.columns, view.channels // groups
        marks = scratch + (TERMS + 1) * TERM
        patch = marks + TERMS * MARK
        task, share = divmod(task, given.shares)
        group, task = divmod(task, -(-given.tiles // given.chunk))
        several = -(-rows // S)
        b0, b1 = several * share // given.shares, several * (share + 1) // given.shares
        last = min((task + 1) * given.chunk, given.tiles)
        for place in range(task * given.chunk * tile, last * tile, tile):
            n, inside = divmod(place, each)
            whole = dense and inside + tile <= each
            target, target_row = patch, TERM
            if whole:
                target = given.out + ((n * groups + group) * rows * given.plane + inside) * size
                target_row = given.plane * size
            for k in range(given.number):
                b = read(given.blocks + k * BLOCK, Block)
                channel = group * channels + b.channel
                pack(scratch, TERM, view, place, b.tap, b.taps, channel, b.channels, marks)
                if b.terms > b.taps * b.channels:
                    fill(scratch + (b.terms - 1) * TERM, tile, 1)
                weight = given.weight + (group * several * given.terms + b.start) * S * size
                step = given.terms * S * size
                if k == 0:
                    multiply(b.terms, weight, step, rows, b0, b1, scratch, target, target_row)
                else:
                    multiply_more(b.terms, weight, step, rows, b0, b1, scratch, target, target_row)
            if not whole:
                store(patch, place, tile, group, b0 * S, min(b1 * S, rows), view, given)

    return body


@cache
def grad_weight(bits: int) -> Any:
    size = bits // 8
    tile, A, B = TERM // size, ROWS, COLUMNS
    pack, fill = _pack(bits), _fill(bits)

    @jit
    def body(task, turn, scratch, words):
        given = read(words, GradWeight)
        x, grad = read(given.x, View), read(given.grad, View)
        groups, chunk, parts, height = given.groups, given.chunk, given.parts, given.height
        rows, channels = grad.channels // groups, x.channels // groups
        row = chunk * TERM + 64  # terms do not fall into the same cache sets
        right = scratch + height * row
        marks = right + given.width * row
        bands, units = -(-rows // height), -(-given.tiles // chunk)
        task, strip = divmod(task, given.strips)
        task, band = divmod(task, bands)
        part, group = divmod(task, groups)
        o = band * height
        total = given.sums + ((part * groups + group) * bands + band) * height * given.columns * 8
        for q in range(rows - o, height):  # rows that only fill the block
            fill(scratch + q * row, chunk * tile, 0)
        for unit in range(units * part // parts, units * (part + 1) // parts):
            first, here = unit * chunk, min(chunk, given.tiles - unit * chunk)
            for i in range(here):
                pack(
                    scratch + i * TERM, row, grad, (first + i) * tile, 0, 1, group * rows + o,
                    min(height, rows - o), marks,
                )  # fmt: skip
            for k in range(
                given.number * strip // given.strips, given.number * (strip + 1) // given.strips
            ):
                b = read(given.blocks + k * BLOCK, Block)
                for i in range(here):
                    pack(
                        right + i * TERM, row, x, (first + i) * tile, b.tap, b.taps,
                        group * channels + b.channel, b.channels, marks,
                    )  # fmt: skip
                for q in range(b.taps * b.channels, -(-b.terms // B) * B):
                    fill(right + q * row, here * tile, q < b.terms)  # ones, for the bias
                for i in range(0, height, A):
                    for j in range(0, b.terms, B):
                        call(given.code, (
                            here, scratch + i * row, right + j * row, row,
                            total + (i * given.columns + b.start + j) * 8, given.columns * 8,
                        ))  # fmt: skip

    return body

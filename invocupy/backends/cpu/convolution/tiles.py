"""The compiled loops of convolution: tiles of positions, and what they see, in cache.

Names: a *tile* is NR vectors of V positions; a *term* is what it sees through one tap in one
channel, or a row of ones for the bias; a *row* is a channel of the product's result.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

from collections import namedtuple
from functools import cache
from typing import Any

from llvmlite import ir

from invocupy.backends.cpu.access import pointer, read
from invocupy.backends.cpu.contract import COLUMNS, MR, NR
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.move import filling
from invocupy.backends.cpu.vector import VECTOR_BYTES, Loop, Vectors, call, micro, word

TERMS = 256  # of a tile that are multiplied at a time: half of L1
TERM = NR * VECTOR_BYTES  # bytes of one
MARK = 4 * VECTOR_BYTES  # bytes of the offset and masks of a tap, while tiles are packed

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
Forward = namedtuple(
    "Forward",
    "x blocks number weight out multiply multiply_more groups rows terms plane first row_step step "
    "tiles chunk shares",
)
GradWeight = namedtuple(
    "GradWeight",
    "grad x blocks number sums dot groups columns tiles chunk parts height width strips",
)


@micro(14)
def take(v: Vectors, args: Any, stride: int, keep: int, one: int) -> None:
    """``to[c, t, l]`` = what each tap of a table sees in each channel from the position in lane l.

    The lanes are ``count`` ones from ``lane`` on, for positions from ``j`` on of one row; the
    others, and those that see nothing, become zero or, with keep=1, stay. ``source`` is where lane
    0 would see column 0 of row 0, ``top`` the row that row 0 of a tap is, ``line`` the bytes of a
    row. Offsets and masks of the taps are made first, in ``marks``, or with one=1 in registers.
    """
    to, row, source, plane, channels, table, taps, top, j, lane, count, height, line, marks = args
    builder, zero = v.builder, word(0)
    halves = range(2 if stride == 2 else 1)
    wide = ir.VectorType(ir.IntType(8 * v.size), v.V)  # of a mask in memory

    def clamp(value: Any) -> Any:
        value = builder.select(builder.icmp_signed("<", value, zero), zero, value)
        return builder.select(builder.icmp_signed(">", value, count), count, value)

    def look(tap: Any) -> list[Any]:
        """Offset and masks: of the lanes, and of what is loaded for them."""
        y, x, low, high = (v.load_word(v.add(tap, column)) for column in (Y, X, LOW, HIGH))
        y = v.add(top, y)
        low, high = (v.add(lane, clamp(builder.sub(end, j))) for end in (low, high))
        high = builder.select(builder.icmp_unsigned("<", y, height), high, low)
        found = [v.add(builder.mul(y, line), v.times(x, v.size)), v.mask(low, high)]
        if stride == 2:
            ends = v.times(low, 2), v.add(v.times(high, 2), -1)
            found += [v.mask(*(v.add(end, -h * v.V) for end in ends)) for h in halves]
        return found

    def copy(source: Any, offset: Any, inside: Any, *loaded: Any) -> None:
        place = v.add(source, offset)
        if stride == 1:
            seen = v.load_masked(place, inside)
        elif stride == 2:
            both = [v.load_masked(v.add(place, h * v.bytes), loaded[h]) for h in halves]
            seen = v.shuffle(*both, list(range(0, 2 * v.V, 2)))
        else:
            seen = v.gather(place, stride, inside)
        v.store(builder.select(inside, seen, v.load(to)) if keep else seen, to)

    if one:
        found = look(table)
        loop = Loop(v, channels, [to, source])
        to, source = loop.carried
        copy(source, *found)
        loop.close([v.add(to, row), v.add(source, plane)])
        return
    loop = Loop(v, taps, [table, marks])
    tap, mark = loop.carried
    offset, *masks = look(tap)
    v.store_element(offset, mark)
    for number, mask in enumerate(masks):
        place = v.pointer(v.add(mark, (number + 1) * v.bytes), v.bytes)
        builder.store(builder.sext(mask, wide), place, align=v.size)
    loop.close([v.add(tap, TAP), v.add(mark, MARK)])

    outer = Loop(v, channels, [to, source])
    to, source = outer.carried
    loop = Loop(v, taps, [to, marks])
    to, mark = loop.carried
    offset = v.load_word(mark)
    kept = []
    for number in range(len(masks)):
        place = v.pointer(v.add(mark, (number + 1) * v.bytes), v.bytes)
        held = builder.load(place, align=v.size, typ=wide)
        kept.append(builder.icmp_signed("<", held, ir.Constant(wide, [0] * v.V)))
    copy(source, offset, *kept)
    to = v.add(to, row)
    loop.close([to, v.add(mark, MARK)])
    outer.close([to, v.add(source, plane)])


@jit
def run(place, lanes, view):
    """Image, row and column of a position, and how many of ``lanes`` are with it in this row."""
    row, j = divmod(place, view.columns)
    n, i = divmod(row, view.rows)
    return n, i, j, min(lanes, view.columns - j)


@cache
def _pack(bits: int) -> Any:
    size = bits // 8
    V = VECTOR_BYTES // size

    @jit
    def pack(to, row, view, place, tap, taps, channel, channels, marks):
        """What the tile from ``place`` on sees: terms by channel and tap, ``row`` bytes apart."""
        line = view.width * size
        plane = view.height * line
        for vector in range(place, place + NR * V, V):
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
    tile, S = TERM // size, MR
    pack, fill, store = _pack(bits), filling(bits), _store(bits)

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
        r0 = several * share // given.shares * S
        r1 = min(several * (share + 1) // given.shares * S, rows)
        last = min((task + 1) * given.chunk, given.tiles)
        for place in range(task * given.chunk * tile, last * tile, tile):
            n, inside = divmod(place, each)
            whole = dense and inside + tile <= each
            target, target_row = patch + r0 * TERM, TERM
            if whole:
                image = n * groups + group
                target = given.out + ((image * rows + r0) * given.plane + inside) * size
                target_row = given.plane * size
            for k in range(given.number):
                b = read(given.blocks + k * BLOCK, Block)
                channel = group * channels + b.channel
                pack(scratch, TERM, view, place, b.tap, b.taps, channel, b.channels, marks)
                if b.terms > b.taps * b.channels:
                    fill(scratch + (b.terms - 1) * TERM, tile, 1)
                weight = (group * several * S + r0) * given.terms + b.start * S
                call(given.multiply_more if k else given.multiply, (
                    b.terms, given.weight + weight * size, S * size, given.terms * S * size,
                    scratch, TERM, target, target_row, r1 - r0, tile,
                ))  # fmt: skip
            if not whole:
                store(patch, place, tile, group, r0, r1, view, given)

    return body


@cache
def grad_weight(bits: int) -> Any:
    size = bits // 8
    tile, A, B = TERM // size, MR, COLUMNS
    pack, fill = _pack(bits), filling(bits)

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
                    call(given.dot, (
                        here, scratch + i * row, row, TERM, right, row, TERM,
                        total + (i * given.columns + b.start) * 8, given.columns * 8,
                        -(-b.terms // B),
                    ))  # fmt: skip

    return body

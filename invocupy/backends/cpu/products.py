"""Micro-kernels of small matrix products, as LLVM IR: a block of results stays in registers.

Rows are channels, their elements pixels. As in :mod:`invocupy.backends.cpu.vector` each function is
a Numba intrinsic that emits straight vector code, specialised for its last arguments, which must be
compile-time constants; memory comes in as integer addresses and byte strides.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba.core.types import int64, void
from numba.extending import intrinsic

from invocupy.backends.cpu.access import address, pointer
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.vector import VECTOR_BYTES, WIDE, Loop, Vectors
from invocupy.backends.memory import empty

BYTES = VECTOR_BYTES
VECTORS = 4 if WIDE else 2  # of pixels in a tile, so that 4 rows of it leave registers free
ROWS = 4
COLUMNS = 4 if WIDE else 3  # of the other operand in sums over pixels

_I64 = ir.IntType(64)


@intrinsic(prefer_literal=True)
def multiply_block(
    typing, terms, weight, weight_row, source, source_row, target, target_row, last, lanes, M, R,
    start, end, V, bits,
):  # fmt: skip
    """``target[m, r] = sum over t < terms of weight[t, m] * source[t, r]``, M * R vectors.

    A term's M weights are ``weight_row`` bytes from the next one's; ``terms`` >= 1. The sum starts
    from zero (start=0) or from a bias, one more row of weights (1). It replaces the target (end=0),
    is added to it (1), or replaces it where it is not negative and zeros it elsewhere, a ReLU (2).
    Rows after ``last`` of the target are stored there as well: give them its weights. With R = 1
    only ``lanes`` lanes are stored.
    """
    m_, r_, start_, end_, v_, b_ = (a.literal_value for a in (M, R, start, end, V, bits))

    def codegen(context, builder, signature, args):
        code = Vectors(builder, v_, b_)
        terms, weight, weight_row, source, source_row, target, target_row, last, lanes = args[:9]
        bytes_ = v_ * code.size
        places = []
        for m in range(m_):
            row = ir.Constant(_I64, m)
            row = builder.select(builder.icmp_signed("<", row, last), row, last)
            base = code.at(target, builder.mul(row, target_row))
            places += [code.at(base, r * bytes_) for r in range(r_)]
        begin = [code.zero] * m_
        if start_:
            bias = code.at(weight, builder.mul(terms, weight_row))
            begin = [code.spread(code.at(bias, m * code.size)) for m in range(m_)]
        loop = Loop(builder, terms, [weight, source, *(v for v in begin for _ in range(r_))])
        weight, source, *total = loop.carried
        seen = [code.load(code.at(source, r * bytes_)) for r in range(r_)]
        for m in range(m_):
            factor = code.spread(code.at(weight, m * code.size))
            for r in range(r_):
                total[m * r_ + r] = code.fma(factor, seen[r], total[m * r_ + r])
        loop.close([code.at(weight, weight_row), code.at(source, source_row), *total])
        if end_ == 1:  # only now: a sum of sums is more accurate than one long sum
            total = [builder.fadd(code.load(p), v) for p, v in zip(places, total, strict=True)]
        elif end_ == 2:  # a NaN stays
            total = [code.relu(v) for v in total]
        for vector, place in zip(total, places, strict=True):
            if r_ == 1:
                code.store_lanes(vector, place, code.lanes(None, lanes))
            else:
                code.store(vector, place)
        return context.get_dummy_value()

    return void(*[int64] * 9, M, R, start, end, V, bits), codegen


@intrinsic(prefer_literal=True)
def correlate_block(
    typing, tiles, step, left, right, row, sums, sums_row, A, B, R, V, bits
):  # fmt: skip
    """``sums[a, b] += sum over tiles and r < R of left[a, r] * right[b, r]``, lane by lane.

    ``row`` bytes lie between rows of a tile, ``step`` between tiles; ``tiles`` >= 1.
    """
    a_, b_, r_, v_, bits_ = (a.literal_value for a in (A, B, R, V, bits))

    def codegen(context, builder, signature, args):
        code = Vectors(builder, v_, bits_)
        tiles, step, left, right, row, sums, sums_row = args[:7]
        bytes_ = v_ * code.size
        places = [
            code.at(sums, (sums_row, a), b * bytes_) for a in range(a_) for b in range(b_)
        ]  # fmt: skip
        loop = Loop(builder, tiles, [left, right, *[code.load(place) for place in places]])
        left, right, *total = loop.carried
        for r in range(r_):
            columns = [code.load(code.at(right, (row, b), r * bytes_)) for b in range(b_)]
            for a in range(a_):
                factor = code.load(code.at(left, (row, a), r * bytes_))
                for b in range(b_):
                    total[a * b_ + b] = code.fma(factor, columns[b], total[a * b_ + b])
        loop.close([code.at(left, step), code.at(right, step), *total])
        for vector, place in zip(total, places, strict=True):
            code.store(vector, place)
        return context.get_dummy_value()

    return void(*[int64] * 7, A, B, R, V, bits), codegen


@intrinsic(prefer_literal=True)
def transpose_block(typing, source, source_row, target, target_row, V, bits):
    """``target[j, i] = source[i, j]`` for i, j < V; rows are so many bytes apart."""
    v_, bits_ = (a.literal_value for a in (V, bits))

    def codegen(context, builder, signature, args):
        code = Vectors(builder, v_, bits_)
        source, source_row, target, target_row = args[:4]
        rows = [code.load(code.at(source, (source_row, i))) for i in range(v_)]
        bit = 1
        while bit < v_:  # this bit of the row's number and of the lane's change places
            for i in range(v_):
                if not i & bit:
                    pair = rows[i], rows[i + bit]
                    low = [j if not j & bit else v_ + j - bit for j in range(v_)]
                    high = [j + bit if not j & bit else v_ + j for j in range(v_)]
                    rows[i], rows[i + bit] = (code.pick(*pair, lanes) for lanes in (low, high))
            bit *= 2
        for i, row in enumerate(rows):
            code.store(row, code.at(target, (target_row, i)))
        return context.get_dummy_value()

    return void(*[int64] * 4, V, bits), codegen


@cache
def add_lanes(bits: int) -> Any:
    """Of what :func:`correlate_block` has summed."""

    @jit
    def add_lanes(sums, rows, columns, pitch, out, out_pitch):
        """The lanes of each of ``rows`` x ``columns`` sums together, in float64."""
        lanes, out = pointer(sums, bits), pointer(out, 64)
        V = 8 * BYTES // bits
        for r in range(rows):
            for c in range(columns):
                total = 0.0
                for v in range(V):
                    total += lanes[(r * pitch + c) * V + v]
                out[r * out_pitch + c] = total

    return add_lanes


@cache
def product(bits: int, start: int, end: int) -> Any:
    """Of packed weights with the rows of a tile; for start and end see :func:`multiply_block`."""
    size = bits // 8
    V, R, M = BYTES // size, VECTORS, ROWS

    @jit
    def product(terms, weight, rows, source, source_row, target, target_row):
        """``target[r] = sum of weight[r, t] * source[t]``, ``rows`` in whole blocks."""
        for r in range(0, rows, M):
            multiply_block(
                terms, weight + r * (terms + start) * size, M * size, source, source_row,
                target + r * target_row, target_row, M - 1, V, M, R, start, end, V, bits,
            )  # fmt: skip

    return product


def packed(weight: Any, bias: Any = None, groups: int = 1, turned: bool = False) -> Any:
    """Weights (R, C) in the order of their use: (blocks of ROWS rows, C (+ 1), ROWS).

    A bias (R,) is one more column. With ``groups``, each of so many blocks of columns is packed by
    itself, with one more axis in front. ``turned`` packs what it takes transposed. A last block is
    filled up with its last row.
    """
    rows, columns = weight.shape
    each = columns // groups
    sizes, steps = (rows, each), (columns, 1)
    if turned:
        sizes, steps = sizes[::-1], steps[::-1]
    shape = -(-sizes[0] // ROWS), sizes[1] + (bias is not None), ROWS
    order = empty(shape if groups == 1 else (groups, *shape), weight.dtype, weight)
    _pack(8 * weight.itemsize)(
        groups, each, *sizes, *steps, address(weight), 0 if bias is None else address(bias),
        address(order),
    )  # fmt: skip
    return order


@cache
def _pack(bits: int) -> Any:
    @jit
    def pack(groups, step, height, width, row, column, weight, bias, order):
        target, seen, last = pointer(order, bits), pointer(weight, bits), pointer(bias, bits)
        at = 0
        for g in range(groups):
            for first in range(0, height, ROWS):
                start, rows = g * step + first * row, min(ROWS, height - first)
                if rows == ROWS and column == 1:  # then the compiler makes vectors of it
                    for t in range(width):
                        for r in range(ROWS):
                            target[at + t * ROWS + r] = seen[start + r * row + t]
                else:
                    for t in range(width):
                        for r in range(ROWS):
                            place = start + min(r, rows - 1) * row + t * column
                            target[at + t * ROWS + r] = seen[place]
                at += width * ROWS
                if bias != 0:
                    for r in range(ROWS):
                        target[at + r] = last[first + min(r, rows - 1)]
                    at += ROWS

    return pack

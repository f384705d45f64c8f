"""Contract: the micro-kernels that multiply and add, with a block of results in registers.

Three families: sums over *taps* (:func:`taps`), products of *matrices* (:func:`multiply`, and
:func:`contract`, whose right side is seen through taps), and *dot* products along vectors
(:func:`dot`, :func:`dot_taps`). In the terms of BLIS, an MR x NR block of results has M rows and R
vectors; the loop inside a micro-kernel runs over KC terms.

An involution does one multiply-add per element and tap, so what limits it is loads. All are
arranged so that each loaded vector is used several times; in particular, output row ``r`` meets tap
row ``m`` in input row ``r + m``, so one load of a shifted input vector serves up to ``R`` rows.
Sizes come last, V and bits at the very end; strides are bytes.
"""

# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir

from invocupy.backends.cpu.access import pointer
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.vector import VECTOR_BYTES, WIDE, Loop, Vectors, call, micro, word

# of :func:`multiply`: rows of a block, and vectors of pixels in a tile, so that registers are left
MR, NR = 4, 4 if WIDE else 2
# columns of :func:`dot`; as many rows as :data:`MR`
COLUMNS = 4 if WIDE else 3

ZERO, BIAS, TARGET = range(3)  # what a sum starts from
STORE, ADD, RELU = range(3)  # what is done with it
LANES, ELEMENTS, DOUBLES = range(3)  # what :func:`dot` leaves
NEAR, PAST, ONCE = range(3)  # results: their lines are prefetched, go past the caches, or neither


@micro(13)
def taps(v: Vectors, args: Any, M: int, P: int, R: int, scalar: int, moving: int, to: int) -> None:
    """``out[p, r] = sum over s and m < M of taps[s, m, r] * x[p, r + m] (moved by steps[s])``.

    P channels times R rows: each vector of ``taps`` (packed, [step][M][R][V]) is used for P
    channels and each shifted vector of ``x`` for up to R rows, so that there are
    (P * (M + R - 1) + M * R) / (P * M * R) loads for each multiply-add: 0.55 for M=7, P=8, R=3.
    A step is one kernel column (for M tap rows at once); ``steps`` holds its byte offset in ``x``.
    Its taps begin ``tap_step`` bytes after the last one's; with ``moving`` they move like ``x``.
    With ``scalar`` a tap is one number for all positions, and ``bias`` is added.
    """
    x, plane, row, steps, stride, count, factors, tap_step = args[:8]
    bias, out, out_plane, out_row, lanes = args[8:]
    bases = [v.at(x, (plane, p)) for p in range(P)]
    planes = [v.at(out, (out_plane, p)) for p in range(P)]
    for plane in planes if to == NEAR else ():
        for r in range(R):
            v.prefetch(v.at(plane, (out_row, r + R)), 1)
    start = v.broadcast(bias) if scalar else v.zero
    loop = Loop(v, count, [steps, factors, *[start] * (P * R)])
    step, tap, *total = loop.carried
    moved = v.load_word(step)
    given = v.add(tap, moved) if moving else tap
    numbers = [v.broadcast(v.add(given, m * v.size)) for m in range(M)] if scalar else []
    for q in range(M + R - 1):
        pairs = [(q - r, r) for r in range(R) if 0 <= q - r < M]
        vectors = [
            numbers[m] if scalar else v.load(v.add(given, (m * R + r) * v.bytes)) for m, r in pairs
        ]
        for p in range(P):
            seen = v.load(v.add(bases[p], moved))
            for (_, r), factor in zip(pairs, vectors, strict=True):
                total[p * R + r] = v.fma(seen, factor, total[p * R + r])
        moved = v.add(moved, row)
    loop.close([v.add(step, stride), v.add(tap, tap_step), *total])
    places = [v.at(plane, (out_row, r)) for plane in planes for r in range(R)]
    v.store_all(list(zip(total, places, strict=True)), lanes, to == PAST)


@micro(10)
def multiply(v: Vectors, args: Any, M: int, R: int, start: int, end: int, whole: int) -> None:
    """``target[m, r] = sum over t < terms of weight[t, m] * source[t, r]``, M rows at a time.

    A term's M weights are ``weight_row`` bytes from the next one's, those of a block of M rows
    ``weight_block`` from the next one's; ``terms`` >= 1. The sum starts from zero, from a bias
    (one more row of weights) or from the target; it replaces the target, is added to it, or is
    zero where it is negative, a ReLU. With R = 1 only ``lanes`` lanes are stored. Without ``whole``
    blocks rows that fill up the last one are stored over its last row: give them its weights.
    """
    terms, weight, weight_row, weight_block, source, source_row = args[:6]
    target, target_row, rows, lanes = args[6:]
    count = v.builder.sdiv(v.add(rows, M - 1), word(M))
    outer = Loop(v, count, [weight, target, v.add(rows, -1)])
    block, base, last = outer.carried
    places = []
    for m in range(M):
        row = word(m)
        if not whole:
            row = v.builder.select(v.builder.icmp_signed("<", row, last), row, last)
        place = v.add(base, v.builder.mul(row, target_row))
        places += [v.add(place, r * v.bytes) for r in range(R)]
    begin = [v.zero] * len(places)
    if start == BIAS:
        bias = v.add(block, v.builder.mul(terms, weight_row))
        numbers = [v.broadcast(v.add(bias, m * v.size)) for m in range(M)]
        begin = [number for number in numbers for _ in range(R)]
    elif start == TARGET:
        begin = [v.load(place) for place in places]
    loop = Loop(v, terms, [block, source, *begin])
    factors, seen_at, *total = loop.carried
    seen = [v.load(v.add(seen_at, r * v.bytes)) for r in range(R)]
    for m in range(M):
        factor = v.broadcast(v.add(factors, m * v.size))
        for r in range(R):
            total[m * R + r] = v.fma(factor, seen[r], total[m * R + r])
    loop.close([v.add(factors, weight_row), v.add(seen_at, source_row), *total])
    if end == ADD:  # only now: a sum of sums is more accurate than one long sum
        total = [v.builder.fadd(v.load(p), t) for p, t in zip(places, total, strict=True)]
    elif end == RELU:
        total = [v.relu(t) for t in total]
    for vector, place in zip(total, places, strict=True):
        if R == 1:
            v.store_masked(vector, place, v.mask(None, lanes))
        else:
            v.store(vector, place)
    outer.close([v.add(block, weight_block), v.at(base, (target_row, M)), v.add(last, -M)])


@micro(15)
def contract(
    v: Vectors, args: Any, S: int, M: int, R: int, scalar: int, shifted: int, fetch: int, to: int
) -> None:
    """``out[s, m, r] = sum over planes c of left * right[c, r + m] (moved by moves[s])``.

    S * M * R accumulators; each load of ``right`` serves up to R rows. ``left`` is a vector for
    each row, ``left[c, r]``, for the gradient of the kernel, or with ``scalar`` one number for each
    tap, ``left[c, s, m]``, and one more plane of it is a bias: a kernel made from features. Without
    ``shifted`` ``right`` is the same for all taps.
    The result of step s goes to ``out + places[s]``; both tables have rows of ``stride``. Results
    go to memory in many streams: with NEAR the lines ``ahead`` bytes further are prefetched; with
    ``fetch`` those of ``left``, too.
    """
    count, left, left_plane, left_row, right, right_plane, right_row, moves, places = args[:9]
    stride, out, out_tap, out_row, ahead, lanes = args[9:]
    order = [(s, m, r) for s in range(S) for m in range(M) for r in range(R)]
    bases = [v.add(out, v.load_word(v.at(places, (stride, s)))) for s in range(S)]
    into = [v.at(bases[s], (out_tap, m), (out_row, r)) for s, m, r in order]
    for place in into if to == NEAR and not scalar else ():
        v.prefetch(v.add(place, ahead), 1)
    start = [v.zero] * len(into)
    if scalar:
        bias = v.add(left, v.builder.mul(count, left_plane))
        start = [v.broadcast(v.add(bias, (s * M + m) * v.size)) for s, m, _ in order]
    moved = [v.load_word(v.at(moves, (stride, s))) if shifted else word(0) for s in range(S)]
    rows = [v.times(right_row, q) for q in range(M + R - 1)]
    left_rows = [v.times(left_row, r) for r in range(R)]
    loop = Loop(v, count, [left, right, *start])
    left, right, *total = loop.carried
    for place in left_rows if fetch else ():
        v.prefetch(v.at(left, place, ahead))
    factors: dict[Any, Any] = {}
    seen: dict[Any, Any] = {}
    # taps in the order of their input rows keep one shifted vector alive, in the order of tap rows
    # they keep one weight and R shifted vectors
    for s, m, r in order if scalar else sorted(order, key=lambda t: (t[0], t[1] + t[2])):
        tap = s * M + m
        vector, factor = ((s, m + r) if shifted else (0, r)), (tap if scalar else r)
        if vector not in seen:
            seen[vector] = v.load(v.at(right, moved[vector[0]], rows[vector[1]]))
        if factor not in factors:
            place = v.add(left, tap * v.size if scalar else left_rows[r])
            factors[factor] = v.broadcast(place) if scalar else v.load(place)
        total[tap * R + r] = v.fma(factors[factor], seen[vector], total[tap * R + r])
    loop.close([v.add(left, left_plane), v.add(right, right_plane), *total])
    v.store_all(list(zip(total, into, strict=True)), lanes, to == PAST)


@micro(10)
def dot(v: Vectors, args: Any, A: int, B: int, R: int, leave: int) -> None:
    """``out[a, b] += sum over tiles, r and lanes of left[tile, a, r] * right[tile, b, r]``.

    For ``blocks`` times B columns: (A + B) / (A * B) loads for each multiply-add. ``out`` has the
    lanes apart (LANES), sums of all lanes (ELEMENTS), or these in float64 (DOUBLES).
    """
    count, left, left_row, left_step, right, right_row, right_step, out, out_row, blocks = args
    size = (v.bytes, v.size, 8)[leave]
    outer = Loop(v, blocks, [right, out])
    columns, sums = outer.carried
    places = [v.at(sums, (out_row, a), b * size) for a in range(A) for b in range(B)]
    begin = [v.load(p) if leave == LANES else v.zero for p in places]
    loop = Loop(v, count, [left, columns, *begin])
    left, right, *total = loop.carried
    for r in range(R):
        others = [v.load(v.at(right, (right_row, b), r * v.bytes)) for b in range(B)]
        for a in range(A):
            factor = v.load(v.at(left, (left_row, a), r * v.bytes))
            for b in range(B):
                total[a * B + b] = v.fma(factor, others[b], total[a * B + b])
    loop.close([v.add(left, left_step), v.add(right, right_step), *total])
    for vector, place in zip(total, places, strict=True):
        if leave == LANES:
            v.store(vector, place)
        elif leave == ELEMENTS:
            v.store_element(v.sum(vector, v.load_element(place)), place)
        else:
            lanes = v.sum(vector, ir.Constant(v.element, 0.0))
            if v.size == 4:
                lanes = v.builder.fpext(lanes, ir.DoubleType())
            before = v.load_element(place, ir.DoubleType())
            v.store_element(v.builder.fadd(before, lanes), place)
    outer.close([v.at(columns, (right_row, B)), v.add(sums, B * size)])


@micro(8)
def dot_taps(v: Vectors, args: Any, S: int, M: int, R: int) -> None:
    """``sums[s, m] += sum over columns and rows r of grad[r] * x[r + m] (moved by steps[s])``.

    Lane by lane; ``steps`` are rows of ``stride``.
    """
    x, row, steps, stride, grad, grad_row, columns, sums = args
    moves = [v.load_word(v.at(steps, (stride, s))) for s in range(S)]
    places = [v.add(sums, t * v.bytes) for t in range(S * M)]
    count = v.builder.sdiv(v.add(columns, v.V - 1), word(v.V))
    loop = Loop(v, count, [x, grad, columns, *[v.load(place) for place in places]])
    x, grad, columns, *total = loop.carried
    inside = v.mask(None, columns)
    factors = [v.load_masked(v.at(grad, (grad_row, r)), inside) for r in range(R)]
    for s, move in enumerate(moves):
        seen = v.add(x, move)
        for q in range(M + R - 1):
            vector = v.load_masked(seen, inside)  # what is beyond may be NaN
            for m in range(max(q - R + 1, 0), min(q + 1, M)):
                total[s * M + m] = v.fma(vector, factors[q - m], total[s * M + m])
            seen = v.add(seen, row)
    loop.close([v.add(x, v.bytes), v.add(grad, v.bytes), v.add(columns, -v.V), *total])
    for vector, place in zip(total, places, strict=True):
        v.store(vector, place)


@cache
def product(bits: int, biased: int) -> Any:
    """Of packed weights with the rows of a tile, by the :func:`multiply` at an address."""
    size = bits // 8

    @jit
    def product(code, terms, weight, rows, source, source_row, target, target_row):
        """``target[r] = sum of weight[r, t] * source[t]``, ``rows`` in whole blocks."""
        block = (terms + biased) * MR * size
        call(code, (
            terms, weight, MR * size, block, source, source_row, target, target_row, rows,
            VECTOR_BYTES // size,
        ))  # fmt: skip

    return product


@cache
def add_lanes(bits: int) -> Any:
    """Of what :func:`dot` has left as LANES."""

    @jit
    def add_lanes(sums, V, rows, columns, pitch, out, out_pitch):
        """The ``V`` lanes of each of ``rows`` x ``columns`` sums together, in float64."""
        lanes, out = pointer(sums, bits), pointer(out, 64)
        for r in range(rows):
            for c in range(columns):
                total = 0.0
                for v in range(V):
                    total += lanes[(r * pitch + c) * V + v]
                out[r * out_pitch + c] = total

    return add_lanes

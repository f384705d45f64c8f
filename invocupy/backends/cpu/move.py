"""Move: everything that only moves data between memory and the layouts that products read.

Micro-kernels that copy, interleave and transpose vectors. The loops around them that pack a source
with a zero border are in :mod:`~invocupy.backends.cpu.blocks`; for weights see
:mod:`~invocupy.backends.cpu.order`.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from invocupy.backends.cpu.access import pointer
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.vector import VECTOR_BYTES, Loop, Vectors, micro, word

WORDS = VECTOR_BYTES // 4  # data of all types is copied as words of 32 bits
_AHEAD = 4096  # bytes: rows are packed in the order of memory


@micro(9)
def copy_tile(v: Vectors, args: Any, M: int, R: int, shifted: int, masked: int) -> None:
    """Pack ``out[m, r]`` = the vector at ``source + m * tap + r * row``, M * R vectors.

    With masked=1, lanes outside [low, high) and rows ``r`` (``r + m`` if shifted) outside
    [first, last) become zero, and their memory is not touched. Each line ``ahead`` bytes further is
    prefetched: there are too many streams for the hardware to follow.
    """
    b = v.builder
    out, source, tap, row, ahead, low, high, first, last = args
    masks = []
    if masked:
        inside = v.mask(low, high)
        nothing = ir.Constant(inside.type, [0] * v.V)
        for q in range(M + R - 1 if shifted else R):
            after, before = b.icmp_signed(">=", word(q), first), b.icmp_signed("<", word(q), last)
            masks.append(b.select(b.and_(after, before), inside, nothing))
    for m in range(M):
        for r in range(R):
            place = v.at(source, (tap, m), (row, r))
            mask = masks[m + r if shifted else r] if masked else None
            vector = v.load_masked(place, mask) if masked else v.load(place)
            v.prefetch(v.add(place, ahead))
            v.store(vector, v.add(out, (m * R + r) * v.bytes))


@micro(6)
def interleave(v: Vectors, args: Any, S: int, R: int) -> None:
    """``out[c, r, S * j + s] = tile[c, s, r, j]`` for the first ``number`` elements of a row."""
    builder = v.builder
    tile, channels, out, out_plane, out_row, number = args
    loop = Loop(v, channels, [tile, out])
    tile, out = loop.carried
    rows = []
    for r in range(R):
        phases = [v.load(v.add(tile, (s * R + r) * v.bytes)) for s in range(S)]
        place = v.add(out, v.times(out_row, r))
        for k in range(S):
            lanes = range(k * v.V, (k + 1) * v.V)
            vector = v.shuffle(phases[0], phases[0], [i // S for i in lanes])
            for s in range(1, S):
                picks = [v.V + i // S if i % S == s else j for j, i in enumerate(lanes)]
                vector = v.shuffle(vector, phases[s], picks)
            rows.append((vector, v.add(place, k * v.bytes), k))
    everything = builder.icmp_signed(">=", number, word(S * v.V))
    with builder.if_else(everything, likely=True) as (full, part):
        with full:
            for vector, place, _ in rows:
                v.store(vector, place)
        with part:
            masks = [v.mask(None, v.add(number, -k * v.V)) for k in range(S)]
            for vector, place, k in rows:
                v.store_masked(vector, place, masks[k])
    loop.close([v.add(tile, S * R * v.bytes), v.add(out, out_plane)])


@micro(3)
def store_part(v: Vectors, args: Any) -> None:
    """Copy the first ``lanes`` elements of one packed vector."""
    v.store_all([(v.load(args[1]), args[0])], args[2])


@micro(5)
def take_even(v: Vectors, args: Any) -> None:
    """Pack every other element, ``count`` vectors of them: zeros outside [low, high).

    ``low`` and ``high`` count elements from ``source`` on.
    """
    loop = Loop(v, args[4], args[:4])
    out, source, low, high = loop.carried
    halves = [
        v.load_masked(
            v.add(source, h * v.bytes), v.mask(v.add(low, -h * v.V), v.add(high, -h * v.V))
        )
        for h in range(2)
    ]
    v.store(v.shuffle(halves[0], halves[1], list(range(0, 2 * v.V, 2))), out)
    moves = v.bytes, 2 * v.bytes, -2 * v.V, -2 * v.V
    loop.close([v.add(value, move) for value, move in zip(loop.carried, moves, strict=True)])


@micro(4)
def transpose(v: Vectors, args: Any) -> None:
    """``target[j, i] = source[i, j]`` for i, j < V; rows are so many bytes apart."""
    source, source_row, target, target_row = args
    rows = [v.load(v.at(source, (source_row, i))) for i in range(v.V)]
    bit = 1
    while bit < v.V:  # this bit of the row's number and of the lane's change places
        low = [j if not j & bit else v.V + j - bit for j in range(v.V)]
        high = [j + bit if not j & bit else v.V + j for j in range(v.V)]
        for i in range(v.V):
            if not i & bit:
                pair = rows[i], rows[i + bit]
                rows[i], rows[i + bit] = (v.shuffle(*pair, lanes) for lanes in (low, high))
        bit *= 2
    for i, row in enumerate(rows):
        v.store(row, v.at(target, (target_row, i)))


@micro(10)
def copy_rows(v: Vectors, args: Any) -> None:
    """``out[c, q, :count] = source[c, q, :count]``, row after row; all three counts are >= 1.

    Writes whole vectors, aligned if ``out`` and the pitch are: zeros behind the last element, and
    ``zeros`` more vectors of them.
    """
    out, out_plane, pitch, source, plane, line, channels, rows, count, zeros = args
    # bytes of all but the last vector of a row, and the lanes of that one
    full = v.builder.and_(v.add(count, -1), word(-v.V))
    mask = v.mask(None, v.builder.sub(count, full))
    full, zeros = v.times(full, v.size), v.times(zeros, v.bytes)
    outer = Loop(v, channels, [out, source])
    inner = Loop(v, rows, outer.carried)
    to, start = inner.carried
    with cgutils.for_range_slice(v.builder, word(0), full, word(v.bytes)) as (i, _):
        here = v.add(start, i)
        v.store(v.load(here), v.add(to, i))
        v.prefetch(v.add(here, _AHEAD))
    here, end = v.add(start, full), v.add(to, full)
    v.store(v.load_masked(here, mask), end)
    v.prefetch(v.add(here, _AHEAD))
    with cgutils.for_range_slice(v.builder, word(0), zeros, word(v.bytes)) as (i, _):
        v.store(v.zero, v.at(end, i, v.bytes))
    inner.close([v.add(to, pitch), v.add(start, line)])
    to, start = outer.carried
    outer.close([v.add(to, out_plane), v.add(start, plane)])


@jit
def clear(start, end):
    """Zeros between two addresses."""
    words = pointer(start, 32)
    for i in range((end - start) // 4):
        words[i] = 0


@cache
def filling(bits: int) -> Any:
    @jit
    def fill(to, count, value):
        held = pointer(to, bits)
        for i in range(count):
            held[i] = value

    return fill


@cache
def copying(bits: int) -> Any:
    @jit
    def copy(to, to_row, source, source_row, rows, count, width):
        """``count`` elements of each row, then zeros up to ``width``; rows are so far apart."""
        for r in range(rows):
            held, seen = pointer(to + r * to_row, bits), pointer(source + r * source_row, bits)
            for i in range(count):
                held[i] = seen[i]
            for i in range(count, width):
                held[i] = 0

    return copy

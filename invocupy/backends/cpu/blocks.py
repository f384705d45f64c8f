"""The micro-kernels of involution; their sizes come last, V and bits at the very end.

Register blocking. An involution does one fused multiply-add per element and tap, so what limits it
is loads. All micro-kernels keep a block of results in registers and arrange the loops so that each
loaded vector is used several times; in particular, output row ``r`` meets tap row ``m`` in input
row ``r + m``, so one load of a shifted input vector serves up to ``R`` output rows.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.core.types import int64, void
from numba.extending import intrinsic

from invocupy.backends.cpu.vector import Loop, Vectors, micro

_I64 = ir.IntType(64)
_AHEAD = 4096  # bytes: rows are packed in the order of memory


@micro(12)
def gather_block(
    v: Vectors, args: Any, m_: int, p_: int, r_: int, moving_: int, past_: int
) -> None:
    """``out[p, r] = sum over s and m < M of taps[s, m, r] * x[p, r + m] (moved by steps[s])``.

    P channels times R rows of accumulators: each vector of ``taps`` (packed, [step][M][R][V]) is
    used for P channels and each shifted vector of ``x`` for up to R rows, so that there are
    (P * (M + R - 1) + M * R) / (P * M * R) loads for each multiply-add: 0.55 for M=7, P=8, R=3.
    A step is one kernel column (for M tap rows at once); ``steps`` holds its byte offset in ``x``.
    Its taps begin ``tap_step`` bytes after the last one's; with moving=1 they move like ``x``.
    The lines of the results of the next R rows are prefetched, unless they go past the caches
    (past=1, for results whose rows are whole lines).
    """
    builder = v.builder
    x, plane, row, steps, stride, count, taps, tap_step = args[:8]
    out, out_plane, out_row, lanes = args[8:12]
    bases = [v.add(x, v.times(plane, p)) for p in range(p_)]
    planes = [v.add(out, v.times(out_plane, p)) for p in range(p_)]
    for plane in planes if not past_ else ():
        for r in range(r_):
            v.prefetch(v.add(plane, v.times(out_row, r + r_)), 1)
    loop = Loop(builder, count, [steps, taps, *[v.zero] * (p_ * r_)])
    step, tap, *total = loop.carried
    moved = builder.load(v.pointer(step), align=8, typ=_I64)
    given = v.add(tap, moved) if moving_ else tap
    for q in range(m_ + r_ - 1):
        pairs = [(q - r, r) for r in range(r_) if 0 <= q - r < m_]
        factors = [v.load(v.add(given, (m * r_ + r) * v.bytes)) for m, r in pairs]
        for p in range(p_):
            seen = v.load(v.add(bases[p], moved))
            for (_, r), factor in zip(pairs, factors, strict=True):
                total[p * r_ + r] = v.fma(seen, factor, total[p * r_ + r])
        moved = v.add(moved, row)
    loop.close([v.add(step, stride), v.add(tap, tap_step), *total])
    places = [v.add(plane, v.times(out_row, r)) for plane in planes for r in range(r_)]
    v.store_all(list(zip(total, places, strict=True)), lanes, past_)


@micro(15)
def contract_block(
    v: Vectors, args: Any, s_: int, m_: int, r_: int, spread_: int, shifted_: int, start_: int,
    fetch_: int, past_: int,
) -> None:  # fmt: skip
    """``out[s, m, r] = sum over planes c < count of left * right``, S * M * R accumulators.

    ``left`` is a vector for each row, ``left[c, r]`` (spread=0), or one number for each tap,
    ``left[c, s, m]`` (spread=1, no rows). ``right`` is ``right[c, r]`` (shifted=0) or
    ``right[c, r + m]`` moved by ``moves[s]`` (shifted=1), each load serving up to R rows.
    The sum starts from zero (start=0), from what ``out`` holds (1: packed, whole vectors), or from
    one more plane of ``left``, a bias (2).
    The result of step s goes to ``out + places[s]``; both tables have rows of ``stride``. With
    spread=0 results go to memory in many streams: the lines ``ahead`` bytes further are prefetched,
    unless they go past the caches (past=1, for results whose rows are whole lines); with fetch=1
    those of ``left``, too.

    - gradient of the kernel: the channels of grad (0) with the channels of x (shifted);
    - kernel from features: weights (1) with features, shifted for the gradient of x;
    - gradient of the features: weights (1) with the gradient of the kernel.
    """
    builder = v.builder
    count, left, left_plane, left_row, right, right_plane, right_row, moves, places = args[:9]
    stride, out, out_tap, out_row, ahead, lanes = args[9:15]
    into = []
    for s in range(s_):
        place = v.pointer(v.add(places, v.times(stride, s)))
        base = v.add(out, builder.load(place, align=8, typ=_I64))
        into += [
            v.add(v.add(base, v.times(out_tap, m)), v.times(out_row, r))
            for m in range(m_)
            for r in range(r_)
        ]
    if not spread_ and not past_:
        for place in into:
            v.prefetch(v.add(place, ahead), 1)
    start = [v.zero] * len(into)
    if start_ == 1:
        start = [v.load(place) for place in into]
    elif start_ == 2:
        bias = v.add(left, builder.mul(count, left_plane))
        start = [v.spread(v.add(bias, t * v.size)) for t in range(s_ * m_) for _ in range(r_)]
    moved = [ir.Constant(_I64, 0)] * s_
    if shifted_:
        moved = [
            builder.load(v.pointer(v.add(moves, v.times(stride, s))), align=8, typ=_I64)
            for s in range(s_)
        ]
    rows = [v.times(right_row, q) for q in range(m_ + r_ - 1)]
    left_rows = [v.times(left_row, r) for r in range(r_)]
    loop = Loop(builder, count, [left, right, *start])
    left, right, *total = loop.carried
    seen: dict[Any, Any] = {}

    def once(key, make):  # type: ignore[no-untyped-def]
        if key not in seen:
            seen[key] = make()
        return seen[key]

    # taps in the order of their input rows keep one shifted vector alive, in the order of
    # tap rows they keep one weight and R shifted vectors
    order = [(m, r) for m in range(m_) for r in range(r_)]
    if not spread_:
        order.sort(key=sum)
    for place in left_rows if fetch_ else ():
        v.prefetch(v.add(v.add(left, place), ahead))
    for s in range(s_):
        for m, r in order:
            q = m + r if shifted_ else r
            b = once(
                ("right", s * shifted_, q),
                lambda s=s, q=q: v.load(v.add(v.add(right, moved[s]), rows[q])),
            )
            t = s * m_ + m
            if spread_:
                a = once(("left", t), lambda t=t: v.spread(v.add(left, t * v.size)))
            else:
                a = once(("left", r), lambda r=r: v.load(v.add(left, left_rows[r])))
            total[t * r_ + r] = v.fma(a, b, total[t * r_ + r])
    loop.close([v.add(left, left_plane), v.add(right, right_plane), *total])
    v.store_all(list(zip(total, into, strict=True)), lanes, past_)


@micro(7)
def product_block(v: Vectors, args: Any, a_: int, b_: int, r_: int) -> None:
    """``out[a, b] += sum over tiles, r and lanes of left[tile, a, r] * right[tile, b, r]``.

    A times B accumulators: (A + B) / (A * B) loads for each multiply-add.
    """
    builder = v.builder
    count, left, left_tile, right, right_tile, out, out_row = args[:7]
    loop = Loop(builder, count, [left, right, *[v.zero] * (a_ * b_)])
    left, right, *total = loop.carried
    for r in range(r_):
        columns = [v.load(v.add(right, (b * r_ + r) * v.bytes)) for b in range(b_)]
        for a in range(a_):
            factor = v.load(v.add(left, (a * r_ + r) * v.bytes))
            for b in range(b_):
                total[a * b_ + b] = v.fma(factor, columns[b], total[a * b_ + b])
    loop.close([v.add(left, left_tile), v.add(right, right_tile), *total])
    for a in range(a_):
        for b in range(b_):
            place = v.pointer(v.add(v.add(out, v.times(out_row, a)), b * v.size))
            before = builder.load(place, align=v.size, typ=v.element)
            builder.store(v.sum(total[a * b_ + b], before), place, align=v.size)


@micro(9)
def copy_block(v: Vectors, args: Any, m_: int, r_: int, shifted_: int, masked_: int) -> None:
    """Pack ``out[m, r]`` = the vector at ``source + m * tap + r * row``, M * R vectors.

    With masked=1, lanes outside [low, high) and rows ``r`` (``r + m`` if shifted) outside
    [first, last) become zero, and their memory is not touched. Each line ``ahead`` bytes further is
    prefetched: there are too many streams for the hardware to follow.
    """
    builder = v.builder
    out, source, tap, row, ahead, low, high, first, last = args[:9]
    masks = []
    if masked_:
        inside = v.lanes(low, high)
        nothing = ir.Constant(inside.type, [0] * v.V)
        for q in range(m_ + r_ - 1 if shifted_ else r_):
            number = ir.Constant(_I64, q)
            there = builder.and_(
                builder.icmp_signed(">=", number, first),
                builder.icmp_signed("<", number, last),
            )
            masks.append(builder.select(there, inside, nothing))
    for m in range(m_):
        for r in range(r_):
            place = v.add(v.add(source, v.times(tap, m)), v.times(row, r))
            mask = masks[m + r if shifted_ else r] if masked_ else None
            vector = v.load_lanes(place, mask) if masked_ else v.load(place)
            v.prefetch(v.add(place, ahead))
            v.store(vector, v.add(out, (m * r_ + r) * v.bytes))


@micro(6)
def interleave_block(v: Vectors, args: Any, s_: int, r_: int) -> None:
    """``out[c, r, S * j + s] = tile[c, s, r, j]`` for the first ``number`` elements of a row."""
    builder = v.builder
    tile, channels, out, out_plane, out_row, number = args[:6]
    loop = Loop(builder, channels, [tile, out])
    tile, out = loop.carried
    rows = []
    for r in range(r_):
        phases = [v.load(v.add(tile, (s * r_ + r) * v.bytes)) for s in range(s_)]
        place = v.add(out, v.times(out_row, r))
        for k in range(s_):
            lanes = range(k * v.V, (k + 1) * v.V)
            vector = v.shuffle(phases[0], phases[0], [i // s_ for i in lanes])
            for s in range(1, s_):
                picks = [v.V + i // s_ if i % s_ == s else j for j, i in enumerate(lanes)]
                vector = v.shuffle(vector, phases[s], picks)
            rows.append((vector, v.add(place, k * v.bytes), k))
    everything = builder.icmp_signed(">=", number, ir.Constant(_I64, s_ * v.V))
    with builder.if_else(everything, likely=True) as (full, part):
        with full:
            for vector, place, _ in rows:
                v.store(vector, place)
        with part:
            masks = [v.lanes(None, v.add(number, -k * v.V)) for k in range(s_)]
            for vector, place, k in rows:
                v.store_lanes(vector, place, masks[k])
    loop.close([v.add(tile, s_ * r_ * v.bytes), v.add(out, out_plane)])


@micro(3)
def store_lanes(v: Vectors, args: Any) -> None:
    """Copy the first ``lanes`` elements of one packed vector."""
    v.store_all([(v.load(args[1]), args[0])], args[2])


@micro(5)
def take_even(v: Vectors, args: Any) -> None:
    """Pack every other element, ``count`` vectors of them: zeros outside [low, high).

    ``low`` and ``high`` count elements from ``source`` on.
    """
    loop = Loop(v.builder, args[4], args[:4])
    out, source, low, high = loop.carried
    halves = [
        v.load_lanes(
            v.add(source, h * v.bytes), v.lanes(v.add(low, -h * v.V), v.add(high, -h * v.V))
        )
        for h in range(2)
    ]
    v.store(v.shuffle(halves[0], halves[1], list(range(0, 2 * v.V, 2))), out)
    loop.close(
        [
            v.add(out, v.bytes),
            v.add(source, 2 * v.bytes),
            v.add(low, -2 * v.V),
            v.add(high, -2 * v.V),
        ]
    )


@intrinsic(prefer_literal=True)
def pack_rows(  # type: ignore[no-untyped-def]
    typing, out, out_plane, pitch, source, plane, line, channels, rows, count, zeros, V, bits
):
    """``out[c, q, :count] = source[c, q, :count]``, row after row; all three counts are >= 1.

    Writes whole vectors, aligned if ``out`` and the pitch are: zeros behind the last element, and
    ``zeros`` more vectors of them.
    """
    v_, b_ = V.literal_value, bits.literal_value

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        v = Vectors(builder, v_, b_)
        out, out_plane, pitch, source, plane, line, channels, rows, count, zeros = args[:10]
        nothing, step = ir.Constant(_I64, 0), ir.Constant(_I64, v.bytes)
        # bytes of all but the last vector of a row, and the lanes of that one
        full = builder.and_(v.add(count, -1), ir.Constant(_I64, -v_))
        mask = v.lanes(None, builder.sub(count, full))
        full, zeros = v.times(full, v.size), v.times(zeros, v.bytes)
        outer = Loop(builder, channels, [out, source])
        inner = Loop(builder, rows, outer.carried)
        to, start = inner.carried
        with cgutils.for_range_slice(builder, nothing, full, step) as (i, _):
            here = builder.add(start, i)
            v.store(v.load(here), builder.add(to, i))
            v.prefetch(v.add(here, _AHEAD))
        here, end = builder.add(start, full), builder.add(to, full)
        v.store(v.load_lanes(here, mask), end)
        v.prefetch(v.add(here, _AHEAD))
        with cgutils.for_range_slice(builder, nothing, zeros, step) as (i, _):
            v.store(v.zero, v.add(builder.add(end, i), v.bytes))
        inner.close([builder.add(to, pitch), builder.add(start, line)])
        to, start = outer.carried
        outer.close([builder.add(to, out_plane), builder.add(start, plane)])
        return context.get_dummy_value()

    return void(*[int64] * 10, V, bits), codegen

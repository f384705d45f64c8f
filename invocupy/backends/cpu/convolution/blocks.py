"""The micro-kernels of convolution; their sizes come last, V and bits at the very end."""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

from llvmlite import ir

from invocupy.backends.cpu.convolution.tiles import HIGH, LOW, MARK, TAP, X, Y
from invocupy.backends.cpu.vector import Loop, Vectors, micro

_I64 = ir.IntType(64)


@micro(14)
def take(v: Vectors, args: Any, stride_: int, keep_: int, one_: int) -> None:
    """``to[c, t, l]`` = what each tap of a table sees in each channel from the position in lane l.

    The lanes are ``count`` ones from ``lane`` on, for positions from ``j`` on of one row; the
    others, and those that see nothing, become zero or, with keep=1, stay. ``source`` is where lane
    0 would see column 0 of row 0, ``top`` the row that row 0 of a tap is, ``line`` the bytes of a
    row. Offsets and masks of the taps are made first, in ``marks``, or with one=1 in registers.
    """
    to, row, source, plane, channels, table, taps, top, j, lane, count, height, line, marks = args
    builder, zero = v.builder, ir.Constant(_I64, 0)
    halves = range(2 if stride_ == 2 else 1)
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
        if stride_ == 2:
            ends = v.times(low, 2), v.add(v.times(high, 2), -1)
            found += [v.mask(*(v.add(end, -h * v.V) for end in ends)) for h in halves]
        return found

    def copy(source: Any, offset: Any, inside: Any, *loaded: Any) -> None:
        place = v.add(source, offset)
        if stride_ == 1:
            seen = v.load_masked(place, inside)
        elif stride_ == 2:
            both = [v.load_masked(v.add(place, h * v.bytes), loaded[h]) for h in halves]
            even = ir.Constant(ir.VectorType(ir.IntType(32), v.V), list(range(0, 2 * v.V, 2)))
            seen = builder.shuffle_vector(*both, even)
        else:
            seen = v.gather(place, stride_, inside)
        v.store(builder.select(inside, seen, v.load(to)) if keep_ else seen, to)

    if one_:
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


@micro(6)
def correlate(v: Vectors, args: Any, a_: int, b_: int, r_: int) -> None:
    """``out[a, b] += sum over tiles, r and lanes of left[a, tile, r] * right[b, tile, r]``.

    ``row`` bytes lie between rows; ``out`` is float64. There are (A + B) / (A * B) loads for each
    multiply-add.
    """
    builder = v.builder
    count, left, right, row, out, out_row = args
    loop = Loop(v, count, [left, right, *[v.zero] * (a_ * b_)])
    left, right, *total = loop.carried
    for r in range(r_):
        columns = [v.load(v.at(right, (row, b), r * v.bytes)) for b in range(b_)]
        for a in range(a_):
            factor = v.load(v.at(left, (row, a), r * v.bytes))
            for b in range(b_):
                total[a * b_ + b] = v.fma(factor, columns[b], total[a * b_ + b])
    loop.close([v.add(left, r_ * v.bytes), v.add(right, r_ * v.bytes), *total])
    double = ir.DoubleType()
    for a in range(a_):
        for b in range(b_):
            lanes = v.sum(total[a * b_ + b], ir.Constant(v.element, 0.0))
            if v.size == 4:
                lanes = builder.fpext(lanes, double)
            place = v.pointer(v.at(out, (out_row, a), 8 * b), 8)
            before = builder.load(place, align=8, typ=double)
            builder.store(builder.fadd(before, lanes), place, align=8)

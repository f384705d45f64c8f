"""The micro-kernels of convolution; their sizes come last, V and bits at the very end."""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

from llvmlite import ir

from invocupy.backends.simd import Loop, Vectors, micro

_I64 = ir.IntType(64)


@micro(7)
def take(v: Vectors, args: Any, stride_: int, keep_: int) -> None:
    """``to[c, l] = source[c, stride * l]`` for ``count`` channels and lanes low <= l < high.

    The other lanes become zero or, with keep=1, stay; their memory in ``source`` is not touched.
    """
    to, row, source, plane, count, low, high = args
    inside = v.lanes(low, high)
    if stride_ == 2:
        ends = v.times(low, 2), v.add(v.times(high, 2), -1)
        halves = [v.lanes(*(v.add(end, -h * v.V) for end in ends)) for h in range(2)]
        even = ir.Constant(ir.VectorType(ir.IntType(32), v.V), list(range(0, 2 * v.V, 2)))
    loop = Loop(v.builder, count, [to, source])
    to, source = loop.carried
    if stride_ == 1:
        seen = v.load_lanes(source, inside)
    elif stride_ == 2:
        both = [v.load_lanes(v.add(source, h * v.bytes), mask) for h, mask in enumerate(halves)]
        seen = v.builder.shuffle_vector(*both, even)
    else:
        seen = v.gather(source, stride_, inside)
    if keep_:
        seen = v.builder.select(inside, seen, v.load(to))
    v.store(seen, to)
    loop.close([v.add(to, row), v.add(source, plane)])


@micro(6)
def correlate(v: Vectors, args: Any, a_: int, b_: int, r_: int) -> None:
    """``out[a, b] += sum over tiles, r and lanes of left[a, tile, r] * right[b, tile, r]``.

    ``row`` bytes lie between rows; ``out`` is float64. There are (A + B) / (A * B) loads for each
    multiply-add.
    """
    builder = v.builder
    count, left, right, row, out, out_row = args
    loop = Loop(builder, count, [left, right, *[v.zero] * (a_ * b_)])
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
            place = v.pointer(v.at(out, (out_row, a), 8 * b))
            before = builder.load(place, align=8, typ=double)
            builder.store(builder.fadd(before, lanes), place, align=8)


@micro(10)
def spread_taps(v: Vectors, args: Any, m_: int, r_: int) -> None:
    """``out[r] = bias + sum over s and m < M of weight[s, m] * x[r + m] (moved by steps[s])``.

    R vectors, each row of x being used for up to R of them; ``steps`` are rows of ``stride``.
    """
    x, row, steps, stride, count, weight, bias, out, out_row, lanes = args
    loop = Loop(v.builder, count, [steps, weight, *[v.spread(bias)] * r_])
    step, weight, *total = loop.carried
    moved = v.builder.load(v.pointer(step), align=8, typ=_I64)
    taps = [v.spread(v.add(weight, m * v.size)) for m in range(m_)]
    seen = v.add(x, moved)
    for q in range(m_ + r_ - 1):
        vector = v.load(seen)
        for m in range(max(q - r_ + 1, 0), min(q + 1, m_)):
            total[q - m] = v.fma(vector, taps[m], total[q - m])
        seen = v.add(seen, row)
    loop.close([v.add(step, stride), v.add(weight, m_ * v.size), *total])
    v.store_all([(t, v.add(out, v.times(out_row, r))) for r, t in enumerate(total)], lanes)


@micro(8)
def correlate_taps(v: Vectors, args: Any, s_: int, m_: int, r_: int) -> None:
    """``sums[s, m] += sum over columns and rows r of grad[r] * x[r + m] (moved by steps[s])``.

    Lane by lane; ``steps`` are rows of ``stride``.
    """
    x, row, steps, stride, grad, grad_row, columns, sums = args
    builder = v.builder
    moves = [
        builder.load(v.pointer(v.add(steps, v.times(stride, s))), align=8, typ=_I64)
        for s in range(s_)
    ]
    places = [v.add(sums, t * v.bytes) for t in range(s_ * m_)]
    count = builder.sdiv(v.add(columns, v.V - 1), ir.Constant(_I64, v.V))
    loop = Loop(builder, count, [x, grad, columns, *[v.load(place) for place in places]])
    x, grad, columns, *total = loop.carried
    inside = v.lanes(None, columns)
    factors = [v.load_lanes(v.add(grad, v.times(grad_row, r)), inside) for r in range(r_)]
    for s, move in enumerate(moves):
        seen = v.add(x, move)
        for q in range(m_ + r_ - 1):
            vector = v.load_lanes(seen, inside)  # what is beyond may be NaN
            for m in range(max(q - r_ + 1, 0), min(q + 1, m_)):
                total[s * m_ + m] = v.fma(vector, factors[q - m], total[s * m_ + m])
            seen = v.add(seen, row)
    loop.close([v.add(x, v.bytes), v.add(grad, v.bytes), v.add(columns, -v.V), *total])
    for vector, place in zip(total, places, strict=True):
        v.store(vector, place)

"""Products within Numba's code, until convolution uses :mod:`.contract`."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from llvmlite import ir
from numba.core.types import int64, void
from numba.extending import intrinsic

from invocupy.backends.cpu.contract import COLUMNS as COLUMNS
from invocupy.backends.cpu.contract import MR, NR
from invocupy.backends.cpu.order import packed as packed
from invocupy.backends.cpu.vector import VECTOR_BYTES, Loop, Vectors

BYTES, VECTORS, ROWS = VECTOR_BYTES, NR, MR
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
            begin = [code.broadcast(code.at(bias, m * code.size)) for m in range(m_)]
        loop = Loop(code, terms, [weight, source, *(v for v in begin for _ in range(r_))])
        weight, source, *total = loop.carried
        seen = [code.load(code.at(source, r * bytes_)) for r in range(r_)]
        for m in range(m_):
            factor = code.broadcast(code.at(weight, m * code.size))
            for r in range(r_):
                total[m * r_ + r] = code.fma(factor, seen[r], total[m * r_ + r])
        loop.close([code.at(weight, weight_row), code.at(source, source_row), *total])
        if end_ == 1:  # only now: a sum of sums is more accurate than one long sum
            total = [builder.fadd(code.load(p), v) for p, v in zip(places, total, strict=True)]
        elif end_ == 2:  # a NaN stays
            total = [code.relu(v) for v in total]
        for vector, place in zip(total, places, strict=True):
            if r_ == 1:
                code.store_masked(vector, place, code.mask(None, lanes))
            else:
                code.store(vector, place)
        return context.get_dummy_value()

    return void(*[int64] * 9, M, R, start, end, V, bits), codegen


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
                    rows[i], rows[i + bit] = (code.shuffle(*pair, lanes) for lanes in (low, high))
            bit *= 2
        for i, row in enumerate(rows):
            code.store(row, code.at(target, (target_row, i)))
        return context.get_dummy_value()

    return void(*[int64] * 4, V, bits), codegen

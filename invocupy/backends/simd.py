"""Vector micro-kernels as LLVM IR: what LLVM's own vectoriser cannot find, some ten times faster.

Each function here is a Numba intrinsic: called from a compiled kernel it emits plain vector code,
specialised for its last arguments, which must be compile-time constants (closure variables of the
kernel). Memory comes in as integer addresses and byte strides. A *vector* is ``V`` adjacent
elements of ``bits`` bits; ``V`` may be any power of two, LLVM splits or widens it for the machine.

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

_I64 = ir.IntType(64)
_AHEAD = 4096  # bytes: rows are packed in the order of memory


class _Vectors:
    """Emits loads, stores and arithmetic on vectors of ``V`` elements."""

    def __init__(self, builder: Any, V: int, bits: int) -> None:
        self.builder, self.V, self.size = builder, V, bits // 8
        self.element = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.type = ir.VectorType(self.element, V)
        self.zero = ir.Constant(self.type, [0.0] * V)
        self.bytes = V * self.size

    def _call(self, name: str, result: Any, *values: Any) -> Any:
        kind = f"v{self.V}f{self.size * 8}"
        function = ir.FunctionType(result, [v.type for v in values])
        callee = cgutils.get_or_insert_function(
            self.builder.module, function, f"llvm.{name.format(kind)}"
        )
        return self.builder.call(callee, values)

    def at(self, address: Any) -> Any:
        return self.builder.inttoptr(address, ir.PointerType())

    def load(self, address: Any) -> Any:
        return self.builder.load(self.at(address), align=self.size, typ=self.type)

    def store(self, vector: Any, address: Any) -> None:
        self.builder.store(vector, self.at(address), align=self.size)

    def spread(self, address: Any) -> Any:
        """One element from memory in every lane."""
        scalar = self.builder.load(self.at(address), align=self.size, typ=self.element)
        return self.builder.shuffle_vector(
            self.builder.insert_element(self.zero, scalar, ir.Constant(ir.IntType(32), 0)),
            self.zero,
            ir.Constant(ir.VectorType(ir.IntType(32), self.V), [0] * self.V),
        )

    def lanes(self, low: Any, high: Any) -> Any:
        """The mask of the lanes l with low <= l < high; without ``low``, from the first on."""
        short = ir.IntType(32)
        kind = ir.VectorType(short, self.V)
        number = ir.Constant(kind, list(range(self.V)))
        everywhere = ir.Constant(kind, [0] * self.V)

        def spread(end: Any) -> Any:
            one = self.builder.insert_element(
                everywhere, self.builder.trunc(end, short), ir.Constant(short, 0)
            )
            return self.builder.shuffle_vector(one, one, everywhere)

        mask = self.builder.icmp_signed("<", number, spread(high))
        if low is not None:
            above = self.builder.icmp_signed(">=", number, spread(low))
            mask = self.builder.and_(mask, above)
        return mask

    def load_lanes(self, address: Any, mask: Any) -> Any:
        """Zero where the mask is false; memory there is not touched."""
        align = ir.Constant(ir.IntType(32), self.size)
        return self._call("masked.load.{}.p0", self.type, self.at(address), align, mask, self.zero)

    def store_lanes(self, vector: Any, address: Any, mask: Any) -> None:
        align = ir.Constant(ir.IntType(32), self.size)
        self._call("masked.store.{}.p0", ir.VoidType(), vector, self.at(address), align, mask)

    def prefetch(self, address: Any, write: int = 0) -> None:
        """Ask for a cache line: in the second level, or, to be written, in the first."""
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), number, number, number])
        callee = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        flags = [ir.Constant(number, value) for value in (write, 3 if write else 2, 1)]
        self.builder.call(callee, [self.at(address), *flags])

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self._call("fma.{}", self.type, a, b, c)

    def sum(self, vector: Any, start: Any) -> Any:
        """All lanes and ``start``, the lanes by halves."""
        kind = ir.FunctionType(self.element, [self.element, self.type])
        name = f"llvm.vector.reduce.fadd.v{self.V}f{self.size * 8}"
        callee = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(callee, [start, vector], fastmath=("reassoc",))

    def add(self, a: Any, b: Any) -> Any:
        """Integer sum; ``b`` may be a Python int."""
        if isinstance(b, int):
            return self.builder.add(a, ir.Constant(_I64, b)) if b else a
        return self.builder.add(a, b)

    def times(self, a: Any, factor: int) -> Any:
        return self.builder.mul(a, ir.Constant(_I64, factor))

    def store_all(self, vectors: list[tuple[Any, Any]], lanes: Any) -> None:
        """Store (vector, address) pairs: only the first ``lanes`` lanes if there are fewer."""
        whole = self.builder.icmp_signed(">=", lanes, ir.Constant(_I64, self.V))
        with self.builder.if_else(whole, likely=True) as (full, part):
            with full:
                for vector, address in vectors:
                    self.store(vector, address)
            with part:
                mask = self.lanes(None, lanes)
                for vector, address in vectors:
                    self.store_lanes(vector, address, mask)


class _Loop:
    """A loop of ``count`` >= 1 turns that carries addresses and accumulators in registers."""

    def __init__(self, builder: Any, count: Any, carried: list[Any]) -> None:
        self.builder, self.count = builder, count
        entry = builder.block
        self.body, self.after = builder.append_basic_block(), builder.append_basic_block()
        builder.branch(self.body)
        builder.position_at_end(self.body)
        self.values = []
        for value in [ir.Constant(_I64, 0), *carried]:
            phi = builder.phi(value.type)
            phi.add_incoming(value, entry)
            self.values.append(phi)
        self.index, self.carried = self.values[0], self.values[1:]

    def close(self, carried: list[Any]) -> None:
        index = self.builder.add(self.index, ir.Constant(_I64, 1))
        for phi, value in zip(self.values, [index, *carried], strict=True):
            phi.add_incoming(value, self.builder.block)
        self.builder.cbranch(
            self.builder.icmp_signed("<", index, self.count), self.body, self.after
        )
        self.builder.position_at_end(self.after)


def _literals(*arguments: Any) -> list[int]:
    return [argument.literal_value for argument in arguments]


@intrinsic(prefer_literal=True)
def gather_block(  # type: ignore[no-untyped-def]
    typing,
    x,
    plane,
    row,
    steps,
    stride,
    count,
    taps,
    tap_step,
    out,
    out_plane,
    out_row,
    lanes,
    M,
    P,
    R,
    moving,
    V,
    bits,
):
    """``out[p, r] = sum over s and m < M of taps[s, m, r] * x[p, r + m] (moved by steps[s])``.

    P channels times R rows of accumulators: each vector of ``taps`` (packed, [step][M][R][V]) is
    used for P channels and each shifted vector of ``x`` for up to R rows, so that there are
    (P * (M + R - 1) + M * R) / (P * M * R) loads for each multiply-add: 0.55 for M=7, P=8, R=3.
    A step is one kernel column (for M tap rows at once); ``steps`` holds its byte offset in ``x``.
    Its taps begin ``tap_step`` bytes after the last one's; with moving=1 they move like ``x``.
    The lines of the results of the next R rows are prefetched.
    """
    m_, p_, r_, moving_, v_, b_ = _literals(M, P, R, moving, V, bits)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        v = _Vectors(builder, v_, b_)
        x, plane, row, steps, stride, count, taps, tap_step = args[:8]
        out, out_plane, out_row, lanes = args[8:12]
        bases = [v.add(x, v.times(plane, p)) for p in range(p_)]
        for p in range(p_):
            for r in range(r_):
                v.prefetch(v.add(v.add(out, v.times(out_plane, p)), v.times(out_row, r + r_)), 1)
        loop = _Loop(builder, count, [steps, taps, *[v.zero] * (p_ * r_)])
        step, tap, *total = loop.carried
        moved = builder.load(v.at(step), align=8, typ=_I64)
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
        places = [
            v.add(v.add(out, v.times(out_plane, p)), v.times(out_row, r))
            for p in range(p_)
            for r in range(r_)
        ]
        v.store_all(list(zip(total, places, strict=True)), lanes)
        return context.get_dummy_value()

    return void(*[int64] * 12, M, P, R, moving, V, bits), codegen


@intrinsic(prefer_literal=True)
def contract_block(  # type: ignore[no-untyped-def]
    typing, count, left, left_plane, right, right_plane, right_row, moves, places, stride,
    out, out_tap, out_row, ahead, lanes, S, M, R, spread, shifted, add, V, bits
):  # fmt: skip
    """``out[s, m, r] = sum over planes c < count of left * right``, S * M * R accumulators.

    ``left`` is a vector for each row, ``left[c, r]`` (spread=0), or one number for each tap,
    ``left[c, s, m]`` (spread=1). ``right`` is ``right[c, r]`` (shifted=0) or
    ``right[c, r + m]`` moved by ``moves[s]`` (shifted=1), each load serving up to R rows.
    With add=1 the sum starts from what ``out`` holds (packed, whole vectors).
    The result of step s goes to ``out + places[s]``; both tables have rows of ``stride``. With
    spread=0 results go to memory in many streams: the lines ``ahead`` bytes further are prefetched.

    - gradient of the kernel: the channels of grad (0) with the channels of x (shifted);
    - kernel from features: weights (1) with features, shifted for the gradient of x;
    - gradient of the features: weights (1) with the gradient of the kernel.
    """
    s_, m_, r_, spread_, shifted_, add_, v_, b_ = _literals(S, M, R, spread, shifted, add, V, bits)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        v = _Vectors(builder, v_, b_)
        count, left, left_plane, right, right_plane, right_row, moves, places = args[:8]
        stride, out, out_tap, out_row, ahead, lanes = args[8:14]
        into = []
        for s in range(s_):
            place = v.at(v.add(places, v.times(stride, s)))
            base = v.add(out, builder.load(place, align=8, typ=_I64))
            into += [
                v.add(v.add(base, v.times(out_tap, m)), v.times(out_row, r))
                for m in range(m_)
                for r in range(r_)
            ]
        if not spread_:
            for place in into:
                v.prefetch(v.add(place, ahead), 1)
        start = [v.load(place) if add_ else v.zero for place in into]
        moved = [ir.Constant(_I64, 0)] * s_
        if shifted_:
            moved = [
                builder.load(v.at(v.add(moves, v.times(stride, s))), align=8, typ=_I64)
                for s in range(s_)
            ]
        rows = [v.times(right_row, q) for q in range(m_ + r_ - 1)]
        loop = _Loop(builder, count, [left, right, *start])
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
                    a = once(("left", r), lambda r=r: v.load(v.add(left, r * v.bytes)))
                total[t * r_ + r] = v.fma(a, b, total[t * r_ + r])
        loop.close([v.add(left, left_plane), v.add(right, right_plane), *total])
        v.store_all(list(zip(total, into, strict=True)), lanes)
        return context.get_dummy_value()

    signature = void(*[int64] * 14, S, M, R, spread, shifted, add, V, bits)
    return signature, codegen


@intrinsic(prefer_literal=True)
def product_block(  # type: ignore[no-untyped-def]
    typing, count, left, left_tile, right, right_tile, out, out_row, A, B, R, V, bits
):  # fmt: skip
    """``out[a, b] += sum over tiles, r and lanes of left[tile, a, r] * right[tile, b, r]``.

    A times B accumulators: (A + B) / (A * B) loads for each multiply-add.
    """
    a_, b_, r_, v_, bits_ = _literals(A, B, R, V, bits)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        v = _Vectors(builder, v_, bits_)
        count, left, left_tile, right, right_tile, out, out_row = args[:7]
        loop = _Loop(builder, count, [left, right, *[v.zero] * (a_ * b_)])
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
                place = v.at(v.add(v.add(out, v.times(out_row, a)), b * v.size))
                before = builder.load(place, align=v.size, typ=v.element)
                builder.store(v.sum(total[a * b_ + b], before), place, align=v.size)
        return context.get_dummy_value()

    return void(*[int64] * 7, A, B, R, V, bits), codegen


@intrinsic(prefer_literal=True)
def copy_block(  # type: ignore[no-untyped-def]
    typing, out, source, tap, row, ahead, low, high, first, last, M, R, shifted, masked, V, bits
):
    """Pack ``out[m, r]`` = the vector at ``source + m * tap + r * row``, M * R vectors.

    With masked=1, lanes outside [low, high) and rows ``r`` (``r + m`` if shifted) outside
    [first, last) become zero, and their memory is not touched. Each line ``ahead`` bytes further is
    prefetched: there are too many streams for the hardware to follow.
    """
    m_, r_, shifted_, masked_, v_, b_ = _literals(M, R, shifted, masked, V, bits)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        v = _Vectors(builder, v_, b_)
        out, source, tap, row, ahead, low, high, first, last = args[:9]
        masks = []
        if masked_:
            inside = v.lanes(low, high)
            nothing = ir.Constant(inside.type, [0] * v_)
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
        return context.get_dummy_value()

    return void(*[int64] * 9, M, R, shifted, masked, V, bits), codegen


@intrinsic(prefer_literal=True)
def store_lanes(typing, out, source, lanes, V, bits):  # type: ignore[no-untyped-def]
    """Copy the first ``lanes`` elements of one packed vector."""
    v_, b_ = _literals(V, bits)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        v = _Vectors(builder, v_, b_)
        v.store_all([(v.load(args[1]), args[0])], args[2])
        return context.get_dummy_value()

    return void(int64, int64, int64, V, bits), codegen


@intrinsic(prefer_literal=True)
def pack_row(typing, out, source, before, count, after, V, bits):  # type: ignore[no-untyped-def]
    """Copy ``count`` elements, with at least ``before`` zeros before them and ``after`` behind.

    Writes whole vectors, aligned if ``out`` is: up to a vector more on either side.
    """
    v_, b_ = _literals(V, bits)

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        v = _Vectors(builder, v_, b_)
        out, source, before, count, after = args[:5]
        zero, step = ir.Constant(_I64, 0), ir.Constant(_I64, v_)
        with cgutils.for_range_slice(builder, zero, before, step) as (i, _):
            v.store(v.zero, v.add(v.add(out, -v.bytes), v.times(i, -v.size)))
        full = builder.and_(count, ir.Constant(_I64, -v_))
        with cgutils.for_range_slice(builder, zero, full, step) as (i, _):
            offset = v.times(i, v.size)
            v.store(v.load(v.add(source, offset)), v.add(out, offset))
            v.prefetch(v.add(v.add(source, offset), _AHEAD))
        offset = v.times(full, v.size)
        rest = builder.sub(count, full)
        with builder.if_else(builder.icmp_signed(">", rest, zero)) as (some, none):
            with some:
                mask = v.lanes(None, rest)
                v.store(v.load_lanes(v.add(source, offset), mask), v.add(out, offset))
                v.prefetch(v.add(v.add(source, offset), _AHEAD))
            with none:
                v.store(v.zero, v.add(out, offset))
        with cgutils.for_range_slice(builder, v.add(full, v_), v.add(count, after), step) as (i, _):
            v.store(v.zero, v.add(out, v.times(i, v.size)))
        return context.get_dummy_value()

    return void(*[int64] * 5, V, bits), codegen

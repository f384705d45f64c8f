"""Micro-kernels of small matrix products, as LLVM IR: a block of results stays in registers.

Rows are channels, their elements pixels. As in :mod:`invocupy.backends.simd` each function is a
Numba intrinsic that emits straight vector code, specialised for its last arguments, which must be
compile-time constants; memory comes in as integer addresses and byte strides.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils
from numba.core.types import int64, void
from numba.extending import intrinsic

from invocupy.backends.jit import jit, pointer

_FEATURES = binding.get_host_cpu_features()
_WIDE = bool(_FEATURES.get("avx512vl"))

BYTES = 64 if _WIDE else 32 if _FEATURES.get("avx2") else 16  # of a vector
VECTORS = 4 if _WIDE else 2  # of pixels in a tile, so that 4 rows of it leave registers free
ROWS = 4
COLUMNS = 4 if _WIDE else 3  # of the other operand in sums over pixels

_I32, _I64 = ir.IntType(32), ir.IntType(64)


class _Code:
    """Loads, stores and multiply-adds of vectors of ``V`` elements."""

    def __init__(self, builder: Any, V: int, bits: int) -> None:
        self.builder, self.V, self.size = builder, V, bits // 8
        self.element = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.type = ir.VectorType(self.element, V)
        self.zero = ir.Constant(self.type, [0.0] * V)

    def at(self, base: Any, *offsets: Any) -> Any:
        """The address ``base`` + offsets: numbers, or (address, times) pairs."""
        for offset in offsets:
            if isinstance(offset, int):
                offset = ir.Constant(_I64, offset)
            elif isinstance(offset, tuple):
                offset = self.builder.mul(offset[0], ir.Constant(_I64, offset[1]))
            base = self.builder.add(base, offset)
        return base

    def _pointer(self, address: Any) -> Any:
        return self.builder.inttoptr(address, ir.PointerType())

    def load(self, address: Any) -> Any:
        return self.builder.load(self._pointer(address), align=self.size, typ=self.type)

    def store(self, vector: Any, address: Any) -> None:
        self.builder.store(vector, self._pointer(address), align=self.size)

    def spread(self, address: Any) -> Any:
        """One element in every lane."""
        one = self.builder.load(self._pointer(address), align=self.size, typ=self.element)
        return self._broadcast(one, self.zero)

    def _broadcast(self, one: Any, blank: Any) -> Any:
        first = self.builder.insert_element(blank, one, ir.Constant(_I32, 0))
        lanes = ir.Constant(ir.VectorType(_I32, self.V), [0] * self.V)
        return self.builder.shuffle_vector(first, blank, lanes)

    def _call(self, name: str, result: Any, *values: Any) -> Any:
        kind = ir.FunctionType(result, [value.type for value in values])
        name = f"llvm.{name.format(f'v{self.V}f{8 * self.size}')}"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, values)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self._call("fma.{}", self.type, a, b, c)

    def store_first(self, lanes: Any, vector: Any, address: Any) -> None:
        """Store the first ``lanes`` lanes only; memory behind them is not touched."""
        kind = ir.VectorType(_I64, self.V)
        blank = ir.Constant(kind, [0] * self.V)
        numbers = ir.Constant(kind, list(range(self.V)))
        mask = self.builder.icmp_signed("<", numbers, self._broadcast(lanes, blank))
        align = ir.Constant(_I32, self.size)
        self._call("masked.store.{}.p0", ir.VoidType(), vector, self._pointer(address), align, mask)


class _Loop:
    """A loop of ``count`` >= 1 turns that carries values in registers."""

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

    @property
    def carried(self) -> list[Any]:
        return self.values[1:]

    def close(self, carried: list[Any]) -> None:
        index = self.builder.add(self.values[0], ir.Constant(_I64, 1))
        for phi, value in zip(self.values, [index, *carried], strict=True):
            phi.add_incoming(value, self.builder.block)
        again = self.builder.icmp_signed("<", index, self.count)
        self.builder.cbranch(again, self.body, self.after)
        self.builder.position_at_end(self.after)


@intrinsic(prefer_literal=True)
def multiply_block(
    typing, terms, weight, source, source_row, target, target_row, last, lanes, M, R, add, V, bits
):
    """``target[m, r] (+)= sum over t < terms of weight[t, m] * source[t, r]``, M * R vectors.

    Weights are packed, M for each term; ``terms`` >= 1. Rows after ``last`` of the target are
    stored there as well: give them its weights. With R = 1 only ``lanes`` lanes are stored.
    """
    m_, r_, add_, v_, b_ = (a.literal_value for a in (M, R, add, V, bits))

    def codegen(context, builder, signature, args):
        code = _Code(builder, v_, b_)
        terms, weight, source, source_row, target, target_row, last, lanes = args[:8]
        bytes_ = v_ * code.size
        places = []
        for m in range(m_):
            row = ir.Constant(_I64, m)
            row = builder.select(builder.icmp_signed("<", row, last), row, last)
            base = code.at(target, builder.mul(row, target_row))
            places += [code.at(base, r * bytes_) for r in range(r_)]
        start = [code.load(place) if add_ else code.zero for place in places]
        loop = _Loop(builder, terms, [weight, source, *start])
        weight, source, *total = loop.carried
        seen = [code.load(code.at(source, r * bytes_)) for r in range(r_)]
        for m in range(m_):
            factor = code.spread(code.at(weight, m * code.size))
            for r in range(r_):
                total[m * r_ + r] = code.fma(factor, seen[r], total[m * r_ + r])
        loop.close([code.at(weight, m_ * code.size), code.at(source, source_row), *total])
        for vector, place in zip(total, places, strict=True):
            if r_ == 1:
                code.store_first(lanes, vector, place)
            else:
                code.store(vector, place)
        return context.get_dummy_value()

    return void(*[int64] * 8, M, R, add, V, bits), codegen


@intrinsic(prefer_literal=True)
def correlate_block(
    typing, tiles, step, left, right, row, sums, sums_row, A, B, R, V, bits
):  # fmt: skip
    """``sums[a, b] += sum over tiles and r < R of left[a, r] * right[b, r]``, lane by lane.

    ``row`` bytes lie between rows of a tile, ``step`` between tiles; ``tiles`` >= 1.
    """
    a_, b_, r_, v_, bits_ = (a.literal_value for a in (A, B, R, V, bits))

    def codegen(context, builder, signature, args):
        code = _Code(builder, v_, bits_)
        tiles, step, left, right, row, sums, sums_row = args[:7]
        bytes_ = v_ * code.size
        places = [
            code.at(sums, (sums_row, a), b * bytes_) for a in range(a_) for b in range(b_)
        ]  # fmt: skip
        loop = _Loop(builder, tiles, [left, right, *[code.load(place) for place in places]])
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


def packed(weight: Any, bias: Any) -> Any:
    """Weights in the order of their use: (blocks of ROWS rows, C or C + 1, ROWS).

    A last block is filled up with its last row.
    """
    full = weight if bias is None else np.concatenate([weight, bias[:, None]], axis=1)
    blocks = -(-full.shape[0] // ROWS)
    rows = np.minimum(np.arange(blocks * ROWS), full.shape[0] - 1)
    return np.ascontiguousarray(full[rows].reshape(blocks, ROWS, -1).swapaxes(1, 2))

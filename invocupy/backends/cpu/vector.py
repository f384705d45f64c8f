"""Vector code as LLVM IR: what LLVM's own vectoriser cannot find, some ten times faster.

A *micro-kernel* is a function that :func:`micro` makes of Python code that emits instructions: it
gives, for a set of sizes, the address of machine code for them, made when first asked for. That
takes a tenth of a second, where the loops around micro-kernels take seconds to compile; so the
loops are compiled once, for all sizes, and :func:`call` what they need by its address. Memory comes
in as integer addresses and byte strides. A *vector* is ``V`` adjacent elements of ``bits`` bits;
``V`` may be any power of two, LLVM splits or widens it for the machine.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from functools import cache, update_wrapper
from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.core.types import void
from numba.extending import intrinsic

from invocupy.backends.cpu.jit import features, machine_code

WIDE = "avx512vl" in features()
VECTOR_BYTES = 64 if WIDE else 32 if "avx2" in features() else 16
# what leaves room for the operands in 16 vector registers, or 32 with AVX-512
ACCUMULATORS = 24 if WIDE else 12

LINE = 64  # bytes of memory that caches hold together

_I64 = ir.IntType(64)


class Vectors:
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

    def pointer(self, address: Any) -> Any:
        return self.builder.inttoptr(address, ir.PointerType())

    def at(self, base: Any, *offsets: Any) -> Any:
        """The address ``base`` + offsets: numbers, or (address, times) pairs."""
        for offset in offsets:
            base = self.add(base, self.times(*offset) if isinstance(offset, tuple) else offset)
        return base

    def load(self, address: Any) -> Any:
        return self.builder.load(self.pointer(address), align=self.size, typ=self.type)

    def store(self, vector: Any, address: Any) -> None:
        self.builder.store(vector, self.pointer(address), align=self.size)

    def spread(self, address: Any) -> Any:
        """One element from memory in every lane."""
        scalar = self.builder.load(self.pointer(address), align=self.size, typ=self.element)
        one = self.builder.insert_element(self.zero, scalar, ir.Constant(ir.IntType(32), 0))
        return self.shuffle(one, self.zero, [0] * self.V)

    def relu(self, vector: Any) -> Any:
        """Zero where it is negative; a NaN stays."""
        below = self.builder.fcmp_ordered(">", self.zero, vector)
        return self.builder.select(below, self.zero, vector)

    def shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        """The vector of these lanes of ``a`` followed by ``b``."""
        kind = ir.VectorType(ir.IntType(32), len(lanes))
        return self.builder.shuffle_vector(a, b, ir.Constant(kind, lanes))

    def lanes(self, low: Any, high: Any) -> Any:
        """The mask of the lanes l with low <= l < high; without ``low``, from the first on.

        Both must fit 32 bits.
        """
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
        return self._call(
            "masked.load.{}.p0", self.type, self.pointer(address), align, mask, self.zero
        )

    def store_lanes(self, vector: Any, address: Any, mask: Any) -> None:
        align = ir.Constant(ir.IntType(32), self.size)
        self._call("masked.store.{}.p0", ir.VoidType(), vector, self.pointer(address), align, mask)

    def gather(self, address: Any, stride: int, mask: Any) -> Any:
        """Every ``stride``-th element; zero where the mask is false, memory is not touched."""
        kind = ir.VectorType(_I64, self.V)
        start = self.builder.insert_element(
            ir.Constant(kind, [0] * self.V), address, ir.Constant(ir.IntType(32), 0)
        )
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.V), [0] * self.V)
        steps = ir.Constant(kind, [lane * stride * self.size for lane in range(self.V)])
        places = self.builder.add(self.builder.shuffle_vector(start, start, zeros), steps)
        places = self.builder.inttoptr(places, ir.VectorType(ir.PointerType(), self.V))
        align = ir.Constant(ir.IntType(32), self.size)
        return self._call(
            f"masked.gather.{{}}.v{self.V}p0", self.type, places, align, mask, self.zero
        )

    def prefetch(self, address: Any, write: int = 0) -> None:
        """Ask for a cache line: in the second level, or, to be written, in the first."""
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), number, number, number])
        callee = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        flags = [ir.Constant(number, value) for value in (write, 3 if write else 2, 1)]
        self.builder.call(callee, [self.pointer(address), *flags])

    def pick(self, a: Any, b: Any, lanes: list[int]) -> Any:
        """A vector of lanes of ``a`` and, from number V on, of ``b``."""
        kind = ir.VectorType(ir.IntType(32), len(lanes))
        return self.builder.shuffle_vector(a, b, ir.Constant(kind, lanes))

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

    def store_all(self, vectors: list[tuple[Any, Any]], lanes: Any, past: int = 0) -> None:
        """Store (vector, address) pairs: only the first ``lanes`` lanes if there are fewer.

        With ``past`` all addresses are whole lines apart; then vectors that are lines go past the
        caches, which do not fetch first what they replace. Before another thread looks at them the
        one that wrote must come to a locked instruction, as at the end of each job of
        :mod:`invocupy.backends.cpu.pool`.
        """
        whole = self.builder.icmp_signed(">=", lanes, ir.Constant(_I64, self.V))
        with self.builder.if_else(whole, likely=True) as (full, part):
            with full:
                if past and self.bytes == LINE:
                    self._store_lines(vectors)
                else:
                    for vector, address in vectors:
                        self.store(vector, address)
            with part:
                mask = self.lanes(None, lanes)
                for vector, address in vectors:
                    self.store_lanes(vector, address, mask)

    def _store_lines(self, vectors: list[tuple[Any, Any]]) -> None:
        inside = self.builder.and_(vectors[0][1], ir.Constant(_I64, LINE - 1))
        lined = self.builder.icmp_unsigned("==", inside, ir.Constant(_I64, 0))
        one = self.builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        with self.builder.if_else(lined, likely=True) as (past, through):
            with past:
                for vector, address in vectors:
                    stored = self.builder.store(vector, self.pointer(address), align=LINE)
                    stored.set_metadata("nontemporal", one)
            with through:
                for vector, address in vectors:
                    self.store(vector, address)


class Loop:
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


def micro(arguments: int) -> Callable[[Callable[..., None]], Callable[..., int]]:
    """Make ``emit(vectors, arguments, *sizes)`` a function from sizes, V and bits to an address.

    What is there takes ``arguments`` integers and gives no result.
    """

    def decorate(emit: Callable[..., None]) -> Callable[..., int]:
        @cache
        def address(*sizes: int) -> int:
            *shape, V, bits = sizes

            def write(builder: Any, values: Any) -> None:
                emit(Vectors(builder, V, bits), values, *shape)

            name = "_".join(map(str, (emit.__name__, *sizes)))
            place: int = machine_code(name, arguments, write)
            return place

        return update_wrapper(address, emit)

    return decorate


@intrinsic
def call(typing: Any, address: Any, arguments: Any) -> Any:
    """Run the micro-kernel at ``address`` on a tuple of integers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = cgutils.unpack_tuple(builder, args[1])
        kind = ir.FunctionType(ir.VoidType(), [_I64] * len(values))
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    return void(address, arguments), codegen

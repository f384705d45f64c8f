"""Vector code as LLVM IR, about ten times faster than what LLVM's own vectoriser finds.

A *micro-kernel* is a function that :func:`micro` makes from Python code that emits instructions: it
returns, for a set of sizes, the address of machine code, which is compiled on first use. That takes
a tenth of a second, while the loops around micro-kernels take seconds to compile; so the loops are
compiled once, for all sizes, and :func:`call` micro-kernels by address. Memory is given by integer
addresses and byte strides. A *vector* is ``V`` adjacent elements of ``bits`` bits;
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

from invocupy.backends.cpu.checking import CHECKED, checked
from invocupy.backends.cpu.jit import features, machine_code

WIDE = "avx512vl" in features()
VECTOR_BYTES = 64 if WIDE else 32 if "avx2" in features() else 16
# accumulators, with registers left for operands: of 16 vector registers, or 32 with AVX-512
ACCUMULATORS = 24 if WIDE else 12

LINE = 64  # bytes of memory that caches hold together

I64, _I32 = ir.IntType(64), ir.IntType(32)


def word(number: int) -> Any:
    """An int64 constant."""
    return ir.Constant(I64, number)


def up(number: int, step: int) -> int:
    """The next multiple of ``step``."""
    return -(-number // step) * step


class Vectors:
    """Emits loads, stores and arithmetic on vectors of ``V`` elements; addresses are integers."""

    def __init__(self, builder: Any, V: int, bits: int) -> None:
        self.builder, self.V, self.size = builder, V, bits // 8
        self.element = ir.FloatType() if bits == 32 else ir.DoubleType()
        self.type = ir.VectorType(self.element, V)
        self.zero = ir.Constant(self.type, [0.0] * V)
        self.bytes = V * self.size

    def _call(self, name: str, result: Any, *values: Any, **options: Any) -> Any:
        kind = f"v{self.V}f{self.size * 8}"
        function = ir.FunctionType(result, [v.type for v in values])
        callee = cgutils.get_or_insert_function(
            self.builder.module, function, f"llvm.{name.format(kind)}"
        )
        return self.builder.call(callee, values, **options)

    def pointer(self, address: Any, size: int) -> Any:
        """To so many bytes, which in checked mode must belong to the launch."""
        address = checked(self.builder, address, word(size))
        return self.builder.inttoptr(address, ir.PointerType())

    def _masked_pointer(self, address: Any, mask: Any, step: int) -> Any:
        """To the lanes of a mask, ``step`` bytes apart."""
        if not CHECKED:
            return self.builder.inttoptr(address, ir.PointerType())
        bits = self.builder.zext(self.builder.bitcast(mask, ir.IntType(self.V)), I64)
        first = self.builder.cttz(bits, ir.Constant(ir.IntType(1), 0))
        end = self.builder.sub(word(64), self.builder.ctlz(bits, ir.Constant(ir.IntType(1), 0)))
        start, number = self.times(first, step), self.builder.sub(end, first)
        size = self.add(self.times(number, step), self.size - step)
        place = checked(self.builder, self.add(address, start), size)
        return self.builder.inttoptr(self.builder.sub(place, start), ir.PointerType())

    def at(self, base: Any, *offsets: Any) -> Any:
        """The address ``base`` + offsets: numbers, or (address, times) pairs."""
        for offset in offsets:
            base = self.add(base, self.times(*offset) if isinstance(offset, tuple) else offset)
        return base

    def load(self, address: Any) -> Any:
        return self.builder.load(self.pointer(address, self.bytes), align=self.size, typ=self.type)

    def store(self, vector: Any, address: Any) -> None:
        size = vector.type.count * self.size
        self.builder.store(vector, self.pointer(address, size), align=self.size)

    def load_word(self, address: Any) -> Any:
        """An int64."""
        return self.builder.load(self.pointer(address, 8), align=8, typ=I64)

    def load_element(self, address: Any, kind: Any = None) -> Any:
        kind = kind or self.element
        size = 8 if kind == ir.DoubleType() else 4
        return self.builder.load(self.pointer(address, size), align=size, typ=kind)

    def store_element(self, value: Any, address: Any) -> None:
        size = 8 if value.type in (ir.DoubleType(), I64) else 4
        self.builder.store(value, self.pointer(address, size), align=size)

    def broadcast(self, address: Any) -> Any:
        """One element from memory in every lane."""
        return self._everywhere(self.load_element(address), self.zero)

    def _everywhere(self, value: Any, zeros: Any) -> Any:
        one = self.builder.insert_element(zeros, value, ir.Constant(_I32, 0))
        return self.shuffle(one, one, [0] * self.V)

    def relu(self, vector: Any) -> Any:
        """``max(x, 0)``; a NaN stays."""
        below = self.builder.fcmp_ordered(">", self.zero, vector)
        return self.builder.select(below, self.zero, vector)

    def shuffle(self, a: Any, b: Any, lanes: list[int]) -> Any:
        """The vector of these lanes of ``a`` followed by ``b``."""
        kind = ir.VectorType(ir.IntType(32), len(lanes))
        return self.builder.shuffle_vector(a, b, ir.Constant(kind, lanes))

    def mask(self, low: Any, high: Any) -> Any:
        """The lanes l with low <= l < high; without ``low``, from the first on.

        Both must fit 32 bits.
        """
        kind = ir.VectorType(_I32, self.V)
        number, zeros = ir.Constant(kind, list(range(self.V))), ir.Constant(kind, [0] * self.V)

        def spread(end: Any) -> Any:
            return self._everywhere(self.builder.trunc(end, _I32), zeros)

        mask = self.builder.icmp_signed("<", number, spread(high))
        if low is not None:
            mask = self.builder.and_(mask, self.builder.icmp_signed(">=", number, spread(low)))
        return mask

    def load_masked(self, address: Any, mask: Any) -> Any:
        """Zero where the mask is false; memory there is not touched."""
        place = self._masked_pointer(address, mask, self.size)
        align = ir.Constant(_I32, self.size)
        return self._call("masked.load.{}.p0", self.type, place, align, mask, self.zero)

    def store_masked(self, vector: Any, address: Any, mask: Any) -> None:
        place = self._masked_pointer(address, mask, self.size)
        align = ir.Constant(_I32, self.size)
        self._call("masked.store.{}.p0", ir.VoidType(), vector, place, align, mask)

    def gather(self, address: Any, stride: int, mask: Any) -> Any:
        """Every ``stride``-th element; zero where the mask is false, memory is not touched."""
        kind = ir.VectorType(I64, self.V)
        start = self.builder.ptrtoint(self._masked_pointer(address, mask, stride * self.size), I64)
        steps = ir.Constant(kind, [lane * stride * self.size for lane in range(self.V)])
        starts = self._everywhere(start, ir.Constant(kind, [0] * self.V))
        pointers = ir.VectorType(ir.PointerType(), self.V)
        places = self.builder.inttoptr(self.builder.add(starts, steps), pointers)
        align, name = ir.Constant(_I32, self.size), f"masked.gather.{{}}.v{self.V}p0"
        return self._call(name, self.type, places, align, mask, self.zero)

    def prefetch(self, address: Any, write: int = 0) -> None:
        """Ask for a cache line: in the second level, or, to be written, in the first."""
        flags = [ir.Constant(_I32, value) for value in (write, 3 if write else 2, 1)]
        place = self.builder.inttoptr(address, ir.PointerType())
        self._call("prefetch.p0", ir.VoidType(), place, *flags)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self._call("fma.{}", self.type, a, b, c)

    def sum(self, vector: Any, start: Any) -> Any:
        """All lanes and ``start``, the lanes by halves."""
        name = "vector.reduce.fadd.{}"
        return self._call(name, self.element, start, vector, fastmath=("reassoc",))

    def add(self, a: Any, b: Any) -> Any:
        """Integer sum; ``b`` may be a Python int."""
        if isinstance(b, int):
            return self.builder.add(a, word(b)) if b else a
        return self.builder.add(a, b)

    def times(self, a: Any, factor: int) -> Any:
        return self.builder.mul(a, word(factor))

    def store_all(self, vectors: list[tuple[Any, Any]], lanes: Any, past: bool = False) -> None:
        """Store (vector, address) pairs: only the first ``lanes`` lanes if there are fewer.

        With ``past`` all addresses are whole lines apart; then vectors that are lines go past the
        caches, which do not fetch first what they replace. Before another thread looks at them the
        one that wrote must come to a locked instruction, as at the end of each task of
        :mod:`invocupy.backends.cpu.pool`.
        """
        whole = self.builder.icmp_signed(">=", lanes, word(self.V))
        with self.builder.if_else(whole, likely=True) as (full, part):
            with full:
                if past and self.bytes == LINE:
                    self._store_lines(vectors)
                else:
                    for vector, address in vectors:
                        self.store(vector, address)
            with part:
                mask = self.mask(None, lanes)
                for vector, address in vectors:
                    self.store_masked(vector, address, mask)

    def _store_lines(self, vectors: list[tuple[Any, Any]]) -> None:
        inside = self.builder.and_(vectors[0][1], word(LINE - 1))
        lined = self.builder.icmp_unsigned("==", inside, word(0))
        one = self.builder.module.add_metadata([ir.Constant(_I32, 1)])
        with self.builder.if_else(lined, likely=True) as (past, through):
            with past:
                for vector, address in vectors:
                    place = self.pointer(address, LINE)
                    self.builder.store(vector, place, align=LINE).set_metadata("nontemporal", one)
            with through:
                for vector, address in vectors:
                    self.store(vector, address)


class Loop:
    """A loop of ``count`` >= 1 turns that carries addresses and accumulators in registers."""

    def __init__(self, v: Vectors, count: Any, carried: list[Any]) -> None:
        self.builder, self.count = v.builder, count
        entry = v.builder.block
        self.body, self.after = v.builder.append_basic_block(), v.builder.append_basic_block()
        v.builder.branch(self.body)
        v.builder.position_at_end(self.body)
        self.values = []
        for value in [word(0), *carried]:
            phi = v.builder.phi(value.type)
            phi.add_incoming(value, entry)
            self.values.append(phi)
        self.index, self.carried = self.values[0], self.values[1:]

    def close(self, carried: list[Any]) -> None:
        index = self.builder.add(self.index, word(1))
        for phi, value in zip(self.values, [index, *carried], strict=True):
            phi.add_incoming(value, self.builder.block)
        more = self.builder.icmp_signed("<", index, self.count)
        self.builder.cbranch(more, self.body, self.after)
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
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(values))
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    return void(address, arguments), codegen

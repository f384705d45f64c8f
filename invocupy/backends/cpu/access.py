"""How compiled code gets at memory: records of a call, pointers, and integers that threads share.

Arrays come in by address: as arguments they would mean a compilation for each layout, and another
one for read-only arrays.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import operator
from ctypes import c_size_t
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model

from invocupy.backends.cpu.checking import CHECKED, checked

_WORD = ir.IntType(64)
_AT, _HEADER = c_size_t.from_address, object.__basicsize__


def address(array: np.ndarray) -> int:
    """Where the elements begin: the field after the header of an array's object."""
    return _AT(id(array) + _HEADER).value


class Record:
    """A NamedTuple of integers and arrays as compiled code reads it, made once for many calls.

    Its integers, and the addresses of its arrays, stand in memory one after another. Another record
    holds its address.
    """

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values: Any = values  # whose arrays are so kept
        self.array = np.array(words_of(values), np.int64)
        self.address = address(self.array)


def words_of(values: tuple[Any, ...]) -> list[int]:
    """Integers as they are; arrays and records by address, None as 0."""
    return [
        value if type(value) is int
        # address(), which here would take as long again
        else _AT(id(value) + _HEADER).value if type(value) is np.ndarray
        else address(value) if isinstance(value, np.ndarray)
        else value.address if type(value) is Record
        else value or 0
        for value in values
    ]  # fmt: skip


@intrinsic
def read(typing: Any, words: Any, kind: Any) -> Any:
    """The NamedTuple ``kind`` of the int64s at the address ``words``."""
    count = len(kind.instance_class._fields)
    result = types.NamedUniTuple(types.int64, count, kind.instance_class)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        places = (builder.add(args[0], ir.Constant(_WORD, 8 * i)) for i in range(count))
        pointers = [builder.inttoptr(place, ir.PointerType()) for place in places]
        return context.make_tuple(builder, result, [builder.load(p, typ=_WORD) for p in pointers])

    return result(words, kind), codegen


@intrinsic(prefer_literal=True)
def pointer(typing: Any, address: Any, bits: Any) -> Any:
    """The integer ``address`` as a pointer to floats, or with ``-bits`` integers, to be indexed."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    kinds = {32: types.float32, 64: types.float64, -32: types.int32, -64: types.int64}
    kind = _Checked if CHECKED else types.CPointer
    return kind(kinds[bits.literal_value])(types.int64, bits), codegen


class _Checked(types.CPointer):
    """A pointer whose accesses are compared with the ranges of the launch."""


def _element(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """A pointer to the element."""
    size = ir.Constant(_WORD, signature.args[0].dtype.bitwidth // 8)
    place = builder.add(builder.ptrtoint(args[0], _WORD), builder.mul(args[1], size))
    return builder.inttoptr(checked(builder, place, size), args[0].type)


def _get(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    place = _element(context, builder, signature, args)
    return builder.load(place, typ=context.get_value_type(signature.return_type))


def _set(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.store(args[2], _element(context, builder, signature, args))


if CHECKED:
    register_model(_Checked)(models.PointerModel)
    lower_builtin(operator.getitem, _Checked, types.Integer)(_get)
    lower_builtin(operator.setitem, _Checked, types.Integer, types.Any)(_set)


@intrinsic
def add(typing: Any, address: Any, number: Any) -> Any:
    """Add to the int64 at ``address``, which threads share; what it was before."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.PointerType())
        return builder.atomic_rmw("add", place, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def load(typing: Any, address: Any) -> Any:
    """The int64 at ``address``, which threads share."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.PointerType())
        return builder.load_atomic(place, "seq_cst", 8, typ=_WORD)

    return types.int64(types.int64), codegen


@intrinsic
def store(typing: Any, address: Any, number: Any) -> Any:
    """Set the int64 at ``address``, which threads share."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.PointerType())
        builder.atomic_rmw("xchg", place, args[1], "seq_cst")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def call_body(typing: Any, function: Any, task: Any, turn: Any, scratch: Any, words: Any) -> Any:
    """Call what Numba has compiled for four int64s, at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # where compiled functions put their result and their exception: these have neither
        unused = [cgutils.alloca_once(builder, _WORD) for _ in range(2)]
        kind = ir.FunctionType(ir.IntType(32), [ir.PointerType()] * 2 + [_WORD] * 4)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [*unused, *args[1:]])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic
def plus(typing: Any, a: Any, b: Any) -> Any:
    """``a + b``, of which the compiler may reorder a sum: lanes of vectors, in a fixed order."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(*args, flags=("reassoc",))

    return a(a, a), codegen

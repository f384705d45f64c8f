"""Checked mode, ``INVOCUPY_CHECKED=1``: each address is compared with the memory of its launch.

The ranges of a launch (its arrays, those of its records, and its scratch memory) stand in a table
that compiled code finds as the symbol ``invocupy_ranges``. An access outside of all of them goes to
a few harmless bytes instead, the first one is noted, and :func:`ranges` raises for it. One launch
runs at a time, in one thread. Two arrays that touch are not told apart.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import binding, ir

from invocupy.settings import flag

CHECKED = flag("INVOCUPY_CHECKED")

_WORD = ir.IntType(64)
_COUNT, _FAULT, _BYTES, _RANGES, _HARMLESS = 0, 1, 2, 3, 512
_table = np.zeros(1 << 14, np.int64)
_lock = threading.Lock()


class OutsideError(Exception):
    """Compiled code has gone outside of the memory of its launch."""


@contextmanager
def ranges(call: Any, scratch: tuple[int, int]) -> Iterator[None]:
    """Let compiled code use the arrays of ``call`` and so many bytes of scratch at an address."""
    known = [("scratch", scratch[0], scratch[0] + scratch[1]), *_arrays("", call)]
    with _lock:
        _table[_RANGES : _RANGES + 2 * len(known)] = [end for _, *ends in known for end in ends]
        _table[_COUNT], _table[_FAULT] = len(known), 0
        try:
            yield
        finally:
            _table[_COUNT] = 0
        place, size = int(_table[_FAULT]), int(_table[_BYTES])
    if place:
        name, start, end = min(known, key=lambda r: max(r[1] - place, place + size - r[2]))
        side = f"{start - place} before" if place < start else f"{place + size - end} past"
        raise OutsideError(
            f"{size} bytes reach {side} the memory of {name!r}, which has {end - start} bytes"
        )


def _arrays(prefix: str, record: Any) -> Iterator[tuple[str, int, int]]:
    names = getattr(record, "_fields", map(str, range(len(record))))
    for name, value in zip(names, record, strict=True):
        if isinstance(value, np.ndarray):
            start = value.__array_interface__["data"][0]
            yield prefix + name, start, start + value.nbytes
        elif hasattr(value, "values"):  # a Record
            yield from _arrays(f"{prefix}{name}.", value.values)


def checked(builder: Any, address: Any, size: Any) -> Any:
    """The address, or in checked mode another one if these bytes are not of the launch."""
    if not CHECKED:
        return address
    module = builder.module
    if "invocupy_check" not in module.globals:
        kind = ir.FunctionType(_WORD, [_WORD, _WORD])
        function = ir.Function(module, kind, "invocupy_check")
        function.linkage = "linkonce_odr"
        _write(function)
    return builder.call(module.globals["invocupy_check"], [address, size])


def _write(function: Any) -> None:
    address, size = function.args
    table = ir.GlobalVariable(function.module, ir.ArrayType(_WORD, len(_table)), "invocupy_ranges")
    look, compare, further, good, bad = (function.append_basic_block() for _ in range(5))
    builder, zero, one = ir.IRBuilder(look), ir.Constant(_WORD, 0), ir.Constant(_WORD, 1)

    def place(number: Any) -> Any:
        return builder.gep(table, [zero, number])

    def fixed(number: int) -> Any:
        return place(ir.Constant(_WORD, number))

    end, count = builder.add(address, size), builder.load(fixed(_COUNT))
    builder.cbranch(builder.icmp_signed(">", size, zero), compare, good)
    builder.position_at_end(compare)
    turn = builder.phi(_WORD)
    turn.add_incoming(zero, look)
    first = builder.add(builder.shl(turn, one), ir.Constant(_WORD, _RANGES))
    above = builder.icmp_signed(">=", address, builder.load(place(first)))
    below = builder.icmp_signed("<=", end, builder.load(place(builder.add(first, one))))
    builder.cbranch(builder.and_(above, below), good, further)
    builder.position_at_end(further)
    following = builder.add(turn, one)
    turn.add_incoming(following, further)
    builder.cbranch(builder.icmp_signed("<", following, count), compare, bad)
    builder.position_at_end(bad)
    with builder.if_then(builder.icmp_signed("==", builder.load(fixed(_FAULT)), zero)):
        builder.store(address, fixed(_FAULT))
        builder.store(size, fixed(_BYTES))
    builder.ret(builder.ptrtoint(fixed(_HARMLESS), _WORD))
    builder.position_at_end(good)
    builder.ret(address)


if CHECKED:
    binding.add_symbol("invocupy_ranges", _table.ctypes.data)

"""Checked mode, ``INVOCUPY_CHECKED=1``: each address is compared with the memory of its launch.

The ranges of a launch (its arrays, those of its records, and its scratch memory) stand in a table.
Compiled code calls :func:`_check` by the name ``invocupy_check``: an access outside of all of them
goes to a few harmless bytes instead, the first one is noted, and :func:`ranges` raises for it. One
launch runs at a time, in one thread. Two arrays that touch are not told apart.
"""
# mypy: disable-error-code="no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic

from invocupy.settings import flag

CHECKED = flag("INVOCUPY_CHECKED")

_WORD = ir.IntType(64)
_COUNT, _FAULT, _BYTES, _HARMLESS, _RANGES = range(5)
_table, _harmless = np.zeros((2, 1 << 14), np.int64)
_table[_HARMLESS] = _harmless.ctypes.data
_lock = threading.Lock()


class OutsideError(Exception):
    """Compiled code has accessed memory outside of its launch."""


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
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_WORD, [_WORD, _WORD]), "invocupy_check"
    )
    return builder.call(function, [address, size])


def _check(address: Any, size: Any) -> Any:
    """What :func:`checked` describes, compiled: addresses are integers."""
    words = _words()
    if size <= 0:
        return address
    for i in range(_RANGES, _RANGES + 2 * words[_COUNT], 2):
        if words[i] <= address and address + size <= words[i + 1]:
            return address
    if words[_FAULT] == 0:
        words[_FAULT], words[_BYTES] = address, size
    return words[_HARMLESS]


@intrinsic
def _words(typing: Any) -> Any:
    """The table as a pointer, to be indexed."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = context.get_value_type(signature.return_type)
        return builder.inttoptr(ir.Constant(_WORD, _table.ctypes.data), kind)

    return types.CPointer(types.int64)(), codegen


if CHECKED:
    _compiled = cfunc(types.int64(types.int64, types.int64))(_check)
    binding.add_symbol("invocupy_check", _compiled.address)

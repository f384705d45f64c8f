"""Reading pickles without unpickling: no name in the file is ever imported or called.

A pickle is a program for a stack machine. This reader interprets the opcodes that build dicts,
lists, tuples, strings and numbers. A name in the file refers to an entry of the caller's table, or
to a placeholder: calling it, setting its state or adding items to it does nothing.

Memory and time are bounded by the file: shared objects stay shared, keys are plain values (hashing
never descends into nested tuples), and objects from the file are never printed.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

Table = Mapping[str, Callable[..., Any] | np.dtype[Any]]
"""From ``module.name`` to its replacement: a function, or the dtype of a class of arrays."""


class WeightsError(ValueError):
    """A file of weights that cannot be read or does not fit. One line: file, rule, way out."""


class Buildable:
    """An object whose state may be set after it is made."""

    def build(self, state: Any) -> None:
        """Set the state from the file."""


class Placeholder(Buildable):
    """A placeholder for an object of the file that is not built."""

    def __init__(self, what: str, is_array: bool = False) -> None:
        self.what, self.is_array = what[:100], is_array  # its class, for messages


class _Named:
    """An entry of the table; a file can only call it by REDUCE, or pass it on."""

    def __init__(self, thing: Callable[..., Any] | np.dtype[Any]) -> None:
        self.thing = thing


_MARK = object()
_SET = Placeholder("builtins.set")
_CONSTANTS: dict[str, Any] = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK,
    "EMPTY_SET": _SET,
}  # fmt: skip
_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "SHORT_BINSTRING", "BINSTRING", "INT",  # Python 2's; strings as Latin-1
}  # fmt: skip
_EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TUPLES = {"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}  # items; None: all to the mark
_CALLS = {"REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3}  # items: function, arguments[, named ones]
_ADDING: dict[str, tuple[type, int | None]] = {
    "APPEND": (list, 1), "APPENDS": (list, None), "SETITEM": (dict, 2), "SETITEMS": (dict, None),
    "ADDITEMS": (set, None),
}  # fmt: skip
_LONGEST = 1000  # characters of a function's name
_KEYS = str, bytes, int, float, type(None)


def read_pickle(
    content: bytes, table: Table, persistent: Callable[[Any], Any] | None = None
) -> Any:
    """The object that a pickle builds; WeightsError if it is cut short or not well formed.

    ``table`` and ``persistent`` define the names and the persistent ids in the file.

    >>> read_pickle(b"\\x80\\x02}X\\x01\\x00\\x00\\x00aK\\x01s.", {})
    {'a': 1}
    >>> read_pickle(b"cposix\\nsystem\\n.", {}).what
    'posix.system'
    """
    machine = _Machine(table, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(content):
            machine.step(opcode.name, argument)
        return machine.pop()
    except WeightsError:
        raise
    except Exception as error:  # the table's functions meet arguments of every kind
        raise WeightsError(f"its pickle is damaged ({error})") from error


def end_of_pickle(content: bytes, start: int) -> int:
    """Where the pickle that begins at ``start`` ends."""
    file = BytesIO(content)
    file.seek(start)
    try:
        for _ in pickletools.genops(file):
            pass
    except ValueError as error:
        raise WeightsError(f"its pickle is damaged ({error})") from error
    return file.tell()


class _Machine:
    """The stack and the memo."""

    def __init__(self, table: Table, persistent: Callable[[Any], Any] | None) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.table, self.persistent = table, persistent

    def pop(self) -> Any:
        """Pop the top of the stack."""
        top = self.stack.pop()
        if top is _MARK:
            raise ValueError("a mark where a value is needed")
        return top

    def take(self, count: int | None = None) -> list[Any]:
        """Pop a number of values, or all down to a mark and the mark itself; the top comes last."""
        if count is not None:
            return [self.pop() for _ in range(count)][::-1]
        return [*iter(self.stack.pop, _MARK)][::-1]

    def step(self, name: str, argument: Any) -> None:
        """One instruction."""
        push = self.stack.append
        match name:
            case _ if name in _VALUES:
                push(argument)
            case _ if name in _CONSTANTS:
                push(_CONSTANTS[name])
            case _ if name in _TUPLES:
                push(tuple(self.take(_TUPLES[name])))
            case _ if name in _ADDING:
                kind, count = _ADDING[name]
                _add(kind, self.take(count), self.stack[-1])
            case _ if name in _EMPTY:
                push(_EMPTY[name]())
            case _ if name in _CALLS:
                push(call(*self.take(_CALLS[name])[:2]))
            case "FROZENSET":
                self.take()
                push(_SET)
            case "POP":
                self.stack.pop()
            case "POP_MARK":
                self.take()
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "GLOBAL":
                push(self.named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                push(self.named(*self.take(2)))
            case "OBJ":
                function, *arguments = self.take()
                push(call(function, tuple(arguments)))
            case "BUILD":
                state, target = self.pop(), self.stack[-1]
                if isinstance(target, Buildable):
                    target.build(state)
                elif type(target) is not dict:  # its attributes, such as versions, do not matter
                    raise TypeError("a state for something that has none")
            case "BINPERSID":
                if self.persistent is None:
                    raise WeightsError("its pickle refers to something outside of it")
                push(self.persistent(self.pop()))
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise WeightsError(f"its pickle has an instruction {name} that arrays do not need")

    def named(self, module: Any, name: Any) -> _Named | Placeholder:
        """The object that a name in the file refers to."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a name that is not text")
        if len(module) + len(name) > _LONGEST:
            raise ValueError("a name that is too long")
        found = self.table.get(f"{module}.{name}")
        return Placeholder(f"{module}.{name}") if found is None else _Named(found)


def _add(kind: type, items: list[Any], target: Any) -> None:
    """Add to a list or dictionary; to a placeholder nothing is added."""
    if kind is dict and type(target) is dict:
        target.update(pairs(items[::2], items[1::2]))
    elif kind is list and type(target) is list:
        target.extend(items)
    elif not isinstance(target, Placeholder):
        raise TypeError("the wrong kind of object")


def call(function: Any, arguments: Any) -> Any:
    """The result of a function of the table; a placeholder for any other function."""
    if isinstance(function, Placeholder):
        return function
    if not isinstance(function, _Named) or type(arguments) is not tuple:
        raise TypeError("a call of something that is not a function")
    if isinstance(function.thing, np.dtype):
        raise TypeError("an array or storage made directly")
    return function.thing(*arguments)


def pairs(keys: Sequence[Any], values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Keys with their values; a key that is not a plain value becomes a unique object."""
    for key, value in zip(keys, values, strict=True):
        # Python gives integers from 2**61 - 1 on the hashes of small ones: a slow dictionary.
        plain = isinstance(key, _KEYS) and not (isinstance(key, int) and abs(key) > 2**60)
        yield key if plain else Placeholder("a key"), value


def passed(value: Any) -> np.dtype[Any]:
    """The dtype in the table whose name the file has passed as an argument."""
    if not isinstance(value, _Named) or not isinstance(value.thing, np.dtype):
        raise TypeError("the wrong kind of argument")
    return value.thing

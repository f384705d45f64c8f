"""Reading pickles without unpickling: no name in the file ever reaches an import or a call.

A pickle is a program for a stack machine. This one knows the instructions that build dicts, lists,
tuples, strings and numbers. Where the file names a function, a name in a table given by the caller
stands for the table's function. Every other name stands for a placeholder: calling it, giving it a
state or adding items to it does nothing, and leaves the placeholder.

Nothing here grows beyond the file: shared objects stay shared, keys are plain values (no hash walks
through nested tuples), and objects from the file are never printed.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any

Table = Mapping[str, Callable[..., Any]]
"""From ``module.name`` to what takes its place."""


class WeightsError(ValueError):
    """A file of weights that cannot be read or does not fit. One line: file, rule, way out."""


class Buildable:
    """An object of a table's function that receives its state afterwards."""

    def build(self, state: Any) -> None:
        """Take over the state that the file has for it."""
        raise NotImplementedError


class Placeholder:
    """Stands for an object of the file that is not read; nothing of it is run.

    Parameters
    ----------
    what : str
        Its class, for messages.
    is_array : bool
        Whether it is an array, of a kind that is not read.
    """

    def __init__(self, what: str, is_array: bool = False) -> None:
        self.what, self.is_array = what[:100], is_array


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
_LONGEST = 1000  # characters of a function's name
_KEYS = str, bytes, int, float, type(None)


def read_pickle(
    content: bytes, table: Table, persistent: Callable[[Any], Any] | None = None
) -> Any:
    """The object that a pickle describes.

    Parameters
    ----------
    content : bytes
    table : mapping of str to callable
        What the names in the file stand for.
    persistent : callable, optional
        What a persistent id in the file stands for; without it, there may be none.

    Returns
    -------
    object
        Of dict, list, tuple, str, bytes, int, float, bool, None, what the table gives, and
        :class:`Placeholder` for everything else.

    Raises
    ------
    WeightsError
        If the pickle is cut short or not well formed.

    Examples
    --------
    >>> from invocupy.weights.pickles import read_pickle
    >>> read_pickle(b"\\x80\\x02}X\\x01\\x00\\x00\\x00aK\\x01s.", {})
    {'a': 1}
    >>> read_pickle(b"cposix\\nsystem\\n.", {}).what
    'posix.system'
    """
    machine = _Machine(table, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name != "STOP":  # the last one; without it genops raises
                machine.step(opcode.name, argument)
        return machine.pop()
    except WeightsError:
        raise
    except Exception as error:  # the table's functions meet arguments of every kind
        raise WeightsError(f"its pickle is damaged ({error})") from error


def end_of_pickle(content: bytes, start: int) -> int:
    """Where the pickle that begins at ``start`` ends.

    Raises
    ------
    WeightsError
        If it does not.
    """
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
        top = self.stack.pop()
        if top is _MARK:
            raise ValueError("a mark where a value is needed")
        return top

    def pop_to_mark(self) -> list[Any]:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                items = self.stack[i + 1 :]
                del self.stack[i:]
                return items
        raise ValueError("no mark")

    def step(self, name: str, argument: Any) -> None:
        """One instruction."""
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("PROTO", "FRAME"):
            pass
        else:
            method = getattr(self, f"_{name.lower()}", None)
            if method is None:
                raise WeightsError(f"its pickle has an instruction {name} that arrays do not need")
            method(argument)

    def _empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def _empty_list(self, _: Any) -> None:
        self.stack.append([])

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def _tuple1(self, _: Any) -> None:
        self.stack.append((self.pop(),))

    def _tuple2(self, _: Any) -> None:
        last = self.pop()
        self.stack.append((self.pop(), last))

    def _tuple3(self, _: Any) -> None:
        last, middle = self.pop(), self.pop()
        self.stack.append((self.pop(), middle, last))

    def _frozenset(self, _: Any) -> None:
        self.pop_to_mark()
        self.stack.append(_SET)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self.pop_to_mark()

    def _append(self, _: Any) -> None:
        self._add(list, [self.pop()])

    def _appends(self, _: Any) -> None:
        self._add(list, self.pop_to_mark())

    def _additems(self, _: Any) -> None:
        self._add(set, self.pop_to_mark())

    def _setitem(self, _: Any) -> None:
        value = self.pop()
        self._add(dict, [self.pop(), value])

    def _setitems(self, _: Any) -> None:
        self._add(dict, self.pop_to_mark())

    def _add(self, kind: type, items: list[Any]) -> None:
        """Add to the list or dictionary on the stack; to a placeholder nothing is added."""
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            return
        if kind is dict and type(target) is dict:
            target.update(pairs(items[::2], items[1::2]))
        elif kind is list and type(target) is list:
            target.extend(items)
        else:
            raise TypeError("the wrong kind of object")

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._named(module, name)

    def _stack_global(self, _: Any) -> None:
        name = self.pop()
        self._named(self.pop(), name)

    def _named(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a name that is not text")
        if len(module) + len(name) > _LONGEST:
            raise ValueError("a name that is too long")
        found = self.table.get(f"{module}.{name}")
        self.stack.append(Placeholder(f"{module}.{name}") if found is None else _Function(found))

    def _reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        self.stack.append(call(function, arguments))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self.pop()
        self._reduce(None)

    def _obj(self, _: Any) -> None:
        function, *arguments = self.pop_to_mark()
        self.stack.append(call(function, tuple(arguments)))

    def _build(self, _: Any) -> None:
        state = self.pop()
        target = self.stack[-1]
        if isinstance(target, Buildable):
            target.build(state)
        # a dictionary's attributes, such as versions, are of no interest
        elif type(target) is not dict and not isinstance(target, Placeholder):
            raise TypeError("a state for something that has none")

    def _binpersid(self, _: Any) -> None:
        if self.persistent is None:
            raise WeightsError("its pickle refers to something outside of it")
        self.stack.append(self.persistent(self.pop()))


class _Function:
    """A function of the table; in the file's hands it can only be called by REDUCE, or passed."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


def call(function: Any, arguments: Any) -> Any:
    """What a function of the table makes of the file's arguments; of another one, nothing."""
    if isinstance(function, Placeholder):
        return function
    if not isinstance(function, _Function) or type(arguments) is not tuple:
        raise TypeError("a call of something that is no function")
    return function.call(*arguments)


def pairs(keys: Sequence[Any], values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Keys with their values; what is no plain value becomes a key of its own."""
    for key, value in zip(keys, values, strict=True):
        # Python gives integers from 2**61 - 1 on the hashes of small ones: a slow dictionary.
        plain = isinstance(key, _KEYS) and not (isinstance(key, int) and abs(key) > 2**60)
        yield key if plain else Placeholder("a key"), value


def called(value: Any, what: type) -> Any:
    """The function of the table that the file has passed as an argument, if it is a ``what``."""
    if not isinstance(value, _Function) or not isinstance(value.call, what):
        raise TypeError("the wrong kind of argument")
    return value.call

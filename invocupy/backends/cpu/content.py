"""A digest of all that compiled code depends on, computed from the code in memory.

Source files may change while a program runs, between the imports of two modules. So no file is
read. The digest covers the bytecode of the function and everything that it can reach by name
(functions, classes, constants). Numba copies the values of global names and of closures into the
code that it compiles, including constants that describe the machine.

Compiled code does not change when a module is reloaded or a name gets another value, and later
code uses it. So there is no digest of code that was reloaded, nor :func:`lasting_digest` of code
that has changed, since its first digest.
"""

from __future__ import annotations

import dis
import hashlib
import sys
from collections.abc import Callable
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

# covered by their versions, which are part of a file's name
_OTHERS = {"numba", "llvmlite", "numpy", *sys.stdlib_module_names} - {"__main__"}


def digest(function: Callable[..., Any]) -> str:
    """The digest of a function and all that it reaches, equal in all processes with the same code.

    RuntimeError if a module of one of them was loaded again after a digest of something in it.
    """
    return _digest(function)[0]


def lasting_digest(function: Callable[..., Any]) -> str:
    """:func:`digest`, and RuntimeError if something has changed since it was first looked at."""
    result, reached = _digest(function)
    for thing in reached:
        own = _Reach()
        now = repr(own.describe(thing)), own.found
        if _looked_at.setdefault(id(thing), (thing, now))[1] != now:
            raise RuntimeError(f"{thing!r} has changed")
    return result


_looked_at: dict[int, tuple[Any, tuple[str, list[Any]]]] = {}  # by identity; held, so that it stays


def _digest(function: Callable[..., Any]) -> tuple[str, list[Any]]:
    """And all that is reached."""
    reach = _Reach()
    reach.name(function)
    content = hashlib.sha256()
    for thing in reach.found:  # which grows
        content.update(repr(reach.describe(thing)).encode())
    return content.hexdigest(), reach.found


class _Reach:
    """Functions and classes, numbered in the order in which they are found."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.numbers: dict[int, int] = {}  # by identity

    def name(self, thing: Any) -> Any:
        """The number of a function or class; anything else as text."""
        if isinstance(thing, tuple | list):
            return type(thing).__name__, [self.name(part) for part in thing]
        if isinstance(thing, dict):
            return "dict", [(self.name(key), self.name(part)) for key, part in thing.items()]
        if isinstance(thing, set | frozenset):
            return "set", sorted(map(repr, thing))
        if isinstance(thing, np.ndarray):
            return "array", thing.dtype.str, thing.shape, thing.tobytes()
        if isinstance(thing, ModuleType):
            return "module", thing.__name__
        place = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
        if None not in place and _is_other(str(place[0])):
            return place
        if isinstance(thing, FunctionType | property | type) or hasattr(thing, "__wrapped__"):
            if id(thing) not in self.numbers:
                self.numbers[id(thing)] = len(self.found)
                self.found.append(thing)
            return self.numbers[id(thing)]
        text = repr(thing)
        return type(thing).__name__, "" if " at 0x" in text else text

    def describe(self, thing: Any) -> Any:
        """What a function or class is by itself, with the numbers of those that it uses."""
        if isinstance(thing, FunctionType):
            _check_module(thing.__globals__)
            code, names = _code(thing.__code__)
            cells = [cell.cell_contents for cell in thing.__closure__ or ()]
            given = thing.__defaults__, thing.__kwdefaults__, cells, _values(thing, names)
            return code, [self.name(value) for value in given]
        if isinstance(thing, property):
            return self.name(thing.fget)
        if isinstance(thing, type):
            parts = sorted(vars(thing).items())
            own = [(key, self.name(part)) for key, part in parts if _is_own(key, part)]
            return self.name(thing.__bases__), own
        # what Numba compiles or calls, caches, methods of classes
        return getattr(thing, "targetoptions", None), self.name(thing.__wrapped__)


def _is_own(key: str, part: Any) -> bool:
    """Whether an attribute of a class is in its source, unlike ``__dict__`` or ``__doc__``."""
    special = key.startswith("__") and key.endswith("__")
    return not special or isinstance(part, FunctionType) or hasattr(part, "__wrapped__")


def _is_other(module: str) -> bool:
    return module.partition(".")[0] in _OTHERS


_specs: dict[int, tuple[dict[str, Any], Any]] = {}  # of modules, by the identity of their names


def _check_module(space: dict[str, Any]) -> None:
    spec = space.get("__spec__")  # a new one when it is loaded again
    if _specs.setdefault(id(space), (space, spec))[1] is not spec:
        raise RuntimeError(f"{space.get('__name__')} was loaded again")


def _values(function: FunctionType, names: dict[str, bool]) -> list[Any]:
    """The values of global names, and of names in global modules of this package."""
    values, spaces = [], [function.__globals__]
    for space in spaces:  # which grows
        for name, is_global in names.items():
            if name not in space or (space is spaces[0] and not is_global):
                continue  # in the function's own module the name of an attribute means nothing
            value = space[name]
            values.append((name, value))
            ours = isinstance(value, ModuleType) and not _is_other(value.__name__)
            if ours and not any(vars(value) is known for known in spaces):
                spaces.append(vars(value))
    return values


_codes: dict[int, tuple[CodeType, str, dict[str, bool]]] = {}  # by identity; held, so that it stays


def _code(code: CodeType) -> tuple[str, dict[str, bool]]:
    """A digest of bytecode and constants; the names used, by inner functions too, if global."""
    if id(code) in _codes:
        return _codes[id(code)][1:]
    names, constants = dict.fromkeys(code.co_names, False), []
    names.update((i.argval, True) for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL")
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constant, more = _code(constant)
            names.update((name, names.get(name) or used) for name, used in more.items())
        elif isinstance(constant, frozenset):
            constant = sorted(map(repr, constant))
        constants.append(repr(constant))
    content = (
        code.co_code, code.co_exceptiontable, code.co_flags, code.co_argcount,
        code.co_posonlyargcount, code.co_kwonlyargcount, code.co_names, code.co_varnames,
        code.co_cellvars, code.co_freevars, constants,
    )  # fmt: skip
    _codes[id(code)] = code, hashlib.sha256(repr(content).encode()).hexdigest(), names
    return _codes[id(code)][1:]

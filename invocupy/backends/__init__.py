"""The code for each kind of machine: one folder (wing) per machine, with one module per op.

======================  ==========================================================================
folder                  what it is
======================  ==========================================================================
``reference``           plain array code for NumPy and CuPy: the specification
``cpu``                 NumPy arrays: Numba, LLVM and threads
``cuda``                CuPy arrays: the launcher and the ``.cu`` files
======================  ==========================================================================

The modules of an op have the same functions with the same signatures: those of :mod:`.signatures`.
Only ops for which it pays are here; the rest is array code in :mod:`invocupy.ops`.
"""

from __future__ import annotations

import os
from _thread import RLock, get_ident
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from time import sleep
from types import ModuleType
from typing import Any

import numpy as np

from invocupy.backends.notice import note

ON_GPU = (
    "involution", "involution_block", "expansion", "convolution", "pointwise", "batch_norm", "sgd",
)  # fmt: skip
"""The ops of the CUDA wing; for others, CuPy arrays use the reference."""

on_compile: Callable[[str, bool], object] | None = note
"""Called with a CPU kernel's name and False before it is compiled, and with True afterwards.

It is called in the compiling thread. An exception is printed, and ends further calls.
"""

# if set, the function from an operator's name to what :func:`of` returns
_instead: ContextVar[Callable[[str], Any] | None] = ContextVar("invocupy_instead", default=None)


def of(op: str, array: Any) -> Any:
    """The module of ``op`` for this array, imported when first needed: Numba and CuPy are slow."""
    instead = _instead.get()
    if instead is not None and op != "sgd":  # whose results are new arrays
        return instead(op)
    if isinstance(array, np.ndarray):
        return _module(op, "cpu")
    return _module(op, "cuda" if op in ON_GPU else "reference")


@cache
def _module(op: str, machine: str) -> ModuleType:
    name = f"{__name__}.{machine}.{op}"
    if machine != "cpu":
        return import_module(name)
    with _first:  # not with this module: what it imports takes a third of the time
        from invocupy.backends.cpu.compiling import whole
    while _forks:  # which began before it could be told to wait for more
        sleep(0.001)
    return whole(import_module, name)


# A fork waits for that import, as for others later. It may hold the lock of the module logging by
# then, which the import takes for a moment: so not for ever.
_first: Any = RLock()
_forks: list[int] = []  # under way, by thread


def _before_fork() -> None:
    _forks.append(get_ident())
    _first.acquire(timeout=10)


def _after_fork() -> None:
    _forks.remove(get_ident())
    if _first._is_owned():
        _first.release()


def _after_fork_in_child() -> None:
    _forks[:] = [get_ident()]  # those of other threads have ended here
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )


def dry_run() -> AbstractContextManager[None]:
    """Context in which backends do nothing, in this thread: results are uninitialised memory.

    Shapes and allocations are those of the real computation, almost no time passes, and nothing is
    compiled: for counting.
    """
    return _having(lambda op: NOTHING)


def plain() -> AbstractContextManager[None]:
    """Context in which operators run their specification, plain array code, in this thread."""
    return _having(lambda op: _module(op, "reference"))


@contextmanager
def _having(instead: Callable[[str], Any]) -> Iterator[None]:
    token = _instead.set(instead)
    try:
        yield
    finally:
        _instead.reset(token)


class _Nothing:
    """Replacement for a backend's module, whose functions do nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


NOTHING = _Nothing()

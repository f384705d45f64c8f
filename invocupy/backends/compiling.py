"""Importing Numba and compiling with it, so that neither a signal nor a fork comes in between."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from importlib import import_module
from typing import Any, TypeVar

Result = TypeVar("Result")

_importing: Any = threading.RLock()


def whole(work: Callable[..., Result], *arguments: Any) -> Result:
    """``work(*arguments)`` under Numba's compiler lock, in a thread of its own.

    Python runs the handlers of signals in the main thread, between any two of its instructions. An
    exception that one raises (Ctrl-C: KeyboardInterrupt) would leave LLVM's objects half made, and
    the process would end with a segmentation fault some calls later. So the main thread only waits:
    the exception ends the waiting at once, and the work goes on to its end.
    """
    lock = _compiler_lock()
    if lock is not None and lock.is_locked():  # by this thread, which is compiling
        return work(*arguments)
    context, outcome = copy_context(), Future[Result]()

    def run() -> None:
        try:
            outcome.set_result(context.run(_locked, work, *arguments))
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="invocupy compiling")
    try:
        thread.start()
    except RuntimeError:  # the interpreter is closing, or the system has no more threads
        if thread.ident is not None:
            raise
        return _locked(work, *arguments)
    # Not join(), which in Python 3.11 and 3.12 forgets the thread if it is interrupted; at exit
    # Python must wait for it.
    result = outcome.result()
    thread.join()
    return result


def _locked(work: Callable[..., Result], *arguments: Any) -> Result:
    with _importing:
        import_module("numba.core.compiler_lock")
    with _compiler_lock():
        return work(*arguments)


def _compiler_lock() -> Any:
    """Of Numba, if it is imported; a thread that has it may take it again."""
    return getattr(sys.modules.get("numba.core.compiler_lock"), "global_compiler_lock", None)


# A forked child has only the thread that forked. What another thread held there would be held for
# ever, so the fork waits until nobody imports Numba or compiles.
_forking = threading.local()


def _before_fork() -> None:
    numba = _compiler_lock()
    own = [] if _importing._is_owned() else [(_importing, _importing._is_owned)]
    if numba is not None and not numba.is_locked():
        own.append((numba, numba.is_locked))
    _forking.own = own
    for lock, _ in own:
        lock.acquire()


def _after_fork() -> None:
    for lock, is_owned in reversed(_forking.own):
        if is_owned():  # unless a signal's handler raised an exception while the fork waited
            lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )

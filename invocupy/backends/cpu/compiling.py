"""Importing Numba, compiling, and long launches, so that no signal or fork comes in between."""

from __future__ import annotations

import os
import sys
import threading
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from contextvars import copy_context
from importlib import import_module
from typing import Any, TypeVar

Result = TypeVar("Result")

_STACK = 16 << 20  # bytes; LLVM needs more than some systems and users give to threads

LOOK = 0.05  # seconds; a signal just before a thread begins to wait does not end its waiting

_importing: Any = threading.RLock()


def whole(work: Callable[..., Result], *arguments: Any) -> Result:
    """``work(*arguments)`` under Numba's compiler lock, in a thread of its own.

    Python runs the handlers of signals in the main thread, between any two of its instructions. An
    exception that one raises (Ctrl-C: KeyboardInterrupt) would leave LLVM's objects half made, and
    the process would end with a segmentation fault some calls later. So the main thread only waits:
    the exception ends the waiting at once, and the work is completed in its thread.
    """
    lock = _compiler_lock()
    if lock is not None and _is_owned(lock):  # this thread is compiling
        return work(*arguments)
    context, outcome = copy_context(), Future[Result]()

    def run() -> None:
        try:
            outcome.set_result(context.run(_locked, work, *arguments))
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="invocupy compiling")
    try:
        with _importing:  # one at a time: the size holds for every thread that is started
            stack = threading.stack_size(_STACK)
            try:
                thread.start()
            finally:
                threading.stack_size(stack)
    except RuntimeError:  # the interpreter is closing, or the system has no more threads
        if thread.ident is not None:
            raise
        return _locked(work, *arguments)
    # Not join(), which in Python 3.11 and 3.12 forgets the thread if it is interrupted; at exit
    # Python must wait for it.
    while not outcome.done():
        wait([outcome], LOOK)
    result = outcome.result()
    thread.join()
    return result


def _locked(work: Callable[..., Result], *arguments: Any) -> Result:
    with _importing:
        import_module("numba.core.compiler_lock")
    with _compiler_lock():
        return work(*arguments)


def _compiler_lock() -> Any:
    """Numba's lock, None if Numba is not imported; it is reentrant."""
    return getattr(sys.modules.get("numba.core.compiler_lock"), "global_compiler_lock", None)


# A forked child has only the thread that forked. What another thread held there would be held for
# ever, so the fork waits until nobody imports Numba or compiles. Compiling takes the lock of the
# module logging, which a fork holds as well. Of such functions the last registered runs first: this
# must come after logging, which Future imports.
_forking = threading.local()


def _before_fork() -> None:
    _forking.locks = []
    finders: tuple[Callable[[], Any], ...] = (lambda: _importing, _compiler_lock)
    for find in finders:  # the second one only when no import is under way
        lock = find()
        if lock is not None and not _is_owned(lock):
            _forking.locks.append(lock)
            lock.acquire()


def _after_fork() -> None:
    for lock in reversed(getattr(_forking, "locks", [])):  # none if it began before this module
        if _is_owned(lock):  # unless a signal's handler raised an exception while the fork waited
            lock.release()


def _is_owned(lock: Any) -> bool:
    """Whether this thread holds the lock."""
    owned: bool = lock.is_locked() if hasattr(lock, "is_locked") else lock._is_owned()
    return owned


def interruptible_lead(begun: Any, job: Any, lead: Any, record: Any) -> None:
    """``lead`` in another thread, while this one waits where Python handles signals.

    Signals can follow each other so fast that this thread does not even get to wait for the end.
    So the other one holds the arrays of the record, and the job, until then.
    """
    ended, done, held = allocate_lock(), [], [record]
    ended.acquire()

    def run() -> None:
        if begun.acquire(False):
            try:
                lead()
            finally:
                job.rest()
                held.clear()
                done.append(True)
                ended.release()

    try:
        start_new_thread(run, ())
        while not ended.acquire(timeout=LOOK):
            pass
    except BaseException as error:
        if not begun.acquire(False):  # it has begun
            job.stop()
            while not done:
                with suppress(BaseException):
                    ended.acquire(timeout=LOOK)
            raise
        try:
            by_handler = error.__traceback__ is None or error.__traceback__.tb_next is not None
            if by_handler or not isinstance(error, RuntimeError):
                raise
            lead()  # the system refuses to start threads
        finally:
            job.rest()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )

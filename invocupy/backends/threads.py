"""A small pool of threads for kernels that release the GIL.

Numba's own ``parallel=True`` is not used: its ``workqueue`` layer aborts the process when two
Python threads call a kernel at once, and its OpenMP layer kills forked children. Here a kernel is a
serial function that takes its next task from a shared counter until none is left, so any number of
threads can run it at the same time, and the caller is always one of them. A helper that has not
begun by the time the caller is through is simply called off: handing work over costs the caller a
few microseconds and can never block it, not even at interpreter exit.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from ctypes import addressof, c_char
from functools import cache
from queue import SimpleQueue

import numpy as np

_wanted: int | None = None
_inbox: SimpleQueue[_Ticket]
_workers: int
_starting: threading.Lock
_local = threading.local()


def get_num_threads() -> int:
    """How many threads one call may use, the caller's included.

    The number given to :func:`set_num_threads`, or else the number of cores this process may run
    on at first use, limited by the environment variable ``INVOCUPY_NUM_THREADS``.
    """
    return _default() if _wanted is None else _wanted


def set_num_threads(number: int | None) -> None:
    """Set how many threads one call may use; ``None`` goes back to the default.

    Results do not depend on it, to the bit.

    Raises
    ------
    ValueError
        If ``number`` is not an integer >= 1.

    Examples
    --------
    >>> set_num_threads(1)
    >>> get_num_threads()
    1
    >>> set_num_threads(None)
    """
    global _wanted
    if number is not None and (
        isinstance(number, bool) or not isinstance(number, int) or number < 1
    ):
        raise ValueError(f"number of threads must be an integer >= 1 or None, got {number!r}")
    _wanted = number


def run(call: Callable[[], None], helpers: int) -> None:
    """Run ``call()`` here and in up to ``helpers`` other threads at the same time.

    Returns when every thread that began has ended. ``call`` shares its work out by itself and must
    be right however many threads run it, and whenever each of them begins.
    """
    tickets = [_Ticket(call) for _ in range(_start(helpers))] if helpers > 0 else []
    for ticket in tickets:
        _inbox.put(ticket)
    try:
        call()
    finally:
        for ticket in tickets:
            ticket.settle()
    for ticket in tickets:
        if ticket.error is not None:
            raise ticket.error


def scratch(size: int) -> int:
    """The address of at least ``size`` bytes that belong to the calling thread, 64-byte aligned.

    The memory is kept for the thread's next call: fresh pages would cost more than small operators.
    """
    if getattr(_local, "size", -1) < size:
        _local.buffer = np.empty(size + 64, np.uint8)
        _local.size, _local.start = size, -(-address(_local.buffer) // 64) * 64
    start: int = _local.start
    return start


def address(array: np.ndarray) -> int:
    """Where the elements begin."""
    try:  # a quarter of the time of the general way, which counts in small operators
        return addressof(c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):  # read-only or empty
        pass
    try:
        return array.ctypes.data
    except ImportError:  # the interpreter is closing
        place: int = array.__array_interface__["data"][0]
        return place


@cache
def _default() -> int:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    limit = os.environ.get("INVOCUPY_NUM_THREADS", "")
    return min(cores, max(int(limit), 1)) if limit.isdecimal() else cores


class _Ticket:
    """One helper's share of a job: begun by a worker, or called off by the caller."""

    __slots__ = ("begun", "call", "ended", "error")

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call
        self.begun = threading.Lock()
        self.ended = threading.Lock()
        self.ended.acquire()
        self.error: BaseException | None = None

    def work(self) -> None:
        call = self.call
        if self.begun.acquire(blocking=False) and call is not None:
            try:
                call()
            except BaseException as error:  # handed to the caller
                self.error = error
            finally:
                self.ended.release()

    def settle(self) -> None:
        if self.begun.acquire(blocking=False):
            self.call = None  # called off; frees the arrays before a worker finds the ticket
        else:
            self.ended.acquire()


def _start(helpers: int) -> int:
    """Have ``helpers`` workers running; fewer if the system or a closing interpreter refuses."""
    global _workers
    if _workers < helpers:
        with _starting:
            try:
                while _workers < helpers:
                    threading.Thread(target=_serve, args=(_inbox,), daemon=True).start()
                    _workers += 1
            except RuntimeError:
                pass
    return min(helpers, _workers)


def _serve(inbox: SimpleQueue[_Ticket]) -> None:
    while True:
        ticket = inbox.get()
        ticket.work()
        del ticket


def _reset() -> None:
    """Begin with no workers: at import, and in a forked child, which inherits none."""
    global _inbox, _workers, _starting
    _inbox, _workers, _starting = SimpleQueue(), 0, threading.Lock()


_reset()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)

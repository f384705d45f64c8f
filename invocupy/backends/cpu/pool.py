"""Threads that help to run a kernel: they join it, and leave it, without Python and its GIL.

Numba's own ``parallel=True`` is not used: its ``workqueue`` layer aborts the process when two
Python threads call a kernel at once, and its OpenMP layer kills forked children. Here a kernel is a
serial function that takes its next task from a shared counter until none is left, so any number of
threads can run it at the same time, and the caller is always one of them.

For a long job of the main thread another thread leads, so that the main thread can handle signals.

The caller writes a *job*, a row of integers, and hangs it up in its place on a *board*. Helpers
that have worked lately watch the board; the others sleep, and waking one takes some microseconds
here and some ten until it is there. The caller works as if it were alone, takes the job down and
waits for those who had begun; so a helper that comes too late finds nothing, and can never block
the caller, not even at interpreter exit.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

import atexit
import os
import threading
import time
from _thread import allocate_lock, get_ident, start_new_thread
from contextlib import suppress
from ctypes import CDLL, c_void_p, cast
from functools import cache
from struct import Struct
from threading import main_thread
from typing import Any

import numpy as np

from invocupy.backends.cpu import threads
from invocupy.backends.cpu.compiling import LOOK
from invocupy.backends.cpu.jit import add, jit, load, pointer, store
from invocupy.backends.cpu.vector import call
from invocupy.backends.memory import others, patiently

_LINE = 64  # bytes; what different threads write is on different lines
# Bytes between the scratch memories of two threads. A core that walks through the planes of its own
# in strides fetches what would come next, and takes those lines from the core that writes them.
_APART = 1 << 17
_WATCH = 2e-4  # seconds
_PATIENCE = 600_000  # looks, some hundred microseconds
_KEPT = 16 << 20  # bytes of scratch for each thread up to which it is kept for the next job
_TURNS = 1000

# Places in a job, in bytes. The layout of :func:`_layout`.
_THUNK, _FUNCTION, _TASKS, _HELPERS, _SCRATCH, _STRIDE = range(0, 48, 8)
_COUNTER, _JOINED, _ARGUMENTS = _LINE, 2 * _LINE, 3 * _LINE
PLACES = _FUNCTION, _TASKS, _COUNTER, _ARGUMENTS  # what a thunk needs to know
_LARGEST = 256  # arguments

# Places on the board, in bytes: counts, addresses of functions of the system, what these need, and
# a line for each job.
_CLOSED, _HELPING, _SLEEPING, _CALLED, _WAITING = range(0, 40, 8)
_SYSTEM = (
    "pthread_mutex_lock", "pthread_mutex_unlock", "pthread_cond_wait", "pthread_cond_signal",
    "pthread_cond_broadcast",
)  # fmt: skip
_LOCK, _UNLOCK, _WAIT, _SIGNAL, _BROADCAST = range(_LINE, _LINE + 40, 8)
_MUTEX, _WORK, _END, _FIRST = 2 * _LINE, 4 * _LINE, 6 * _LINE, 8 * _LINE
_JOB, _USERS = 0, 8
_CALLERS = 8  # that can have helpers at once
_LAST = _FIRST + (_CALLERS - 1) * _LINE

_board: tuple[Any, int]
_counts: Any  # its words
_jobs: list[_Job]  # at rest
_made: int
_ended = 0.0  # when the last job was through
_workers: int
_starting: threading.Lock


def run(
    thunk: int, function: int, tasks: int, helpers: int, large: bool, long: bool, scratch: int,
    arguments: list[int], needed: tuple[Any, ...],
) -> None:  # fmt: skip
    """Run ``function`` here and in up to ``helpers`` other threads at the same time.

    Each of them calls the machine code ``thunk(job, its own scratch bytes)``. Returns when every
    thread that began has ended. Helpers that sleep are woken for a ``large`` job, or one that comes
    so soon after another that they would still be watching. In the main thread a ``long`` job can
    be interrupted by a signal: threads end when the task that they are at is done. ``needed`` is
    what owns the memory that ``arguments`` point to.
    """
    global _ended
    now = time.perf_counter()
    if helpers > 0 and not threads.is_set():
        awake = 1 + _counts[_HELPING // 8] - _counts[_SLEEPING // 8]
        helpers = min(helpers, threads.free_cores(now, awake))
    if helpers > _workers:
        _start(helpers)
    try:
        job = _jobs.pop()
    except IndexError:  # asking first whether there is one would race with other threads
        job = _Job()
    job.stride = stride = -(-scratch // _LINE) * _LINE + _APART
    begun = allocate_lock() if long and get_ident() == main_thread().ident else None
    try:
        start = job.scratch((helpers + 1) * stride)
        pack = _layout(len(arguments)).pack_into
        pack(job.memory, 0, thunk, function, tasks, helpers, start, stride, *arguments)
        wake = large or now - _ended < _WATCH
        if begun is None:
            _lead(_board[1], job.place, job.address, helpers, wake)
        else:
            _interruptible(begun, job, tasks, helpers, wake, needed)
    finally:
        if begun is None or begun.acquire(False):  # else the thread that leads does it
            job.rest()
    _ended = time.perf_counter()


def _interruptible(
    begun: Any, job: _Job, tasks: int, helpers: int, wake: bool, needed: tuple[Any, ...]
) -> None:
    """:func:`_lead` in another thread, while this one waits where Python handles signals.

    Signals can follow each other so fast that this thread does not even get to wait for the end.
    So the other one holds what is ``needed``, and the job, until then.
    """
    ended, done, held = allocate_lock(), [], list(needed)
    ended.acquire()

    def lead() -> None:
        if begun.acquire(False):
            try:
                _lead(_board[1], job.place, job.address, helpers, wake)
            finally:
                job.rest()
                held.clear()
                done.append(True)
                ended.release()

    try:
        start_new_thread(lead, ())
        while not ended.acquire(timeout=LOOK):
            pass
    except BaseException as error:
        if not begun.acquire(False):  # it has begun
            job.memory.cast("q")[_COUNTER // 8] = tasks  # nobody begins another task
            while not done:
                with suppress(BaseException):
                    ended.acquire(timeout=LOOK)
            raise
        try:
            by_handler = error.__traceback__ is None or error.__traceback__.tb_next is not None
            if by_handler or not isinstance(error, RuntimeError):
                raise
            # the system refuses to start threads
            _lead(_board[1], job.place, job.address, helpers, wake)
        finally:
            job.rest()


@jit
def _lead(board, place, job, helpers, wake):
    """Hang the job up, do it, take it down, and wait for those who have begun."""
    if helpers > 0:
        store(place + _JOB, job)
        awake = load(board + _HELPING) - load(board + _SLEEPING)
        if wake and awake < helpers:
            _wake(board, helpers - awake)
    _work(job, 0)
    store(place + _JOB, 0)
    for _ in range(_PATIENCE):
        if load(place + _USERS) == 0:
            return
    # A helper was interrupted: it may need this core.
    mutex = board + _MUTEX
    call(load(board + _LOCK), (mutex,))
    add(board + _WAITING, 1)
    while load(place + _USERS) != 0:
        call(load(board + _WAIT), (board + _END, mutex))
    add(board + _WAITING, -1)
    call(load(board + _UNLOCK), (mutex,))


@jit
def _wake(board, number):
    mutex = board + _MUTEX
    call(load(board + _LOCK), (mutex,))
    number = min(number, load(board + _SLEEPING))
    add(board + _SLEEPING, -number)
    add(board + _CALLED, number)
    for _ in range(number):
        call(load(board + _SIGNAL), (board + _WORK,))
    call(load(board + _UNLOCK), (mutex,))


@jit
def _help(board, turns):
    """What a helper does all its life."""
    mutex = board + _MUTEX
    add(board + _HELPING, 1)
    while load(board + _CLOSED) == 0:
        _watch(board, turns)
        call(load(board + _LOCK), (mutex,))
        # Callers hang up first and look for sleepers then.
        add(board + _SLEEPING, 1)
        if _empty(board):
            while load(board + _CALLED) == 0 and load(board + _CLOSED) == 0:
                call(load(board + _WAIT), (board + _WORK, mutex))
            add(board + _CALLED, -1)
        else:
            add(board + _SLEEPING, -1)
        call(load(board + _UNLOCK), (mutex,))
    add(board + _HELPING, -1)


@jit
def _empty(board):
    found = 0
    for place in range(board + _FIRST, board + _LAST + 1, _LINE):
        found |= load(place + _JOB)
    return found == 0


@jit
def _watch(board, turns):
    """Join what hangs on the board until for so many turns nothing new has come."""
    left = turns
    while left > 0 and load(board + _CLOSED) == 0:
        left -= 1
        for place in range(board + _FIRST, board + _LAST + 1, _LINE):
            if load(place + _JOB) == 0:
                continue
            # From here on the caller waits, unless it has taken the job down before.
            add(place + _USERS, 1)
            job = load(place + _JOB)
            if job != 0:
                if _join(job):
                    left = turns
                store(place + _JOB, 0)  # nothing of it is left for anybody
            if add(place + _USERS, -1) == 1 and load(board + _WAITING) != 0:
                call(load(board + _LOCK), (board + _MUTEX,))
                call(load(board + _BROADCAST), (board + _END,))
                call(load(board + _UNLOCK), (board + _MUTEX,))


@jit
def _join(job):
    """Whether there was something to do for one more thread."""
    words = pointer(job, -64)
    if load(job + _COUNTER) >= words[_TASKS // 8]:
        return False
    number = add(job + _JOINED, 1) + 1
    if number > words[_HELPERS // 8]:
        return False
    _work(job, number)
    return True


@jit
def _work(job, number):
    words = pointer(job, -64)
    call(words[_THUNK // 8], (job, words[_SCRATCH // 8] + number * words[_STRIDE // 8]))


@cache
def _layout(arguments: int) -> Struct:
    """A job, whose other words are zero at its beginning."""
    return Struct(f"6q{_ARGUMENTS - 6 * 8}x{arguments}q")


class _Job:
    """Memory of a call and what it works in, kept for the next: fresh pages would cost more."""

    __slots__ = ("address", "memory", "place", "room", "start", "stride")
    room: Any
    start: int
    stride: int

    def __init__(self) -> None:
        global _made
        self.memory, self.address = _lines(_ARGUMENTS + _LARGEST * 8 + _LINE)
        with _starting:
            line = _made
            _made += 1
        # on the board, or in memory of its own, where no helper sees it
        private = self.address + _ARGUMENTS + _LARGEST * 8
        self.place = _board[1] + _FIRST + line * _LINE if line < _CALLERS else private
        self.forget()

    def scratch(self, size: int) -> int:
        """The address of at least ``size`` bytes."""
        if len(self.room) < size:
            self.forget()
            self.room, self.start = patiently(_lines, size)
        return self.start

    def rest(self) -> None:
        """Be there for the next call."""
        if self.stride > _KEPT:
            self.forget()
        _jobs.append(self)

    def forget(self) -> None:
        """Give the memory to work in back to the system."""
        self.room, self.start = _lines(0)


def _lines(size: int) -> tuple[Any, int]:
    """Zeros that begin at a line, and their address; pages are not touched."""
    array = np.zeros(size + _LINE, np.uint8)
    skip = -threads.address(array) % _LINE
    return array[skip : skip + size].data, threads.address(array) + skip


def _start(helpers: int) -> None:
    """Have so many helpers; fewer if the system refuses to start threads."""
    global _workers
    with _starting:
        turns = _turns()
        try:
            while _workers < helpers:
                threading.Thread(target=_serve, args=(*_board, turns), daemon=True).start()
                _workers += 1
        except RuntimeError:  # the interpreter is closing
            pass


def _serve(board: Any, address: int, turns: int) -> None:
    """A thread; ``board`` is held so that it stays."""
    _help(address, turns)


@cache
def _turns() -> int:
    """How often a helper looks at the board before it sleeps."""
    board, nowhere = _new_board()
    _watch(nowhere, 1)
    start = time.perf_counter()
    _watch(nowhere, _TURNS)
    turns = int(_WATCH / (time.perf_counter() - start) * _TURNS) + 1
    board.cast("q")[_CLOSED // 8] = 1
    _help(nowhere, 1)  # compiles, which no daemon thread may do while the interpreter exits
    return turns


def _new_board() -> tuple[Any, int]:
    memory, address = _lines(_LAST + _LINE)
    system, words = CDLL(None), memory.cast("q")
    for i, name in enumerate(_SYSTEM):
        words[_LOCK // 8 + i] = cast(getattr(system, name), c_void_p).value
    system.pthread_mutex_init(c_void_p(address + _MUTEX), None)
    system.pthread_cond_init(c_void_p(address + _WORK), None)
    system.pthread_cond_init(c_void_p(address + _END), None)
    return memory, address


def _close() -> None:
    """At exit: nobody may be in compiled code when it is unloaded."""
    if not _workers:
        return
    _counts[_CLOSED // 8] = 1
    _wake(_board[1], _workers)
    end = time.perf_counter() + 1
    while _counts[_HELPING // 8] and time.perf_counter() < end:
        time.sleep(0)


def _reset() -> None:
    """Begin with no helpers: at import, and in a forked child, which inherits none."""
    global _board, _counts, _jobs, _made, _workers, _starting
    _board, _jobs, _made = _new_board(), [], 0
    _counts = _board[0].cast("q")
    _workers, _starting = 0, threading.Lock()


def _forget() -> None:
    """Give the memory of all jobs at rest back to the system."""
    resting = []
    with suppress(IndexError):
        while True:  # no other thread can begin with one meanwhile
            resting.append(_jobs.pop())
    for job in resting:
        job.forget()
    _jobs.extend(resting)


_reset()
others.append(_forget)
atexit.register(_close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)

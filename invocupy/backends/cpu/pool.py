"""The pool: :func:`launch` runs a compiled body once for each of its tasks, in threads.

A *body* is a compiled function ``body(task, turn, scratch, words)``: the number of its task, how
many tasks its thread has done before in this launch, memory of its thread alone, and where the
record of the call is (:func:`~invocupy.backends.cpu.access.read`). Threads take the next task from
a shared counter until none is left, without Python and its GIL; the caller is always one of them.

Numba's own ``parallel=True`` is not used: its ``workqueue`` layer aborts the process when two
Python threads call a kernel at once, and its OpenMP layer kills forked children.

The caller writes a *descriptor* (``job``) of its tasks, a row of integers, and publishes it in a
*slot* of the *board*. Workers that have worked lately spin on the board; the others sleep, and
waking one takes some microseconds here and some ten until it is there. The caller works as if it
were alone, retracts the descriptor and waits for those who had begun; so a worker that comes too
late finds nothing, and never blocks the caller. For a long launch of the main thread another thread
leads, so that the main thread can handle signals.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from __future__ import annotations

import atexit
import os
import threading
import time
from _thread import allocate_lock, get_ident
from collections.abc import Callable
from contextlib import suppress
from ctypes import CFUNCTYPE, c_void_p, cast, pythonapi
from functools import cache, partial
from struct import pack_into
from threading import main_thread
from typing import Any

import numpy as np
from numba import int64, void

from invocupy.backends.cpu import threads
from invocupy.backends.cpu.access import add, address, call_body, load, store, words_of
from invocupy.backends.cpu.checking import CHECKED, ranges
from invocupy.backends.cpu.compiling import interruptible_lead, whole
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.vector import LINE, call
from invocupy.backends.memory import others, patiently

# units of work per thread below which a worker does not pay, and in all one that must be woken
GRAIN, WAKE = 1 << 14, 1 << 18
LONG = 1 << 27  # units of work that take some tenth of a second: a person may want to interrupt

# Bytes between the scratch memories of two threads: a core that walks through its own in strides
# fetches what would come next, and takes those lines from the core that writes them.
_APART = 1 << 17
_SPIN = 2e-4  # seconds
_PATIENCE = 600_000  # looks, some hundred microseconds
_KEPT = 16 << 20  # bytes of scratch for each thread up to which it is kept for the next launch
_TURNS = 1000

# Places in a descriptor, in bytes; what different threads write is on different lines.
_FUNCTION, _TASKS, _WORKERS, _SCRATCH, _STRIDE = range(0, 40, 8)
_COUNTER, _JOINED, _WORDS = LINE, 2 * LINE, 3 * LINE
_MOST_WORDS = 64

# Places on the board, in bytes: counts, the worker that sleeps shortest, a lock, two functions, and
# a line for each slot. Then those in a slot and in a worker's line, which end with a lock, too.
# Locks are CPython's, which all systems have, compiled code may use without the GIL, and any thread
# may release; those of workers and slots are held by who sleeps.
_CLOSED, _SERVING, _SLEEPING, _TOP, _MUTEX, _ACQUIRE, _RELEASE = range(0, 56, 8)
_DESCRIPTOR, _USERS, _WAITING, _END = range(0, 32, 8)
_NEXT, _CALL = 0, 8
_FIRST = LINE
_SLOTS = 8  # callers that can have workers at once
_LAST = _FIRST + (_SLOTS - 1) * LINE

_board: tuple[Any, int]
_counts: Any  # its words
_resting: list[_Descriptor]
_made: int
_ended = 0.0  # when the last launch was through
_workers: int
_starting: threading.Lock
_functions: dict[Any, int] = {}  # machine code of bodies


def _compile(body: Any) -> int:
    """The address of its machine code."""
    result = body.get_compile_result(void(int64, int64, int64, int64))
    function = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
    return _functions.setdefault(body, function)


def launch(
    body: Callable[..., None], tasks: int, work: int, scratch: int, record: tuple[Any, ...]
) -> None:
    """Run ``body`` for each task in one or more threads; return when all are done.

    ``work`` is roughly the number of elements read or vector operations done; ``scratch`` the
    number of bytes that each thread gets for itself. ``record`` is a NamedTuple of integers,
    arrays, None (0) and :class:`~invocupy.backends.cpu.access.Record`.

    Workers that sleep are woken for much work, or for a launch that comes so soon after another
    that they would still be spinning. In the main thread a long launch can be interrupted by a
    signal: threads end when the task that they are at is done.
    """
    global _ended
    if tasks == 0:
        return
    workers = min(threads.get_num_threads(), tasks, work // GRAIN + 1) - 1
    function = _functions.get(body) or whole(_compile, body)
    now = time.perf_counter()
    if workers > 0 and not threads.is_set():
        awake = 1 + _counts[_SERVING // 8] - _counts[_SLEEPING // 8]
        workers = min(workers, threads.free_cores(now, awake))
    if workers > _workers:
        _start(workers)
    try:
        job = _resting.pop()
    except IndexError:  # asking first whether there is one would race with other threads
        job = _Descriptor()
    job.stride = stride = -(-scratch // LINE) * LINE + _APART
    interruptible = not CHECKED and work > LONG and get_ident() == main_thread().ident
    begun = allocate_lock() if interruptible else None
    try:
        words = words_of(record)
        start = job.scratch((workers + 1) * stride)
        # the words between are zero
        layout = f"5q{_WORDS - 5 * 8}x{len(words)}q"
        pack_into(layout, job.memory, 0, function, tasks, workers, start, stride, *words)
        wake = work > WAKE or now - _ended < _SPIN
        given = _board[1], job.slot, job.address, workers, wake
        if CHECKED:
            with ranges(record, (start, scratch)):
                _lead(*given[:3], 0, False)
        elif begun is None:
            _lead(*given)
        else:
            interruptible_lead(begun, job, partial(_lead, *given), record)
    finally:
        if begun is None or begun.acquire(False):  # else the thread that leads does it
            job.rest()
    _ended = time.perf_counter()


@jit
def _lead(board, slot, job, workers, wake):
    """Publish the descriptor, work, retract it, and wait for those who have begun."""
    if workers > 0:
        store(slot + _DESCRIPTOR, job)
        awake = load(board + _SERVING) - load(board + _SLEEPING)
        if wake and awake < workers:
            _wake(board, workers - awake)
    _work(job, 0)
    store(slot + _DESCRIPTOR, 0)
    for _ in range(_PATIENCE):
        if load(slot + _USERS) == 0:
            return
    # A worker was interrupted: it may need this core.
    _acquire(board, board + _MUTEX)
    store(slot + _WAITING, 1)
    while load(slot + _USERS) != 0:
        _release(board, board + _MUTEX)
        _acquire(board, slot + _END)
        _acquire(board, board + _MUTEX)
        store(slot + _WAITING, 1)
    store(slot + _WAITING, 0)
    _release(board, board + _MUTEX)


@jit
def _acquire(board, lock):
    call(load(board + _ACQUIRE), (load(lock), 1))  # 1: wait for it


@jit
def _release(board, lock):
    call(load(board + _RELEASE), (load(lock),))


@jit
def _wake(board, number):
    _acquire(board, board + _MUTEX)
    while number > 0 and load(board + _TOP) != 0:
        number -= 1
        _release(board, _pop(board) + _CALL)
    _release(board, board + _MUTEX)


@jit
def _pop(board):
    """The worker that sleeps shortest, which will not be among the sleepers."""
    worker = load(board + _TOP)
    store(board + _TOP, load(worker + _NEXT))
    add(board + _SLEEPING, -1)
    return worker


@jit
def _serve(board, worker, turns):
    """The loop of a worker."""
    add(board + _SERVING, 1)
    while load(board + _CLOSED) == 0:
        _spin(board, turns)
        _acquire(board, board + _MUTEX)
        store(worker + _NEXT, load(board + _TOP))
        store(board + _TOP, worker)
        # Callers publish first and look for sleepers then.
        add(board + _SLEEPING, 1)
        found = load(board + _CLOSED)
        for slot in range(board + _FIRST, board + _LAST + 1, LINE):
            found |= load(slot + _DESCRIPTOR)
        if found != 0:
            _pop(board)  # itself
        _release(board, board + _MUTEX)
        if found == 0:
            _acquire(board, worker + _CALL)
    add(board + _SERVING, -1)


@jit
def _spin(board, turns):
    """Join what is on the board until for so many turns nothing new has come."""
    left = turns
    while left > 0 and load(board + _CLOSED) == 0:
        left -= 1
        for slot in range(board + _FIRST, board + _LAST + 1, LINE):
            if load(slot + _DESCRIPTOR) == 0:
                continue
            # From here on the caller waits, unless it has retracted the descriptor before.
            add(slot + _USERS, 1)
            job = load(slot + _DESCRIPTOR)
            if job != 0:
                if _join(job):
                    left = turns
                store(slot + _DESCRIPTOR, 0)  # nothing of it is left for anybody
            if add(slot + _USERS, -1) == 1 and load(slot + _WAITING) != 0:
                _acquire(board, board + _MUTEX)
                if load(slot + _WAITING) != 0:
                    store(slot + _WAITING, 0)
                    _release(board, slot + _END)
                _release(board, board + _MUTEX)


@jit
def _join(job):
    """Whether there was something to do for one more thread."""
    if load(job + _COUNTER) >= load(job + _TASKS):
        return False
    number = add(job + _JOINED, 1) + 1
    if number > load(job + _WORKERS):
        return False
    _work(job, number)
    return True


@jit
def _work(job, number):
    """The one loop over tasks."""
    function, tasks = load(job + _FUNCTION), load(job + _TASKS)
    scratch = load(job + _SCRATCH) + number * load(job + _STRIDE)
    turn, task = 0, add(job + _COUNTER, 1)
    while task < tasks:
        call_body(function, task, turn, scratch, job + _WORDS)
        turn, task = turn + 1, add(job + _COUNTER, 1)


class _Descriptor:
    """Memory of a launch and its scratch, kept for the next: fresh pages would cost more."""

    room: Any
    start: int
    stride: int

    def __init__(self) -> None:
        global _made
        self.memory, self.address = _lines(_WORDS + _MOST_WORDS * 8 + LINE)
        with _starting:
            number = _made
            _made += 1
        # on the board, or in memory of its own, where no worker sees it
        private = self.address + _WORDS + _MOST_WORDS * 8
        self.slot = _board[1] + _FIRST + number * LINE if number < _SLOTS else private
        self.forget()

    def scratch(self, size: int) -> int:
        """The address of at least ``size`` bytes."""
        if len(self.room) < size:
            self.forget()
            self.room, self.start = patiently(_lines, size)
        return self.start

    def stop(self) -> None:
        """Let nobody begin another task."""
        words = self.memory.cast("q")
        words[_COUNTER // 8] = words[_TASKS // 8]

    def rest(self) -> None:
        """Be there for the next launch."""
        if self.stride > _KEPT:
            self.forget()
        _resting.append(self)

    def forget(self) -> None:
        """Give the scratch memory back to the system."""
        self.room, self.start = _lines(0)


def _lines(size: int) -> tuple[Any, int]:
    """Zeros that begin at a line, and their address; pages are not touched."""
    array = np.zeros(size + LINE, np.uint8)
    skip = -address(array) % LINE
    return array[skip : skip + size].data, address(array) + skip


def _start(workers: int) -> None:
    """Have so many workers; fewer if the system refuses to start threads."""
    global _workers
    with _starting:
        turns = _turns()
        try:
            while _workers < workers:
                (board, place), (line, worker) = _board, _lines(LINE)
                line.cast("q")[_CALL // 8] = _new_lock()
                # the thread holds the memory, so that it stays
                serve = partial(lambda _, *given: _serve(*given), (board, line))
                arguments = place, worker, turns
                threading.Thread(target=serve, args=arguments, daemon=True).start()
                _workers += 1
        except RuntimeError:  # the interpreter is closing
            pass


@cache
def _turns() -> int:
    """How often a worker looks at the board before it sleeps."""
    board, nowhere = _new_board()
    _spin(nowhere, 1)
    start = time.perf_counter()
    _spin(nowhere, _TURNS)
    turns = int(_SPIN / (time.perf_counter() - start) * _TURNS) + 1
    board.cast("q")[_CLOSED // 8] = 1
    _serve(nowhere, 0, 1)  # compiles, which no daemon thread may do while the interpreter exits
    return turns


def _new_board() -> tuple[Any, int]:
    memory, place = _lines(_LAST + LINE)
    words = memory.cast("q")
    for at, name in ((_ACQUIRE, "acquire"), (_RELEASE, "release")):
        words[at // 8] = cast(getattr(pythonapi, f"PyThread_{name}_lock"), c_void_p).value
    words[_MUTEX // 8] = _new_lock(held=False)
    for slot in range(_FIRST, _LAST + 1, LINE):
        words[(slot + _END) // 8] = _new_lock()
    return memory, place


def _new_lock(held: bool = True) -> Any:
    """The address of a lock, which is never freed: a process needs a few."""
    lock = CFUNCTYPE(c_void_p)(("PyThread_allocate_lock", pythonapi))()
    if held:
        pythonapi.PyThread_acquire_lock(c_void_p(lock), 0)
    return lock


def _close() -> None:
    """At exit: nobody may be in compiled code when it is unloaded."""
    if not _workers:
        return
    _counts[_CLOSED // 8] = 1
    _wake(_board[1], _workers)
    end = time.perf_counter() + 1
    while _counts[_SERVING // 8] and time.perf_counter() < end:
        time.sleep(0)


def _reset() -> None:
    """Begin with no workers: at import, and in a forked child, which inherits none."""
    global _board, _counts, _resting, _made, _workers, _starting
    _board, _resting, _made, _workers = _new_board(), [], 0, 0
    _counts, _starting = _board[0].cast("q"), threading.Lock()


def _forget() -> None:
    """Release the scratch memory of all idle descriptors."""
    resting = []
    with suppress(IndexError):
        while True:  # no other thread can begin with one meanwhile
            resting.append(_resting.pop())
    for job in resting:
        job.forget()
    _resting.extend(resting)


_reset()
others.append(_forget)
atexit.register(_close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)

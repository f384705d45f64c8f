"""Threads that help to run a kernel: they join it, and leave it, without Python and its GIL.

Numba's own ``parallel=True`` is not used: its ``workqueue`` layer aborts the process when two
Python threads call a kernel at once, and its OpenMP layer kills forked children. Here a kernel is a
serial function that takes its next task from a shared counter until none is left, so any number of
threads can run it at the same time, and the caller is always one of them.

The caller writes a *job*, a row of integers, and hangs it up in its place on a *board*. Helpers
that have worked lately watch the board; the others sleep, and waking one costs some ten
microseconds. The caller works as if it were alone, takes the job down and waits for those who had
begun; so a helper that comes too late finds nothing, and can never block the caller, not even at
interpreter exit.
"""
# Numba infers the types of compiled functions.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from functools import cache
from struct import Struct
from typing import Any

import numpy as np
from llvmlite.binding import address_of_symbol

from invocupy.backends import threads
from invocupy.backends.jit import add, jit, load, pointer, store
from invocupy.backends.simd import call

_LINE = 64  # bytes; what different threads write is on different lines
_WATCH = 2e-4  # seconds
_TURNS = 1000

# Places in a job, in bytes. The layout of :func:`_layout`.
_THUNK, _FUNCTION, _TASKS, _HELPERS, _SCRATCH, _STRIDE = range(0, 48, 8)
_COUNTER, _JOINED, _ARGUMENTS = _LINE, 2 * _LINE, 3 * _LINE
PLACES = _FUNCTION, _TASKS, _COUNTER, _ARGUMENTS  # what a thunk needs to know
_LARGEST = 256  # arguments

# Places on the board: a line that says how to watch, then a line for each job.
_CLOSED, _WATCHING = 0, 8
_JOB, _USERS = 0, 8
_PLACES = 8  # callers at once that can have helpers

_board: Any
_jobs: list[tuple[Any, int, int]]  # at rest: memory, its address, the job's place on the board
_made: int
_sleeping: deque[Any]
_workers: int
_starting: threading.Lock


def run(
    thunk: int, function: int, tasks: int, helpers: int, scratch: int, arguments: list[int]
) -> None:
    """Run ``function`` here and in up to ``helpers`` other threads at the same time.

    Each of them calls the machine code ``thunk(job, its own scratch bytes)``. Returns when every
    thread that began has ended.
    """
    try:
        job = _jobs.pop()
    except IndexError:  # asking first whether there is one would race with other threads
        job = _new_job()
    memory, address, place = job
    try:
        stride = -(-scratch // _LINE) * _LINE
        start = threads.scratch((helpers + 1) * stride)
        pack = _layout(len(arguments)).pack_into
        pack(memory, 0, thunk, function, tasks, helpers, start, stride, *arguments)
        if helpers > 0:
            _hang_up(place, address)
            _call(helpers)
        _work(address, 0)
    finally:
        _take_down(place, _give_way())
        _jobs.append(job)


@jit
def _hang_up(place, job):
    store(place + _JOB, job)


@jit
def _take_down(place, give_way):
    """And wait for those who have begun."""
    store(place + _JOB, 0)
    turns = 0
    while load(place + _USERS) != 0:
        turns += 1
        if turns > _TURNS and give_way != 0:  # a helper was interrupted: it may need this core
            call(give_way, ())


@jit
def _watch(board, turns):
    """Join what hangs on the board until for so many turns nothing new has come."""
    add(board + _WATCHING, 1)
    left = turns
    while left > 0 and load(board + _CLOSED) == 0:
        left -= 1
        for line in range(1, _PLACES + 1):
            place = board + line * _LINE
            if load(place + _JOB) == 0:
                continue
            # From here on the caller waits, unless it has taken the job down before.
            add(place + _USERS, 1)
            job = load(place + _JOB)
            if job != 0 and _join(job):
                left = turns
            add(place + _USERS, -1)
    add(board + _WATCHING, -1)


@jit
def _join(job):
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


def _new_job() -> tuple[Any, int, int]:
    """With a place on the board, or in its own memory, where no helper sees it."""
    global _made
    memory, address = _lines(_ARGUMENTS // _LINE + _LARGEST * 8 // _LINE + 1)
    with _starting:
        _made += 1
        line = _made
    if line <= _PLACES:
        return memory, address, _board[1] + line * _LINE
    return memory, address, address + _ARGUMENTS + _LARGEST * 8


def _lines(number: int) -> tuple[Any, int]:
    """Zeros that begin at a line, and their address."""
    array = np.zeros((number + 1) * _LINE, np.uint8)
    skip = -threads.address(array) % _LINE
    array = array[skip : skip + number * _LINE]
    return array.data, threads.address(array)


def _call(helpers: int) -> None:
    """Have so many helpers watching; fewer if the system refuses to start threads."""
    global _workers
    for _ in range(helpers - (_workers - len(_sleeping))):
        try:
            _sleeping.pop().release()
        except IndexError:
            break
    if _workers < helpers:
        with _starting:
            try:
                turns = _turns()
                while _workers < helpers:
                    threading.Thread(target=_help, args=(*_board, turns), daemon=True).start()
                    _workers += 1
            except RuntimeError:  # the interpreter is closing
                pass


def _help(board: Any, address: int, turns: int) -> None:
    """What a helper does all its life; ``board`` is held so that it stays."""
    bed = threading.Lock()
    bed.acquire()
    while True:
        _watch(address, turns)
        _sleeping.append(bed)
        _watch(address, 1)  # a caller may have looked for sleepers just before
        bed.acquire()


@cache
def _turns() -> int:
    """How often a helper looks at the board before it sleeps."""
    _, nowhere = _lines(_PLACES + 1)
    _watch(nowhere, 1)  # compiles, which no daemon thread may do while the interpreter exits
    start = time.perf_counter()
    _watch(nowhere, _TURNS)
    return int(_WATCH / (time.perf_counter() - start) * _TURNS) + 1


@cache
def _give_way() -> int:
    """The address of what lets other threads have this core; 0 where there is none."""
    return address_of_symbol("sched_yield") or 0


def _close() -> None:
    """At exit: nobody may be in compiled code when it is unloaded."""
    words = _board[0].cast("q")
    words[_CLOSED // 8] = 1
    end = time.perf_counter() + 1
    while words[_WATCHING // 8] and time.perf_counter() < end:
        time.sleep(0)


def _reset() -> None:
    """Begin with no helpers: at import, and in a forked child, which inherits none."""
    global _board, _jobs, _made, _sleeping, _workers, _starting
    _board, _jobs, _made = _lines(_PLACES + 1), [], 0
    _sleeping, _workers, _starting = deque(), 0, threading.Lock()


_reset()
atexit.register(_close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)

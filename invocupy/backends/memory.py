"""Memory for large NumPy results, kept and used again: fresh pages cost more than most operators.

The system zeroes every page of a large new array when it is first written, which takes several
times as long as writing it does. Blocks given out here come back when the last array on them is
gone and serve the next result of about their size. They start at a cache line, so that no vector
of a row lies across two. CuPy has a pool of its own.

No more than a limit lies idle: a block that comes back beyond it goes to the system. Training steps
that need more raise it: by what is in use when a backward pass begins, if as much was in use at the
one before. The first request that finds no block of its size then empties the pool and sets the
limit back.
"""

from __future__ import annotations

import ctypes
import math
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from ctypes import c_char
from functools import cache
from typing import Any

import numpy as np

from invocupy.arrays import is_cupy, namespace, on_device

_SMALLEST = 1 << 16  # bytes; smaller arrays get warm memory from malloc
_LINE = 64


class _Pool:
    """Blocks and counts of bytes; threads change the counts without a lock: they are estimates."""

    def __init__(self) -> None:
        # blocks by their size, with the address of their first cache line
        self.idle: defaultdict[int, list[tuple[np.ndarray[Any, Any], int]]] = defaultdict(list)
        self.held = 0  # by idle blocks
        self.limit = 1 << 30  # what may lie idle
        self.more = 0  # what training steps may leave idle beyond
        self.used = 0  # by blocks given out
        self.last = 0  # when the last backward pass began

    def count(self) -> int:
        """Bytes lying idle, exactly."""
        self.held = sum(size * len(blocks) for size, blocks in list(self.idle.items()))
        return self.held

    def clear(self) -> None:
        self.idle.clear()
        self.held = self.more = self.last = 0


_pool = _Pool()
sent = 0  # messages to other ranks
others: list[Callable[[], None]] = []
"""Functions that give back idle memory of other modules."""


def empty(shape: tuple[int, ...], dtype: Any, like: Any) -> Any:
    """A new C-contiguous array, not filled, of the library and on the device of ``like``."""
    if is_cupy(like):
        with on_device(like):
            return namespace(like).empty(shape, dtype)
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALLEST:
        return np.empty(shape, dtype)
    step = 1 << (size.bit_length() - 4)  # sizes in steps of at most an eighth
    return np.ndarray(shape, dtype, _block(-(-size // step) * step + _LINE))


def patiently(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call ``make``; after a MemoryError once more, with all idle memory given back.

    Not if ``make`` has sent a message to other ranks: it would send it twice.
    """
    before = sent
    try:
        return make(*arguments, **options)
    except MemoryError:
        if sent != before:
            raise
        release_memory()
    return make(*arguments, **options)


def note_message() -> None:
    """Note that a message is being sent to other ranks."""
    global sent
    sent += 1


def release_memory() -> None:
    """Give the memory that is kept for later results back to the system.

    On the CPU the memory of large results (64 KB and more) is used again when they are gone. At
    most 1 GiB lies idle, and in training as much more as a step has in use. The working memory of
    the kernels is kept as well. All of it is also given back before a MemoryError is raised. CuPy's
    pool has a function of its own, ``cupy.get_default_memory_pool().free_all_blocks()``.

    Examples
    --------
    >>> import numpy as np
    >>> import invocupy
    >>> result = invocupy.involution(np.ones((1, 1, 300, 300)), np.ones((1, 1, 1, 1, 300, 300)))
    >>> del result
    >>> invocupy.release_memory()
    """
    _pool.clear()
    for give_back in others:
        give_back()
    _trim()(0)


release = release_memory  # its name within the backends


def backward_begins() -> None:
    """Note the start of a backward pass: what two steps had in use may lie idle for the third."""
    _pool.more, _pool.last = min(_pool.last, _pool.used), _pool.used


def _block(size: int) -> Any:
    """A buffer whose memory comes back when no array needs it any more."""
    pool = _pool
    try:
        memory = pool.idle[size].pop()
        pool.held -= size
    except IndexError:
        if pool.held > pool.limit and pool.count() > pool.limit:
            pool.clear()
        fresh = patiently(np.empty, size, np.uint8)
        memory = fresh, -(-fresh.ctypes.data // _LINE) * _LINE
    block = _kind(size).from_address(memory[1])
    block.memory = memory
    pool.used += size
    return block


@cache
def _kind(size: int) -> Any:
    pool = _pool

    def give_back(block: Any) -> None:
        pool.used -= size
        if pool.held + size > pool.limit + pool.more:
            return
        pool.held += size
        pool.idle[size].append(block.memory)

    return type("Block", (c_char * (size - _LINE),), {"__del__": give_back})


@cache
def _trim() -> Any:
    """``malloc_trim``, which returns freed memory to the system, where the C library has it."""
    with suppress(OSError, TypeError, AttributeError):
        return ctypes.CDLL(None).malloc_trim
    return lambda _: None

"""A pool of memory for large NumPy results: new pages cost more time than most operators.

The system zeroes every page of a large new array at its first write, which takes several times as
long as the write. A block of the pool is returned when its last array is freed, and reused for the
next result of about its size. Blocks start at a cache line, so that no vector of a row crosses one.
CuPy has its own pool.

Idle memory has a limit; blocks beyond it are returned to the system. Training steps raise the limit
by one and a half times the memory in use at the start of the backward pass (backward has results of
other sizes than forward), if as much was in use in the step before. Once a whole step has found its
blocks, the first request without a block of its size empties the pool and resets the limit.
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
        self.missing = 0  # requests since then without a block of their size
        self.settled = False  # no request of the step before was without one

    def count(self) -> int:
        """The exact number of idle bytes."""
        self.held = sum(size * len(blocks) for size, blocks in list(self.idle.items()))
        return self.held

    def clear(self) -> None:
        self.idle.clear()
        self.held = self.more = self.last = 0
        self.settled = False


_pool = _Pool()
sent = 0  # messages to other ranks
others: list[Callable[[], None]] = []
"""Functions that release idle memory of other modules."""


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
    """Call ``make``; after a MemoryError release all idle memory and call it again.

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
    """Return the idle memory of results and kernels to the system.

    On the CPU the memory of large results (64 KB and more) is reused after they are freed. At most
    1 GiB is idle, in training additionally as much as a step uses. The working memory of the
    kernels is kept as well. All of it is also released before a MemoryError is raised. For CuPy's
    pool call ``cupy.get_default_memory_pool().free_all_blocks()``.

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
    """Record the start of a backward pass; memory used by two steps may be idle for the third."""
    _pool.more, _pool.last = min(_pool.last, _pool.used) * 3 // 2, _pool.used
    _pool.settled, _pool.missing = not _pool.missing, 0


def _block(size: int) -> Any:
    """A buffer whose memory is returned to the pool when no array uses it."""
    pool = _pool
    try:
        memory = pool.idle[size].pop()
        pool.held -= size
    except IndexError:
        pool.missing += 1
        limit = pool.limit
        if pool.more and not pool.settled:  # while the pool grows to what a step needs
            limit += pool.more - size
        if pool.held > limit and pool.count() > limit:
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

"""Memory for large NumPy results, kept and used again: fresh pages cost more than most operators.

The system zeroes every page of a large new array when it is first written, which takes several
times as long as writing it does. Blocks given out here come back when the last array on them is
gone and serve the next result of about their size. They start at a cache line, so that no vector
of a row lies across two. CuPy has a pool of its own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from ctypes import c_char
from functools import cache
from typing import Any

import numpy as np

from invocupy.arrays import is_cupy, namespace, on_device

_SMALLEST = 1 << 16  # bytes; smaller arrays get warm memory from malloc
LARGEST_RESERVE = 1 << 30  # bytes lying idle from which a request that finds none empties the pool
_LINE = 64

# blocks by their size, with the address of their first cache line
_idle: defaultdict[int, list[tuple[np.ndarray[Any, Any], int]]] = defaultdict(list)


def empty(shape: tuple[int, ...], dtype: Any, like: Any) -> Any:
    """A new C-contiguous array, not filled, of the library and on the device of ``like``.

    Examples
    --------
    >>> import numpy as np
    >>> first = empty((300, 300), np.float32, np.ones(1))
    >>> place = first.ctypes.data
    >>> del first
    >>> empty((301, 299), np.float32, np.ones(1)).ctypes.data == place
    True
    """
    if is_cupy(like):
        with on_device(like):
            return namespace(like).empty(shape, dtype)
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALLEST:
        return np.empty(shape, dtype)
    step = 1 << (size.bit_length() - 4)  # sizes in steps of at most an eighth
    return np.ndarray(shape, dtype, _block(-(-size // step) * step + _LINE))


def _reserve() -> int:
    """Bytes lying idle."""
    return sum(size * len(blocks) for size, blocks in list(_idle.items()))


def release() -> None:
    """Give all idle memory back to the system."""
    _idle.clear()


def _block(size: int) -> Any:
    """A buffer whose memory comes back when no array needs it any more."""
    try:
        memory = _idle[size].pop()
    except IndexError:
        if _reserve() > LARGEST_RESERVE:
            release()
        fresh = np.empty(size, np.uint8)
        memory = fresh, -(-fresh.ctypes.data // _LINE) * _LINE
    block = _kind(size).from_address(memory[1])
    block.memory = memory
    return block


@cache
def _kind(size: int) -> Any:
    def give_back(block: Any) -> None:
        _idle[size].append(block.memory)

    return type("Block", (c_char * (size - _LINE),), {"__del__": give_back})

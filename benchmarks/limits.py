"""The limits of this machine: copy bandwidth and multiply-adds, on a number of threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from invocupy.backends.cpu import threads
from invocupy.backends.cpu.access import pointer, read
from invocupy.backends.cpu.contract import ELEMENTS, dot
from invocupy.backends.cpu.jit import jit
from invocupy.backends.cpu.pool import launch
from invocupy.backends.cpu.vector import ACCUMULATORS, VECTOR_BYTES, call

_COPIED = 1 << 26  # bytes: more than a cache holds
_CHUNK = 1 << 21
_A, _B = (4, 6) if ACCUMULATORS == 24 else (3, 4)
_V = VECTOR_BYTES // 4
_TURNS = 2000


class _Multiply(NamedTuple):
    block: int  # address of the micro-kernel
    turns: int


class _Copy(NamedTuple):
    source: Any
    target: Any


@jit
def _multiply(task: int, turn: int, scratch: int, words: int) -> None:
    """Multiply-adds of vectors in the L1 cache."""
    call_ = read(words, _Multiply)
    for _ in range(call_.turns):
        call(call_.block, (64, scratch, 0, 0, scratch, 0, 0, scratch + 4096, 64, 1))


@jit
def _copy(task: int, turn: int, scratch: int, words: int) -> None:
    """Copy a chunk."""
    call_, start = read(words, _Copy), task * _CHUNK
    seen, written = pointer(call_.source + start, 64), pointer(call_.target + start, 64)
    for i in range(_CHUNK // 8):
        written[i] = seen[i]


def spin(number: int, turns: int = _TURNS) -> None:
    """Keep ``number`` cores busy for some milliseconds: idle cores are slow at first."""
    block = dot(_A, _B, 1, ELEMENTS, _V, 32)
    launch(_multiply, 8 * number, 1 << 30, 1 << 16, _Multiply(block, turns))


def _best(call: Callable[[], Any], rounds: int = 7) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(number: int) -> dict[str, float]:
    """GB/s (read and written) of a copy larger than the caches, and float32 GFLOP/s."""
    before = threads.get_num_threads()
    threads.set_num_threads(number)
    source, target = np.ones(_COPIED, np.uint8), np.zeros(_COPIED, np.uint8)
    spin(number)
    copied = _best(lambda: launch(_copy, _COPIED // _CHUNK, _COPIED, 0, _Copy(source, target)))
    multiplied = _best(lambda: spin(number))
    threads.set_num_threads(before)
    products = 8 * number * _TURNS * 64 * _A * _B * _V
    return {"copy GB/s": 2 * _COPIED / copied / 1e9, "GFLOP/s": 2 * products / multiplied / 1e9}

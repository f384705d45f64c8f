"""Running a task kernel on arrays: addresses, a shared counter, as many threads as pay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.extending import intrinsic

from invocupy.backends import threads

GRAIN = 1 << 17  # units of work per thread below which a helper does not pay


_counters: list[tuple[np.ndarray, int]] = []  # at rest, with their addresses


def _counter() -> tuple[np.ndarray, int]:
    counter = np.zeros(1, np.int64)
    return counter, threads.address(counter)


def launch(
    kernel: Callable[..., None], tasks: int, work: int, scratch: int, *arguments: Any
) -> None:
    """Run ``kernel(tasks, scratch, counter, *arguments)`` in one or more threads.

    Each thread takes tasks from ``counter`` (:func:`invocupy.backends.jit.next_task`) until
    ``tasks`` are taken. ``work`` is roughly the number of elements read or vector operations done;
    ``scratch`` the number of bytes that each thread gets for itself. Arrays are passed by address,
    numbers and tuples as they are; ``None`` is passed as 0.
    """
    if tasks == 0:
        return
    places = [
        threads.address(a) if isinstance(a, np.ndarray) else 0 if a is None else a
        for a in arguments
    ]
    try:
        counter, counter_place = _counters.pop()
    except IndexError:  # asking first whether there is one would race with other threads
        counter, counter_place = _counter()
    counter[0] = 0

    def call(keep: Any = (counter, arguments)) -> None:
        kernel(tasks, threads.scratch(scratch), counter_place, *places)

    threads.run(call, min(threads.get_num_threads(), tasks, work // GRAIN + 1) - 1)
    _counters.append((counter, counter_place))


@intrinsic
def plus(typing: Any, a: Any, b: Any) -> Any:
    """``a + b``, of which the compiler may reorder a sum: lanes of vectors, in a fixed order."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(*args, flags=("reassoc",))

    return a(a, a), codegen

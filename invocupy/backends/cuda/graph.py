"""CUDA graphs: work that is recorded once, and then started by one call.

What is recorded must be in memory that stays: the arrays that it is given are its caller's, those
that it makes come from a pool of its own. It may not wait for the device, nor copy from or to the
host, nor call cuBLAS, which CuPy refuses during a capture (``pointwise`` has a kernel for the small
products of a network's head).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from invocupy.backends import memory

T = TypeVar("T")


class Recorder:
    """A stream of its own on the current device, and the memory of all graphs recorded on it.

    They must be started one after another on that stream: each may use again what others have
    let go of.
    """

    def __init__(self) -> None:
        import cupy

        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._pool = cupy.cuda.MemoryPool()

    @contextmanager
    def current(self) -> Iterator[None]:
        """A context in which work goes to that stream; after what came before, before the rest."""
        import cupy

        self.stream.wait_event(cupy.cuda.get_current_stream().record())
        try:
            with self.stream:
                yield
        finally:
            cupy.cuda.get_current_stream().wait_event(self.stream.record())

    def record(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """What starts ``work`` from now on, and its result, which each start fills again.

        Nothing is computed yet. ``work`` must have run once before: kernels are compiled then. It
        raises what ``work`` or CuPy raises, and MemoryError if operators had to be tried again.
        """
        import cupy

        # The memory of steps before lies there unused.
        cupy.get_default_memory_pool().free_all_blocks()
        released: list[bool] = []
        memory.others.append(again := lambda: released.append(True))
        try:
            with cupy.cuda.using_allocator(self._pool.malloc):
                self.stream.begin_capture()
                try:
                    result = work()
                except BaseException:
                    with suppress(Exception):  # what it was invalidated by is being raised
                        self.stream.end_capture()
                    raise
                graph: Any = self.stream.end_capture()
        finally:
            memory.others.remove(again)
        if released:
            raise MemoryError("there is no memory for the graph besides that of steps without one")
        return lambda: graph.launch(self.stream), result

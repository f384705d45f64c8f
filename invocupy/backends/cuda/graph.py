"""CUDA graphs: work that is recorded once and then launched with one call.

A graph uses the same memory at each launch: its caller keeps the arrays that the work is given, and
the arrays that the work makes come from a pool of the recorder. The work must not wait for the
device, copy to or from the host, or call cuBLAS, which CuPy refuses during a capture (``pointwise``
has a kernel for the small products of a network's head).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from invocupy.backends import memory

T = TypeVar("T")


class Recorder:
    """A stream on the current device, and the memory of all graphs that are recorded on it.

    Launch the graphs one after another on that stream: they reuse memory that others have freed.
    """

    def __init__(self) -> None:
        import cupy

        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._pool = cupy.cuda.MemoryPool()

    @contextmanager
    def current(self) -> Iterator[None]:
        """A context for work on that stream: after all earlier work, before all later work."""
        import cupy

        self.stream.wait_event(cupy.cuda.get_current_stream().record())
        try:
            with self.stream:
                yield
        finally:
            cupy.cuda.get_current_stream().wait_event(self.stream.record())

    def record(self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """A function that launches ``work``, and its result, which each launch overwrites.

        Nothing is computed yet. ``work`` must have run once before, which compiles its kernels.
        Raises what ``work`` or CuPy raises, and MemoryError if memory ran out within ``work``.
        """
        import cupy

        # It holds unused memory of earlier steps.
        cupy.get_default_memory_pool().free_all_blocks()
        released: list[bool] = []
        memory.others.append(again := lambda: released.append(True))
        try:
            with cupy.cuda.using_allocator(self._pool.malloc):
                self.stream.begin_capture()
                try:
                    result = work()
                except BaseException:
                    with suppress(Exception):  # the error that ended the capture is raised
                        self.stream.end_capture()
                    raise
                graph: Any = self.stream.end_capture()
        finally:
            memory.others.remove(again)
        if released:
            raise MemoryError("the GPU has too little memory for the graph")
        return lambda: graph.launch(self.stream), result

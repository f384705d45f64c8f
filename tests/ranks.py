"""Ranks as threads of one process, which meet at a barrier for every message."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from invocupy.arrays import namespace


class Rank:
    """A communicator: every rank must send the same kind of message, of one shape and dtype."""

    def __init__(self, rank: int, size: int, table: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, size, rank, size
        self.messages, self.device = 0, "cpu"
        self._table, self._barrier = table, barrier

    def allgather(self, array: Any) -> Any:
        """New, in rank order."""
        self.messages += 1
        xp = namespace(array)
        rows = self.exchange(xp.array(array))
        assert len({(row.shape, row.dtype) for row in rows}) == 1
        return xp.stack(rows)

    def allreduce_sum(self, buffer: Any) -> None:
        """In place, in rank order."""
        buffer[...] = self.allgather(buffer).sum(axis=0)

    def broadcast(self, array: Any, root: int = 0) -> None:
        """In place."""
        array[...] = self.allgather(array)[root]

    def exchange(self, value: Any) -> list[Any]:
        """In rank order."""
        self._table[self.rank] = value
        self._barrier.wait()
        rows = list(self._table)
        self._barrier.wait()
        return rows


def run_ranks(size: int, task: Callable[[Rank], Any]) -> list[Any]:
    """``task(comm)`` on each rank; an error of one of them ends all, and is raised."""
    barrier = threading.Barrier(size, timeout=60)
    table: list[Any] = [None] * size
    results, errors = [None] * size, []

    def work(rank: int) -> None:
        try:
            results[rank] = task(Rank(rank, size, table, barrier))
        except threading.BrokenBarrierError as error:
            errors.append(error)
        except BaseException as error:
            errors.insert(0, error)
            barrier.abort()

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return results

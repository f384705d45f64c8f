"""The interface of communicators, the one of a single process, and collective functions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from invocupy.arrays import on_device
from invocupy.distributed.environment import LaunchError
from invocupy.distributed.faults import PeerError
from invocupy.docstrings import documented

if TYPE_CHECKING:
    from invocupy import nn


class Comm(Protocol):
    """The interface of :class:`Single`, :class:`MPI` and :class:`NCCL`.

    All methods are collective: every rank must make the same calls in the same order.
    """

    rank: int
    size: int
    local_rank: int  # on this machine
    local_size: int
    device: str  # where the arrays live that are sent

    def allgather(self, array: Any) -> Any:
        """Stack small arrays of all ranks, equal in shape and dtype, to ``(ranks, *shape)``."""

    def allreduce_sum(self, buffer: Any) -> None:
        """Replace an array by its sum over the ranks, bit-identical on all of them.

        The array is float32, float64 or int64, C-contiguous, with one axis.
        """

    def broadcast(self, array: Any, root: int = 0) -> None:
        """Replace a C-contiguous array by that of one rank."""

    def exchange(self, value: Any) -> list[Any]:
        """Small values of all ranks, in rank order, sent as JSON: tuples become lists."""


class Single(Comm):
    """One process: nothing is sent.

    Examples
    --------
    >>> comm = Single()
    >>> comm.rank, comm.size, comm.exchange("a")
    (0, 1, ['a'])
    """

    rank, size, local_rank, local_size = 0, 1, 0, 1

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def allgather(self, array: Any) -> Any:
        with on_device(array):
            return array[None].copy()

    def allreduce_sum(self, buffer: Any) -> None:
        pass

    def broadcast(self, array: Any, root: int = 0) -> None:
        pass

    def exchange(self, value: Any) -> list[Any]:
        return [value]


@documented
def share(count: int, comm: Comm) -> tuple[int, int]:
    """First and last of a rank's share ``range(first, last)`` of ``count`` items.

    Parameters
    ----------
    count
        The number of items. Shares differ by one at most; some may be empty.

    >>> share(10, Single())
    (0, 10)
    """
    return count * comm.rank // comm.size, count * (comm.rank + 1) // comm.size


@documented
def synchronise(model: nn.Module, comm: Comm | None) -> None:
    """Let the batch norms of a model use the batch of all ranks in training.

    Dropout layers get the number of the rank.

    Parameters
    ----------
    comm
        The group of ranks; None restores statistics of each rank's own share.

    >>> from invocupy import nn
    >>> norm = nn.BatchNorm2d(3)
    >>> synchronise(nn.Sequential(norm), comm := Single())
    >>> norm.comm is comm
    True
    """
    from invocupy import nn  # here, since the command line asks this package before it needs that

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # in any dimension; others may use the name
            module.comm = comm
        elif isinstance(module, nn.Dropout) and comm is not None:
            module.rank = comm.rank


def contiguous(array: Any) -> Any:
    """The array itself; ValueError if it is not C-contiguous."""
    if not array.flags.c_contiguous:
        raise ValueError("array must be C-contiguous: give a copy")
    return array


@documented
def agree(comm: Comm, **values: Any) -> None:
    """Raise LaunchError on all ranks unless all give the same values.

    Parameters
    ----------
    values
        JSON values, under the names for the message.

    >>> agree(Single(), lr=0.1)
    """
    texts = {name: json.dumps(value, sort_keys=True) for name, value in values.items()}
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    if len(set(comm.exchange(digest))) == 1:
        return
    first, *others = comm.exchange(texts)
    for rank, row in enumerate(others, 1):
        for name in sorted(first.keys() | row.keys()):
            both = [texts.get(name, "nothing") for texts in (first, row)]
            if both[0] != both[1]:
                mine, other = (text if len(text) < 60 else f"{text[:57]}..." for text in both)
                raise LaunchError(
                    f"{name} differs between ranks: {mine} on rank 0, {other} on rank {rank}: "
                    "start all ranks with the same settings, files and version"
                )


@contextmanager
def together(comm: Comm) -> Iterator[None]:
    """If one rank fails within it, the others raise PeerError at its end; else all continue.

    Examples
    --------
    >>> with together(Single()):
    ...     pass
    """
    try:
        yield
    except Exception as error:
        comm.exchange(f"{type(error).__name__}: {error}")
        raise
    if comm.size > 1:
        for rank, problem in enumerate(comm.exchange(None)):
            if problem is not None:
                raise PeerError(f"rank {rank} failed: {problem}")

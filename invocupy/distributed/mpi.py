"""Ranks on CPUs, and the control plane of those on GPUs: MPI through mpi4py."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from invocupy.distributed.comm import Comm, contiguous
from invocupy.distributed.environment import LaunchError, launched
from invocupy.distributed.faults import Watch
from invocupy.extras import MissingExtra


class MPI(Comm):
    """All processes that an MPI launcher started; arrays are NumPy's.

    From then on an uncaught exception on any rank ends all of them.

    Parameters
    ----------
    timeout : float
        Seconds to wait for the other ranks before all are ended with exit code 75.

    Raises
    ------
    invocupy.extras.MissingExtra, LaunchError
        Without mpi4py or an MPI library, or if the launcher belongs to another library than the one
        that mpi4py has loaded: then each process would run alone.
    """

    device = "cpu"

    def __init__(self, timeout: float = 600.0) -> None:
        self._mpi = _load()
        self._world = self._mpi.COMM_WORLD
        self.rank, self.size = self._world.Get_rank(), self._world.Get_size()
        found = launched()
        if found is not None and found[1] and found[1] != self.size:
            library = self._mpi.Get_library_version().splitlines()[0].partition(",")[0]
            raise LaunchError(
                f"the launcher started {found[1]} processes, but MPI knows of {self.size}: use the "
                f"mpiexec of the library that mpi4py has loaded ({' '.join(library.split())})"
            )
        self.watch = Watch(self.rank, timeout, self._world.Abort)
        self.watch.install()
        self._node = self.watch.wait(
            "the start", self._world.Split_type, self._mpi.COMM_TYPE_SHARED
        )
        self.local_rank, self.local_size = self._node.Get_rank(), self._node.Get_size()

    def allgather(self, array: Any) -> Any:
        array = np.asarray(array, order="C")
        result = np.empty((self.size, *array.shape), array.dtype)
        self.watch.wait("allgather", self._world.Allgather, _bytes(array), _bytes(result))
        return result

    def allreduce_sum(self, buffer: Any) -> None:
        self.watch.wait(
            "allreduce_sum", self._world.Allreduce, self._mpi.IN_PLACE, buffer, self._mpi.SUM
        )

    def broadcast(self, array: Any, root: int = 0) -> None:
        self.watch.wait("broadcast", self._world.Bcast, _bytes(array), root)

    def exchange(self, value: Any, locally: bool = False) -> list[Any]:
        """As in Comm; or between the ranks of this machine, in the order of ``local_rank``."""
        ranks = self._node if locally else self._world
        # Bytes of JSON and their lengths: mpi4py's own methods for objects would pickle them.
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = np.empty(ranks.Get_size(), np.int64)
        self.watch.wait("exchange", ranks.Allgather, np.array([len(text)], np.int64), lengths)
        result = np.empty(lengths.sum(), np.uint8)
        self.watch.wait("exchange", ranks.Allgatherv, text, [result, lengths.tolist()])
        return [json.loads(part.tobytes()) for part in np.split(result, lengths.cumsum()[:-1])]


def _bytes(array: Any) -> Any:
    """The memory of an array, whatever its shape and dtype."""
    return contiguous(array).reshape(-1).view(np.uint8)


def _load() -> Any:
    """``mpi4py.MPI``; importing it starts MPI."""
    try:
        from mpi4py import MPI as library  # noqa: N811
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MissingExtra(
            f"several ranks need MPI, which cannot be loaded ({reason}): pip install "
            "'invocupy[mpi]', or mpi4py and your cluster's own MPI"
        ) from error
    return library

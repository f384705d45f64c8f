"""From a launcher to a communicator: who started this process, on which cores and which GPU."""

from __future__ import annotations

import os

from invocupy.arrays import require_cupy
from invocupy.backends.cpu.threads import set_num_threads
from invocupy.distributed.comm import Comm, Single
from invocupy.distributed.environment import LaunchError, launched
from invocupy.distributed.mpi import MPI
from invocupy.distributed.nccl import NCCL
from invocupy.docstrings import documented
from invocupy.settings import number_of_threads


@documented
def start(timeout: float = 600.0) -> Comm:
    """The communicator of this process: :class:`MPI` under a launcher, else :class:`Single`.

    Each rank takes its share of the cores, unless the launcher has given it cores of its own or
    ``INVOCUPY_NUM_THREADS`` is set. Errors are those of :class:`MPI`.

    Parameters
    ----------
    timeout
        Seconds that a rank waits for the others.

    >>> type(start()).__name__
    'Single'
    """
    found = launched()
    if found is None or found[1] == 1:
        return Single()
    comm = MPI(timeout)
    if comm.size > 1:
        _share_cores(comm)
    return comm


def _share_cores(comm: MPI) -> None:
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    sets = comm.exchange(mine, locally=True)
    cores = set().union(*sets)
    pinned = sum(map(len, sets)) == len(cores)
    if mine and not pinned and number_of_threads() is None:
        set_num_threads(max(min(len(mine), len(cores) // comm.local_size), 1))


@documented
def with_gpus(comm: Comm, device: str) -> Comm:
    """The communicator for arrays on a device: NCCL for several ranks on GPUs.

    The GPU of a rank has the number of its ``local_rank``, or is the only one that it sees.

    Parameters
    ----------
    comm
        From :func:`start`; also the result for a single process or ``"cpu"``.
    device
        ``"auto"`` uses GPUs if each rank sees some; ``"cuda:i"`` is for a single process.

    Raises
    ------
    LaunchError, invocupy.extras.MissingExtra
        If a rank has no GPU of its own, or without NCCL.

    >>> with_gpus(Single(), "cpu").device
    'cpu'
    """
    if comm.size == 1 or device == "cpu" or not isinstance(comm, MPI):
        return comm
    if device not in ("auto", "cuda"):
        raise LaunchError(f"device must be auto, cpu or cuda with several ranks, got {device}")
    try:
        count, problem = int(require_cupy().cuda.runtime.getDeviceCount()), ""
    except RuntimeError as error:
        count, problem = 0, str(error)
    counts = comm.exchange(count)
    if device == "auto" and not all(counts):
        return comm
    if not count:
        raise LaunchError(f"device is {device}, but {problem}")
    number = comm.local_rank if count > 1 else 0
    if number >= count:
        raise LaunchError(
            f"device is {device}, but {comm.local_size} ranks share {count} GPUs: start at most as "
            "many ranks on a machine as it has GPUs"
        )
    return NCCL(comm, number)

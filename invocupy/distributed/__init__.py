"""Ranks: processes that train one model together, over MPI on CPUs and over NCCL on GPUs.

A launcher starts them (``mpiexec -n 4 invocupy train ...``); each computes its share of every
batch, and a communicator (:class:`Comm`: :class:`Single`, :class:`MPI` or :class:`NCCL`) sums the
results. If a rank fails, times out or loses its launcher, all ranks exit
(:mod:`invocupy.distributed.faults`).
"""

from __future__ import annotations

from invocupy.distributed.comm import Comm, Single, agree, share, synchronise, together
from invocupy.distributed.environment import LaunchError, is_root, launched
from invocupy.distributed.faults import PeerError, abort_all
from invocupy.distributed.join import start, with_gpus
from invocupy.distributed.mpi import MPI
from invocupy.distributed.nccl import NCCL

__all__ = [
    "MPI", "NCCL", "Comm", "LaunchError", "PeerError", "Single", "abort_all", "agree", "is_root",
    "launched", "share", "start", "synchronise", "together", "with_gpus",
]  # fmt: skip

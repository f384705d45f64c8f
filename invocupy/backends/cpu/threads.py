"""The number of threads of a call."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from invocupy.geometry import integer
from invocupy.settings import number_of_threads

_wanted: int | None = None
_LOOK = 0.01  # seconds
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds, and of how many
_looked = 0.0
_busy = 0  # cores that others used then


def get_num_threads() -> int:
    """The number of threads that one call may use, including the caller.

    The number given to :func:`set_num_threads`; otherwise the number of cores available to this
    process at first use (its affinity, and its container's share of the processor), limited by the
    environment variable ``INVOCUPY_NUM_THREADS``. If neither sets a number, a call does not use
    cores that other processes and threads keep busy.

    Raises
    ------
    invocupy.settings.SettingError
        If ``INVOCUPY_NUM_THREADS`` counts and is not an integer >= 1. Each computation on the CPU
        raises it then.
    """
    return _default() if _wanted is None else _wanted


def set_num_threads(number: int | None) -> None:
    """Set the number of threads that one call may use; ``None`` restores the default.

    Results are bit-identical for any number.

    Raises
    ------
    ValueError
        If ``number`` is not an integer >= 1.

    Examples
    --------
    >>> set_num_threads(1)
    >>> get_num_threads()
    1
    >>> set_num_threads(None)
    """
    global _wanted
    _wanted = None if number is None else integer("number of threads", number, 1)


def is_set() -> bool:
    """Whether the user has set the number of threads."""
    return _wanted is not None or _limit() is not None


def free_cores(now: float, own: int) -> int:
    """The number of idle cores besides that of the caller; outside of Linux, all cores.

    ``now`` is the time in seconds; ``own`` threads of these tasks are ours. Threads that share
    their cores with others would be interrupted during their work, and all would wait for them. For
    a process that may use only a part of the machine, all cores of that part count as idle.
    """
    global _looked, _busy
    cores = _cores()
    if cores < (os.cpu_count() or 1):
        return cores - 1
    if now - _looked > _LOOK:
        _looked = now
        _busy = max(_running() - own, 0)
    return max(cores - 1 - _busy, 0)


@cache
def _default() -> int:
    return min(_cores(), _limit() or _cores())


@cache
def _cores() -> int:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = _QUOTA.read_text().split()
        return min(cores, -(-int(quota) // int(period)))
    except (OSError, ValueError):  # none is set
        return cores


@cache
def _limit() -> int | None:
    return number_of_threads()


def _running() -> int:
    """The number of tasks that run on this machine now; 0 if unknown."""
    with suppress(OSError, ValueError, IndexError):
        if hasattr(os, "pread"):
            return int(os.pread(_load(), 64, 0).split()[3].partition(b"/")[0])
    return 0


@cache
def _load() -> int:
    return os.open("/proc/loadavg", os.O_RDONLY)

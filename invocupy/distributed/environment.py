"""The environment that a launcher sets for its processes; MPI is not needed."""

from __future__ import annotations

import os

# The environment of a rank: Open MPI's, MPICH's and its kin's (also of Slurm's pmi2), Slurm's own.
# The first that is there: a launcher may itself run within one of the others.
_LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # the second is not there in a batch script itself
    ("PMIX_RANK", ""),
)


class LaunchError(ValueError):
    """Ranks that were started incorrectly. One line: what, and the way out."""


def launched() -> tuple[int, int] | None:
    """The rank of this process and the number of ranks (0 if unknown); None without a launcher.

    They are read from the environment; MPI is not loaded.

    Examples
    --------
    >>> launched() is None
    True
    """
    for rank, size in _LAUNCHERS:
        values = os.environ.get(rank, ""), os.environ.get(size, "") if size else "0"
        if all(value.isdecimal() for value in values):
            return int(values[0]), int(values[1])
    return None


def is_root() -> bool:
    """Whether this process writes for all ranks: rank 0, or the only process."""
    found = launched()
    return found is None or found[0] == 0

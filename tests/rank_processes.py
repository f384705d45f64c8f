"""Ranks as processes that ``mpiexec`` starts, where MPI is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import rank_jobs

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
try:
    import mpi4py
except ImportError:
    mpi4py = None  # type: ignore[assignment]
needs_mpi = pytest.mark.skipif(
    mpi4py is None or MPIEXEC is None, reason="needs MPI: pip install 'invocupy[mpi]'"
)

# One rank's end must be all ranks' end within 10 s. The machine may be busy, though.
DEADLINE = 60.0
JOBS = Path(rank_jobs.__file__)


def together(
    ranks: int, *arguments: str, cwd: Path, deadline: float = DEADLINE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``rank_jobs.py`` on several ranks."""
    return subprocess.run(
        [str(MPIEXEC), "-n", str(ranks), sys.executable, str(JOBS), *arguments],
        cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=deadline,
    )  # fmt: skip

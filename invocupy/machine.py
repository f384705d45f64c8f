"""Devices and installed versions of this machine."""

from __future__ import annotations

import platform
import re
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from invocupy._version import __version__
from invocupy.arrays import require_cupy
from invocupy.backends.cpu.threads import get_num_threads
from invocupy.docstrings import documented

PACKAGES = ("numpy", "numba", "llvmlite", "safetensors")


@documented
@cache
def devices() -> tuple[dict[str, str], str | None]:
    """Device names with descriptions, and the reason if there is no GPU.

    >>> "cores" in devices()[0]["cpu"]
    True
    """
    found = {"cpu": f"{_processor()}, {psutil.cpu_count()} cores"}
    try:
        cupy = require_cupy()
    except RuntimeError as error:
        return found, str(error)
    for i in range(cupy.cuda.runtime.getDeviceCount()):
        properties = cupy.cuda.runtime.getDeviceProperties(i)
        memory = properties["totalGlobalMem"] / 2**30
        found[f"cuda:{i}"] = f"{properties['name'].decode()}, {memory:.0f} GiB"
    return found, None


@documented
def describe() -> dict[str, Any]:
    """Versions, devices and threads, for run folders and reports.

    >>> sorted(describe())
    ['devices', 'invocupy', 'packages', 'python', 'threads']
    """
    packages = {name: _installed(name) for name in PACKAGES}
    packages["cupy"] = _installed("cupy-cuda13x", "cupy-cuda12x", "cupy")
    return {
        "invocupy": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "packages": packages,
        "devices": dict(devices()[0]),
        "threads": get_num_threads(),
    }


def _installed(*names: str) -> str | None:
    for name in names:
        with suppress(PackageNotFoundError):
            return version(name)
    return None


def _processor() -> str:
    with suppress(OSError):  # psutil does not know the name
        if found := re.search(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(), re.M):
            return found[1].strip()
    return platform.processor() or platform.machine()

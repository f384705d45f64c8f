"""The CUDA kernels executed and judged without a GPU.

=============  ====================================================================================
``shim.h``     makes a ``.cu`` file C++; ``runtime.cpp`` runs its threads, in any order, and traces
``host``       builds with g++ and stands in for CUDA under the library's own launcher
``gemm``       the one function of cuBLAS that is called
``sanitize``   the same under the address and undefined-behaviour sanitizers, and on huge arrays
``nvrtc``      NVIDIA's compiler from pip wheels, without a driver
``ptx``        an interpreter of what it emits, with counters; ``instructions`` without memory
``launches``   every shipped kernel once, for tools on a device and for their counts
``table``      the committed figures of every shipped kernel, and what counts as worse
``cases``      the calls that all of these make, and the bounds of their errors
``planted``    mistakes that must be found: the tests of the tests
``checks``     what is asked of each call
``real_cupy``  what the stand-in for CuPy is held to: ``cupy.json``
``layer_huge``  kernels of layers on arrays past 2^31 elements
``block_...``  cases, huge arrays and planted mistakes of the involution block
=============  ====================================================================================
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest


def wheel_file(pattern: str) -> Path | None:
    """A file of NVIDIA's pip wheels, by a pattern below ``site-packages/nvidia``."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(root).glob(pattern)):
            return path
    return None


def _need_tools() -> None:
    """Skip the module that imports this package if tools are missing; where CI is set, fail."""
    lacking = [
        pattern
        for pattern in (
            "*/include/cuda_bf16.h", "*/include/crt/host_defines.h", "*/lib/libnvrtc.so.*",
            "*/lib/libnvrtc-builtins.so.*", "*/bin/nvdisasm",
        )
        if wheel_file(pattern) is None
    ]  # fmt: skip
    lacking += ["ml_dtypes"] if importlib.util.find_spec("ml_dtypes") is None else []
    lacking += ["g++"] if shutil.which("g++") is None else []
    if lacking:
        reason = f"no {', '.join(lacking)}: apt install g++, pip install 'invocupy[proof]'"
        if os.environ.get("CI"):
            raise RuntimeError(reason)
        pytest.skip(reason, allow_module_level=True)


_need_tools()

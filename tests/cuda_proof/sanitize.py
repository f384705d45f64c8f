"""Runs the kernels under the address and undefined-behaviour sanitizers; the first finding ends it.

A program of its own, because the sanitizer's library must be loaded before everything else:
:func:`command` tells how. ``python sanitize.py`` runs it all, ``python sanitize.py BUG`` one of the
planted bugs of ``planted.py``.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from cuda_proof import (
    block_cases,
    block_huge,
    block_planted,
    cases,
    expansion_cases,
    host,
    layer_huge,
    planted,
)
from invocupy.backends.cuda import involution as device
from invocupy.backends.reference import involution as reference
from invocupy.geometry import Geometry

FAMILIES = (
    "k3", "k7-few-odd", "k3-stride2", "k3-dilated-unaligned", "k2x3-mixed",
    "3d-k3-stride2-odd", "3d-k4x1x2-mixed",
)  # fmt: skip
HUGE = {"2d": ((1 << 26,), (64,)), "3d": ((1 << 21, 40), (4, 40))}  # all rows, and the last few


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Start this program with the sanitizers loaded."""
    library = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, check=True, text=True
    )
    environment = {
        **os.environ,
        "LD_PRELOAD": library.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    return subprocess.run(
        [sys.executable, __file__, *arguments],
        env=environment, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


def virtual(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros of any size, of which only what is touched takes memory."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python 3.13 names it
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), dtype).reshape(shape)


def huge(function: str, of: str, batch: int, kernel: int, machine: host.Machine) -> None:
    """The last rows of arrays past 2^31 elements; with 9 images threads are past 2^32 too."""
    last = 8
    names, (fills,) = cases.INVOLUTION[function]
    arrays, parts = [], []
    for rows, group in zip(HUGE[of], (arrays, parts), strict=True):
        x = (batch if group is arrays else 1, 1, *rows, 32)
        shapes = {"x": x, "grad": x, "out": x, "kernel": (*x[:2], *[kernel] * len(x[2:]), *x[2:])}
        group += [virtual(shapes[name], np.float16) for name in (*names, fills)]
        group.append(Geometry.of(shapes["x"], shapes["kernel"]))
    for whole, part in zip(arrays[:2], parts[:2], strict=True):
        part[...] = np.random.default_rng(part.ndim).standard_normal(part.shape)
        end = (slice(-n, None) for n in HUGE[of][1])
        whole[(slice(-1, None), ..., *end, slice(None))] = part
    rows = (*(-1 for _ in HUGE[of][0][1:]), slice(-last, None))
    got, want = (array[(-1, ..., *rows, slice(None))] for array in (arrays[2], parts[2]))
    got[...] = np.nan
    with host.installed(machine.compile):
        getattr(device, function)(*arrays[:2], arrays[3], arrays[2])
    getattr(reference, function)(*parts[:2], parts[3], parts[2])
    done = ~np.isnan(got)  # which of the last rows the last blocks own is not said here
    if done.sum() < 32 * last or not np.allclose(got[done], want[done], rtol=1e-3, atol=1e-3):
        raise AssertionError(f"huge {of} {function}: the last rows are wrong")


def main(bug: str = "") -> None:
    plant, in_block = planted.BUGS.get(bug), block_planted.BUGS.get(bug)
    if in_block and not plant:
        with block_planted.planted(in_block):
            last = host.Machine("sanitize", blocks=slice(-4, None))
            if "/" in in_block.kernel:
                layer_huge.run(last, virtual, (in_block.function,))
            else:
                block_huge.run(last, virtual, (in_block.function,))
        return
    machine = host.Machine("sanitize", replacements=plant.replacements if plant else ())
    if plant:
        functions, families = (plant.function,), () if plant.family in HUGE else (plant.family,)
    else:
        functions, families = tuple(cases.INVOLUTION), FAMILIES
    with host.installed(machine.compile):
        for function in functions:
            for family in families:
                problem = cases.involution(function, family, height=7, units=5)
                cases.check(problem, cases.run(problem))
        for function in cases.BATCH_NORM if not plant else ():
            for plane in ((3, 5), (4, 8)):
                problem = cases.batch_norm(function, "float16", (17, 5, *plane))
                cases.check(problem, cases.run(problem))
        for function in block_cases.FUNCTIONS if not plant else ():
            problem = block_cases.block(function, "slices", height=5)
            cases.check(problem, cases.run(problem))
        for function in expansion_cases.FUNCTIONS if not plant else ():
            problem = expansion_cases.expansion(function, "float16")
            cases.check(problem, cases.run(problem))
    machine.blocks = slice(-4, None)
    if not plant:
        block_huge.run(machine, virtual)
        layer_huge.run(machine, virtual)
    for function in ("forward", "grad_x", "grad_kernel"):
        for of in HUGE:
            if not plant or (plant.family, plant.function) == (of, function):
                huge(function, of, 3, 3, machine)
                if not plant:
                    huge(function, of, 9, 1, machine)


if __name__ == "__main__":
    os.environ.pop("LD_PRELOAD")  # not for g++
    with contextlib.redirect_stdout(sys.stderr):
        main(*sys.argv[1:])

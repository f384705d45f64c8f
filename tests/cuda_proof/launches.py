"""Every shipped kernel launched once: on a device, for NVIDIA's tools, or in the interpreter.

    python tests/cuda_proof/launches.py device              each result checked
    python tests/cuda_proof/launches.py device "block float32"    of the rows of the table so named
    python tests/cuda_proof/launches.py count OUT.json 90   what the interpreter counts for sm_90,
                                                            launch by launch

``benchmarks/gpu_all.py`` runs the first under compute-sanitizer and ncu, and compares ncu's counts
with the second. Both make the same launches in the same order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from cuda_proof import cases, host, nvrtc, ptx, table
from invocupy.arrays import require_cupy
from invocupy.backends import cuda


def on_device(rows: Sequence[str] = ()) -> None:
    """Run all problems on CuPy arrays, each of them an allocation of its own and not filled."""
    cupy = require_cupy()
    cupy.cuda.set_allocator(None)  # within a pool's block nothing is out of bounds
    chosen = [(key, p) for key, p in table.problems() if not rows or key in rows]
    if not chosen:
        raise SystemExit(f"the table has no rows {rows}")
    for _, problem in chosen:
        inputs = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in problem.inputs]
        results = [r if r is None else cupy.empty(r.shape, r.dtype) for r in problem.results()]
        problem.device(inputs, results)
        cases.check(problem, [r if r is None else r.get() for r in results])


def counted(arch: int) -> list[dict[str, Any]]:
    """The interpreter's counts of the same launches."""
    launches: list[dict[str, Any]] = []

    for key, problem in table.problems():

        def compile_(kernel: str, macros: Any, key: str = key) -> Any:
            name, source = cuda.name_of(kernel), nvrtc.ptx(cuda.source(kernel, macros), arch)

            def launch(*arguments: Any) -> None:
                kernel = ptx.Kernel(source, name)
                kernel(*arguments)
                launches.append({"kernel": name, "case": key, **kernel.counts})

            return launch

        with host.installed(compile_):
            cases.run(problem)
    return launches


if __name__ == "__main__":
    if sys.argv[1] == "device":
        on_device(sys.argv[2:])
    else:
        out, arch = sys.argv[2:]
        Path(out).write_text(json.dumps(counted(int(arch))))

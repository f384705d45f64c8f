"""Counts the GPU operations of training layer by layer, on the stand-in for CuPy.

    python benchmarks/gpu_layers.py             the table, next to the committed one
    python benchmarks/gpu_layers.py --json      its figures
    python benchmarks/gpu_layers.py --write     commit what is counted now

Of one block forward and backward, float32: device operations, the bytes of the arrays that each
reads and writes, and how often the host waits. ``gpu_counts.py`` has the same of whole blocks and a
step. No kernel runs, and nothing here is a time.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import gpu_counts  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "gpu-layers.json"


def blocks() -> dict[str, tuple[Callable[[], Any], tuple[int, ...]]]:
    """How to make each block, and the shape of its input."""
    from invocupy import models

    def bottleneck() -> Any:
        network = models.rednet26(10, rng=0)
        return list(network.layer2)[1]

    return {
        "SimpleBlock(3, 64, fused=False)": (
            lambda: models.SimpleBlock(3, 64, fused=False), (256, 3, 32, 32),
        ),
        "RedNet, a block of its second stage": (bottleneck, (32, 512, 28, 28)),
    }  # fmt: skip


def count() -> dict[str, Any]:
    """The figures of each block."""
    from invocupy import Tensor

    found = {}
    with gpu_counts.stand_in() as cupy:
        for name, (make, shape) in blocks().items():
            model = make().to("cuda")
            x = Tensor(cupy.empty(shape, np.float32), requires_grad=True)
            before = cupy.cuda.waits
            with cupy.cuda.recording(idle=True) as operations:
                y = model(x)
                y.backward(y.data)
            number = Counter(o.name for o in operations)
            size = Counter[str]()
            for o in operations:
                size[o.name] += o.bytes
            found[name] = {
                "operations": len(operations),
                "megabytes": round(sum(size.values()) / 1e6, 1),
                "host_waits": cupy.cuda.waits - before,
                "rows": {
                    row: {"operations": n, "megabytes": round(size[row] / 1e6, 1)}
                    for row, n in sorted(number.items(), key=lambda item: -size[item[0]])
                },
            }
    return found


def worse(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The figures that are worse than the committed ones."""
    return [
        f"{name}: {figure} {new[name][figure]}, was {old[name][figure]}"
        for name in new
        for figure in ("operations", "megabytes", "host_waits")
        if new[name][figure] > old[name][figure]
    ]


def table(counts: Mapping[str, Any]) -> str:
    """The figures as a readable table."""
    lines = []
    for name, figures in counts.items():
        lines.append(f"{name:48}{figures['operations']:6}{figures['megabytes']:12,.1f} MB")
        for row, one in figures["rows"].items():
            lines.append(f"  {row:46}{one['operations']:6}{one['megabytes']:12,.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(gpu_counts.command(sys.modules[__name__]))

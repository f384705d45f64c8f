"""What a training step of SimpleModel asks of a GPU, counted without one, on the stand-in for CuPy.

    python benchmarks/gpu_counts.py             the table, next to the committed one
    python benchmarks/gpu_counts.py --json      its figures
    python benchmarks/gpu_counts.py --write     commit what is counted now

Counted are device operations (launches of our kernels, products of cuBLAS, array operations of
CuPy), the bytes of the arrays that each reads and writes, and how often the host waits. A block's
share is that of 8 blocks between a network of 9 and one of 1, forward, backward and SGD; bytes are
those at batch 256, float32, 32x32. No kernel runs, and nothing here is a time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu-counts.json"
DEEP, SHALLOW = 9, 1
IMAGES = 256
FIGURES = ("block_operations", "block_megabytes", "host_waits")


@contextmanager
def stand_in() -> Iterator[Any]:
    """CuPy is the stand-in, whatever is installed."""
    sys.path.insert(0, str(ROOT / "tests" / "stand_in"))
    try:
        cupy = importlib.import_module("cupy")
        if "stand-in" not in cupy.__version__:
            raise RuntimeError("CuPy is imported already: count in a process of its own")
        yield cupy
    finally:
        sys.path.pop(0)


def step(cupy: Any, layers: int, images: int) -> tuple[list[Any], int]:
    """The operations of one training step, and how often the host waits in it."""
    from invocupy import Tensor, optim
    from invocupy import functional as F  # noqa: N812
    from invocupy.models import SimpleModel

    model = SimpleModel(num_layers=layers, rng=0).to("cuda")
    sgd = optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    x = cupy.asarray(np.zeros((images, 3, 32, 32), np.float32))
    labels = cupy.asarray(np.arange(images) % 10)

    def once() -> None:
        sgd.zero_grad()
        F.cross_entropy(model.logits(Tensor(x)), labels).backward()
        sgd.step()

    once()  # velocities are there from the second step on
    before = cupy.cuda.waits
    with cupy.cuda.recording(idle=True) as operations:
        once()
    return operations, cupy.cuda.waits - before


def count() -> dict[str, Any]:
    """All figures."""
    with stand_in() as cupy, cupy.cuda.recording(idle=True):
        deep, waits = step(cupy, DEEP, 2)
        shallow, _ = step(cupy, SHALLOW, 2)
        large = [step(cupy, layers, IMAGES)[0] for layers in (SHALLOW + 1, SHALLOW)]
    blocks = DEEP - SHALLOW
    launches = Counter(o.name for o in deep)
    launches.subtract(o.name for o in shallow)
    megabytes, threads = Counter[str](), dict[str, int]()
    for sign, operations in zip((1, -1), large, strict=True):
        for o in operations:
            megabytes[o.name] += sign * o.bytes
            threads[o.name] = max(threads.get(o.name, 0), o.threads)
    rows = {
        name: {
            "operations": number / blocks,
            "threads": threads.get(name, 0),
            "megabytes": round(megabytes[name] / 1e6, 3),
        }
        for name, number in sorted(launches.items(), key=lambda item: (-item[1], item[0]))
        if number
    }
    return {
        "block_operations": sum(row["operations"] for row in rows.values()),
        "block_megabytes": round(sum(megabytes.values()) / 1e6, 1),
        "host_waits": waits,
        "graph": False,
        "rows": rows,
    }


def worse(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The figures that are worse than the committed ones."""
    found = [f"{name} {new[name]}, was {old[name]}" for name in FIGURES if new[name] > old[name]]
    if old["graph"] and not new["graph"]:
        found.append("the step is no graph any more")
    return found


def table(counts: Mapping[str, Any]) -> str:
    """For people."""
    lines = [f"{'a block and step':32}{'operations':>12}{'threads':>12}{'MB':>10}"]
    for name, row in counts["rows"].items():
        lines.append(
            f"{name:32}{row['operations']:12.3f}{row['threads']:12,}{row['megabytes']:10.2f}"
        )
    total = counts["block_operations"], counts["block_megabytes"]
    lines.append(f"{'all':32}{total[0]:12.3f}{'':12}{total[1]:10.2f}")
    lines.append(f"host waits in a step: {counts['host_waits']}, one graph: {counts['graph']}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    asked = parser.parse_args()
    counts = count()
    print(json.dumps(counts, indent=1) if asked.json else table(counts))
    if asked.write:
        RESULTS.write_text(json.dumps(counts, indent=1) + "\n")
        return 0
    found = worse(json.loads(RESULTS.read_text()), counts)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())

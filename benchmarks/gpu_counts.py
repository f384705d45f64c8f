"""Counts the GPU operations of a training step of SimpleModel, on the stand-in for CuPy.

    python benchmarks/gpu_counts.py             the table, next to the committed one
    python benchmarks/gpu_counts.py --json      its figures
    python benchmarks/gpu_counts.py --write     commit what is counted now

Counted are device operations (launches of our kernels, products of cuBLAS, array operations of
CuPy), the bytes of the arrays that each reads and writes, how often the host calls the device, and
how often it waits, in a step of ``train.fit`` that CUDA graphs replay. A block's
share is that of 8 blocks between a network of 9 and one of 1, forward, backward and SGD; bytes are
those at batch 256, float32, 32x32. No kernel runs, and nothing here is a time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu-counts.json"
DEEP, SHALLOW = 9, 1
IMAGES = 256
FIGURES = ("block_operations", "block_megabytes", "host_waits", "host_calls")


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


class Step(NamedTuple):
    """A training step of ``fit`` that is launched as a graph."""

    operations: list[Any]
    calls: int  # from the host to the device
    waits: int  # of the host for the device
    graph: bool


def step(cupy: Any, layers: int, images: int) -> Step:
    """The third step of a run: all later steps are like it."""
    from invocupy.train import Config, NonFiniteLoss, fit

    config = Config(layers=layers, batch_size=images, epochs=1, device="cuda", nesterov=False)
    pixels = np.random.default_rng(0).integers(0, 256, (4 * images, 3, 32, 32), np.uint8)
    data = pixels, np.arange(4 * images) % 10, pixels[:1], np.zeros(1, np.int64)
    notes: list[tuple[int, int, int]] = []
    with warnings.catch_warnings(record=True) as lines:
        warnings.simplefilter("always")
        with cupy.cuda.recording(idle=True) as operations:

            def note(now: Any) -> None:
                notes.append((len(operations), cupy.cuda.calls, cupy.cuda.waits))

            with suppress(NonFiniteLoss):  # those of the last step, as no kernel runs
                fit(config, data=data, progress=note)
    (first, *before), (last, *after) = notes[1:3]
    calls, waits = np.subtract(after, before).tolist()
    return Step(operations[first:last], calls, waits, not lines)


def count() -> dict[str, Any]:
    """All figures."""
    with stand_in() as cupy, cupy.cuda.recording(idle=True):
        deep, shallow = (step(cupy, layers, 2) for layers in (DEEP, SHALLOW))
        large = [step(cupy, layers, IMAGES) for layers in (SHALLOW + 1, SHALLOW)]
    blocks = DEEP - SHALLOW
    launches = Counter(o.name for o in deep.operations)
    launches.subtract(o.name for o in shallow.operations)
    megabytes, threads = Counter[str](), dict[str, int]()
    for sign, one in zip((1, -1), large, strict=True):
        for o in one.operations:
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
        "host_waits": deep.waits,
        "host_calls": deep.calls,
        "graph": deep.graph,
        "rows": rows,
    }


def worse(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The figures that are worse than the committed ones."""
    found = [f"{name} {new[name]}, was {old[name]}" for name in FIGURES if new[name] > old[name]]
    if old["graph"] and not new["graph"]:
        found.append("the step is no graph any more")
    return found


def table(counts: Mapping[str, Any]) -> str:
    """The figures as a readable table."""
    lines = [f"{'a block and step':32}{'operations':>12}{'threads':>12}{'MB':>10}"]
    for name, row in counts["rows"].items():
        lines.append(
            f"{name:32}{row['operations']:12.3f}{row['threads']:12,}{row['megabytes']:10.2f}"
        )
    total = counts["block_operations"], counts["block_megabytes"]
    lines.append(f"{'all':32}{total[0]:12.3f}{'':12}{total[1]:10.2f}")
    lines.append(
        f"in a step the host makes {counts['host_calls']} calls and waits {counts['host_waits']} "
        f"times; graphs: {counts['graph']}"
    )
    return "\n".join(lines)


def command(module: Any) -> int:
    """The command line of a module with a committed table: RESULTS, count, table and worse."""
    parser = argparse.ArgumentParser(description=(module.__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", action="store_true", help=f"write {module.RESULTS.name}")
    asked = parser.parse_args()
    counts = module.count()
    print(json.dumps(counts, indent=1) if asked.json else module.table(counts))
    if asked.write:
        module.RESULTS.write_text(json.dumps(counts, indent=1) + "\n")
        return 0
    found = module.worse(json.loads(module.RESULTS.read_text()), counts)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(command(sys.modules[__name__]))

"""Signals and volumes on the CPU, compared with PyTorch and with images of the same work.

    .bench/bin/python benchmarks/volumes.py --out benchmarks/results/volumes.json
    python benchmarks/cpu.py --table benchmarks/results/volumes.json --docs docs/benchmarks.md

It measures like `benchmarks/cpu.py`. The image, *2-D*, has the same arrays with the depth as more
rows, and K x K*K taps: as many pixels and taps. `--only` keeps the other rows of the results file.
`torch.compile` needs minutes for each shape, a quarter of an hour for K=5, and caches its results;
`--compile` names the forms to compile, none skips compilation.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from math import prod
from pathlib import Path
from typing import Any

import cpu
import limits

FORMS = "unfold", "shift"
VOLUMES = {  # name: (N, C, *S), K, stride
    "volumes": ((2, 32, 16, 40, 40), 3, 1),
    "volume": ((1, 16, 64, 64, 64), 3, 1),
    "volume, K=5": ((1, 16, 32, 64, 64), 5, 1),
    "signals": ((32, 64, 4096), 9, 1),
}
cpu.OPERATOR |= VOLUMES


def memory(which: str, name: str, backward: bool, compiled: tuple[str, ...]) -> float:
    """The peak memory of forward, or of both gradients, in MB above the operands."""
    from cpu_calls import operator_calls

    from invocupy import release_memory

    shape, k, _ = VOLUMES[name]
    call = operator_calls(shape, k, 1, compiled)[backward][which]
    release_memory()
    return cpu.peak_of(call)


def memory_rows(name: str, number: int, compiled: tuple[str, ...]) -> list[dict[str, Any]]:
    """Peak memory, and that of the results; autograd's gradients use what forward has kept."""
    shape, k, _ = VOLUMES[name]
    result = 4 * prod(shape) / 2**20
    grads = result * (1 + k ** (len(shape) - 2) / 16)
    rows = []
    peers = *FORMS, *(f"{form}, compiled" for form in compiled)
    variants_of = {"forward": ("invocupy", *peers), "both gradients": ("invocupy",)}
    for (what, variants), least in zip(variants_of.items(), (result, grads), strict=True):
        backward = what != "forward"
        mb = {}
        for which in variants:
            needed = tuple(form for form in compiled if which.startswith(f"{form},"))
            mb[which] = cpu.alone(memory, which, name, backward, needed)
        what = f"peak memory of {what}, {least:.3g} MB of it results"
        rows.append(
            {"what": what, "name": name, "shape": shape, "K": k, "threads": number, "MB": mb}
        )
    return rows


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="FILE", required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.02, help="seconds per sample")
    parser.add_argument("--only", nargs="+", choices=VOLUMES, default=list(VOLUMES))
    parser.add_argument("--compile", nargs="*", choices=FORMS, default=list(FORMS))
    arguments = parser.parse_args()
    bounds = limits.measure(arguments.threads)
    rows = []
    if arguments.out.exists():
        rows = json.loads(arguments.out.read_text())["rows"]
    rows = [row for row in rows if row["name"] not in arguments.only]
    for name in arguments.only:
        rows += cpu.alone(cpu.operator_rows, name, arguments.threads, bounds, arguments)
        rows += memory_rows(name, arguments.threads, arguments.compile)
        print(*(line for row in rows for line in cpu.format_row(row)), sep="\n", file=sys.stderr)
    rows.sort(key=lambda row: list(VOLUMES).index(row["name"]))
    results = {
        "script": "benchmarks/volumes.py",
        "machine": cpu.machine(),
        "limits": {arguments.threads: bounds},
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(cpu.table(results))


if __name__ == "__main__":
    main()

"""Time and memory on the CPU against PyTorch, interleaved.

    python benchmarks/cpu.py --make-env .bench     # a virtual environment with PyTorch, once
    .bench/bin/python benchmarks/cpu.py --out benchmarks/results/cpu.json
    python benchmarks/cpu.py --table benchmarks/results/cpu.json

The variants of a row take turns in each round, so that changes of the machine's speed affect all of
them; a row has medians with the 20 and 80 % quantiles, and ratios of medians. The results of all
variants are compared before they are timed.

Each shape is measured in a new process: PyTorch maps and unmaps its large arrays in every call, and
memory that earlier work left to the allocator would save it most of that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
OPERATOR = {  # name: (N, C, H, W), K, stride
    "article": ((32, 64, 32, 32), 3, 1),
    "article, batch 1": ((1, 64, 32, 32), 3, 1),
    "RedNet stage 1": ((8, 64, 56, 56), 7, 1),
    "RedNet stage 2": ((8, 128, 28, 28), 7, 1),
    "RedNet stage 3": ((8, 256, 14, 14), 7, 1),
    "RedNet stage 4": ((8, 512, 7, 7), 7, 1),
    "one large image": ((1, 64, 224, 224), 7, 1),
    "article, stride 2": ((32, 64, 32, 32), 3, 2),
    "RedNet stage 2, stride 2": ((8, 128, 56, 56), 7, 2),
}
LAYER = {"article": ((32, 64, 32, 32), 3), "RedNet stage 1": ((8, 64, 56, 56), 7)}
STEPS = "invocupy", "invocupy, recompute=False", "PyTorch"  # the variants whose memory is measured

Calls = dict[str, Callable[[], Any]]


def repeats_of(call: Callable[[], Any], seconds: float) -> int:
    """How often to repeat ``call`` for a sample of about ``seconds``; this also warms it up."""
    for _ in range(2):
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        if once > 10:  # without what the first call compiled
            break
    return max(1, round(seconds / max(once, 1e-7)))


def interleave(
    calls: Calls, rounds: int, seconds: float, threads: int
) -> dict[str, dict[str, float]]:
    """Run all in turns; milliseconds per call as median, 20 % and 80 % quantile."""
    from limits import spin

    repeats = {name: repeats_of(call, seconds) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            spin(threads)
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name] * 1e3)
    return {
        name: dict(zip(("low", "median", "high"), np.quantile(t, (0.2, 0.5, 0.8)), strict=True))
        for name, t in times.items()
    }


def operator_cost(shape: tuple[int, ...], k: int, stride: int) -> tuple[float, float]:
    """Bytes (each operand is read once, the result written once) and operations of forward."""
    n, c, *image = shape
    positions, taps = n * prod(-(-size // stride) for size in image), k ** len(image)
    bytes_ = 4.0 * (prod(shape) + positions * (c + c // 16 * taps))
    return bytes_, 2.0 * positions * c * taps


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, computed in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(which: str, layers: int, batch: int) -> float:
    """The peak memory of a training step, in MB above that at its start."""
    from cpu_calls import network_calls

    return peak_of(network_calls(layers, batch, True)[which])


def peak_of(call: Callable[[], Any]) -> float:
    """The peak memory of ``call``, in MB above that at its start."""

    def peak() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    start = peak()
    call()
    return (peak() - start) / 1024


def first_calls() -> dict[str, float]:
    """Seconds of the import and of the first call in a process, with and without cached kernels."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); start = time.perf_counter()\n"
        "import invocupy; loaded = time.perf_counter()\n"
        "import numpy as np\n"
        "x = np.ones((1, 16, 32, 32), np.float32)\n"
        "invocupy.involution(x, np.ones((1, 1, 3, 3, 32, 32), np.float32))\n"
        "first = time.perf_counter()\n"
        "invocupy.involution(x, np.ones((1, 1, 7, 7, 32, 32), np.float32))\n"
        "print(loaded - start, first - loaded, time.perf_counter() - first)\n"
    )
    times: dict[str, list[list[float]]] = {"ever": [], "kept": []}
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o700)
            for which in times:
                result = subprocess.run(
                    [sys.executable, "-c", code, str(ROOT)], check=True, capture_output=True,
                    text=True, env={**os.environ, "INVOCUPY_CACHE_DIR": folder},
                )  # fmt: skip
                times[which].append([float(part) for part in result.stdout.split()])
    ever, kept = (np.median(times[which], axis=0) for which in ("ever", "kept"))
    return {
        "import": kept[0], "first call, kernels kept": kept[1], "first call ever": ever[1],
        "first call with another kernel size": ever[2],
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """The machine and the versions that were measured."""
    import llvmlite
    import numba
    import torch

    import invocupy

    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "invocupy": invocupy.__version__,
        "numpy": np.__version__,
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "torch": torch.__version__,
    }


def use(number: int) -> None:
    """Set the number of threads of both libraries."""
    import torch

    from invocupy.backends.cpu import threads

    torch.set_num_threads(number)
    threads.set_num_threads(number)


def operator_rows(
    name: str, number: int, bound: dict[str, float], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Forward and both gradients of one shape."""
    from cpu_calls import operator_calls

    use(number)
    shape, k, stride = OPERATOR[name]
    compiled = arguments.compile if name in LAYER or len(shape) != 4 else ()
    compiled = compiled if number > 1 else ()
    bytes_, flops = operator_cost(shape, k, stride)
    floor = max(bytes_ / bound["copy GB/s"], flops / bound["GFLOP/s"]) / 1e6
    facts = {"name": name, "shape": shape, "K": k, "stride": stride, "threads": number}
    rows = []
    # gradients: twice the products; the inputs twice and grad as the result
    for what, calls, times in zip(
        ("forward", "both gradients"), operator_calls(shape, k, stride, compiled), (1, 2),
        strict=True,
    ):  # fmt: skip
        ms = interleave(calls, arguments.rounds, arguments.seconds, number)
        limits = cost(times * bytes_, times * flops, times * floor)
        rows.append({"what": what, **facts, **limits, "ms": ms})
    return rows


def layer_rows(name: str, number: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The whole layer in evaluation."""
    from cpu_calls import layer_calls

    use(number)
    shape, k = LAYER[name]
    ms = interleave(layer_calls(shape, k), arguments.rounds, arguments.seconds, number)
    return [{"what": "layer", "name": name, "shape": shape, "K": k, "threads": number, "ms": ms}]


def network_rows(
    layers: int, batch: int, training: bool, number: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """A training step or an evaluation of the article's model."""
    from cpu_calls import network_calls

    use(number)
    calls = network_calls(layers, batch, training, layers == 10 and bool(arguments.compile))
    ms = interleave(calls, arguments.network_rounds, arguments.seconds, number)
    what = "training step" if training else "inference"
    return [{"what": what, "layers": layers, "batch": batch, "threads": number, "ms": ms}]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All requested rows."""
    import limits

    rows: list[dict[str, Any]] = []
    bounds = {number: limits.measure(number) for number in arguments.threads}
    most = max(arguments.threads)

    def add(part: str, function: Callable[..., list[dict[str, Any]]], *facts: Any) -> None:
        for row in alone(function, *facts, arguments):
            rows.append(row | {"part": part})
            print(*format_row(row), sep="\n", file=sys.stderr, flush=True)

    if "operator" in arguments.only:
        for number in arguments.threads:
            for name in OPERATOR:
                add("operator", operator_rows, name, number, bounds[number])
    if "layer" in arguments.only:
        for name in LAYER:
            add("layer", layer_rows, name, most)
    if "network" in arguments.only:
        for layers, batch, training in ((10, 128, True), (50, 64, True), (50, 64, False)):
            add("network", network_rows, layers, batch, training, most)
    if "memory" in arguments.only:
        what, facts = "peak memory of a training step", {"layers": 50, "batch": 64}
        mb = {name: alone(peak_memory, name, 50, 64) for name in STEPS}
        rows.append({"what": what, **facts, "threads": most, "part": "memory", "MB": mb})
    if "first" in arguments.only:
        rows.append({"what": "first calls", "part": "first", "s": first_calls()})
    after = {number: limits.measure(number) for number in arguments.threads}
    for number, before in bounds.items():
        for what, value in before.items():
            before[what] = max(value, after[number][what])
    return {"machine": machine(), "limits": bounds, "rows": rows}


def cost(bytes_: float, flops: float, floor: float) -> dict[str, float]:
    """The bytes and operations of a row, and the least time in which the machine can do them."""
    return {"MB_moved": bytes_ / 1e6, "MFLOP": flops / 1e6, "limit_ms": floor}


def format_row(row: dict[str, Any]) -> list[str]:
    """The Markdown lines of a row: one for each variant, with its time over ours."""
    if "s" in row:
        return [f"| {what} | | | {s:.2f} s | | |" for what, s in row["s"].items()]
    figures = row.get("ms") or {k: {"median": v} for k, v in row["MB"].items()}
    ours = figures["invocupy"]["median"]
    size = f"{tuple(row['shape'])} K={row['K']}" if "shape" in row else (
        f"{row['layers']} layers, batch {row['batch']}"
    )  # fmt: skip
    if row.get("stride", 1) > 1:
        size += f" stride {row['stride']}"
    lines = []
    for name, figure in figures.items():
        spread = f"{figure['low']:.3g} to {figure['high']:.3g}" if "low" in figure else ""
        unit = "MB" if "MB" in row else "ms"
        ratio = "" if name == "invocupy" else f"{figure['median'] / ours:.3g}x"
        if name == "invocupy" and "limit_ms" in row:
            ratio = f"{row['limit_ms'] / ours:.0%} of the limit"
            if len(row["shape"]) != 4:
                ratio += f", {row['MFLOP'] / ours:.3g} GFLOP/s"
        lines.append(
            f"| {row['what']}, {row['threads']} threads | {size} | {name} "
            f"| {figure['median']:.3g} {unit} | {spread} | {ratio} |"
        )
    return lines


def table(results: dict[str, Any]) -> str:
    """The results as Markdown tables."""
    facts = ", ".join(f"{k} {v}" for k, v in results["machine"].items())
    bounds = "; ".join(
        f"{number} threads: copy {b['copy GB/s']:.3g} GB/s (read and written), "
        f"{b['GFLOP/s']:.3g} GFLOP/s"
        for number, b in results["limits"].items()
    )
    lines = [
        f"Measured with `{results.get('script', 'benchmarks/cpu.py')}`: {facts}.",
        "",
        f"The machine's limits, measured in the same run: {bounds}.",
        "",
        "| what | size | variant | median | 20 to 80 % | time over ours |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    return "\n".join(lines + [line for row in results["rows"] for line in format_row(row)])


def write_docs(results: dict[str, Any], name: str, page: Path) -> None:
    """Write the table between the two marks of this name on the page."""
    start = f"<!-- {name} table: made by benchmarks/cpu.py --docs -->"
    end = f"<!-- end of {name} table -->"
    text = page.read_text()
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} must hold the lines {start!r} and {end!r}")
    page.write_text(f"{before}{start}\n{table(results)}\n{end}{after}")


def make_env(folder: Path) -> None:
    """Make a virtual environment with this package and PyTorch."""
    venv.create(folder, with_pip=True)
    subprocess.run([folder / "bin" / "pip", "install", TORCH, "-e", str(ROOT)], check=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--make-env", type=Path, metavar="DIR")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print results as Markdown")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="with --table: write into a page")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--threads", type=int, nargs="+", default=[os.cpu_count(), 1])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--network-rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.02, help="seconds per sample")
    parser.add_argument(
        "--compile", action="store_const", const=("shift",), default=(),
        help="also measure torch.compile (takes minutes)",
    )  # fmt: skip
    parts = ("operator", "layer", "network", "memory", "first")
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    arguments = parser.parse_args()
    if arguments.make_env:
        make_env(arguments.make_env)
    elif arguments.table:
        results = json.loads(arguments.table.read_text())
        if arguments.docs:
            write_docs(results, arguments.table.stem, arguments.docs)
        else:
            print(table(results))
    else:
        results = measure(arguments)
        if arguments.out and arguments.out.exists() and set(arguments.only) != set(parts):
            kept = json.loads(arguments.out.read_text())  # parts that were not measured this time
            old = [row for row in kept["rows"] if row.get("part") not in arguments.only]
            results = {**kept, "rows": old + results["rows"]}
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        print(table(results))


if __name__ == "__main__":
    main()

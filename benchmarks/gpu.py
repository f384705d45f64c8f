"""Involution on a GPU compared with other implementations: one command, one results file.

    python benchmarks/gpu.py --out benchmarks/results/gpu-h100.json
    python benchmarks/gpu.py --table benchmarks/results/gpu-h100.json

How times are measured: each contender's calls over several sets of buffers, together well beyond
the L2 cache, are captured in a CUDA graph, which is launched between two CUDA events. Contenders
take turns in each round; the figures are the median and the quartiles over the rounds. All results
are first compared with a float64 computation. Bandwidths are compared with a plain device-to-device
copy of 1 GB, timed in the same rounds. Only the unfold form of PyTorch runs without a graph at the
large shapes, because memory is too small.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SIZES = [  # (N, C, *S) and K; 16 channels per group
    ((32, 64, 32, 32), 3),
    ((256, 64, 56, 56), 7),
    ((64, 256, 14, 14), 7),
    ((2, 32, 16, 40, 40), 3),
    ((1, 16, 64, 64, 64), 3),
    ((1, 16, 32, 64, 64), 5),
    ((32, 64, 4096), 9),
]
SHAPES = {f"{shape} K={k}": (shape, k) for shape, k in SIZES}
LARGE = 1e8  # bytes of a call from which a few calls are enough for a sample
Calls = list[Callable[[], Any]]


def problem(name: str, op: str, calls: Calls, wanted: Sequence[Any], dtype: str) -> str | None:
    """What is wrong with the first call's result: its relative error, in the norm."""
    import cupy as cp
    import numpy as np

    try:
        got = calls[0]()
    except RuntimeError as error:
        return str(error)
    got = got if isinstance(got, tuple) else (got,)
    allowed = {"float32": 1e-5, "float16": 5e-3}[dtype]
    for part, want in zip(got, wanted, strict=False):
        value = cp.from_dlpack(part)[: len(want)].astype(np.float64)
        error = float(cp.linalg.norm((value - want).ravel()) / cp.linalg.norm(want.ravel()))
        if not error < allowed:
            return f"{name}, {op}: relative error {error:.1e}"
    return None


def capture_cupy(calls: Calls, repeat: int) -> Callable[[], float]:
    """A CUDA graph of all calls, ``repeat`` times; returns what launches and times it."""
    import cupy as cp

    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        kept = [call() for call in calls]  # compiles; the memory of a graph must be kept
        stream.synchronize()
        stream.begin_capture()
        kept += [call() for _ in range(repeat) for call in calls]
        graph = stream.end_capture()
    start, end = cp.cuda.Event(), cp.cuda.Event()

    def run() -> float:
        start.record(stream)
        graph.launch(stream)
        end.record(stream)
        end.synchronize()
        return cp.cuda.get_elapsed_time(start, end) / (repeat * len(calls)) if kept else 0.0

    return run


def capture_torch(calls: Calls, repeat: int) -> Callable[[], float]:
    """The same for PyTorch, and for contenders on its stream."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(repeat):
            for call in calls:
                call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run() -> float:
        with torch.cuda.stream(stream):
            start.record()
            graph.replay()
            end.record()
        end.synchronize()
        return start.elapsed_time(end) / (repeat * len(calls))

    return run


def eager_torch(calls: Calls, repeat: int) -> Callable[[], float]:
    """Without a graph."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run() -> float:
        start.record()
        for _ in range(repeat):
            for call in calls:
                call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / (repeat * len(calls))

    return run


def copy() -> Calls:
    """A plain copy of 1 GB on the device."""
    import cupy as cp
    import numpy as np

    source, target = cp.ones(2**28, np.float32), cp.empty(2**28, np.float32)
    return [lambda: target.data.copy_from_device_async(source.data, source.nbytes)]


def measure(runs: dict[Any, Callable[[], float]], rounds: int) -> dict[Any, dict[str, float]]:
    """Measure all in turns; median and quartiles in milliseconds."""
    times: dict[Any, list[float]] = {key: [] for key in runs}
    for _ in range(rounds + 2):
        for key, run in runs.items():
            times[key].append(run())
    summary = {}
    for key, values in times.items():
        low, middle, high = statistics.quantiles(values[2:], n=4)  # the first two warm up
        summary[key] = {"ms": middle, "ms_low": low, "ms_high": high}
    return summary


def benchmark(shape: str, dtype: str, rounds: int, only: list[str]) -> list[dict[str, Any]]:
    """All contenders, or only some, on one shape and dtype."""
    import contenders as c
    import cupy as cp
    import peers
    import torch

    p = c.Problem(*SHAPES[shape], dtype)
    contenders = {
        "invocupy": c.ours(p),
        "kernel stored, cuBLAS + invocupy": c.kernel_stored(p),
        "one thread per output": c.one_thread_per_output(p),
        "torch unfold": c.in_torch(p, peers.unfold_form),
        "torch.compile, shifts": c.in_torch(
            p, torch.compile(peers.shift_form, fullgraph=True, dynamic=False)
        ),
    }
    wanted = c.expected(p)
    large = p.bytes["forward"] > LARGE
    runs: dict[Any, Callable[[], float]] = {("copy", "copy"): capture_cupy(copy(), 4)}
    rows: list[dict[str, Any]] = []
    for name, ops in contenders.items():
        if only and name not in only:
            continue
        problems = {op: problem(name, op, calls, wanted[op], dtype) for op, calls in ops.items()}
        for op, calls in ops.items():
            try:
                if problems[op]:
                    raise AssertionError(problems[op])
                torch.cuda.synchronize()
                cp.get_default_memory_pool().free_all_blocks()
                capture = capture_torch if "torch" in name or "cuBLAS" in name else capture_cupy
                if large and name == "torch unfold":
                    capture = eager_torch
                repeat = 1 if large or "torch" in name else max(1, 40 // len(calls))
                runs[name, op] = capture(calls, repeat)
            except (RuntimeError, AssertionError) as error:  # it is left out
                if name == "invocupy":
                    raise
                entry = {"shape": shape, "dtype": dtype, "op": op, "contender": name}
                rows.append(entry | {"failed": str(error)[:200]})
    summary = measure(runs, rounds)
    bandwidth = 2 * 2**30 / summary["copy", "copy"]["ms"] / 1e6
    for (name, op), figures in summary.items():
        moved = p.bytes.get(op, 2 * 2**30)
        rate = moved / figures["ms"] / 1e6
        rows.append(
            {"shape": shape, "dtype": dtype, "op": op, "contender": name, **figures}
            | {"bytes": moved, "gb_per_s": rate, "share_of_copy": rate / bandwidth}
        )
    torch.cuda.synchronize()
    del runs, contenders, p, wanted
    torch.compiler.reset()
    cp.get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()
    return rows


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    import contenders
    import cupy as cp
    import numpy as np
    import torch

    import invocupy

    properties = cp.cuda.runtime.getDeviceProperties(0)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": properties["name"].decode(),
        "multiprocessors": properties["multiProcessorCount"],
        "driver_cuda": cp.cuda.runtime.driverGetVersion(),
        "cuda_runtime": cp.cuda.runtime.runtimeGetVersion(),
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "cupy": cp.__version__,
        "torch": torch.__version__,
        "invocupy": invocupy.__version__,
        "channels_per_group": contenders.PER_GROUP,
    }


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown: single operations, then whole layers."""
    figures = {
        (row["shape"], row["dtype"], row["op"], row["contender"]): row for row in results["results"]
    }
    sizes = list(dict.fromkeys((row["shape"], row["dtype"]) for row in results["results"]))

    def lines(ops: Sequence[str], peers: Sequence[str]) -> list[str]:
        head = ["shape", "dtype", "operation", "invocupy: ms (share of copy)", *peers]
        made = [
            f"| {' | '.join(head)} |",
            "| --- | --- | --- " + "| ---: " * (len(peers) + 1) + "|",
        ]
        for shape, dtype in sizes:
            for op in ops:
                ours = figures[shape, dtype, op, "invocupy"]
                cells = [f"{ours['ms']:.4f} ({ours['share_of_copy']:.0%})"]
                for peer in peers:
                    row = figures.get((shape, dtype, op, peer))
                    if row is None or "failed" in row:
                        cells.append("failed" if row else "")
                    else:
                        cells.append(f"{row['ms']:.4f} ({row['ms'] / ours['ms']:.1f}x)")
                made.append(f"| {shape} | {dtype} | {op} | {' | '.join(cells)} |")
        return made

    facts = ", ".join(f"{name} {value}" for name, value in results.items() if name != "results")
    peers = ("one thread per output", "torch.compile, shifts", "torch unfold")
    return "\n".join(
        [
            f"Measured with `benchmarks/gpu.py`: {facts}.",
            "",
            *lines(("forward", "grad_x", "grad_kernel", "all three"), peers),
            "",
            *lines(("layer forward", "layer backward"), ["kernel stored, cuBLAS + invocupy"]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="results file to write")
    parser.add_argument("--table", type=Path, help="print an existing results file as Markdown")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--contender", action="append", default=[],
        help="measure only this one; repeatable. Other figures in an existing --out file are kept",
    )  # fmt: skip
    parser.add_argument("--shape", choices=SHAPES, action="append", help="only this; repeatable")
    parser.add_argument(
        "--dims", type=int, choices=(1, 2, 3), action="append",
        help="measure only shapes with this number of dimensions; repeatable",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "float16"), action="append")
    args = parser.parse_args()
    if args.table:
        print(table(json.loads(args.table.read_text())))
        return
    results = environment() | {"results": []}
    if args.contender and args.out and args.out.exists():
        kept = json.loads(args.out.read_text())
        if any(kept[key] != results[key] for key in results.keys() - {"date", "results"}):
            parser.error(f"{args.out} was measured elsewhere: measure all contenders")
        again = {*args.contender, "copy"}
        results["results"] = [row for row in kept["results"] if row["contender"] not in again]
    dims, named = args.dims or (1, 2, 3), args.shape or SHAPES
    shapes = [name for name, (shape, _) in SHAPES.items() if len(shape) - 2 in dims]
    for dtype in args.dtype or ("float32", "float16"):
        for shape in filter(named.__contains__, shapes):
            print(shape, dtype, file=sys.stderr, flush=True)
            results["results"] += benchmark(shape, dtype, args.rounds, args.contender)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()

"""Checks and measurements that need a GPU, in 12 minutes: one command, one results file.

    python benchmarks/gpu_all.py                    # writes benchmarks/results/gpu-DEVICE.json
    python benchmarks/gpu_all.py --parts step,memcheck --out FILE
    python benchmarks/gpu_all.py --parts all --seconds 7200     # all parts, in two hours
    python benchmarks/gpu_all.py --limit step=300

Parts, the most important first: ``tests`` (some of those marked ``gpu``), ``step``
(``gpu_network.py``: a training step compared with PyTorch's), ``memcheck`` and ``racecheck`` (the
block's kernels under compute-sanitizer), ``operators`` (``gpu.py``), ``counts`` (warp instructions,
multiply-adds and sectors of each kernel, by ncu and by the PTX interpreter). Only if named, or with
``all``: ``every_test``, ``initcheck`` and ``synccheck`` (of every kernel), and ``volumes``
(``gpu.py`` in one and three dimensions).

Each part is a process of its own with a time limit, and ends as ``done``, ``failed`` (it ran and
something is wrong, or it was stopped) or ``not possible``, with the reason. The file is replaced
after each part; parts of an earlier run on the same machine are kept. All parts together take at
most ``--seconds``. The exit status is 0 if no part failed, 1 if one did, 3 if there is no GPU.

If the machine has no network, or to save time there, download the wheels beforehand, with the same
version of Python::

    pip download -d wheels '.[cuda13x,test,proof]' torch hatchling

and on the machine (torch.compile and the interpreter need g++, ``counts`` nsight-compute)::

    pip install --no-index --find-links wheels -e '.[cuda13x,test,proof]' torch
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_tools import (  # noqa: E402
    METRICS,
    Failed,
    NotPossible,
    Record,
    compared,
    findings,
    read_ncu,
    run,
    summary_of_tests,
    tool,
)  # fmt: skip

LAUNCHES = ROOT / "tests" / "cuda_proof" / "launches.py"


# ---------------------------------------------------------------------------------------- parts


CHOSEN = (  # what the stand-in for CuPy cannot test, and every kernel in float32
    "tests/backends/cuda/test_network.py", "tests/backends/cuda/test_device.py",
    "tests/backends/cuda/test_launcher.py", "tests/train/test_graph.py",
    "-k", "not float64 and not float16 and not bfloat16 and not command_line",
)  # fmt: skip


def tests(limit: float) -> Record:
    """Some of the tests marked ``gpu``, on CuPy arrays."""
    there = [part for part in CHOSEN if not part.endswith(".py") or (ROOT / part).exists()]
    return every_test(limit, *there)


def every_test(limit: float, *chosen: str) -> Record:
    """All tests marked ``gpu``, or those that arguments of pytest choose."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}"]
        done = run([*command, *chosen], limit, HYPOTHESIS_PROFILE="gpu")
        if not report.exists():
            raise Failed(f"pytest wrote no report, exit status {done.returncode}",
                         output=done.stdout[-2000:])  # fmt: skip
        return summary_of_tests(report.read_text())


def sanitizer(kind: str, *rows: str) -> Callable[[float], Record]:
    """A part that runs all kernels, or those of some rows, once under a compute-sanitizer tool."""

    def part(limit: float) -> Record:
        command = [tool("compute-sanitizer"), "--tool", kind]
        if kind == "memcheck":
            command += ["--padding", "512"]  # or it may belong to another array
        done = run([*command, sys.executable, LAUNCHES, "device", *rows], limit)
        return findings(done.stdout, done.returncode)

    part.__doc__ = f"compute-sanitizer's {kind}: kernels launched once."
    return part


def counts(limit: float) -> Record:
    """The counts of each launch, by ncu and by the interpreter."""
    ncu, names = tool("ncu"), launched_names()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        log, expected = Path(folder) / "ncu.csv", Path(folder) / "expected.json"
        metrics = ",".join(metric for group in METRICS.values() for metric in group)
        done = run(
            [ncu, "--csv", "--print-units", "base", "--log-file", log, "--metrics", metrics,
             "--kernel-name", f"regex:^({'|'.join(names)})$", sys.executable, LAUNCHES, "device"],
            limit,
        )  # fmt: skip
        text = log.read_text() if log.exists() else ""
        error = re.search(r"==ERROR== (.*)", text + done.stdout)
        if error:
            refused = "ERR_NVGPUCTRPERM" in error[1] or "not supported" in error[1]
            raise NotPossible(error[1]) if refused else Failed(error[1])
        if done.returncode:
            raise Failed(f"exit status {done.returncode}", output=done.stdout[-2000:])
        measured = read_ncu(text)
        arch = compute_capability()
        left = limit - (time.monotonic() - began)
        counted = run([sys.executable, LAUNCHES, "count", expected, arch], max(left, 1))
        if counted.returncode:
            reason = "the interpreter of cuda_proof did not run"
            raise Failed(reason, ncu=measured, output=counted.stdout[-2000:])
        return compared(measured, json.loads(expected.read_text()))


def launched_names() -> list[str]:
    text = "".join(f.read_text() for f in (ROOT / "invocupy" / "backends").rglob("*.cu"))
    return sorted(set(re.findall(r"(?:KERNEL|__launch_bounds__)\([^\n]*\)\s+(\w+)\(", text)))


def benchmark(program: str, *options: str) -> Callable[[float], Record]:
    """A part that runs one of the benchmarks; what it has written is kept even if it is stopped."""

    def part(limit: float) -> Record:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.json"
            command = [sys.executable, ROOT / "benchmarks" / program, "--out", out, *options]
            try:
                done = run(command, limit)
                if done.returncode:
                    last = done.stdout.strip().splitlines()[-1:]
                    missing = re.search(r"No module named '(torch|cupy)'", done.stdout)
                    if missing:
                        raise NotPossible(f"{program} needs {missing[1]}")
                    raise Failed(f"exit status {done.returncode}: {''.join(last)}")
            except Failed as failed:
                if out.exists():
                    failed.left["results"] = json.loads(out.read_text())
                raise
            return {"results": json.loads(out.read_text())}

    part.__doc__ = f"benchmarks/{program}, whose own file this is."
    return part


# Rows of the table: all kernels of a block, as one operator or layer by layer.
BLOCK = "block float32", "expand float32"
FLOAT32 = "--dtype", "float32"
PARTS: dict[str, tuple[Callable[[float], Record], float]] = {  # with the seconds that each may take
    "tests": (tests, 180),
    "step": (benchmark("gpu_network.py", "--rounds", "5", "--repeat", "3"), 240),
    "memcheck": (sanitizer("memcheck", *BLOCK), 60),
    "racecheck": (sanitizer("racecheck", *BLOCK), 60),
    "operators": (benchmark("gpu.py", "--rounds", "5", *FLOAT32, "--dims", "2"), 100),
    "counts": (counts, 80),
    "every_test": (every_test, 1200),
    "initcheck": (sanitizer("initcheck"), 600),
    "synccheck": (sanitizer("synccheck"), 600),
    "volumes": (benchmark("gpu.py", *FLOAT32, "--dims", "1", "--dims", "3"), 900),
}
FIRST = "tests,step,memcheck,racecheck,operators,counts"
SECONDS = 720


def late(limit: float) -> Record:
    """The result of a part for which no time is left."""
    raise NotPossible("no time was left: name it in --parts, or give more --seconds")


def outcome(part: Callable[[float], Record], limit: float) -> Record:
    """Run a part; its record also tells of errors."""
    began = time.monotonic()
    try:
        record = {"state": "done"} | part(limit)
    except NotPossible as error:
        record = {"state": "not possible", "reason": str(error)}
    except Failed as error:
        record = {"state": "failed", "reason": str(error)} | error.left
    except Exception as error:  # an error in one part must not stop the others
        record = {"state": "failed", "reason": f"{type(error).__name__}: {error}"}
    return record | {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 1),
    }


# --------------------------------------------------------------------------------- the results file


def environment() -> Record:
    """What the results depend on, with the versions of what is installed."""
    sys.path.insert(0, str(ROOT))
    from invocupy.arrays import require_cupy

    cupy = require_cupy()
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    found: Record = {
        "device": properties["name"].decode(),
        "compute_capability": f"{properties['major']}{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "driver": driver(),
        "driver_cuda": cupy.cuda.runtime.driverGetVersion(),
        "cuda_runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "nvrtc": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
        "python": platform.python_version(),
        "cupy": cupy.__version__,
    }
    for package in ("invocupy", "numpy", "torch", "nvidia-cuda-nvrtc"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def driver() -> str:
    """The version of the driver (CUDA does not report it), or why it is unknown."""
    try:
        query = [tool("nvidia-smi"), "--query-gpu=driver_version", "--format=csv,noheader"]
        return run(query, 60).stdout.split("\n")[0].strip()
    except (NotPossible, Failed) as error:
        return f"unknown: {error}"


def compute_capability() -> str:
    return str(environment()["compute_capability"])


def source() -> str:
    """The commit that was measured, and whether files differ from it."""
    try:
        return run(["git", "describe", "--always", "--dirty", "--abbrev=12"], 60).stdout.strip()
    except (OSError, Failed):
        return "unknown: no git"


def write(out: Path, results: Record) -> None:
    """Replace the file at once: if this is interrupted, the old one stays."""
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1) + "\n")
    new.replace(out)


def earlier(out: Path, here: Record) -> Record:
    """The parts in ``out``, if they are of this machine and these versions."""
    if not out.exists():
        return {}
    kept: Record = json.loads(out.read_text())
    if kept["environment"] != here:
        raise SystemExit(f"{out} is of another machine or versions: give another --out")
    return dict(kept["parts"])


def limits(given: Sequence[str]) -> dict[str, float]:
    """``part=seconds`` over the defaults."""
    found = {name: limit for name, (_, limit) in PARTS.items()}
    for text in given:
        name, _, seconds = text.partition("=")
        if name not in PARTS or not seconds.isdecimal() or not int(seconds):
            raise SystemExit(f"--limit takes PART=SECONDS with one of {', '.join(PARTS)}: {text}")
        found[name] = float(seconds)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu-DEVICE.json")
    parser.add_argument("--parts", default=FIRST, help="names, separated by commas, or all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    parser.add_argument(
        "--limit", action="append", default=[], metavar="PART=SECONDS", help="repeatable"
    )
    arguments = parser.parse_args(argv)
    began, seconds = time.monotonic(), limits(arguments.limit)
    chosen = list(PARTS) if arguments.parts == "all" else arguments.parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    try:
        here = environment()
    except RuntimeError as error:
        print(f"nothing measured: {error}", file=sys.stderr)
        if arguments.out:
            states = {"state": "not possible", "reason": str(error)}
            write(arguments.out, {"environment": {}, "parts": dict.fromkeys(chosen, states)})
        return 3
    device = re.sub("[^a-z0-9]+", "-", here["device"].lower()).strip("-")
    out = arguments.out or ROOT / "benchmarks" / "results" / f"gpu-{device}.json"
    parts = earlier(out, here)
    for name in (name for name in PARTS if name in chosen):
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        left = arguments.seconds - (time.monotonic() - began)
        part = PARTS[name][0] if left >= 1 else late
        parts[name] = outcome(part, min(seconds[name], left)) | {"source": source()}
        write(out, {"environment": here, "parts": parts})
        told = parts[name]
        print(told["state"], told.get("reason", ""), f"({told['seconds']} s)", file=sys.stderr)
    print(out)
    return int(any(part["state"] == "failed" for part in parts.values()))


if __name__ == "__main__":
    sys.exit(main())

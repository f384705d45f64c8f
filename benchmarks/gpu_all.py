"""Everything that only a GPU can show: one command, one results file.

    python benchmarks/gpu_all.py                    # writes benchmarks/results/gpu-DEVICE.json
    python benchmarks/gpu_all.py --parts tests,memcheck --out FILE
    python benchmarks/gpu_all.py --limit network=300

Parts, in this order: the tests marked ``gpu``; each kernel once under compute-sanitizer
(``memcheck``, ``initcheck``, ``synccheck``, ``racecheck``); ``counts``, ncu's warp instructions,
multiply-adds and sectors against the PTX interpreter's for the same launches; the benchmarks
``operators`` (``gpu.py``) and ``network`` (``gpu_network.py``).

Each part is a process of its own with a time limit, and ends as ``done``, ``failed`` (it ran and
something is wrong, or it was stopped) or ``not possible``, with the reason. The file is written
after each part, whole or not at all; parts of an earlier run on the same machine are kept. The exit
status is 0 if no part failed, 1 if one did, 3 if there is no GPU.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LAUNCHES = ROOT / "tests" / "cuda_proof" / "launches.py"
TOOLS = "/usr/local/cuda*/bin", "/opt/nvidia/nsight-compute/*", "/usr/local/cuda*/nsight-compute*"
METRICS = {  # ncu's names of what the interpreter counts
    "warps": ["smsp__inst_executed.sum"],
    "fma": [
        "smsp__sass_thread_inst_executed_op_ffma_pred_on.sum",
        "smsp__sass_thread_inst_executed_op_dfma_pred_on.sum",
    ],
    "sectors": [
        "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
        "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
    ],
}
Record = dict[str, Any]


class NotPossible(Exception):  # noqa: N818
    """A part that this machine cannot run, and why."""


class Failed(Exception):  # noqa: N818
    """A part that ran and ended badly, and what it left."""

    def __init__(self, reason: str, **left: Any) -> None:
        super().__init__(reason)
        self.left = left


def run(command: Sequence[Any], limit: float, **environment: str) -> subprocess.CompletedProcess:
    """Run a program with all that it starts; past ``limit`` seconds all of it is killed."""
    process = subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, env={**os.environ, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise Failed(f"stopped after {limit:.0f} s", output=output[-2000:]) from None
    return subprocess.CompletedProcess(command, process.returncode, output)


def tool(name: str) -> str:
    """The path of one of NVIDIA's programs."""
    found = shutil.which(name)
    for pattern in TOOLS:
        found = found or next(
            (str(f / name) for f in sorted(Path("/").glob(pattern[1:])) if (f / name).is_file()),
            None,
        )
    if found is None:
        raise NotPossible(f"{name} is neither on PATH nor in {', '.join(TOOLS)}")
    return found


# ---------------------------------------------------------------------------------------- parts


def tests(limit: float) -> Record:
    """The tests marked ``gpu``, on CuPy arrays."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}"]
        done = run(command, limit, HYPOTHESIS_PROFILE="gpu")
        if not report.exists():
            raise Failed(f"pytest wrote no report, exit status {done.returncode}",
                         output=done.stdout[-2000:])  # fmt: skip
        return summary_of_tests(report.read_text())


def summary_of_tests(report: str) -> Record:
    """What pytest's XML report says; an error if a test failed or none passed."""
    cases = list(ET.fromstring(report).iter("testcase"))  # noqa: S314 (of pytest just now)
    bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c.find("skipped").get("message", "") for c in cases if c.find("skipped") is not None]
    counts = {
        "passed": len(cases) - len(bad) - len(skipped),
        "failed": [f"{c.get('classname')}::{c.get('name')}" for c in bad],
        "skipped": {reason: skipped.count(reason) for reason in dict.fromkeys(skipped)},
    }
    if bad:
        raise Failed(f"{len(bad)} tests failed", **counts)
    if not counts["passed"]:
        raise NotPossible("; ".join(counts["skipped"]) or "no test is marked gpu")
    return counts


def sanitizer(kind: str) -> Callable[[float], Record]:
    """A part that runs each kernel once under one tool of compute-sanitizer."""

    def part(limit: float) -> Record:
        command = [tool("compute-sanitizer"), "--tool", kind]
        if kind == "memcheck":
            command += ["--padding", "512"]  # what lies behind an array is another's, or nobody's
        done = run([*command, sys.executable, LAUNCHES, "device"], limit)
        return findings(done.stdout, done.returncode)

    part.__doc__ = f"compute-sanitizer's {kind}: each kernel launched once."
    return part


def findings(output: str, status: int) -> Record:
    """What compute-sanitizer says; an error if it found something or the program failed."""
    lines = [line[10:] for line in output.splitlines() if line.startswith("========= ")]
    summary = next((line for line in lines if "SUMMARY:" in line), None)
    version = next((line for line in output.splitlines() if "COMPUTE-SANITIZER" in line), None)
    if version is None and summary is None:
        raise Failed("compute-sanitizer said nothing of itself", output=output[-2000:])
    refused = next((line for line in lines if re.search("not supported|No attachable", line)), None)
    if refused:
        raise NotPossible(refused)
    if summary is None:
        raise Failed("no summary", output=output[-2000:])
    # Indented lines say where; those that are not say what.
    what = [line for line in lines if not re.match(r"\s|$|COMPUTE-|.*SUMMARY", line)]
    wrong = int(re.search(r"SUMMARY: (\d+)", summary)[1])
    if wrong or status:
        reason = summary.partition("SUMMARY: ")[2] if wrong else f"exit status {status}"
        raise Failed(reason, findings=what[:50], output=output[-2000:])
    return {"summary": summary}


def counts(limit: float) -> Record:
    """ncu's counts of each launch beside the interpreter's."""
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


def read_ncu(text: str) -> list[Record]:
    """ncu's CSV (one line a metric of a launch) as one record a launch, in order of launch."""
    start = text.find('"ID"')
    if start < 0:
        raise Failed("ncu wrote no table: it saw none of our kernels", output=text[-2000:])
    launches: dict[int, Record] = {}
    for row in csv.DictReader(io.StringIO(text[start:])):
        name = row["Kernel Name"].partition("(")[0]
        launch = launches.setdefault(int(row["ID"]), {"kernel": name})
        for count, metrics in METRICS.items():
            if row["Metric Name"] in metrics:
                value = float(row["Metric Value"].replace(",", ""))
                launch[count] = launch.get(count, 0) + int(value)
    return [launches[number] for number in sorted(launches)]


def compared(measured: list[Record], expected: list[Record]) -> Record:
    """Launch by launch; sectors and multiply-adds must agree, instructions are those of SASS."""
    pairs = list(zip(measured, expected, strict=False))
    if [m["kernel"] for m in measured] != [e["kernel"] for e in expected]:
        raise Failed(f"{len(measured)} launches under ncu, {len(expected)} in the interpreter, "
                     "or in another order", ncu=measured)  # fmt: skip
    rows = [
        {"kernel": e["kernel"], "case": e["case"]}
        | {name: {"ncu": m.get(name), "interpreter": e.get(name, 0)} for name in METRICS}
        for m, e in pairs
    ]
    different = [
        f"{row['kernel']} {row['case']}: {name}"
        for row in rows
        for name in ("fma", "sectors")
        if row[name]["ncu"] != row[name]["interpreter"]
    ]
    return {"different": different, "launches": rows}


def launched_names() -> list[str]:
    text = "".join(f.read_text() for f in (ROOT / "invocupy" / "backends").rglob("*.cu"))
    return sorted(set(re.findall(r"(?:KERNEL|__launch_bounds__)\([^\n]*\)\s+(\w+)\(", text)))


def benchmark(program: str) -> Callable[[float], Record]:
    """A part that runs one of the benchmarks; what it had written counts even if it was stopped."""

    def part(limit: float) -> Record:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.json"
            command = [sys.executable, ROOT / "benchmarks" / program, "--out", out]
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


PARTS: dict[str, tuple[Callable[[float], Record], float]] = {  # and seconds that each may take
    "tests": (tests, 1200),
    "memcheck": (sanitizer("memcheck"), 600),
    "initcheck": (sanitizer("initcheck"), 600),
    "synccheck": (sanitizer("synccheck"), 600),
    "racecheck": (sanitizer("racecheck"), 600),
    "counts": (counts, 1200),
    "operators": (benchmark("gpu.py"), 900),
    "network": (benchmark("gpu_network.py"), 900),
}


def outcome(part: Callable[[float], Record], limit: float) -> Record:
    """Run a part; whatever happens becomes a record."""
    began = time.monotonic()
    try:
        record = {"state": "done"} | part(limit)
    except NotPossible as error:
        record = {"state": "not possible", "reason": str(error)}
    except Failed as error:
        record = {"state": "failed", "reason": str(error)} | error.left
    except Exception as error:  # a part that breaks must not take the others with it
        record = {"state": "failed", "reason": f"{type(error).__name__}: {error}"}
    return record | {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 1),
    }


# --------------------------------------------------------------------------------- the results file


def environment() -> Record:
    """What the results depend on; versions of what is not installed are left out."""
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
    """The driver's own version, which CUDA does not tell; or why it is not known."""
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
    """All of it or, if this is cut off, what was there before."""
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_suffix(".new")
    new.write_text(json.dumps(results, indent=1) + "\n")
    new.replace(out)


def earlier(out: Path, here: Record) -> Record:
    """The parts that ``out`` holds, if it is of this machine and these versions."""
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
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas")
    parser.add_argument(
        "--limit", action="append", default=[], metavar="PART=SECONDS", help="may repeat"
    )
    arguments = parser.parse_args(argv)
    chosen, seconds = arguments.parts.split(","), limits(arguments.limit)
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
        parts[name] = outcome(PARTS[name][0], seconds[name]) | {"source": source()}
        write(out, {"environment": here, "parts": parts})
        told = parts[name]
        print(told["state"], told.get("reason", ""), f"({told['seconds']} s)", file=sys.stderr)
    print(out)
    return int(any(part["state"] == "failed" for part in parts.values()))


if __name__ == "__main__":
    sys.exit(main())

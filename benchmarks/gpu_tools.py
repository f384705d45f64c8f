"""Finds and runs NVIDIA's programs and pytest for ``gpu_all.py``, and reads their output.

:class:`NotPossible`: this machine cannot run it. :class:`Failed`: it ran and reports errors.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import signal
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
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
    """A part that ran and failed, and its results."""

    def __init__(self, reason: str, **left: Any) -> None:
        super().__init__(reason)
        self.left = left


def run(command: Sequence[Any], limit: float, **environment: str) -> subprocess.CompletedProcess:
    """Run a program; after ``limit`` seconds kill it and all processes that it has started."""
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


def summary_of_tests(report: str) -> Record:
    """The summary of pytest's XML report; an error if a test failed or none passed."""
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


def findings(output: str, status: int) -> Record:
    """The summary of compute-sanitizer; an error if it found something or the program failed."""
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
    # Lines without indentation say what is wrong, indented ones where.
    what = [line for line in lines if not re.match(r"\s|$|COMPUTE-|.*SUMMARY", line)]
    wrong = int(re.search(r"SUMMARY: (\d+)", summary)[1])
    if wrong or status:
        reason = summary.partition("SUMMARY: ")[2] if wrong else f"exit status {status}"
        raise Failed(reason, findings=what[:50], output=output[-2000:])
    return {"summary": summary}


def read_ncu(text: str) -> list[Record]:
    """ncu's CSV (one line per launch and metric) as one record per launch, in order."""
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

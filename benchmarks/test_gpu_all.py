"""``benchmarks/gpu_all.py`` where there is no GPU: what it reads, and what it says of what failed.

The samples are what NVIDIA's tools print, cut to the lines that matter.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "gpu_all.py"

CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
OUT_OF_BOUNDS = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 16 bytes
=========     at load(const float *, float *)+0x1a0 in invocupy/backends/cuda/cuda.cuh:38
=========     by thread (31,0,0) in block (6,0,0)
=========     Address 0x7f4c5e200e00 is out of bounds
=========
========= ERROR SUMMARY: 1 error
"""
RACE = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at sum+0x90 in kernel.cu:7
=========     and Read access at sum+0x110 in kernel.cu:9 [480 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
NO_RACE = """\
========= COMPUTE-SANITIZER
========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)
"""
NCU = (
    '==PROF== Connected to process 42 (/usr/bin/python3.12)\n'
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size",'
    '"Grid Size","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"\n'
    + "".join(
        f'"{number}","42","python3.12","127.0.0.1","{kernel}","1","7","(128, 1, 1)","(7, 1, 1)",'
        f'"0","9.0","Command line profiler metrics","{metric}","{unit}","{value}"\n'
        for number, kernel, values in (
            (0, "forward", ("1,234,567", "100", "0", "30", "4")),
            (1, "grad_x", ("8", "0", "2", "5", "1")),
        )
        for metric, unit, value in zip(
            (
                "smsp__inst_executed.sum",
                "smsp__sass_thread_inst_executed_op_ffma_pred_on.sum",
                "smsp__sass_thread_inst_executed_op_dfma_pred_on.sum",
                "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
                "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
            ),
            ("inst", "inst", "inst", "sector", "sector"), values, strict=True,
        )
    )
)  # fmt: skip
MEASURED = [
    {"kernel": "forward", "warps": 1234567, "fma": 100, "sectors": 34},
    {"kernel": "grad_x", "warps": 8, "fma": 2, "sectors": 6},
]
HERE = {"device": "NVIDIA Test 1", "compute_capability": "90"}


@pytest.fixture
def gpu_all(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, on a machine that has a GPU, if you ask it, and none of NVIDIA's tools."""
    spec = importlib.util.spec_from_file_location("gpu_all", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "environment", lambda: dict(HERE))
    monkeypatch.setattr(sys.modules["gpu_tools"], "TOOLS", ())
    monkeypatch.setenv("PATH", "")
    return module


def program(folder: Path, name: str, *lines: str) -> None:
    """An executable made of lines of Python."""
    file = folder / name
    file.write_text("\n".join((f"#!{sys.executable}", "import sys, time", *lines)))
    file.chmod(0o755)


def failure(gpu_all: ModuleType, *call: Any) -> Any:
    with pytest.raises(gpu_all.Failed) as caught:
        call[0](*call[1:])
    return caught.value


@pytest.mark.parametrize("output", [CLEAN, NO_RACE])
def test_sanitizer_that_finds_nothing(gpu_all: ModuleType, output: str) -> None:
    assert " 0 " in gpu_all.findings(output, 0)["summary"]


@pytest.mark.parametrize(
    ("output", "status", "reason", "first"),
    [
        (OUT_OF_BOUNDS, 0, "1 error", "Invalid __global__ read of size 16 bytes"),
        (RACE, 0, "1 hazard displayed (1 error, 0 warnings)", "Error: Race reported between Write "
         "access at sum+0x90 in kernel.cu:7"),
        (CLEAN, 1, "exit status 1", None),  # a result was wrong
    ],
)  # fmt: skip
def test_sanitizer_that_finds_something(
    gpu_all: ModuleType, output: str, status: int, reason: str, first: str | None
) -> None:
    error = failure(gpu_all, gpu_all.findings, output, status)
    assert str(error) == reason
    assert error.left["findings"][:1] == ([first] if first else [])


def test_sanitizer_that_cannot_run(gpu_all: ModuleType) -> None:
    with pytest.raises(gpu_all.NotPossible, match="not supported"):
        gpu_all.findings("========= COMPUTE-SANITIZER\n========= Device not supported\n", 1)
    assert "nothing of itself" in str(failure(gpu_all, gpu_all.findings, "Segmentation fault", 1))
    cut_off = CLEAN.splitlines()[0]
    assert str(failure(gpu_all, gpu_all.findings, cut_off, 1)) == "no summary"


def test_ncu_table(gpu_all: ModuleType) -> None:
    assert gpu_all.read_ncu(NCU) == MEASURED
    assert "no table" in str(failure(gpu_all, gpu_all.read_ncu, "==PROF== Connected\n"))


def test_counts_are_compared_launch_by_launch(gpu_all: ModuleType) -> None:
    expected = [
        {"kernel": "forward", "case": "k3 float32", "warps": 1300000, "fma": 100, "sectors": 34},
        {"kernel": "grad_x", "case": "k3 float32", "warps": 9, "sectors": 6, "bytes": 1},
    ]
    record = gpu_all.compared(MEASURED, expected)
    assert record["different"] == ["grad_x k3 float32: fma"]
    assert record["launches"][0]["warps"] == {"ncu": 1234567, "interpreter": 1300000}
    for other in (expected[::-1], expected[:1]):
        assert "another order" in str(failure(gpu_all, gpu_all.compared, MEASURED, other))


def test_every_kernel_is_counted() -> None:
    """ncu is told the kernels' names: those that the proof launches."""
    import gpu_all

    table = pytest.importorskip("cuda_proof.table")
    assert set(gpu_all.launched_names()) >= {name for name, *_ in table.specialisations().values()}


def test_reports_of_pytest(gpu_all: ModuleType) -> None:
    good, skipped = (
        '<testcase name="a"/>',
        '<testcase name="b"><skipped message="no GPU"/></testcase>',
    )
    bad = '<testcase classname="tests.test_x" name="c"><failure message="1 != 2"/></testcase>'
    record = gpu_all.summary_of_tests(f"<testsuite>{good}{skipped}</testsuite>")
    assert record == {"passed": 1, "failed": [], "skipped": {"no GPU": 1}}
    error = failure(gpu_all, gpu_all.summary_of_tests, f"<testsuite>{good}{bad}</testsuite>")
    assert error.left["failed"] == ["tests.test_x::c"]
    with pytest.raises(gpu_all.NotPossible, match="no GPU"):
        gpu_all.summary_of_tests(f"<testsuite>{skipped}</testsuite>")


def test_missing_tools(gpu_all: ModuleType) -> None:
    for part in ("memcheck", "racecheck", "counts"):
        record = gpu_all.outcome(gpu_all.PARTS[part][0], 60)
        assert record["state"] == "not possible"
        assert "neither on PATH" in record["reason"]


def test_tools_that_refuse(
    gpu_all: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program(tmp_path, "ncu", "print('==ERROR== ERR_NVGPUCTRPERM - no permission')", "sys.exit(1)")
    record = gpu_all.outcome(gpu_all.PARTS["counts"][0], 60)
    assert (record["state"], record["reason"][:16]) == ("not possible", "ERR_NVGPUCTRPERM")
    program(tmp_path, "compute-sanitizer", f"print({OUT_OF_BOUNDS!r})")
    record = gpu_all.outcome(gpu_all.PARTS["memcheck"][0], 60)
    assert (record["state"], record["reason"]) == ("failed", "1 error")


def test_a_part_past_its_limit_keeps_what_it_wrote(gpu_all: ModuleType, tmp_path: Path) -> None:
    program(tmp_path, "slow.py", "open(sys.argv[2], 'w').write('[1]')", "time.sleep(600)")
    record = gpu_all.outcome(gpu_all.benchmark(str(tmp_path / "slow.py")), 3)
    assert (record["state"], record["reason"]) == ("failed", "stopped after 3 s")
    assert record["results"] == [1]


def test_a_benchmark_without_its_peer(gpu_all: ModuleType, tmp_path: Path) -> None:
    program(tmp_path, "peer.py", "sys.exit(\"No module named 'torch'\")")
    record = gpu_all.outcome(gpu_all.benchmark(str(tmp_path / "peer.py")), 60)
    assert (record["state"], record["reason"][-11:]) == ("not possible", "needs torch")


def test_the_file(gpu_all: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written after each part; other parts of the same machine stay; another machine is refused."""
    out = tmp_path / "results" / "gpu.json"
    seen = []

    def part(name: str, value: int) -> Any:
        def run(limit: float) -> dict[str, Any]:
            seen.append(
                (name, limit, out.exists() and sorted(json.loads(out.read_text())["parts"]))
            )
            if value < 0:
                raise KeyError("broken")
            return {"value": value}

        return run, 100.0

    parts = {"one": part("one", 1), "two": part("two", -1), "three": part("three", 3)}
    monkeypatch.setattr(gpu_all, "PARTS", parts)
    assert gpu_all.main(["--out", str(out), "--parts", "two,one", "--limit", "two=5"]) == 1
    assert seen == [("one", 100.0, False), ("two", 5.0, ["one"])]
    assert gpu_all.main(["--out", str(out), "--parts", "three"]) == 1
    results = json.loads(out.read_text())
    assert results["environment"] == HERE
    assert {name: part["state"] for name, part in results["parts"].items()} == {
        "one": "done", "two": "failed", "three": "done",
    }  # fmt: skip
    assert results["parts"]["two"]["reason"] == "KeyError: 'broken'"
    assert [file.name for file in out.parent.iterdir()] == ["gpu.json"]
    monkeypatch.setattr(gpu_all, "environment", lambda: HERE | {"device": "another"})
    with pytest.raises(SystemExit, match="another machine"):
        gpu_all.main(["--out", str(out), "--parts", "one"])
    with pytest.raises(SystemExit, match="PART=SECONDS"):
        gpu_all.main(["--limit", "four=1"])


def test_the_parts_fit_into_their_time(gpu_all: ModuleType) -> None:
    first = gpu_all.FIRST.split(",")
    assert first == list(gpu_all.PARTS)[: len(first)]
    assert sum(gpu_all.PARTS[name][1] for name in first) <= gpu_all.SECONDS == 720
    files = [part for part in gpu_all.CHOSEN if part.endswith(".py")]
    assert all((PROGRAM.parents[1] / file).exists() for file in files[:3])


def test_no_part_runs_past_the_time_of_all(
    gpu_all: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits are what is left of it, and a part for which nothing is left does not begin."""
    clock = [0.0]
    given = []

    def part(limit: float) -> dict[str, Any]:
        given.append(limit)
        clock[0] += 40
        return {}

    monkeypatch.setattr(gpu_all.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(gpu_all, "PARTS", dict.fromkeys("abc", (part, 60.0)))
    out = tmp_path / "gpu.json"
    assert gpu_all.main(["--out", str(out), "--parts", "all", "--seconds", "80"]) == 0
    assert given == [60, 40]
    states = {name: p["state"] for name, p in json.loads(out.read_text())["parts"].items()}
    assert states == {"a": "done", "b": "done", "c": "not possible"}


def test_what_the_sanitizers_run_on_the_stand_in() -> None:
    """Kernels of one row of the table, each result checked; other rows do not run."""
    import gpu_all

    pytest.importorskip("cuda_proof")
    root = PROGRAM.parents[1]
    path = os.pathsep.join(map(str, (root / "tests" / "stand_in", root)))
    for row, status in ((gpu_all.BLOCK[1], 0), ("no such row", 1)):
        done = subprocess.run(
            [sys.executable, gpu_all.LAUNCHES, "device", row],
            env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == status, done.stderr


def test_steps_are_written_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """And after each that is: a run that is stopped keeps what it has."""
    import gpu_network

    calls: list[str] = []
    cuda = SimpleNamespace(synchronize=lambda: None, get_device_name=lambda: "test")
    runtime = SimpleNamespace(driverGetVersion=lambda: 13000)
    cupy = SimpleNamespace(__version__="14", cuda=SimpleNamespace(runtime=runtime))
    torch = SimpleNamespace(__version__="2", cuda=cuda)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    steps = {"ours": lambda: calls.append("ours")}

    def of_torch(mode: str | None) -> Any:
        return lambda: calls.append(str(mode))

    monkeypatch.setattr(gpu_network, "contenders", lambda *sizes: (dict(steps), of_torch))
    monkeypatch.setattr(gpu_network, "trained", lambda *sizes: 2.0)
    results = list(gpu_network.measure(2, 256, 3, 2, True))
    names = [[row["contender"] for row in result["rows"]] for result in results]
    fit, (plain, graphs) = "invocupy, train.fit", gpu_network.MODES
    assert names == [["ours", fit], ["ours", plain, fit], ["ours", plain, graphs, fit]]
    assert calls.count("ours") == 2 + 3 * 3 * 2
    assert calls.count("reduce-overhead") == 2 + 3 * 2
    assert results[0]["rows"][1]["images_per_second"] == 128000
    assert f"| {fit} | 128,000 |" in gpu_network.table(results[2])


def test_without_a_gpu(
    gpu_all: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> Any:
        raise RuntimeError("CUDA needs a GPU")

    monkeypatch.setattr(gpu_all, "environment", none)
    out = tmp_path / "gpu.json"
    assert gpu_all.main(["--out", str(out), "--parts", "tests,counts"]) == 3
    states = json.loads(out.read_text())["parts"]
    state = {"state": "not possible", "reason": "CUDA needs a GPU"}
    assert states == {"tests": state, "counts": state}

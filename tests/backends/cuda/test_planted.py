"""The tests of the CUDA proof: planted mistakes, each caught by the checks named for it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cuda_proof import cases, host, nvrtc, planted, ptx, sanitize, table

from invocupy.backends import cuda

PAIRS = [(name, check) for name, bug in planted.BUGS.items() for check in bug.found]


def problem_of(bug: planted.Bug) -> cases.Problem:
    return cases.involution(bug.function, bug.family, height=7, units=5)


def by_results(bug: planted.Bug) -> str:
    problem = problem_of(bug)
    with host.installed(host.Machine("fast", replacements=bug.replacements).compile):
        results = cases.run(problem)
    with pytest.raises(AssertionError) as caught:
        cases.check(problem, results)
    return str(caught.value)


def by_trace(bug: planted.Bug) -> str:
    machine = host.Machine("trace", replacements=bug.replacements)
    with host.installed(machine.compile):
        cases.run(problem_of(bug))
    return "\n".join(machine.findings + machine.unwritten())


def by_ptx(bug: planted.Bug) -> str:
    def compile_(kernel: str, macros: cuda.Macros) -> ptx.Kernel:
        source = host.substituted(cuda.source(kernel, macros), bug.replacements)
        return ptx.Kernel(nvrtc.ptx(source, 90), cuda.name_of(kernel))

    problem = problem_of(bug)
    with host.installed(compile_), pytest.raises((AssertionError, ptx.Fault)) as caught:
        cases.check(problem, cases.run(problem))
    return str(caught.value)


def by_sanitizers(name: str) -> str:
    done = sanitize.run(name)
    assert done.returncode != 0
    return done.stderr


def by_table(bug: planted.Bug) -> str:
    key = f"{bug.function} {bug.family} float32"
    name, source, _ = table.specialisations()[key]
    bad = table.measured(name, host.substituted(source, bug.replacements), (90,))
    return "\n".join(table.worse(key, table.load()[key], bad))


@pytest.mark.parametrize(("name", "check"), PAIRS)
def test_planted_bug_is_caught(name: str, check: str) -> None:
    bug = planted.BUGS[name]
    checks = {"results": by_results, "trace": by_trace, "ptx": by_ptx, "table": by_table}
    said = by_sanitizers(name) if check == "sanitizers" else checks[check](bug)
    assert re.search(bug.found[check], said), said[-3000:]


def test_a_pattern_that_no_longer_matches_fails_loudly() -> None:
    machine = host.Machine(replacements=(("no such text", ""),))
    with host.installed(machine.compile), pytest.raises(LookupError, match="no longer matches"):
        cases.run(cases.involution("forward", "k3"))


# ------------------------------------------------ the machine itself, on kernels made for the test

SUM = """
extern "C" __global__ void sum(const float* x, float* out, int scale)
{
    __shared__ float part[4];
    float mine = x[blockIdx.x * 128 + threadIdx.x];
    for (int step = 16; step > 0; step /= 2) mine += __shfl_xor_sync(0xffffffffu, mine, step);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x == 0) out[blockIdx.x] = scale * (part[0] + part[1] + part[2] + part[3]);
}
"""


def launch_sum(machine: host.Machine, *scale: object) -> np.ndarray:
    x, out = np.arange(256, dtype=np.float32), np.full(2, np.nan, np.float32)
    arguments = scale or (np.int32(2),)
    machine.compile_source("sum", SUM)((2,), (128,), (x, out, *arguments))
    return out


def test_denormals_are_flushed_as_on_the_device() -> None:
    """CuPy compiles with -ftz=true: float32 below 1.2e-38 goes in and comes out as zero."""
    source = 'extern "C" __global__ void half(const float* x, float* out)'
    source += "{ out[threadIdx.x] = x[threadIdx.x] * 0.5f; }"
    x, out = np.float32([2e-38, -2e-38, 1e-40, 3e-38, 1]), np.full(5, np.nan, np.float32)
    ptx.Kernel(nvrtc.ptx(source, 90), "half")((1,), (5,), (x, out))
    np.testing.assert_array_equal(out, np.float32([0, 0, 0, 1.5e-38, 0.5]))
    assert np.signbit(out).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("order", [0, 1, 5])
def test_barriers_and_shuffles(order: int) -> None:
    machine = host.Machine("trace", order)
    np.testing.assert_array_equal(launch_sum(machine), [2 * 8128, 2 * (32640 - 8128)])
    assert machine.findings == []
    np.testing.assert_array_equal(launch_sum(host.Machine("fast", order)), [16256, 49024])


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("    __syncthreads();\n", "", "race between threads, .*: shared"),
        ("__syncthreads();", "if (threadIdx.x < 64) __syncthreads();", "stuck"),
        ("__syncthreads();", "if (threadIdx.x > 99) return;", "stuck|shared"),
        ("if (threadIdx.x % 32 == 0)", "if (threadIdx.x == 0)", "uninitialised read: shared"),
        ("out[blockIdx.x]", "out[0]", "race between blocks"),
        ("0xffffffffu", "0x0000ffffu", "shuffle with mask"),
    ],
)
def test_planted_barrier_bug_is_caught(old: str, new: str, found: str) -> None:
    machine = host.Machine("trace", order=1, replacements=((old, new),))
    launch_sum(machine)
    assert re.search(found, "\n".join(machine.findings))


@pytest.mark.parametrize("mode", ["fast", "trace"])
@pytest.mark.parametrize(
    ("crash", "what"),
    [
        ("*(volatile int*)16 = 1;", "Segmentation fault, block 1, thread 5, address 0x10 "),
        ("*(volatile int*)(1L << 60) = 1;", "Segmentation fault, block 1, thread 5"),
        ("__builtin_trap();", "Illegal instruction, block 1, thread 5"),
        ("volatile int no = 0; scale /= no;", "Floating point exception, block 1, thread 5"),
    ],
)
def test_a_crash_ends_the_launch_and_not_the_tests(mode: str, crash: str, what: str) -> None:
    """It is said of which kernel, block and thread, and at which line; others run on."""
    here = f"if (blockIdx.x == 1 && threadIdx.x == 5) {{ {crash} }}\n    __syncthreads();"
    machine = host.Machine(mode, replacements=(("__syncthreads();", here),))
    if mode == "fast":
        with pytest.raises(host.LaunchError, match=f"sum: crash: {what}"):
            launch_sum(machine)
    else:
        launch_sum(machine)
        assert re.search("crash: |out of bounds write: 4 bytes far", "\n".join(machine.findings))
    np.testing.assert_array_equal(launch_sum(host.Machine()), [16256, 49024])


@pytest.mark.parametrize(
    "scale", [(2,), (2.0,), (True,), (np.int64(2),), (np.float32(2),), (np.int32(2),) * 2, (None,)]
)
def test_a_launch_with_wrong_arguments_is_refused(scale: tuple[object, ...]) -> None:
    with pytest.raises(host.LaunchError, match="argument"):
        launch_sum(host.Machine(), *scale)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_launch_with_the_wrong_item_size_is_refused(dtype: type) -> None:
    function = host.Machine().compile_source("sum", SUM)
    with pytest.raises(host.LaunchError, match="items of 4 bytes"):
        function((1,), (128,), (np.zeros(128, dtype), np.zeros(1, np.float32), np.int32(1)))


def test_a_launch_beyond_the_limits_is_refused() -> None:
    function = host.Machine().compile_source("sum", SUM)
    for grid, block in (((0,), (128,)), ((1,), (2048,)), ((1, 70000), (32,))):
        with pytest.raises(host.LaunchError):
            function(grid, block, (np.zeros(128, np.float32),) * 2)


def test_vectors_on_unaligned_arrays_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "vector", lambda row, *arrays: 4)
    bug = planted.Bug((), {}, family="k3-dilated-unaligned")
    assert "misaligned" in by_ptx(bug)

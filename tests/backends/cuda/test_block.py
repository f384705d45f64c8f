"""The kernels of involution_block: results, order, races, and planted mistakes that are found."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cuda_proof import (
    block_cases,
    block_planted,
    cases,
    expansion_cases,
    host,
    ptx,
    sanitize,
    table,
)
from cuda_proof.block_planted import BUGS, Bug
from cuda_proof.checks import trace, verify

from invocupy.backends import cuda
from invocupy.backends.cuda import involution_block as block

# Every family in float32; the other types where the code differs by type: vectors, and lanes.
COMBINATIONS = [
    (family, dtype)
    for dtype in cases.DTYPES
    for family in block_cases.FAMILIES
    if dtype == "float32" or family == "slices"  # the PTX of "article" runs in all types
]
PAIRS = [(name, check) for name, bug in BUGS.items() for check in bug.found]
functions = pytest.mark.parametrize("function", block_cases.FUNCTIONS)


@functions
@pytest.mark.parametrize(("family", "dtype"), COMBINATIONS)
def test_block(function: str, family: str, dtype: str) -> None:
    """Ragged tiles and slices; images smaller than the kernel reaches; one image."""
    verify(block_cases.block(function, family, dtype, batch=2, height=10))
    verify(block_cases.block(function, family, dtype, batch=1, height=2, seed=1))
    if function == "forward":  # with the largest tiles
        verify(block_cases.block(function, family, dtype, batch=2, height=31, width=63))


@functions
@pytest.mark.parametrize("family", block_cases.FAMILIES)
def test_trace_of_block(function: str, family: str) -> None:
    trace(block_cases.block(function, family, height=5))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_running(dtype: str) -> None:
    verify(block_cases.running(dtype))
    trace(block_cases.running(dtype))


@functions
def test_nan_stays_nan(function: str) -> None:
    """In one pixel of x: where its moments go into all results of its channel, or its kernel's."""
    problem = block_cases.block(function, "odd")
    x = problem.inputs[function == "gradients"]
    x[1, 2, 4, 5] = np.nan
    with host.installed(host.Machine().compile):
        results = cases.run(problem)
    wrong = np.isnan(results[0])
    assert wrong[1, 2, 4, 5]
    if function == "forward":
        assert not wrong[0].any()
        assert not wrong[1, :, 7:].any()


def test_a_margin_too_large_for_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is launched, and the reference evaluates the block."""
    sizes = block.Sizes(8, 64, 2, 1, (5, 5), (3, 3), 4)
    assert sizes.fit()
    none = block.evaluation(sizes, 32, 32)
    assert none == (0, 0, 0)
    problem = block_cases.block("forward", "odd")
    monkeypatch.setattr(block, "evaluation", lambda *sizes: none)
    with host.installed(lambda *kernel: pytest.fail("a launch")):
        cases.check(problem, cases.run(problem))


def test_a_wide_stream_uses_16_bytes() -> None:
    """And a row of 33 single elements."""
    for family, vector in (("article", 4), ("odd", 1)):
        found = []

        def record(kernel: str, macros: dict[str, object]) -> object:
            found.append(macros["VECTOR"])  # noqa: B023
            return lambda *launch: None

        with host.installed(record):
            cases.run(block_cases.block("train", family))
        assert found == [vector] * 5


def problem_of(bug: Bug) -> cases.Problem:
    if bug.kernel.startswith("expansion/"):
        return expansion_cases.expansion(bug.function)
    return block_cases.block(bug.function, bug.family)


def by_results(bug: Bug) -> str:
    problem = problem_of(bug)
    with host.installed(host.Machine().compile):
        results = cases.run(problem)
    with pytest.raises(AssertionError) as caught:
        cases.check(problem, results)
    return str(caught.value)


def by_trace(bug: Bug) -> str:
    machine = host.Machine("trace")
    with host.installed(machine.compile):
        cases.run(problem_of(bug))
    return "\n".join(machine.findings + machine.unwritten())


def by_ptx(bug: Bug) -> str:
    with pytest.raises((AssertionError, ptx.Fault)) as caught:
        table.counted(problem_of(bug), "")
    return str(caught.value)


def by_table(bug: Bug) -> str:
    key = f"{bug.kernel} block float32"
    name, source, _ = table.specialisations()[key]
    bad = table.measured(name, source, (90,))
    return "\n".join(table.worse(key, table.load()[key], bad))


@pytest.mark.parametrize(("name", "check"), PAIRS)
def test_planted_bug_is_caught(name: str, check: str) -> None:
    bug = BUGS[name]
    checks = {"results": by_results, "trace": by_trace, "ptx": by_ptx, "table": by_table}
    if check == "sanitizers":  # a process of its own, where arrays are past 2^31 elements
        done = sanitize.run(name)
        assert done.returncode != 0
        said = done.stderr
    else:
        with block_planted.planted(bug):
            said = checks[check](bug)
    assert re.search(bug.found[check], said), said[-3000:]


def test_vectors_on_unaligned_arrays_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the tracer too; arrays of a problem start at different offsets."""
    monkeypatch.setattr(cuda, "vector", lambda row, *arrays: 2)
    machine = host.Machine("trace")
    with host.installed(machine.compile):
        cases.run(block_cases.block("train", "slices"))
    assert "misaligned read8" in "\n".join(machine.findings)
    assert "misaligned write8" in "\n".join(machine.findings)

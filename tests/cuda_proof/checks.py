"""What is asked of every problem: the result, the same bits in any order, and a clean trace."""

from __future__ import annotations

from . import cases, host


def verify(problem: cases.Problem) -> None:
    """Right within the derived bound, and the same bits in any order of blocks and threads."""
    runs = []
    for order in (0, 1, 2):
        with host.installed(host.Machine("fast", order).compile):
            runs.append(cases.run(problem))
    cases.check(problem, runs[0])
    for results in zip(*runs, strict=True):
        bits = {None if array is None else array.tobytes() for array in results}
        assert len(bits) == 1, f"{problem.name}: the order of the threads shows"


def trace(problem: cases.Problem) -> None:
    """No conflicting access, none out of bounds or of what holds nothing, no gap in a result."""
    machine = host.Machine("trace", order=3)
    with host.installed(machine.compile):
        results = cases.run(problem)
    assert machine.findings == []
    assert machine.unwritten() == []
    cases.check(problem, results)

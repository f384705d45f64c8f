"""The CUDA source, built by g++ and run by the library's own launcher: results, order, races."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from cuda_proof import cases, host

pytestmark = pytest.mark.skipif(
    host.missing() is not None and not os.environ.get("CI"), reason=str(host.missing())
)

# Every family in float32; the other types where the code differs by type: vectors, tails, stride.
COMBINATIONS = [
    (family, dtype)
    for dtype in cases.DTYPES
    for family in cases.FAMILIES
    if dtype == "float32" or family in ("k7", "k3-ragged-even", "k3-stride2", "k2x3-mixed")
]
everywhere = pytest.mark.parametrize("function", cases.INVOLUTION)


def draw_cases(family: str, dtype: str) -> st.SearchStrategy[cases.Case]:
    return st.builds(
        cases.Case,
        family=st.just(cases.FAMILIES[family]),
        dtype=st.just(cases.DTYPES[dtype]),
        batch=st.integers(0, 3),
        groups=st.integers(1, 3),
        height=st.integers(1, 12),
        width_units=st.sampled_from((1, 3, 5)),
        seed=st.integers(0, 2**16),
    )


@everywhere
@pytest.mark.parametrize(("family", "dtype"), COMBINATIONS)
def test_results_and_order(function: str, family: str, dtype: str) -> None:
    """Right within the derived bound, and the same bits in any order of blocks and threads."""

    @settings(max_examples=8)
    @given(draw_cases(family, dtype))
    def examples(case: cases.Case) -> None:
        verify(function, case)

    examples()
    # Several blocks and more than one strip, row and image to each.
    verify(function, cases.Case(cases.FAMILIES[family], cases.DTYPES[dtype], 3, 2, 13, 9))


def verify(function: str, case: cases.Case) -> None:
    inputs = case.inputs(function)
    every_order = []
    for order in (0, 1, 2 + case.seed):
        with host.installed(host.Machine("fast", order).compile):
            every_order.append(cases.run(function, case, inputs))
    cases.check(function, case, inputs, every_order[0])
    for results in every_order[1:]:
        for first, other in zip(every_order[0], results, strict=True):
            assert first.tobytes() == other.tobytes(), "the order of the threads shows"


@everywhere
@pytest.mark.parametrize("family", cases.FAMILIES)
def test_trace(function: str, family: str) -> None:
    """No conflicting access, none out of bounds, none of what holds nothing, no gap in a result."""
    case = cases.Case(cases.FAMILIES[family], cases.DTYPES["float32"], 2, 2, 7, 5)
    machine = host.Machine("trace", order=3)
    inputs = case.inputs(function)
    with host.installed(machine.compile):
        results = cases.run(function, case, inputs)
    assert machine.findings == []
    assert machine.unwritten() == []
    cases.check(function, case, inputs, results)

"""The CUDA source, built by g++ and run by the library's own launcher: results, order, races."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from cuda_proof import cases, host, sanitize, sgd_cases
from cuda_proof.checks import trace, verify
from hypothesis import given, settings
from hypothesis import strategies as st

# Every family in float32; the other types where the code differs by type: vectors, tails, stride.
COMBINATIONS = [
    (family, dtype)
    for dtype in cases.DTYPES
    for family in cases.FAMILIES
    if dtype == "float32" or family in ("k7", "k3-ragged-even", "k3-stride2", "k2x3-mixed")
]
PLANES = ((1, 1), (3, 5), (2, 3), (4, 7), (6, 8))  # of batch norm: vectors of 1, 1, 2, 4, 8
involution = pytest.mark.parametrize("function", cases.INVOLUTION)
batch_norm = pytest.mark.parametrize("function", cases.BATCH_NORM)


@involution
@pytest.mark.parametrize(("family", "dtype"), COMBINATIONS)
def test_involution(function: str, family: str, dtype: str) -> None:
    @settings(max_examples=8)
    @given(
        batch=st.integers(0, 3), groups=st.integers(1, 3), depth=st.integers(1, 5),
        height=st.integers(1, 12), units=st.sampled_from((1, 3, 5)), seed=st.integers(0, 2**16),
    )  # fmt: skip
    def examples(**sizes: int) -> None:
        verify(cases.involution(function, family, dtype, **sizes))

    examples()
    # Several blocks, and more than one strip, row and image to each.
    verify(cases.involution(function, family, dtype, batch=3, height=13, units=9))


@involution
@pytest.mark.parametrize("family", cases.FAMILIES)
def test_infinity_stays_where_it_belongs(function: str, family: str) -> None:
    """What vectors read beside what is needed must not leak: 0 * inf is NaN.

    Kernel values over the padding are multiplied by 0 in the reference, and skipped in some rows
    here, so results may be finite in more places.
    """
    for number, name in enumerate(cases.INVOLUTION[function][0]):
        if name in ("weight", "bias") and function != "fused_grad_x":
            continue  # of a tap at every position, the padding too
        problem = cases.involution(function, family, height=7, units=5, seed=number)
        lines = problem.inputs[number].reshape(-1, problem.inputs[number].shape[-1])
        lines[len(lines) // 2, -1] = lines[len(lines) // 3, 0] = np.inf  # at both ends of a row
        want = [np.empty(result.shape, result.dtype) for result in problem.results()]
        with np.errstate(all="ignore"), host.installed(host.Machine().compile):
            results = cases.run(problem)
            problem.reference(problem.inputs, want)
        for got, exact in zip(results, want, strict=True):
            assert not (np.isfinite(exact) & ~np.isfinite(got)).any()


@involution
@pytest.mark.parametrize("family", cases.FAMILIES)
def test_trace_of_involution(function: str, family: str) -> None:
    trace(cases.involution(function, family, height=7, units=5))


def test_sanitizers() -> None:
    """Exactly sized arrays, and arrays past 2^31 elements, under ASan and UBSan."""
    done = sanitize.run()
    assert done.returncode == 0, done.stderr[-5000:]


@batch_norm
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_batch_norm(function: str, dtype: str) -> None:
    @settings(max_examples=12)
    @given(
        batch=st.integers(1, 5), channels=st.integers(1, 5), plane=st.sampled_from(PLANES),
        relu=st.booleans(), residual=st.booleans(), offset=st.sampled_from((0, 0, 1)),
    )  # fmt: skip
    def examples(batch: int, channels: int, plane: tuple[int, int], **options: int) -> None:
        verify(cases.batch_norm(function, dtype, (batch, channels, *plane), **options))

    examples()
    # Several slices of a channel, several channels in a block.
    verify(cases.batch_norm(function, dtype, (40, 7, 6, 9)))


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_batch_norm_keeps_nan(dtype: str) -> None:
    problem = cases.batch_norm("forward", dtype, (1, 2, 3, 4), relu=True, residual=False)
    problem.inputs[0][0, 1, 2, 3] = np.nan
    with host.installed(host.Machine().compile):
        (out,) = cases.run(problem)
    assert np.argwhere(np.isnan(out)).tolist() == [[0, 1, 2, 3]]


@batch_norm
@pytest.mark.parametrize("plane", PLANES)
def test_trace_of_batch_norm(function: str, plane: tuple[int, int]) -> None:
    trace(cases.batch_norm(function, "float32", (17, 5, *plane)))


@pytest.mark.parametrize("function", cases.CHANNELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_channels(function: str, dtype: str) -> None:
    """The arithmetic of batch norm between its passes."""

    @settings(max_examples=8)
    @given(
        count=st.integers(1, 300), seed=st.integers(0, 2**16), offset=st.sampled_from((0, 1))
    )  # fmt: skip
    def examples(**options: int) -> None:
        verify(cases.channels(function, dtype, **options))

    examples()
    trace(cases.channels(function, dtype, 200))


@pytest.mark.parametrize("function", cases.POINTWISE)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_pointwise(function: str, dtype: str) -> None:
    # One rounding more for the bias would show in half types.
    always = {"bias": dtype in ("float32", "float64")} if function == "forward" else {}

    @settings(max_examples=8)
    @given(
        batch=st.integers(1, 9), inside=st.integers(1, 5), outside=st.integers(1, 11),
        pixels=st.sampled_from((1, 2, 12, 40)), bias=st.booleans(), seed=st.integers(0, 2**16),
        offset=st.sampled_from((0, 0, 1)),
    )  # fmt: skip
    def examples(**options: int) -> None:
        verify(cases.pointwise(function, dtype, **options | always))

    examples()
    # Several slices and blocks.
    verify(cases.pointwise(function, dtype, 40, 6, 17, 96, **always))
    trace(cases.pointwise(function, dtype, 7, 5, 9, 320, **always))
    if function == "forward":  # of one image: several tiles, of several slices
        verify(cases.pointwise(function, dtype, 1, 300, 70, 130, **always))
        trace(cases.pointwise(function, dtype, 1, 260, 66, 3, **always))


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd(dtype: str, momentum: float, nesterov: bool) -> None:
    """More arrays than go into one launch, of more than a block, of one element and of none."""
    shapes = ((3, 5), (1,), (), (0, 2), (33, 50), (512,), (513,)) * 3
    for sizes in (shapes[:1], shapes):
        options = {"momentum": momentum, "nesterov": nesterov}
        verify(sgd_cases.sgd(dtype, sizes, **options))
    trace(sgd_cases.sgd(dtype, shapes[3:], **options))


@pytest.mark.parametrize(
    ("bug", "found"),
    [
        (("__syncthreads();\n        if (has_some)", "if (has_some)"), "race between threads"),
        (("r >= rows || c >= columns", "r >= rows"), "race between|out of bounds write"),
        (("inside ? first + share :", "inside ? first + share + 1 :"), "are wrong"),
    ],
)
def test_mistakes_in_a_product(bug: tuple[str, str], found: str) -> None:
    problem = cases.pointwise("forward", "float32", 1, 260, 66, 3)
    assert re.search(found, said_of(problem, "pointwise/product", bug))


def said_of(problem: cases.Problem, bugged: str, bug: tuple[str, str]) -> str:
    """What is found in a traced call and in its results, if there is this bug in that kernel."""
    machine, sound = host.Machine("trace", replacements=(bug,)), host.Machine("trace")

    def compile_(kernel: str, macros: Any) -> Any:
        return (machine if kernel == bugged else sound).compile(kernel, macros)

    with host.installed(compile_):
        results = cases.run(problem)
    said = "\n".join(machine.findings + machine.unwritten())
    try:
        cases.check(problem, results)
    except AssertionError as error:
        said += str(error)
    return said


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, True)])
def test_sgd_in_place(dtype: str, momentum: float, nesterov: bool) -> None:
    """With its numbers on the device: the same bits, in the arrays that were given."""
    assert step_in_place(host.Machine(), dtype, momentum, nesterov)


def step_in_place(machine: host.Machine, dtype: str, momentum: float, nesterov: bool) -> bool:
    """Whether a step with numbers on the device has the bits of one with those of the host."""
    sizes = ((3, 5), (), (0, 2), (33, 50), (513,)) * 4
    inputs = sgd_cases.sgd(dtype, sizes, momentum=momentum).inputs
    params, grads, velocities = (inputs[i * len(sizes) : (i + 1) * len(sizes)] for i in range(3))
    arrays, factors = (params, grads, velocities), [float(i % 3 > 0) for i in range(len(sizes))]
    numbers, update = np.array([0.1, momentum, 0.02]), sgd_cases.device.update
    with host.installed(machine.compile):
        decays = [0.02 * factor for factor in factors]
        wanted = update(*arrays, decays, lr=0.1, momentum=momentum, nesterov=nesterov)
        any_momentum = 0.25 * (momentum > 0)
        found = update(*arrays, factors, lr=numbers, momentum=any_momentum, nesterov=nesterov)
    assert all(new is old for new, old in zip(found[0], params, strict=True))
    for new, old, right in zip(found[1], velocities, wanted[1], strict=True):
        assert old is None or new is old
        assert (new is None) == (right is None)
    pairs = zip((*found[0], *found[1]), (*wanted[0], *wanted[1]), strict=True)
    return all(right is None or new.tobytes() == right.tobytes() for new, right in pairs)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_average(dtype: str) -> None:
    """As for SGD; a share on the device gives the same bits."""
    shapes = ((3, 5), (1,), (), (0, 2), (33, 50), (512,), (513,)) * 3
    for sizes in (shapes[:1], shapes):
        verify(sgd_cases.average(dtype, sizes))
    trace(sgd_cases.average(dtype, shapes[3:]))
    arrays = [[one.copy() for one in sgd_cases.average(dtype, shapes).inputs] for _ in range(2)]
    with host.installed(host.Machine().compile):
        for both, share in zip(arrays, (0.3, np.array([0.3])), strict=True):
            sgd_cases.device.average(both[len(shapes) :], both[: len(shapes)], share)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*arrays, strict=True))


@pytest.mark.parametrize(
    ("bug", "found"),
    [
        (("i >= a.size", "i > a.size"), "out of bounds"),
        (("(widen(a.p[i]) - a.old[i])", "widen(a.p[i])"), "are wrong"),
        (("- 1) / (BLOCK * EACH)", "- 1) / BLOCK"), "bytes never written|are wrong"),
    ],
)
def test_mistakes_in_averages(bug: tuple[str, str], found: str) -> None:
    problem = sgd_cases.average("float32", ((3000,), (5,), (700,)))
    assert re.search(found, said_of(problem, "sgd/average", bug))


@pytest.mark.parametrize("number", ["lr", "momentum", "factor"])
def test_a_number_that_is_not_read_from_the_device_is_found(number: str) -> None:
    place = ["lr", "momentum", "factor"].index(number)
    bug = f"{number} = ACCUM(numbers[{place}]);", f"{number} *= 2;"
    assert not step_in_place(host.Machine(replacements=(bug,)), "float32", 0.9, nesterov=True)


def test_running_statistics_in_place() -> None:
    problem = cases.channels("running", "float32", 200)
    *arrays, momentum, unbiased = problem.inputs
    with host.installed(host.Machine().compile):
        wanted = cases.run(problem)
        cases.batch_norm_device.running(*arrays, momentum, unbiased, *arrays[:2])
    for found, right in zip(arrays[:2], wanted, strict=True):
        assert found.tobytes() == right.tobytes()


def test_parameters_of_two_dtypes_in_one_step() -> None:
    one, two = np.ones(3, np.float32), np.ones(4)
    with host.installed(host.Machine().compile):
        new, velocities = sgd_cases.device.update(
            [one, two], [one, two], [None, None], [0, 0], lr=0.5, momentum=0.0, nesterov=False
        )
    assert [(a.dtype, a.tolist()) for a in new] == [("float32", [0.5] * 3), ("float64", [0.5] * 4)]
    assert velocities == [None, None]

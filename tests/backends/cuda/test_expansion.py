"""The kernels of expansion: results, order, races, NaN, and the mask of the ReLU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_proof import block_planted, cases, host, nvrtc, ptx
from cuda_proof.checks import trace, verify
from cuda_proof.expansion_cases import FUNCTIONS, expansion
from hypothesis import given, settings
from hypothesis import strategies as st

from invocupy.backends import cuda
from invocupy.backends.cuda import expansion as device

functions = pytest.mark.parametrize("function", FUNCTIONS)


@functions
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_expansion(function: str, dtype: str) -> None:
    @settings(max_examples=10)
    @given(
        batch=st.integers(1, 3), channels=st.sampled_from((1, 2, 6)), relu=st.booleans(),
        hidden=st.sampled_from((7, 40)), bias=st.booleans(),
        pixels=st.sampled_from((2, 15, 60, 132)),
        mean=st.sampled_from((0, 2, -300)), seed=st.integers(0, 2**16),
        offset=st.sampled_from((0, 0, 1)),
    )  # fmt: skip
    def examples(**options: Any) -> None:
        verify(expansion(function, dtype, **options))

    examples()
    verify(expansion(function, dtype, batch=5, pixels=1000))  # several blocks


@functions
@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize("pixels", [297, 140])
def test_trace_of_expansion(function: str, channels: int, pixels: int) -> None:
    trace(expansion(function, channels=channels, pixels=pixels))


def test_a_block_takes_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_BLOCKS", 2)
    for dtype in ("float32", "float16"):
        verify(expansion("backward", dtype, pixels=600))
    trace(expansion("backward", pixels=600))


def interpreted(kernel: str, macros: Any) -> ptx.Kernel:
    return ptx.Kernel(nvrtc.ptx(cuda.source(kernel, macros), 90), cuda.name_of(kernel))


machines = pytest.mark.parametrize("compile_", [host.Machine().compile, interpreted])


@machines
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nan_stays_nan(compile_: Callable[..., Any], wrong: float) -> None:
    """One pixel goes into the moments of all results, as layer by layer."""
    problem = expansion("forward")
    problem.inputs[0][1, 2, 3] = wrong
    with host.installed(compile_):
        out, mean, var, _ = cases.run(problem)
    assert np.isnan(out).all()
    assert not np.isfinite(mean).any()
    assert np.isnan(var).all()


def passed(compile_: Callable[..., Any], dtype: Any) -> tuple[list[float], list[float]]:
    """For each hidden channel, how many pixels pass the ReLU forward, and backward.

    Products cancel: what is left of their sum is how it is rounded, or in a half type 0.
    """
    x = np.repeat(np.random.default_rng(0).standard_normal((2, 1, 96)), 2, axis=1)
    weight = np.array([[1, -1], [2, -2], [1, 1]]) / 3
    x, weight, gamma = (a.astype(dtype) for a in (x, weight, np.full(3, 0.6)))
    mean, var, kept = (np.empty(n, np.float32) for n in (3, 3, 15))
    out, total = np.empty((2, 3, 96), dtype), np.empty(3, dtype)
    rest = np.empty_like(x), np.empty_like(weight), np.empty(3, dtype), np.empty(3, dtype)
    with host.installed(compile_):
        device.forward(x, weight, None, gamma, 0 * gamma, 1.0, True, out, mean, var, kept)
        device.backward(np.ones_like(out), x, weight, gamma, kept, 1.0, True, *rest, total)
    return (out > 0).sum(axis=(0, 2)).tolist(), total.tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@machines
def test_the_mask_is_that_of_the_result(compile_: Callable[..., Any], dtype: Any) -> None:
    forward, backward = passed(compile_, dtype)
    assert forward == backward
    assert 0 < forward[2] < 192
    assert (0 < forward[0] < 192) == (dtype == np.float32)


@pytest.mark.parametrize(
    ("dtype", "replacement"),
    [
        (np.float32, ("fma(w[c], in[c][k], z[k])", "z[k] + w[c] * in[c][k]")),
        (np.float16, ("widen(narrow(z[k])) > 0", "z[k] > 0")),
    ],
)
def test_another_mask_is_found(dtype: Any, replacement: tuple[str, str]) -> None:
    with block_planted.planted(block_planted.Bug("expansion/grad_expand", (replacement,), {})):
        forward, backward = passed(host.Machine().compile, dtype)
    assert forward != backward

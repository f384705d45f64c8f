"""A block's two wide operators on the CPU: the perceptron, and sums of involutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bounds import DTYPES, PIXELS, SEEDS, agree, draw, filled, roundoff, sizes_of, wide
from hypothesis import example, given
from hypothesis import strategies as st

from invocupy.backends.cpu import involution_sum, perceptron
from invocupy.backends.reference import involution_sum as involution_sum_reference
from invocupy.backends.reference import perceptron as perceptron_reference
from invocupy.backends.signatures import Perceptron
from invocupy.geometry import Geometry


def check_perceptron(
    backend: Any, dtype: str, sizes: tuple[int, int, int, int, int, int, int], seed: int
) -> None:
    """Both passes of ``backend`` against the reference in float64."""
    batch, inputs, depth, groups, outputs, each, pixels = sizes
    hidden = depth * groups
    x, first, offset, dense, bias, grouped, grad, grad_grouped = draw(
        seed, dtype, (batch, inputs, pixels), (hidden, inputs), (hidden,), (outputs, hidden),
        (outputs,), (each, hidden), (batch, outputs, pixels), (batch, groups * each, pixels),
    )  # fmt: skip
    # keep the hidden layer away from ReLU's kink, where rounding decides what passes
    x, first, offset = (np.round(4 * a) / 4 for a in (x, first, offset))
    offset = (offset + np.float64(1) / 32).astype(dtype)
    weights = [x, first, offset, dense, bias, grouped]
    shapes = [grad.shape, grad_grouped.shape]
    terms = inputs + 1 + hidden + 1

    def forward(mode: Any) -> Any:
        return lambda x, *a: mode.forward(x, Perceptron(*a[:5]), groups, *a[5:])

    def backward(mode: Any) -> Any:
        return lambda *a: mode.backward(
            *a[:3], Perceptron(*a[3:8]), groups, a[8], Perceptron(*a[9:])
        )

    results = filled(forward(backend), weights, *shapes, dtype=dtype)
    exact = filled(forward(perceptron_reference), wide(*weights), *shapes, dtype=np.float64)
    bounds = filled(forward(perceptron_reference), sizes_of(*weights), *shapes, dtype=np.float64)
    agree(results, exact, [2 * roundoff(dtype, terms) * b for b in bounds])

    arguments = [grad, grad_grouped, *weights]
    shapes = [a.shape for a in (x, first, offset, dense, bias, grouped)]
    results = filled(backward(backend), arguments, *shapes, dtype=np.float64)
    exact = filled(backward(perceptron_reference), wide(*arguments), *shapes, dtype=np.float64)
    # the reference on absolute values, with every hidden channel passing
    bounds = filled(backward(perceptron_reference), sizes_of(*arguments), *shapes, dtype=np.float64)
    terms += outputs + each + batch * pixels
    agree(results, exact, [2 * roundoff(dtype, terms) * b for b in bounds])


@given(
    DTYPES,
    st.tuples(
        st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 4),
        st.integers(1, 9), st.integers(1, 6), PIXELS,
    ),
    SEEDS,
)  # fmt: skip
@example("float32", (2, 3, 16, 4, 16, 3, 1024), 0)
@example("float64", (1, 1, 1, 1, 1, 1, 1), 0)
def test_perceptron_is_the_reference(
    dtype: str, sizes: tuple[int, int, int, int, int, int, int], seed: int
) -> None:
    # x is in the dtype's own results: float64 arrays take them without rounding
    class InFloat64:
        forward = staticmethod(perceptron.forward)

        @staticmethod
        def backward(*arguments: Any) -> None:
            *given, exact, grad_weights = arguments
            grad_x = np.full(exact.shape, np.nan, dtype)
            perceptron.backward(*given, grad_x, grad_weights)
            exact[...] = grad_x

    check_perceptron(InFloat64, dtype, sizes, seed)


def test_a_hidden_channel_of_the_wrong_group_is_found() -> None:
    class Wrong:
        @staticmethod
        def forward(x: Any, weights: Perceptron, *a: Any) -> None:
            turned = np.roll(weights.grouped, 1, axis=1)
            perceptron.forward(x, weights._replace(grouped=turned), *a)

    with pytest.raises(AssertionError):
        check_perceptron(Wrong, "float32", (2, 3, 4, 2, 5, 3, 70), 0)


@given(st.sampled_from(["float32", "float64"]), st.sampled_from([0.0, 1e3]), SEEDS)
def test_covariance_does_not_cancel(dtype: str, mean: float, seed: int) -> None:
    (noise,) = draw(seed, "float64", (3, 4, 50))
    x = (mean + noise).astype(dtype)
    exact = x.astype(np.float64)
    center = exact.mean(axis=(0, 2))
    (result,) = filled(perceptron.covariance, [x, center], (4, 4), dtype=np.float64)
    apart = (exact - center[:, None]).transpose(1, 0, 2).reshape(4, -1)
    size = abs(apart) @ abs(apart).T / apart.shape[1]
    assert (
        abs(result - apart @ apart.T / apart.shape[1]) <= 2 * roundoff("float64", 153) * size
    ).all()


SumSizes = tuple[int, int, int, int, tuple[int, int], tuple[int, int], tuple[int, int]]


def check_involution_sum(backend: Any, dtype: str, sizes: SumSizes, seed: int) -> None:
    """Both passes of ``backend`` against the reference in float64."""
    batch, each, groups, features, (kernel_h, kernel_w), dilation, (height, width) = sizes
    shape, channels = (height, width), groups * each
    taps = groups * kernel_h * kernel_w
    kernel_shape = (batch, groups, kernel_h, kernel_w, *shape)
    g = Geometry.of((batch, channels, *shape), kernel_shape, 1, "same", dilation)
    grad, x, z, scale, shift, weight, bias, offset = draw(
        seed, dtype, (batch, each, *shape), (batch, channels, *shape), (batch, features, *shape),
        (features,), (features,), (taps, features), (taps,), (each,),
    )  # fmt: skip
    # keep the features away from ReLU's kink, where rounding decides what passes
    z, scale, shift = (np.round(4 * a) / 4 for a in (z, scale, shift))
    shift = (shift + np.float64(1) / 32).astype(dtype)
    operands = [x, z, scale, shift, weight, bias]

    def forward(mode: Any) -> Any:
        return lambda *a: mode.forward(*a[:7], g, *a[7:])

    def backward(mode: Any) -> Any:
        return lambda *a: mode.backward(*a[:7], g, *a[7:])

    terms = 2 + features + 1 + taps + 1
    results = filled(forward(backend), [*operands, offset], grad.shape, dtype=dtype)
    exact, bounds = (
        filled(
            forward(involution_sum_reference), read(*operands, offset), grad.shape, dtype=np.float64
        )
        for read in (wide, sizes_of)
    )
    agree(results, exact, [2 * roundoff(dtype, terms) * b for b in bounds])

    in_dtype = [np.full(a.shape, np.nan, dtype) for a in (x, z)]
    in_float64 = [np.full(a.shape, np.nan) for a in (weight, bias)]
    backward(backend)(grad, *operands, *in_dtype, *in_float64)
    shapes = [a.shape for a in (x, z, weight, bias)]
    exact, bounds = (
        filled(backward(involution_sum_reference), read(grad, *operands), *shapes, dtype=np.float64)
        for read in (wide, sizes_of)
    )
    terms += batch * height * width + taps
    agree([*in_dtype, *in_float64], exact, [2 * roundoff(dtype, terms) * b for b in bounds])


@given(
    DTYPES,
    st.tuples(
        st.integers(1, 3), st.integers(1, 6), st.integers(1, 4), st.integers(1, 9),
        st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 7])),
        st.tuples(st.integers(1, 3), st.integers(1, 2)),
        st.tuples(st.integers(1, 12), st.integers(1, 40)),
    ),
    SEEDS,
)  # fmt: skip
@example("float32", (2, 3, 4, 16, (3, 3), (1, 1), (32, 32)), 0)
@example("float64", (1, 3, 4, 16, (7, 7), (1, 1), (61, 50)), 0)  # several bands
@example("float32", (40, 1, 1, 1, (1, 1), (1, 1), (1, 1)), 0)  # several images a part
def test_involution_sum_is_the_reference(dtype: str, sizes: SumSizes, seed: int) -> None:
    check_involution_sum(involution_sum, dtype, sizes, seed)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_a_shifted_row_or_group_in_an_involution_sum_is_found(argument: int) -> None:
    class Wrong:
        @staticmethod
        def forward(*a: Any) -> None:
            given = list(a)
            given[argument] = np.roll(given[argument], 1, axis=(1, 2, 0)[argument])
            involution_sum.forward(*given)

    with pytest.raises(AssertionError):
        check_involution_sum(Wrong, "float32", (2, 2, 2, 3, (3, 3), (1, 1), (7, 20)), 0)


def test_threads_do_not_change_bits(same_bits: Any) -> None:
    g = Geometry.of((9, 6, 40, 33), (9, 2, 3, 5, 40, 33))
    grad, x, z, scale, shift, weight, bias, offset = draw(
        0, "float32", (9, 3, 40, 33), (9, 6, 40, 33), (9, 5, 40, 33), (5,), (5,), (30, 5), (30,),
        (3,),
    )  # fmt: skip
    operands = x, z, scale, shift, weight, bias

    def results() -> list[np.ndarray]:
        (value,) = filled(
            lambda out: involution_sum.forward(*operands, offset, g, out),
            [], grad.shape, dtype="float32",
        )  # fmt: skip
        shapes = [a.shape for a in (x, z, weight, bias)]
        gradients = [np.empty(s, d) for s, d in zip(shapes, "ffdd", strict=True)]
        involution_sum.backward(grad, *operands, g, *gradients)
        return [value, *gradients]

    same_bits(results)

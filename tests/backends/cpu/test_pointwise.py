"""1x1 convolution on the CPU: against the reference, within derived bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bounds import DTYPES, PIXELS, SEEDS, agree, draw, filled, roundoff, sizes_of, wide
from hypothesis import example, given
from hypothesis import strategies as st

from invocupy import functional, ops
from invocupy.backends.cpu import pointwise
from invocupy.backends.reference import pointwise as pointwise_reference
from invocupy.testing import LAYOUTS, check_partials, lay_out

CHANNELS = st.one_of(st.integers(1, 9), st.sampled_from([16, 36, 64, 75]))


def check_pointwise(
    backend: Any,
    dtype: str,
    batch: int,
    channels: int,
    rows: int,
    pixels: int,
    seed: int,
    bias: bool,
) -> None:
    """All three functions of ``backend`` against the reference in float64."""
    x, weight, b, grad = draw(
        seed, dtype, (batch, channels, pixels), (rows, channels), (rows,), (batch, rows, pixels)
    )
    offset = b if bias else None
    cases = [
        (
            backend.forward, pointwise_reference.forward, [x, weight, offset],
            [grad.shape], channels + 1,
        ),
        (
            backend.grad_x, pointwise_reference.grad_x, [grad, weight, x if bias else None],
            [x.shape], rows + 1,
        ),
        # the parts are summed in float64, and rounded once at the end
        (
            backend.grad_weight, pointwise_reference.grad_weight, [grad, x],
            [weight.shape, b.shape], batch * pixels + 1,
        ),
    ]  # fmt: skip
    for function, reference, arguments, shapes, terms in cases:
        results = filled(function, arguments, *shapes, dtype=dtype)
        exact = filled(reference, wide(*arguments), *shapes, dtype=np.float64)
        sizes = filled(reference, sizes_of(*arguments), *shapes, dtype=np.float64)
        # the float64 reference rounds as well
        bounds = [(roundoff(dtype, terms) + roundoff("float64", terms)) * s for s in sizes]
        agree(results, exact, bounds)


@given(DTYPES, st.integers(1, 3), CHANNELS, CHANNELS, PIXELS, SEEDS, st.booleans())
@example("float32", 1, 3, 64, 1024, 0, True)
@example("float32", 2, 64, 3, 1024, 0, True)
@example("float64", 1, 1, 1, 1, 0, False)
@example("float32", 1, 200, 150, 49, 0, True)  # several blocks of the weight gradient
@example("float32", 1, 2, 2, 70000, 0, True)  # several chunks of one image
def test_pointwise_is_the_matrix_product(
    dtype: str, batch: int, channels: int, rows: int, pixels: int, seed: int, bias: bool
) -> None:
    check_pointwise(pointwise, dtype, batch, channels, rows, pixels, seed, bias)


class _Wrong:
    """The 1x1 convolution with one planted mistake."""

    def __init__(self, name: str, function: Any) -> None:
        self.forward, self.grad_x, self.grad_weight = (
            pointwise.forward, pointwise.grad_x, pointwise.grad_weight,
        )  # fmt: skip
        setattr(self, name, function)


def _last_channel_left_out(x: Any, weight: Any, bias: Any, out: Any) -> None:
    pointwise.forward(x[:, :-1].copy(), weight[:, :-1].copy(), bias, out)


def _last_pixel_twice(grad: Any, weight: Any, base: Any, out: Any) -> None:
    pointwise.grad_x(grad, weight, base, out)
    out[..., -1] *= 2


def _slightly_wrong(grad: Any, x: Any, out: Any, grad_bias: Any) -> None:
    pointwise.grad_weight(grad, x, out, grad_bias)
    grad_bias *= 1.001


@pytest.mark.parametrize(
    "wrong",
    [
        _Wrong("forward", _last_channel_left_out),
        _Wrong("grad_x", _last_pixel_twice),
        _Wrong("grad_weight", _slightly_wrong),
    ],
)
def test_planted_mistakes_are_found(wrong: Any) -> None:
    with pytest.raises(AssertionError):
        check_pointwise(wrong, "float32", 2, 5, 6, 70, 0, True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pointwise_spreads_what_is_not_finite_to_its_pixel_only(value: float) -> None:
    x, weight, bias = draw(0, "float32", (2, 5, 70), (6, 5), (6,))
    x[1, 2, 68] = value
    (out,) = filled(pointwise.forward, [x, weight, bias], (2, 6, 70), dtype="float32")
    bad = ~np.isfinite(out)
    assert bad[1, :, 68].all()
    assert bad.sum() == 6


@given(
    st.sampled_from([1, 2, (2, 3)]),
    st.sampled_from(LAYOUTS),
    st.sampled_from(["float32", "float64"]),
    st.booleans(),
    SEEDS,
)
def test_strided_pointwise_convolution(
    stride: Any, layout: str, dtype: str, bias: bool, seed: int
) -> None:
    x, weight, b = draw(seed, dtype, (2, 3, 5, 7), (4, 3, 1, 1), (4,))
    x = lay_out(x, layout)
    check_partials(ops.conv2d, x, weight, b if bias else None, stride=stride)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_nothing_to_convolve(shape: tuple[int, ...]) -> None:
    x, weight, bias = np.ones(shape, np.float32), np.ones((5, 3, 1, 1), np.float32), np.ones(5)
    before = bias.copy()
    value, (grad_x, grad_weight, grad_bias) = ops.conv2d(x, weight, bias)
    assert value.shape == (shape[0], 5, *shape[2:])
    assert grad_x(value).shape == shape
    assert not grad_weight(value).any()
    assert not grad_bias(value).any()
    np.testing.assert_array_equal(bias, before)


def test_float16_is_computed_in_float32() -> None:
    x, weight, bias = draw(0, "float16", (2, 300, 3, 3), (2, 300, 1, 1), (2,))
    value = functional.conv2d(x, weight, bias)
    assert value.dtype == np.float16
    exact = functional.conv2d(*wide(x, weight, bias))
    sizes = functional.conv2d(*sizes_of(x, weight, bias))
    bound = roundoff("float16", 1) * abs(exact) + 2 * roundoff("float32", 301) * sizes
    assert (abs(value - exact) <= bound).all()


def test_threads_do_not_change_bits(same_bits: Any) -> None:
    x, weight, bias, grad = draw(1, "float32", (5, 20, 300), (70, 20), (70,), (5, 70, 300))
    same_bits(
        lambda: [
            *filled(pointwise.forward, [x, weight, bias], grad.shape, dtype="float32"),
            *filled(pointwise.grad_x, [grad, weight, x], x.shape, dtype="float32"),
            *filled(pointwise.grad_weight, [grad, x], (70, 20), (70,), dtype="float32"),
        ]
    )

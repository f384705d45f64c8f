"""Sizes of involution, convolution and pooling, counted; and options read or refused by name."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invocupy import Geometry
from invocupy.geometry import (
    fused_geometry,
    integer,
    number,
    output_size,
    padding_per_axis,
    per_axis,
)
from invocupy.testing import geometries, options

SIZES = st.integers(1, 6)


@given(st.integers(0, 20), SIZES, SIZES, st.integers(0, 5), SIZES)
def test_outputs_are_the_places_where_the_whole_window_fits(
    size: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    last = size + padding - dilation * (kernel - 1)  # the first place past them
    fitting = len(range(-padding, last, stride))
    assert max(output_size(size, kernel, stride, padding, dilation), 0) == fitting


@given(geometries(dims=(1, 2, 3), max_size=4, empty=False))
def test_a_geometry_holds_what_it_was_made_of(g: Geometry) -> None:
    chosen = options(g)
    assert Geometry.of(g.x_shape, g.kernel_shape, **chosen) == g
    assert hash(Geometry.of(list(g.x_shape), g.kernel_shape, **chosen)) == hash(g)  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(g)) == g  # noqa: S301
    assert g.channels_per_group * g.groups == g.channels
    assert g.out_shape == (g.batch, g.channels, *g.kernel_shape[2 + g.dims :])
    record, g = g.record(), g.lifted(2)
    axes = *g.size, *g.kernel, *g.out, *g.stride, *g.padding, *g.dilation
    assert record.item() == (g.batch, g.channels, g.groups, *axes)
    assert record.nbytes == 4 * len(record)


@given(SIZES, SIZES, st.integers(1, 9))
def test_same_keeps_the_size_and_valid_looks_inside(half: int, dilation: int, size: int) -> None:
    kernel = 2 * half + 1
    pad, other = padding_per_axis("same", (kernel, 1), (dilation, dilation))
    assert output_size(size, kernel, 1, pad, dilation) == size
    assert other == 0
    assert padding_per_axis("valid", (kernel, 1), (dilation, dilation)) == (0, 0)


@pytest.mark.parametrize("even", [(2, 3), (3, 4)])
def test_same_needs_a_centre(even: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"odd kernel size, got \dx\d: an even kernel has no cent"):
        padding_per_axis("same", even, (1, 1))
    with pytest.raises(ValueError, match="padding must be 'same', 'valid', an integer or a pair"):
        padding_per_axis("full", even, (1, 1))


@pytest.mark.parametrize("value", [True, np.True_, 1.0, "1", None, (1, True), (1, 2, 3), ()])
def test_what_is_no_integer_is_refused(value: Any) -> None:
    for read in (lambda: integer("n", value, 0), lambda: per_axis("n", value, 0)):
        with pytest.raises(ValueError, match=r"n must be an integer >= 0.*, got"):
            read()


def test_integers_of_numpy_are_pythons() -> None:
    assert type(integer("n", np.uint8(3), 0)) is int
    assert per_axis("n", np.int64(3), 0) == per_axis("n", [3, np.array(3)], 0) == (3, 3)
    with pytest.raises(ValueError, match=r"n must be below 2\*\*31, got"):
        per_axis("n", (1, 1 << 31), 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5, "1", None, True, [1.0], 10**400])
def test_what_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="x must be a finite number >= 0, got"):
        number("x", value, 0)
    with pytest.raises(ValueError, match=r"x must be in \[0, 1\], got"):
        number("x", value, 0, 1)


def test_numbers_of_numpy_are_pythons() -> None:
    for value in (np.float64(0.5), np.float16(0.5), np.array(0.5), 0.5):
        assert type(number("x", value, 0)) is float
        assert number("x", value, 0, 1) == 0.5


X, KERNEL = (2, 4, 5, 6), (2, 2, 3, 3, 5, 6)


@pytest.mark.parametrize(
    ("x", "kernel", "chosen", "message"),
    [
        (X[1:], KERNEL, {}, r"x must have 4 dimensions \(N, C, H, W\), got shape \(4, 5, 6\)"),
        (X, (2, 18, 5, 6), {}, r"reshape a flat \(N, G\*Kh\*Kw, Ho, Wo\) array first"),
        (X, (1, *KERNEL[1:]), {}, "kernel must have the batch size of x: .* has 1, x .* has 2"),
        (X, (2, 3, *KERNEL[2:]), {}, "divides the channels of x: .* has G=3, x .* has C=4"),
        (X, (2, 0, *KERNEL[2:]), {}, "has G=0"),
        (X, (2, 2, 0, 3, 5, 6), {}, "at least one tap, got Kh=0, Kw=3"),
        (X, (*KERNEL[:5], 7), {}, "kernel has 5x7 positions, but x of 5x6 .* gives 5x6: make one"),
        (X, KERNEL, {"stride": 0}, "stride must be an integer >= 1"),
        (X, KERNEL, {"padding": "valid", "dilation": 3}, "x of 5x6 is too small for kernel size"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    x: Any, kernel: Any, chosen: dict[str, Any], message: str
) -> None:
    for _ in range(2):  # what is refused is not kept, either
        with pytest.raises(ValueError, match=message):
            Geometry.of(x, kernel, **chosen)


LINE, VOLUME = (2, 4, 6), (2, 4, 3, 5, 6)
ALONG, AROUND = (2, 2, 3, 6), (2, 2, 3, 3, 3, 3, 5, 6)


@pytest.mark.parametrize(
    ("x", "kernel", "chosen", "message"),
    [
        (LINE, KERNEL, {}, r"x must have 4 dimensions \(N, C, H, W\), got shape \(2, 4, 6\)"),
        (VOLUME, KERNEL, {}, r"x must have 4 dimensions \(N, C, H, W\), got shape"),
        (X, AROUND, {}, r"kernel must have 6 dimensions \(N, G, Kh, Kw, Ho, Wo\), got shape"),
        (LINE, AROUND, {}, r"kernel must have 4 dimensions \(N, G, Kw, Wo\), got shape"),
        (VOLUME, ALONG, {}, r"kernel must have 8 dimensions \(N, G, Kd, Kh, Kw, Do, Ho, Wo\)"),
        (VOLUME, (2, 54, 3, 5, 6), {}, r"a flat \(N, G\*Kd\*Kh\*Kw, Do, Ho, Wo\) array first"),
        (LINE, (2, 6, 6), {}, r"reshape a flat \(N, G\*Kw, Wo\) array first"),
        ((2, *VOLUME), AROUND, {}, r"x must have 5 dimensions \(N, C, D, H, W\), got shape"),
        ((2, 4), ALONG, {}, r"x must have 3 dimensions \(N, C, W\), got shape \(2, 4\)"),
        ((2, *VOLUME), (2, *AROUND), {}, r"3, 4 or 5 dimensions, \(N, C, W\), \(N, C, H, W\) or"),
        ((2, 4), (2, 4), {}, "x must have 3, 4 or 5 dimensions"),
        (VOLUME, AROUND, {"stride": (1, 2)}, "an integer >= 1 or a triple of them, got"),
        (VOLUME, AROUND, {"padding": "full"}, "'valid', an integer or a triple, got 'full'"),
        (LINE, ALONG, {"dilation": (1, 1)}, "an integer >= 1 or a tuple of one of them, got"),
        (LINE, (2, 2, 4, 6), {}, "odd kernel size, got 4: .* as an integer or a tuple of one"),
        (VOLUME, (2, 2, 3, 2, 3, 3, 5, 6), {}, "odd kernel size, got 3x2x3: .* or a triple"),
        (VOLUME, (*AROUND[:2], 0, *AROUND[3:]), {}, "at least one tap, got Kd=0, Kh=3, Kw=3"),
        (VOLUME, (*AROUND[:7], 7), {}, "kernel has 3x5x7 positions, but x of 3x5x6 .* gives 3x5x6"),
        (LINE, ALONG, {"padding": 0, "dilation": 4}, "x of 6 is too small for kernel size 3, "),
    ],
)
def test_what_does_not_fit_in_other_dimensions_is_named(
    x: Any, kernel: Any, chosen: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        Geometry.of(x, kernel, **chosen)
    assert "\n" not in str(refusal.value)


def test_in_more_dimensions_the_new_axes_have_size_one() -> None:
    g = Geometry.of((2, 4, 6), (2, 2, 3, 3), stride=2)
    assert g.lifted(1) is g
    assert g.lifted(2) == Geometry.of((2, 4, 1, 6), (2, 2, 1, 3, 1, 3), (1, 2), (0, 1))
    assert g.lifted(3) == g.lifted(2).lifted(3)
    assert g.lifted(3).x_shape == (2, 4, 1, 1, 6)


def test_true_is_not_taken_for_the_one_that_was_asked_before() -> None:
    Geometry.of(X, KERNEL, stride=1)
    with pytest.raises(ValueError, match="stride must be an integer >= 1"):
        Geometry.of(X, KERNEL, stride=True)


def test_gradients_have_the_shape_of_the_result() -> None:
    g = Geometry.of(X, KERNEL)
    g.check_grad(np.empty(g.out_shape))
    with pytest.raises(ValueError, match=r"of the result, \(2, 4, 5, 6\), got \(2, 4, 5, 5\)"):
        g.check_grad(np.empty((2, 4, 5, 5)))


def test_the_record_of_a_gpu_has_32_bits() -> None:
    wide = Geometry.of((1, 1, 1, 1 << 31), (1, 1, 1, 1, 1, 1 << 31))
    with pytest.raises(ValueError, match=r"past 2\*\*31 - 1 in one dimension"):
        wide.record()


@pytest.mark.parametrize(
    ("features", "weight", "bias", "message"),
    [
        ((2, 3, 5), (18, 3), None, r"features must have 4 dimensions \(N, F, Ho, Wo\)"),
        ((2, 3, 5, 6), (17, 3), None, r"span_weight must have shape .* Kh\*Kw = 9, got \(17, 3\)"),
        ((2, 3, 5, 6), (0, 3), None, r"got \(0, 3\): Kh\*Kw rows for each group"),
        ((2, 3, 5, 6), (18, 4), None, "as many columns as features has channels"),
        ((2, 3, 5, 6), (18, 3), (17,), r"span_bias must have shape \(18,\), got \(17,\)"),
        ((2, 3, 5, 6), (27, 3), None, r"G that divides the channels of x: .* has G=3, x .* C=4"),
        ((2, 3, 5, 5), (18, 3), None, "2 and 5x6 for x .*, got 2 and 5x5: make one feature vector"),
        ((1, 3, 5, 6), (18, 3), None, "got 1 and 5x6"),
    ],
)
def test_spans_that_do_not_fit_are_named(
    features: Any, weight: Any, bias: Any, message: str
) -> None:
    good = fused_geometry(X, (2, 3, 5, 6), (18, 3), (18,), 3)
    assert good == Geometry.of(X, KERNEL)
    with pytest.raises(ValueError, match=message):
        fused_geometry(X, features, weight, bias, 3)


def test_spans_fit_in_every_dimension() -> None:
    assert fused_geometry(LINE, (2, 3, 6), (6, 3), (6,), 3) == Geometry.of(LINE, ALONG)
    made = fused_geometry(VOLUME, (2, 3, 3, 5, 6), (54, 3), (54,), (3, 3, 3))
    assert made == Geometry.of(VOLUME, AROUND)
    with pytest.raises(ValueError, match=r"features must have 5 dimensions \(N, F, Do, Ho, Wo\)"):
        fused_geometry(VOLUME, (2, 3, 6), (54, 3), None, 3)
    with pytest.raises(ValueError, match=r"shape \(G\*Kd\*Kh\*Kw, F\) with Kd\*Kh\*Kw = 27, got"):
        fused_geometry(VOLUME, (2, 3, 3, 5, 6), (18, 3), None, 3)
    with pytest.raises(ValueError, match="kernel_size must be an integer >= 1 or a triple of them"):
        fused_geometry(VOLUME, (2, 3, 3, 5, 6), (54, 3), None, (3, 3))

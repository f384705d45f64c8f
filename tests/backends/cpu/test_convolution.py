"""Convolution on the CPU: against its plain form, within derived bounds."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from bounds import DTYPES, SEEDS, agree, draw, filled, roundoff, sizes_of, wide
from hypothesis import example, given
from hypothesis import strategies as st

from invocupy import ops, testing
from invocupy.backends.cpu import convolution as cpu
from invocupy.backends.cpu import pool as workers
from invocupy.backends.reference import convolution as reference
from invocupy.geometry import Geometry
from invocupy.testing import NUMPY_LAYOUTS, check_partials, lay_out


def geometry(
    x: tuple[int, int, int, int], kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Geometry:
    """That of an involution, which has all sizes of a convolution but the channels it makes."""
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x[2:], kernel, stride, padding, dilation, strict=True)
    ]
    return Geometry.of(x, (x[0], groups, *kernel, *out), stride, padding, dilation)


def plain(x: Any, kernel: int, stride: int = 1, padding: int = 0, groups: int = 1) -> Geometry:
    return geometry(x, *[(n, n) for n in (kernel, stride, padding, 1)], groups)


def window(g: Geometry) -> Any:
    return g.stride, g.padding, g.dilation


def problem(g: Geometry, per_group: int, dtype: str, seed: int) -> list[np.ndarray]:
    """x, weight, bias and gradient."""
    o = g.groups * per_group
    weight = o, g.channels_per_group, *g.kernel
    return draw(seed, dtype, g.x_shape, weight, (o,), (g.batch, o, *g.out))


def check(backend: Any, dtype: str, g: Geometry, per_group: int, seed: int, bias: bool) -> None:
    """All three functions of ``backend`` against the plain form in float64."""
    x, weight, b, grad = problem(g, per_group, dtype, seed)
    taps, looks = prod(g.kernel), window(g)
    shapes = [weight.shape, b.shape] if bias else [weight.shape]
    nothing = [] if bias else [None]
    cases: list[tuple[str, list[Any], list[Any], int]] = [
        ("forward", [x, weight, b if bias else None], [grad.shape], g.channels_per_group * taps),
        ("grad_x", [grad, weight], [x.shape], per_group * taps),
        # the parts are summed in float64, and rounded once at the end
        ("grad_weight", [grad, x], shapes, g.batch * prod(g.out)),
    ]
    for name, arrays, results, terms in cases:

        def run(module: Any, given: Any, kind: Any, name: Any = name, shapes: Any = results) -> Any:
            last = nothing if name == "grad_weight" else []
            return filled(
                lambda *a: getattr(module, name)(*a[: len(given)], looks, *a[len(given) :], *last),
                given, *shapes, dtype=kind,
            )  # fmt: skip

        exact = run(reference, wide(*arrays), np.float64)
        sizes = run(reference, sizes_of(*arrays), np.float64)
        # the float64 form rounds as well
        bound = roundoff(dtype, terms + 1) + roundoff("float64", terms + 1)
        agree(run(backend, arrays, dtype), exact, [bound * s for s in sizes])


SMALL = testing.geometries(max_stride=4, empty=False)


@given(DTYPES, SMALL, st.integers(1, 6), SEEDS, st.booleans())
# tiles across images, rows and their ends; less than a tile in all
@example("float32", plain((5, 3, 7, 7), 3, 1, 1), 6, 0, True)
@example("float32", plain((3, 2, 4, 4), 3, 2, 1), 9, 0, False)
@example("float64", plain((1, 1, 1, 1), 1), 1, 0, True)
# several blocks of terms: channels, and taps of channels; several of rows
@example("float32", plain((1, 300, 5, 5), 3, 1, 1), 5, 0, True)
@example("float64", plain((1, 75, 4, 5), 3, 2, 1), 150, 0, True)
@example("float32", plain((1, 2, 20, 20), 17), 3, 0, True)
# several chunks, parts and channels of a task; a stride that is gathered
@example("float32", plain((2, 3, 33, 37), 3, 1, 1), 4, 0, True)
@example("float32", plain((2, 4, 35, 41), 3, 3, 2, 2), 3, 0, True)
@example("float32", geometry((2, 2, 19, 23), (3, 2), (2, 1), (2, 3), (1, 2), 1), 3, 0, False)
# more than one tap, none or one for the classes of positions
@example("float32", plain((2, 3, 9, 10), 1, 2), 4, 0, True)
@example("float32", geometry((1, 2, 9, 9), (2, 2), (2, 2), (1, 1), (2, 2), 1), 3, 0, False)
# depthwise: several bands, several parts, rows that are left over
@example("float32", plain((2, 8, 70, 300), 3, 1, 1, 8), 1, 0, True)
@example("float32", plain((33, 11, 7, 9), 5, 1, 2, 11), 1, 0, True)
@example("float64", plain((2, 16, 15, 13), 7, 2, 3, 16), 1, 0, False)
@example("float32", geometry((1, 3, 1, 7), (2, 1), (2, 3), (3, 4), (2, 2), 3), 1, 0, False)
# a last column that nothing sees, where rows of grad fill whole cache lines
@example("float64", geometry((1, 3, 5, 17), (1, 2), (1, 2), (0, 0), (1, 1), 3), 1, 0, False)
@example("float32", geometry((1, 3, 5, 130), (1, 3), (2, 4), (0, 0), (1, 1), 3), 1, 0, True)
def test_convolution_is_its_plain_form(
    dtype: str, g: Geometry, per_group: int, seed: int, bias: bool
) -> None:
    check(cpu, dtype, g, per_group, seed, bias)


class _Wrong:
    """The convolution with one planted mistake."""

    def __init__(self, name: str, function: Any) -> None:
        self.forward, self.grad_x, self.grad_weight = cpu.forward, cpu.grad_x, cpu.grad_weight
        setattr(self, name, function)


def _last_tap_left_out(x: Any, weight: Any, bias: Any, looks: Any, out: Any) -> None:
    weight = weight.copy()
    weight[..., -1, -1] = 0
    cpu.forward(x, weight, bias, looks, out)


def _last_column_twice(grad: Any, weight: Any, looks: Any, out: Any) -> None:
    cpu.grad_x(grad, weight, looks, out)
    out[..., -1] *= 2


def _slightly_wrong(grad: Any, x: Any, looks: Any, out: Any, grad_bias: Any) -> None:
    cpu.grad_weight(grad, x, looks, out, grad_bias)
    grad_bias *= 1.001


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    "wrong",
    [
        _Wrong("forward", _last_tap_left_out),
        _Wrong("grad_x", _last_column_twice),
        _Wrong("grad_weight", _slightly_wrong),
    ],
)
def test_planted_mistakes_are_found(wrong: Any, groups: int) -> None:
    g = plain((2, 4, 9, 10), 3, 2, 1, groups)
    with pytest.raises(AssertionError):
        check(wrong, "float32", g, 4 // groups, 0, True)


KINDS = [
    (plain((3, 5, 7, 9), 3, 1, 1), 6),
    (plain((3, 5, 7, 9), 3, 2, 1), 6),
    (plain((3, 6, 8, 9), 3, 3, 2, 2), 2),
    (plain((3, 8, 7, 9), 3, 1, 1, 8), 1),
    (plain((3, 8, 7, 9), 3, 2, 1, 8), 1),
    (geometry((3, 3, 1, 7), (2, 1), (2, 3), (3, 4), (2, 2), 3), 1),
]
kinds = pytest.mark.parametrize(("g", "per_group"), KINDS)


def everything(g: Geometry, arrays: list[np.ndarray], make: Any) -> list[np.ndarray]:
    """All results of one problem, in arrays from ``make(shape)``; scratch memory is NaN."""
    x, weight, bias, grad = arrays
    out, grad_x, grad_weight, grad_bias = results = [make(a.shape) for a in (grad, x, weight, bias)]
    looks = window(g)
    for name, *arguments in (
        ("forward", x, weight, bias, looks, out),
        ("grad_x", grad, weight, looks, grad_x),
        ("grad_weight", grad, x, looks, grad_weight, grad_bias),
    ):
        job = (
            workers._resting[-1] if workers._resting else workers._Descriptor()
        )  # what the next call gets
        job.scratch(1 << 20)
        job.room[:] = b"\xff" * len(job.room)  # NaN as float32
        workers._resting[:] = [job]
        getattr(cpu, name)(*arguments)
    return results


def new(shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def pools(x: np.ndarray) -> list[np.ndarray]:
    """Values and gradients of both kinds of pooling."""
    results = []
    for value, (partial,) in (
        ops.max_pool2d(x, 3, 2, 1),
        ops.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    ):
        results += [value, partial(np.cos(value))]
    return results


@kinds
def test_threads_do_not_change_bits(g: Geometry, per_group: int, same_bits: Any) -> None:
    arrays = problem(g, per_group, "float32", 0)
    same_bits(lambda: [*everything(g, arrays, new), *pools(arrays[0])])


@kinds
def test_only_the_arrays_themselves_are_read_and_written(g: Geometry, per_group: int) -> None:
    """Whatever lies in memory before and behind them."""
    arrays = problem(g, per_group, "float32", 1)
    expected = everything(g, arrays, new)
    around: list[np.ndarray] = []

    def within(shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape))
        around.append(np.full(size + 128, np.nan, np.float32))
        return around[-1][64 : 64 + size].reshape(shape)

    placed = [within(a.shape) for a in arrays]
    for place, array in zip(placed, arrays, strict=True):
        place[...] = array
    results = everything(g, placed, within)
    for result, value in zip(results, expected, strict=True):
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(result, value)
    for array in around:
        assert np.isnan(array[:64]).all()
        assert np.isnan(array[-64:]).all()


@kinds
def test_what_is_not_finite_reaches_only_what_sees_it(g: Geometry, per_group: int) -> None:
    x, weight, bias, grad = problem(g, per_group, "float32", 2)
    weight, bias = abs(weight) + 1, abs(bias)
    out, grad_x, grad_weight, _ = everything(g, [x, weight, bias, grad], new)

    bad = x.copy()
    bad[1, 0, -1, 2] = np.nan
    results = everything(g, [bad, weight, bias, grad], new)
    mark = np.zeros_like(x)
    mark[1, 0, -1, 2] = 1
    hit = np.zeros_like(out)
    reference.forward(mark, weight, None, window(g), hit)
    np.testing.assert_array_equal(np.isnan(results[0]), hit != 0)
    taps = np.zeros_like(weight)
    reference.grad_weight(np.ones_like(grad), mark, window(g), taps, None)
    np.testing.assert_array_equal(np.isnan(results[2]), taps != 0)
    np.testing.assert_array_equal(results[2][taps == 0], grad_weight[taps == 0])

    bad = grad.copy()
    bad[2, -1, -1, 0] = np.inf
    results = everything(g, [x, weight, bias, bad], new)
    mark = np.zeros_like(grad)
    mark[2, -1, -1, 0] = 1
    hit = np.zeros_like(x)
    reference.grad_x(mark, weight, window(g), hit)
    np.testing.assert_array_equal(~np.isfinite(results[1]), hit != 0)
    np.testing.assert_array_equal(results[1][hit == 0], grad_x[hit == 0])


@given(
    st.sampled_from([((3, 3), 1), ((2, 3), 2), ((1, 1), 1)]),
    st.sampled_from([1, 2, (3, 1)]),
    st.sampled_from(NUMPY_LAYOUTS),
    DTYPES,
    SEEDS,
)
def test_any_layout_goes_in(kernel: Any, stride: Any, layout: str, dtype: str, seed: int) -> None:
    size, groups = kernel
    shapes = (2, 4, 5, 7), (4, 4 // groups, *size), (4,)
    x, weight, bias = (lay_out(a, layout) for a in draw(seed, dtype, *shapes))
    check_partials(ops.conv2d, x, weight, bias, stride=stride, padding=size[0] // 2, groups=groups)
    for ours, plain in zip(pools(x), pools(x.astype(dtype, order="C")), strict=True):
        np.testing.assert_array_equal(ours, plain)


def test_float16_is_computed_in_float32() -> None:
    x, weight = draw(0, "float16", (2, 60, 5, 5), (3, 60, 3, 3))
    value, partials = ops.conv2d(x, weight, padding=1)
    exact, _ = ops.conv2d(*wide(x, weight), padding=1)
    sizes, _ = ops.conv2d(*sizes_of(x, weight), padding=1)
    assert value.dtype == np.float16
    bound = roundoff("float16", 1) * abs(exact) + 2 * roundoff("float32", 541) * sizes
    assert (abs(value - exact) <= bound).all()
    assert [partial(value).dtype for partial in partials[:2]] == [np.float16] * 2
    mean, (partial,) = ops.avg_pool2d(np.full((1, 1, 60, 60), 60, np.float16), 60)
    assert mean.item() == 60  # the sum is beyond float16
    assert partial(mean).dtype == np.float16

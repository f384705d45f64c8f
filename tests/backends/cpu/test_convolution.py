"""Convolution and pooling on the CPU: against their plain forms, within derived bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bounds import DTYPES, SEEDS, agree, draw, filled, roundoff, sizes_of, wide
from hypothesis import example, given
from hypothesis import strategies as st

from invocupy import Tensor, functional, ops, testing
from invocupy.backends.cpu import convolution as cpu
from invocupy.backends.cpu import launch, pooling, threads
from invocupy.backends.cpu import pool as workers
from invocupy.backends.reference import convolution as reference
from invocupy.backends.reference import pooling as pooling_reference
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
    return (g.stride_h, g.stride_w), (g.pad_h, g.pad_w), (g.dilation_h, g.dilation_w)


def problem(g: Geometry, per_group: int, dtype: str, seed: int) -> list[np.ndarray]:
    """x, weight, bias and gradient."""
    o = g.groups * per_group
    weight = o, g.channels_per_group, g.kernel_h, g.kernel_w
    return draw(seed, dtype, g.x_shape, weight, (o,), (g.batch, o, g.out_h, g.out_w))


def check(backend: Any, dtype: str, g: Geometry, per_group: int, seed: int, bias: bool) -> None:
    """All three functions of ``backend`` against the plain form in float64."""
    x, weight, b, grad = problem(g, per_group, dtype, seed)
    taps, looks = g.kernel_h * g.kernel_w, window(g)
    shapes = [weight.shape, b.shape] if bias else [weight.shape]
    nothing = [] if bias else [None]
    cases: list[tuple[str, list[Any], list[Any], int]] = [
        ("forward", [x, weight, b if bias else None], [grad.shape], g.channels_per_group * taps),
        ("grad_x", [grad, weight], [x.shape], per_group * taps),
        # the parts are summed in float64, and rounded once at the end
        ("grad_weight", [grad, x], shapes, g.batch * g.out_h * g.out_w),
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
        job = workers._jobs[-1] if workers._jobs else workers._Job()  # what the next call gets
        job.scratch(1 << 20)
        job.room[:] = b"\xff" * len(job.room)  # NaN as float32
        workers._jobs[:] = [job]
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
def test_threads_do_not_change_bits(
    g: Geometry, per_group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "GRAIN", 1)  # so that helpers are called at this size
    arrays = problem(g, per_group, "float32", 0)
    try:
        found = []
        for number in (1, 2, 3, 8):
            threads.set_num_threads(number)
            results = [*everything(g, arrays, new), *pools(arrays[0])]
            found.append([result.tobytes() for result in results])
    finally:
        threads.set_num_threads(None)
    assert all(f == found[0] for f in found)


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


# ---------------------------------------------------------------------------- pooling

POOLS = st.tuples(
    *[st.tuples(st.integers(1, n), st.integers(1, n)) for n in (5, 4)],
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(5, 40), st.integers(5, 40)),
)
VALUES = [-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf, np.nan]


def check_max_pool(backend: Any, dtype: str, pool: Any, seed: int) -> None:
    """Values and winners to the bit, among many that are equal, infinite or NaN."""
    size, stride, padding, image = pool
    padding = tuple(min(p, k // 2) for p, k in zip(padding, size, strict=True))
    rng = np.random.default_rng(seed)
    x = rng.choice(VALUES, (2, 3, *image)).astype(dtype)
    out = [
        (n + 2 * p - k) // s + 1 for n, p, k, s in zip(image, padding, size, stride, strict=True)
    ]
    looks, found = (size, stride, padding), []
    grad = rng.integers(-3, 4, (2, 3, *out)).astype(dtype)
    for module in backend, pooling_reference:
        value, winner = np.full(grad.shape, 7, dtype), np.full(grad.shape, -7, np.int32)
        total = np.full(x.shape, np.nan, dtype)
        module.max_pool(x, looks, value, winner)
        module.max_pool_grad(grad, winner, looks, total)
        found.append((value, winner, total))
    for ours, plain in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, plain)


@given(DTYPES, POOLS, SEEDS)
def test_max_pool_is_its_plain_form(dtype: str, pool: Any, seed: int) -> None:
    check_max_pool(pooling, dtype, pool, seed)


def test_the_last_of_equal_values_is_not_the_first() -> None:
    class Wrong:
        max_pool_grad = pooling.max_pool_grad

        @staticmethod
        def max_pool(x: Any, looks: Any, out: Any, winner: Any) -> None:
            turned, (size, stride, padding) = x[..., ::-1].copy(), looks
            place = np.empty_like(winner)
            pooling.max_pool(turned, (size, stride, padding), out, place)
            out[...] = out[..., ::-1].copy()
            row, column = np.divmod(place[..., ::-1], x.shape[3])
            winner[...] = row * x.shape[3] + x.shape[3] - 1 - column

    with pytest.raises(AssertionError):
        check_max_pool(Wrong, "float32", ((3, 3), (1, 1), (1, 1), (7, 9)), 0)


@given(DTYPES, POOLS, st.booleans(), SEEDS)
def test_avg_pool_is_its_plain_form(dtype: str, pool: Any, ceil_mode: bool, seed: int) -> None:
    size, stride, padding, image = pool
    padding = tuple(min(p, k // 2) for p, k in zip(padding, size, strict=True))
    out = []
    for n, p, k, s in zip(image, padding, size, stride, strict=True):
        whole = (n + 2 * p - k) // s + 1
        out.append(whole + (ceil_mode and whole * s < n + p))
    looks, terms = (size, stride, padding), size[0] * size[1]
    x, grad, scale = draw(seed, dtype, (2, 3, *image), (2, 3, *out), tuple(out))
    for name, arrays, shape in (
        ("avg_pool", [x, scale], grad.shape),
        ("avg_pool_grad", [grad, scale], x.shape),
    ):

        def run(module: Any, given: Any, kind: Any, name: str = name, shape: Any = shape) -> Any:
            call = getattr(module, name)
            return filled(lambda a, b, to: call(a, b, looks, to), given, shape, dtype=kind)

        exact = run(pooling_reference, wide(*arrays), np.float64)
        sizes = run(pooling_reference, sizes_of(*arrays), np.float64)
        bound = roundoff(dtype, terms + 1) + roundoff("float64", terms + 1)
        agree(run(pooling, arrays, dtype), exact, [bound * s for s in sizes])


@pytest.mark.parametrize("stride", [7, 10**9])
def test_a_stride_beyond_the_image_takes_no_memory(stride: int) -> None:
    x = np.arange(30.0).reshape(1, 1, 5, 6)
    for pool, best in ((ops.max_pool2d, 14), (ops.avg_pool2d, 7)):
        value, (partial,) = pool(x, 3, stride)
        assert value.tolist() == [[[[best]]]]
        assert partial(value).sum() == pytest.approx(best)


@pytest.mark.parametrize("shape", [(1, 1, 0, 4), (1, 2, 3, 0), (2, 1, 0, 0)])
def test_windows_of_an_empty_plane_see_padding_only(shape: tuple[int, ...]) -> None:
    x = Tensor(np.zeros(shape, np.float32), requires_grad=True)
    for pool, value in (functional.max_pool2d, -np.inf), (functional.avg_pool2d, 0):
        y = pool(x, 2, 1, 1)
        assert y.size
        np.testing.assert_array_equal(y.data, value)
        y.backward(np.ones_like(y.data))
        assert x.grad.shape == shape

"""Involution on the CPU: agreement with the reference, and what is read and written."""

from __future__ import annotations

import threading
import tracemalloc
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invocupy.backends.cpu import involution as cpu
from invocupy.backends.cpu import pool as workers
from invocupy.backends.reference import involution as reference
from invocupy.geometry import Geometry, output_size

FUNCTIONS = ["forward", "grad_x", "grad_kernel", "fused_forward", "fused_grad_x", "fused_grad_span"]


def geometry(
    batch, groups, per_group, image, kernel, stride=(1, 1), padding=(1, 1), dilation=(1, 1)
):
    sizes = zip(image, kernel, stride, padding, dilation, strict=True)
    out = tuple(output_size(*axis) for axis in sizes)
    return Geometry.of(
        (batch, groups * per_group, *image),
        (batch, groups, *kernel, *out),
        stride,
        padding,
        dilation,
    )


def arguments(name, g, features, dtype, seed=0):
    """Random arguments of one function and the shapes of its results."""
    rng = np.random.default_rng(seed)
    taps = g.groups * prod(g.kernel)
    shapes = {
        "x": g.x_shape,
        "grad": g.out_shape,
        "kernel": g.kernel_shape,
        "features": (g.batch, features, *g.out),
        "weight": (taps, features),
        "bias": (taps,),
    }
    names, results = {
        "forward": ("x kernel", ["grad"]),
        "grad_x": ("grad kernel", ["x"]),
        "grad_kernel": ("grad x", ["kernel"]),
        "fused_forward": ("x features weight bias", ["grad"]),
        "fused_grad_x": ("grad features weight bias", ["x"]),
        "fused_grad_span": ("grad x features weight", ["features", "weight", "bias"]),
    }[name]
    given_arrays = [rng.standard_normal(shapes[n]).astype(dtype) for n in names.split()]
    return given_arrays, [shapes[n] for n in results]


def call(name, g, features=5, dtype=np.float32, seed=0, backend=cpu):
    """Results of one function, in arrays that held NaN."""
    given_arrays, shapes = arguments(name, g, features, dtype, seed)
    results = [np.full(shape, np.nan, dtype) for shape in shapes]
    getattr(backend, name)(*given_arrays, g, *results)
    return results


def longest_sum(name, g, features):
    """A bound on how many rounded products and sums one element of a result goes through."""
    taps, positions = prod(g.kernel), g.batch * prod(g.out)
    return {
        "forward": taps,
        "grad_x": taps,
        "grad_kernel": g.channels_per_group,
        "fused_forward": taps + features + 2,
        "fused_grad_x": taps + features + 2,
        "fused_grad_span": g.channels_per_group + max(g.groups * taps, positions) + 1,
    }[name]


def check(name, g, features, dtype, seed=0):
    """|cpu - reference| <= 2 n u reference(|...|): n roundings on either side, both in ``dtype``.

    The reference works in float64 where that is wider.
    """
    given_arrays, shapes = arguments(name, g, features, dtype, seed)
    wide = [array.astype(np.float64) for array in given_arrays]
    expected, size = ([np.zeros(shape) for shape in shapes] for _ in range(2))
    getattr(reference, name)(*wide, g, *expected)
    getattr(reference, name)(*map(np.abs, wide), g, *size)
    bound = 2 * longest_sum(name, g, features) * np.finfo(dtype).eps / 2
    for result, right, magnitude in zip(
        call(name, g, features, dtype, seed), expected, size, strict=True
    ):
        assert np.all(np.abs(result - right) <= bound * magnitude), name


@pytest.fixture
def nothing_cached(monkeypatch):
    """Results of any size go past the caches, where the machine has vectors of whole lines."""
    jobs = cpu._gather_job, cpu._correlate_job
    for job in jobs:
        job.cache_clear()
    monkeypatch.setattr(cpu, "_CACHES", 0)
    yield
    for job in jobs:
        job.cache_clear()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 4])
@pytest.mark.parametrize(
    ("image", "kernel", "stride"),
    [((32, 32), (3, 3), 1), ((5, 48), (7, 7), 1), ((9, 16), (1, 3), 1), ((7, 40), (3, 3), 1),
     ((9, 64), (3, 3), 2), ((5, 700), (3, 3), 1), ((3, 5, 32), (3, 3, 3), 1)],
)  # fmt: skip
def test_results_past_the_caches_are_the_same(
    dtype, offset, image, kernel, stride, nothing_cached, monkeypatch
):
    padding = tuple(k // 2 for k in kernel)
    dims = len(image)
    g = geometry(2, 2, 8, image, kernel, (stride,) * dims, padding, (1,) * dims)

    def results(name):
        given_arrays, shapes = arguments(name, g, 5, dtype)
        outs = []
        for shape in shapes:
            size = int(np.prod(shape))
            held = np.full(size + 32, np.nan, dtype)
            start = -held.ctypes.data % 64 // held.itemsize + offset  # from a line on, or not
            outs.append(held[start : start + size].reshape(shape))
        getattr(cpu, name)(*given_arrays, g, *outs)
        return outs

    names = ["forward", "grad_x", "grad_kernel", "fused_forward", "fused_grad_x"]
    past = [results(name) for name in names]
    for job in (cpu._gather_job, cpu._correlate_job):
        job.cache_clear()
    monkeypatch.undo()
    for name, first in zip(names, past, strict=True):
        for one, other in zip(first, results(name), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 4)])
def test_last_tile_of_a_row_of_any_width(dtype, kernel):
    """Nothing is left out, written twice as wide or past the end, whatever the last tile holds."""
    for width in range(1, 42):
        g = geometry(1, 1, 3, (kernel[0] + 1, width + kernel[1] - 1), kernel, (1, 1), (0, 0))
        given_arrays, (shape,) = arguments("grad_kernel", g, 5, dtype)
        size = int(np.prod(shape))
        held = np.full(size + 64, np.nan, dtype)
        out = held[32 : 32 + size].reshape(shape)
        cpu.grad_kernel(*given_arrays, g, out)
        expected = np.empty(shape)
        reference.grad_kernel(*(a.astype(np.float64) for a in given_arrays), g, expected)
        magnitude = np.empty(shape)
        reference.grad_kernel(*(abs(a.astype(np.float64)) for a in given_arrays), g, magnitude)
        # three multiply-adds, each rounds once, here and in the reference
        assert (abs(out - expected) <= 4 * np.finfo(dtype).eps * magnitude).all(), width
        assert np.isnan(held[:32]).all(), width
        assert np.isnan(held[32 + size :]).all(), width


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=25)
@given(data=st.data())
def test_agrees_with_reference(name, data):
    """Sizes that come in at run time: many positions, strips, bands, wide borders."""
    draw = data.draw
    image = draw(st.integers(9, 40)), draw(st.integers(17, 300))
    g = geometry(
        draw(st.integers(1, 2)), draw(st.integers(1, 3)), 9, image, (3, 3),
        padding=(draw(st.integers(0, 9)), draw(st.integers(0, 20))),
    )  # fmt: skip
    check(name, g, draw(st.integers(1, 20)), np.float32, draw(st.integers(0, 99)))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("g", "dtype"),
    [
        (geometry(2, 1, 4, (7, 20), (5, 3), (2, 3), (3, 1), (1, 2)), np.float32),
        (geometry(1, 2, 3, (8, 37), (2, 4), (1, 2), (0, 3), (2, 1)), np.float64),
        (geometry(1, 1, 16, (14, 61), (7, 7), padding=(3, 3)), np.float32),
        (geometry(1, 1, 17, (15, 131), (5, 3), (2, 2), (4, 2), (2, 2)), np.float32),
        (geometry(2, 3, 1, (1, 1), (1, 1), (3, 5), (0, 0)), np.float64),
        (geometry(1, 1, 2, (3, 5), (3, 3), (3, 2), (7, 9), (2, 3)), np.float32),
        (geometry(1, 1, 17, (2, 8), (1, 2), (5, 1), (1, 40), (1, 6)), np.float64),
        (geometry(1, 1, 1, (2, 3), (17, 14), padding=(9, 8)), np.float32),
        (geometry(2, 2, 9, (300,), (9,), (1,), (4,), (1,)), np.float32),
        (geometry(2, 1, 3, (131,), (4,), (3,), (5,), (2,)), np.float64),
        (geometry(1, 2, 9, (9, 10, 37), (3, 3, 3), (1,) * 3, (1,) * 3, (1,) * 3), np.float32),
        (geometry(1, 1, 17, (70, 5, 6), (3, 2, 3), (1,) * 3, (1,) * 3, (1,) * 3), np.float32),
        (geometry(2, 1, 4, (8, 7, 20), (4, 5, 3), (2, 2, 3), (3, 3, 1), (3, 1, 2)), np.float64),
        (geometry(1, 1, 3, (13, 4, 17), (3, 1, 2), (6, 1, 2), (2, 0, 1), (4, 1, 1)), np.float32),
        (geometry(1, 1, 2, (11, 3, 5), (1, 3, 1), (2, 1, 1), (0, 1, 0), (1, 1, 1)), np.float32),
    ],
    ids=[
        "strided", "even", "seven", "dilated", "point", "padding", "wide padding", "large kernel",
        "signal", "strided signal", "volume", "deep volume", "strided volume", "far planes",
        "planes apart",
    ],
)  # fmt: skip
def test_agrees_with_reference_for_every_kind(name, g, dtype):
    check(name, g, 3, dtype)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(0, 1, 3, (5, 5)), (1, 1, 0, (5, 5)), (2, 1, 3, (0, 5))])
def test_empty_arrays_give_zeros_or_nothing(name, shape):
    g = geometry(*shape, (3, 3))
    expected = call(name, g, backend=reference)
    for result, right in zip(call(name, g), expected, strict=True):
        np.testing.assert_array_equal(result, right)


@pytest.mark.parametrize("name", ["forward", "grad_x"])
def test_a_nan_reaches_exactly_what_sees_it(name):
    """Padding and lanes past the edge are not read, not even times zero."""
    g = geometry(1, 2, 9, (4, 10, 37), *[(k,) * 3 for k in (3, 1, 1, 1)])
    (array, kernel), (shape,) = arguments(name, g, 1, np.float32)
    for z, i, j in [(0, 0, 0), (3, 0, 36), (0, 9, 0), (3, 9, 36), (2, 4, 16)]:
        for bad in (array, kernel):
            kept = bad[..., z, i, j].copy()
            bad[..., z, i, j] = np.nan
            results = [np.empty(shape, np.float32) for _ in range(2)]
            for backend, result in zip((cpu, reference), results, strict=True):
                getattr(backend, name)(array, kernel, g, result)
            bad[..., z, i, j] = kept
            np.testing.assert_array_equal(*map(np.isnan, results))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("image", [(600,), (50, 40), (12, 20, 40)])
def test_threads_do_not_change_bits(name, image, same_bits):
    g = geometry(3, 2, 9, image, *[(k,) * len(image) for k in (3, 1, 1, 1)])
    same_bits(lambda: call(name, g))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_read_only_arrays_need_no_compilation_of_their_own(name):
    g = geometry(1, 2, 9, (12, 40), (3, 3))
    expected = call(name, g)
    given_arrays, shapes = arguments(name, g, 5, np.float32)
    for array in given_arrays:
        array.flags.writeable = False
    results = [np.empty(shape, np.float32) for shape in shapes]
    getattr(cpu, name)(*given_arrays, g, *results)
    for result, right in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, right)
    assert len(cpu._gather_job(g, 4, False, 0).body.signatures) <= 1


@pytest.mark.parametrize("name", ["fused_forward", "fused_grad_x", "fused_grad_span"])
def test_the_generated_kernel_is_never_whole(name):
    g = geometry(1, 1, 9, (300, 1000), (3, 3))
    given_arrays, shapes = arguments(name, g, 2, np.float32)
    results = [np.zeros(shape, np.float32) for shape in shapes]
    peaks = []

    def work():
        tracemalloc.start()
        getattr(cpu, name)(*given_arrays, g, *results)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    getattr(cpu, name)(*given_arrays, g, *results)  # compiles
    workers._reset()  # scratch memory is kept for the next call
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert 0 < peaks[0] < np.prod(g.kernel_shape) * 4 / 4


def test_a_packed_plane_ends_before_the_next() -> None:
    """The last columns of a phase are packed as a whole vector; other planes are in use then."""
    g = Geometry.of((1, 2, 3, 1, 2), (1, 1, 2, 1, 2, 4, 1, 1), (1, 1, 2), (1, 0, 0))
    rng = np.random.default_rng(0)
    x, kernel = (rng.integers(1, 4, s).astype("f4") for s in (g.x_shape, g.kernel_shape))
    results = []
    for wing in (cpu, reference):
        results.append(np.empty(g.out_shape, "f4"))
        wing.forward(x, kernel, g, results[-1])
    assert (results[0] == results[1]).all()

"""Batch norm, 1x1 convolution and result memory on the CPU: against references and bounds."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import DTYPES, PIXELS, SEEDS, agree, draw, filled, roundoff, sizes_of, wide
from hypothesis import example, given
from hypothesis import strategies as st

from invocupy import Tensor, functional, ops
from invocupy.backends import memory
from invocupy.backends.cpu import batch_norm as norm
from invocupy.backends.cpu import launch, pointwise, threads
from invocupy.backends.cpu import pool as workers
from invocupy.backends.cpu.products import ROWS, packed
from invocupy.backends.reference import batch_norm as norm_reference
from invocupy.backends.reference import pointwise as pointwise_reference
from invocupy.ops.memo import once, sharing
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
        (backend.grad_x, pointwise_reference.grad_x, [grad, weight], [x.shape], rows),
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


def _last_pixel_twice(grad: Any, weight: Any, out: Any) -> None:
    pointwise.grad_x(grad, weight, out)
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


def check_norm(backend: Any, dtype: str, shape: tuple[int, ...], seed: int) -> None:
    """All functions and options of ``backend`` against the reference in float64."""
    channels = shape[1]
    x, grad, residual, *per_channel = draw(seed, dtype, shape, shape, shape, *[(channels,)] * 3)
    a, b, c = per_channel
    count = x.size // channels
    u = roundoff(dtype, 1)

    results = filled(backend.moments, [x], (channels,), (channels,), dtype=dtype)
    exact = filled(norm_reference.moments, wide(x), (channels,), (channels,), dtype=np.float64)
    mean = abs(x.astype(np.float64)).mean(axis=(0, 2, 3))
    # sums in float64; rounded to dtype at the end. What the rounded mean of the reference adds to
    # the variance is its square.
    noise = roundoff("float64", 2 * count + 8)
    bounds = [u * mean + noise * mean, (u + noise) * exact[1] + noise * mean**2 + noise]
    agree(results, exact, bounds)

    masks = np.where(residual > 0, residual, 0).astype(dtype)
    for added in (None, residual):
        for relu in (False, True):
            arguments = [x, a, b, added, relu]
            results = filled(backend.forward, arguments, shape, dtype=dtype)
            exact = filled(
                norm_reference.forward, [*wide(x, a, b, added), relu], shape, dtype=np.float64
            )
            sizes = filled(
                norm_reference.forward, [*sizes_of(x, a, b, added), relu], shape, dtype=np.float64
            )
            agree(results, exact, [roundoff(dtype, 4) * sizes[0]])
    for out in (None, masks):
        arguments = [grad, x, out, a]
        shapes = [(channels,), (channels,)]
        results = filled(backend.grad_sums, arguments, *shapes, dtype=dtype)
        exact = filled(norm_reference.grad_sums, wide(*arguments), *shapes, dtype=np.float64)
        h, apart = sizes_of(grad, x)[0], abs(x.astype(np.float64) - a[:, None, None])
        sizes = [h.sum(axis=(0, 2, 3)), (h * apart).sum(axis=(0, 2, 3))]
        agree(results, exact, [(u + 2 * noise) * s for s in sizes])
        arguments = [grad, x, out, a, b, c]
        sizes = filled(norm_reference.grad_x, sizes_of(*arguments), shape, shape, dtype=np.float64)
        for wanted in ([shape, shape], [shape]):

            def run(*given: Any, function: Any = backend.grad_x, n: int = len(wanted)) -> None:
                function(*given, *[None] * (2 - n))

            results = filled(run, arguments, *wanted, dtype=dtype)
            exact = filled(norm_reference.grad_x, wide(*arguments), shape, shape, dtype=np.float64)
            agree(
                results,
                exact[: len(wanted)],
                [roundoff(dtype, 4) * s for s in sizes][: len(wanted)],
            )


@given(DTYPES, st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(1, 40), SEEDS)
@example("float32", 1, 1, 1, 1, 0)
@example("float32", 2, 3, 32, 32, 0)
@example("float64", 1, 2, 100, 90, 0)  # a plane of two segments
def test_batch_norm_is_the_reference(
    dtype: str, batch: int, channels: int, height: int, width: int, seed: int
) -> None:
    check_norm(norm, dtype, (batch, channels, height, width), seed)


def test_a_variance_with_the_wrong_divisor_is_found() -> None:
    class Wrong:
        forward, grad_sums, grad_x = norm.forward, norm.grad_sums, norm.grad_x

        @staticmethod
        def moments(x: Any, mean: Any, var: Any) -> None:
            norm.moments(x, mean, var)
            var *= x[:, 0].size / (x[:, 0].size - 1)

    with pytest.raises(AssertionError):
        check_norm(Wrong, "float32", (2, 3, 16, 16), 0)


@given(st.sampled_from([1e2, 1e4, 1e6]), SEEDS)
def test_moments_do_not_cancel(mean: float, seed: int) -> None:
    # E[x^2] - E[x]^2 in float32 would have lost every digit from 1e4 on
    (noise,) = draw(seed, "float64", (4, 2, 9, 11))
    x = (mean + noise).astype(np.float32)
    exact = x.astype(np.float64)
    results = filled(norm.moments, [x], (2,), (2,), dtype="float32")
    u = roundoff("float32", 1)
    # the variance is rounded once, after sums in float64 around the float64 mean
    agree(
        results,
        [exact.mean(axis=(0, 2, 3)), exact.var(axis=(0, 2, 3))],
        [u * 2 * mean, 2 * u * exact.var(axis=(0, 2, 3))],
    )


def test_relu_keeps_nan_and_stops_infinities() -> None:
    x = np.array([np.nan, -np.inf, np.inf, -1.0, -0.0, 2.0], np.float32).reshape(1, 1, 2, 3)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    (out,) = filled(norm.forward, [x, one, zero, None, True], x.shape, dtype="float32")
    np.testing.assert_array_equal(out, np.maximum(x, 0))
    (h,) = filled(
        lambda *a: norm.grad_x(*a, None),
        [np.full_like(x, np.inf), np.ones_like(x), out, one, zero, zero], x.shape, dtype="float32",
    )  # fmt: skip
    # where ReLU was at or below zero (or NaN) the gradient is 0, not inf * 0
    np.testing.assert_array_equal(h.ravel(), [0, 0, np.inf, 0, 0, np.inf])


@given(
    DTYPES, st.integers(1, 9), st.integers(1, 9), st.integers(1, 3),
    st.booleans(), st.booleans(), SEEDS,
)  # fmt: skip
def test_packed_weights_come_in_blocks_of_rows(
    dtype: str, rows: int, each: int, groups: int, turned: bool, with_bias: bool, seed: int
) -> None:
    weight, bias = draw(seed, dtype, (rows, groups * each), (rows,))
    with_bias = with_bias and groups == 1 and not turned
    order = packed(weight, bias if with_bias else None, groups, turned)
    for g, blocks in enumerate(order.reshape(groups, *order.shape[-3:])):
        part = weight[:, g * each : (g + 1) * each]
        matrix = part.T if turned else part
        if with_bias:
            matrix = np.column_stack([matrix, bias])
        whole = blocks.swapaxes(1, 2).reshape(-1, matrix.shape[1])
        assert len(whole) == -(-len(matrix) // ROWS) * ROWS
        np.testing.assert_array_equal(whole[: len(matrix)], matrix)
        for more in whole[len(matrix) :]:
            np.testing.assert_array_equal(more, matrix[-1])


def test_threads_do_not_change_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRAIN", 1)  # so that helpers are called at this size
    x, weight, bias, grad = draw(1, "float32", (5, 20, 300), (70, 20), (70,), (5, 70, 300))
    image, other = x.reshape(5, 20, 15, 20), grad[:, :20].reshape(5, 20, 15, 20).copy()
    channel = bias[:20].copy()

    def everything() -> list[bytes]:
        results = [
            *filled(pointwise.forward, [x, weight, bias], grad.shape, dtype="float32"),
            *filled(pointwise.grad_x, [grad, weight], x.shape, dtype="float32"),
            *filled(pointwise.grad_weight, [grad, x], (70, 20), (70,), dtype="float32"),
            *filled(norm.moments, [image], (20,), (20,), dtype="float32"),
            *filled(
                norm.forward, [image, channel, channel, other, True], image.shape, dtype="float32"
            ),
            *filled(norm.grad_sums, [other, image, other, channel], (20,), (20,), dtype="float32"),
            *filled(
                norm.grad_x, [other, image, other, channel, channel, channel],
                image.shape, image.shape, dtype="float32",
            ),
        ]  # fmt: skip
        return [result.tobytes() for result in results]

    try:
        found = []
        for number in (1, 2, 3, 8):
            threads.set_num_threads(number)
            found.append(everything())
    finally:
        threads.set_num_threads(None)
    assert all(f == found[0] for f in found)


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


def test_partials_share_sums_but_keep_no_gradient() -> None:
    x, weight, bias, grad = draw(0, "float32", (2, 3, 5, 7), (4, 3, 1, 1), (4,), (2, 4, 5, 7))
    _, (_, grad_weight, grad_bias) = ops.conv2d(x, weight, bias)
    alive = weakref.ref(grad)
    first = grad_weight(grad)
    first[...] = np.nan  # the caller's own array
    assert np.isfinite(grad_weight(grad)).all()
    assert grad_bias(grad).shape == (4,)
    assert not np.array_equal(grad_bias(2 * grad), grad_bias(grad))
    del grad
    gc.collect()
    assert alive() is None


def test_shared_work_is_forgotten_with_its_gradient() -> None:
    made: list[Any] = []

    def make(grad: np.ndarray) -> np.ndarray:
        result = 2 * grad
        made.append(weakref.ref(result))
        return result

    shared, grad = once(make), np.ones(3)
    with sharing(grad):
        assert shared(grad) is shared(grad)
        assert len(made) == 1
        assert shared(2 * grad)[0] == 4  # not the gradient that is passed on
    assert made[0]() is None
    grad[...] = 3  # filled again
    with sharing(grad):
        assert shared(grad)[0] == 6
    assert shared(grad) is not shared(grad)


def test_float16_is_computed_in_float32() -> None:
    x, weight, bias = draw(0, "float16", (2, 300, 3, 3), (2, 300, 1, 1), (2,))
    value = functional.conv2d(x, weight, bias)
    assert value.dtype == np.float16
    exact = functional.conv2d(*wide(x, weight, bias))
    sizes = functional.conv2d(*sizes_of(x, weight, bias))
    bound = roundoff("float16", 1) * abs(exact) + 2 * roundoff("float32", 301) * sizes
    assert (abs(value - exact) <= bound).all()


def test_memory_is_used_again_but_never_while_it_is_in_use() -> None:
    like = np.ones(1)
    first = memory.empty((100, 1000), np.float32, like)
    place = first.ctypes.data
    assert place % 64 == 0
    assert first.flags.c_contiguous
    assert first.flags.writeable
    view = first[3:5].T
    del first
    other = memory.empty((100, 1000), np.float32, like)
    assert not np.shares_memory(view, other)
    del view
    assert memory.empty((1000, 99), np.float32, like).ctypes.data == place
    assert memory.empty((0, 3), np.float64, like).shape == (0, 3)


def test_threads_share_the_memory_without_mixing_it_up() -> None:
    problems: list[str] = []

    def work(number: int) -> None:
        like = np.ones(1)
        for turn in range(200):
            array = memory.empty((20000 + turn % 3,), np.float64, like)
            array[...] = number
            if not (array == number).all():
                problems.append(f"thread {number} found another's values")

    running = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not problems


def test_a_network_of_them_learns_the_gradient_of_its_reference() -> None:
    """Through the tape, the ops on these backends against array code in float64."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 6, 6))
    weight, bias = rng.standard_normal((8, 3, 1, 1)), rng.standard_normal(8)
    scale, shift = rng.standard_normal(8), rng.standard_normal(8)
    operands = [Tensor(a, requires_grad=True) for a in (x, weight, bias, scale, shift)]
    y = functional.conv2d(*operands[:3])
    y = functional.batch_norm(y, weight=operands[3], bias=operands[4], training=True, relu=True)
    cotangent = rng.standard_normal(y.shape)
    y.backward(cotangent)

    def loss(*arrays: Any) -> float:
        x, weight, bias, scale, shift = arrays
        z = np.einsum("oc,nchw->nohw", weight[:, :, 0, 0], x) + bias[:, None, None]
        centred = z - z.mean(axis=(0, 2, 3), keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(axis=(0, 2, 3), keepdims=True) + 1e-5)
        out = np.maximum(scale[:, None, None] * unit + shift[:, None, None], 0)
        return float((out * cotangent).sum())

    arrays = [t.data for t in operands]
    for i, operand in enumerate(operands):
        direction = rng.standard_normal(arrays[i].shape)
        ends = [
            loss(*arrays[:i], arrays[i] + step * direction, *arrays[i + 1 :])
            for step in (-1e-6, 1e-6)
        ]
        slope = (ends[1] - ends[0]) / 2e-6
        size = float(abs(operand.grad * direction).sum())
        assert abs(slope - float((operand.grad * direction).sum())) <= 1e-5 * max(size, 1.0)


def test_kernels_kept_by_different_processes_are_told_apart(tmp_path: Path) -> None:
    """Their object files may define equal symbols: the second loaded must not run the first."""
    code = (
        "import sys, numpy as np\n"
        "from invocupy.backends.cpu import pointwise as cpu\n"
        "for dtype in sys.argv[1:]:\n"
        "    grad, x = np.full((1, 1, 1), 2, dtype), np.full((1, 1, 1), 3, dtype)\n"
        "    out, bias = np.zeros((1, 1), dtype), np.zeros(1, dtype)\n"
        "    cpu.grad_weight(grad, x, out, bias)\n"
        "    assert (out[0, 0], bias[0]) == (6, 2), (dtype, out, bias)\n"
    )
    tmp_path.chmod(0o700)
    for dtypes in (["float32"], ["float64"], ["float32", "float64"]):
        subprocess.run(
            [sys.executable, "-c", code, *dtypes],
            check=True,
            env={**os.environ, "INVOCUPY_CACHE_DIR": str(tmp_path)},
        )


def test_two_threads_that_want_the_last_job(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(list[Any]):
        """Another thread takes what is there between the look and the grasp."""

        def __bool__(self) -> bool:
            return True

        def pop(self, index: Any = -1) -> Any:
            raise IndexError

    monkeypatch.setattr(workers, "_jobs", Lost())
    x, weight = draw(0, "float32", (1, 3, 5), (2, 3))
    (result,) = filled(pointwise.forward, [x, weight, None], (1, 2, 5), dtype="float32")
    np.testing.assert_allclose(result, weight @ x, rtol=1e-5)

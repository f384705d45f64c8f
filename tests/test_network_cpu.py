"""Batch norm, 1x1 convolution and result memory on the CPU: against references and bounds.

The bounds are those of a sum of n products in any order, n*u/(1-n*u) times the sum of their sizes
(Higham, Accuracy and Stability of Numerical Algorithms, 3.1), evaluated with the references on
absolute values; no constant is chosen.
"""

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
from hypothesis import example, given
from hypothesis import strategies as st

from invocupy import Tensor, functional, models, nn, ops
from invocupy.autograd import apply
from invocupy.backends import launch, memory, threads
from invocupy.backends.batch_norm import cpu as norm
from invocupy.backends.batch_norm import reference as norm_reference
from invocupy.backends.perceptron import cpu as perceptron
from invocupy.backends.perceptron import reference as perceptron_reference
from invocupy.backends.pointwise import cpu as pointwise
from invocupy.backends.pointwise import reference as pointwise_reference
from invocupy.ops.block import involution_block
from invocupy.ops.memo import once
from invocupy.testing import LAYOUTS, check_partials, lay_out

DTYPES = st.sampled_from(["float32", "float64"])
SEEDS = st.integers(0, 2**32 - 1)
# one pixel, less than a vector, odd, several tiles and a rest, more than a chunk
PIXELS = st.one_of(st.integers(1, 40), st.sampled_from([49, 63, 64, 65, 130, 1024, 1027]))
CHANNELS = st.one_of(st.integers(1, 9), st.sampled_from([16, 36, 64, 75]))


def roundoff(dtype: Any, terms: int) -> float:
    """n*u / (1 - n*u)."""
    u = float(np.finfo(dtype).eps) / 2
    return terms * u / (1 - terms * u)


def draw(seed: int, dtype: str, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def wide(*arrays: Any) -> list[Any]:
    return [None if a is None else a.astype(np.float64) for a in arrays]


def sizes_of(*arrays: Any) -> list[Any]:
    return [None if a is None else abs(a) for a in wide(*arrays)]


def filled(function: Any, arguments: list[Any], *shapes: tuple[int, ...], dtype: Any) -> list[Any]:
    """What ``function(*arguments, *results)`` leaves in results that were NaN before."""
    results = [np.full(shape, np.nan, dtype) for shape in shapes]
    function(*arguments, *results)
    return results


def agree(results: list[Any], exact: list[Any], allowed: list[Any]) -> None:
    for result, value, bound in zip(results, exact, allowed, strict=True):
        assert (abs(result - value) <= bound).all()


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
    assert shared(grad) is shared(grad)
    assert len(made) == 1
    del grad
    gc.collect()
    assert made[0]() is None


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


def test_a_large_reserve_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.release()
    monkeypatch.setattr(memory, "LARGEST_RESERVE", 1 << 20)
    like = np.ones(1)
    kept = memory.empty((1 << 21,), np.uint8, like)
    alive = weakref.ref(kept.base.memory)
    del kept
    assert alive() is not None
    memory.empty((1 << 19,), np.uint8, like)  # finds no block of its size
    assert alive() is None


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
        return lambda *a: mode.forward(*a[:6], groups, *a[6:])

    def backward(mode: Any) -> Any:
        return lambda *a: mode.backward(*a[:7], groups, *a[7:])

    results = filled(forward(backend), weights, *shapes, dtype=dtype)
    exact = filled(forward(perceptron_reference), wide(*weights), *shapes, dtype=np.float64)
    bounds = filled(forward(perceptron_reference), sizes_of(*weights), *shapes, dtype=np.float64)
    agree(results, exact, [2 * roundoff(dtype, terms) * b for b in bounds])

    arguments = [grad, grad_grouped, *weights[:4], grouped]
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
            given, results = arguments[:8], arguments[8:]
            grad_x = np.full(results[0].shape, np.nan, dtype)
            perceptron.backward(*given, grad_x, *results[1:])
            results[0][...] = grad_x

    check_perceptron(InFloat64, dtype, sizes, seed)


def test_a_hidden_channel_of_the_wrong_group_is_found() -> None:
    class Wrong:
        @staticmethod
        def forward(*a: Any) -> None:
            perceptron.forward(*a[:5], np.roll(a[5], 1, axis=1), *a[6:])

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


def block_of(seed: int, dtype: str, channels: int, hidden: int) -> models.SimpleBlock:
    """A block whose state is random, also what starts at 0 or 1."""
    rng = np.random.default_rng(seed)
    block = models.SimpleBlock(channels, hidden, fused=False, rng=rng)
    for name, value in block._state((nn.Parameter, nn.Buffer)):
        if value.data.dtype == np.float32:
            moved = value.data + 0.3 * rng.standard_normal(value.data.shape)
            value.data = (abs(moved) + 0.1 if "var" in name else moved).astype(dtype)
    return block


def parameters_of(block: models.SimpleBlock) -> list[nn.Parameter]:
    layer = block.involution
    parts = [
        (block.expand, block.expand_norm), (layer.reduce, layer.norm), (layer.span, None),
        (block.project, block.project_norm),
    ]  # fmt: skip
    return [p for pair in parts for m in pair if m is not None for p in (m.weight, m.bias)]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_block_is_the_composition_of_its_layers(keep: bool, training: bool, channels: int) -> None:
    block = block_of(0, "float64", channels, 32).train(training)
    x, cotangent = draw(1, "float64", (3, channels, 6, 7), (3, channels, 6, 7))
    x += 2  # a stream has a mean
    norms = [block.expand_norm, block.involution.norm, block.project_norm]
    moments = [(norm.running_mean.data, norm.running_var.data) for norm in norms]
    gradients = []
    seen: list[Any] = []
    for fused in (False, True):
        operands = [Tensor(x, requires_grad=True), *parameters_of(block)]
        for operand in operands:
            operand.grad = None
        if fused:
            y = apply(
                involution_block, *operands, kernel_size=3, keep=keep, observe=seen.append,
                moments=None if training else tuple(moments),
            )  # fmt: skip
        else:
            y = block(operands[0])
        y.backward(cotangent)
        gradients.append([y.data, *(operand.grad for operand in operands)])
    names = [name for name, _ in block.named_parameters()]
    for name, composed, fused in zip(["y", "x", *names], *gradients, strict=True):
        # float64, about a thousand terms; biases before a norm have gradient 0
        np.testing.assert_allclose(fused, composed, rtol=1e-10, atol=1e-10, err_msg=name)
    hidden = functional.conv2d(x, block.expand.weight.data, block.expand.bias.data)
    if training:
        np.testing.assert_allclose(seen[0][0][0], hidden.mean(axis=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(seen[0][0][1], hidden.var(axis=(0, 2, 3)), rtol=1e-10)


def test_block_is_as_exact_in_float32_as_its_layers() -> None:
    x, cotangent = draw(1, "float64", (4, 3, 16, 16), (4, 3, 16, 16))
    x += 2
    results: dict[str, list[Any]] = {}
    for name in ("exact", "composed", "block"):
        dtype = "float64" if name == "exact" else "float32"
        block = block_of(0, "float32", 3, 64)
        for value in block.parameters():
            value.data = value.data.astype(dtype)
        operands = [Tensor(x.astype(dtype), requires_grad=True), *parameters_of(block)]
        if name == "block":
            y = apply(involution_block, *operands, kernel_size=3)
        else:
            y = block(operands[0])
        y.backward(cotangent.astype(dtype))
        results[name] = [y.data, *(operand.grad for operand in operands)]

    def error(name: str, i: int) -> float:
        exact = results["exact"][i]
        return float(np.linalg.norm(results[name][i] - exact) / np.linalg.norm(exact))

    for i in range(16):
        if i in (3, 7, 13):  # biases before a norm: their gradient is 0
            continue
        # at most a few times what the same steps in float32 lose
        assert error("block", i) <= 4 * error("composed", i) + 4 * float(np.finfo("f4").eps)


def test_block_gives_new_arrays_and_refuses_what_does_not_fit() -> None:
    block = block_of(0, "float64", 2, 16)
    arrays = [p.data for p in parameters_of(block)]
    (x,) = draw(0, "float64", (2, 2, 5, 6))
    with pytest.raises(ValueError, match="expand_weight must have shape"):
        involution_block(x[:, :1], *arrays, kernel_size=3)
    with pytest.raises(ValueError, match="must not be empty"):
        involution_block(x[:0], *arrays, kernel_size=3)
    value, partials = involution_block(x, *arrays, kernel_size=3)
    grad = np.ones_like(value)
    first = [partial(grad) for partial in partials]
    for array, operand in zip(first, [x, *arrays], strict=True):
        assert array.shape == operand.shape
        kept = array.copy()
        array[...] = np.nan
        partial = partials[next(i for i, other in enumerate(first) if other is array)]
        np.testing.assert_array_equal(partial(grad), kept)


def test_kernels_kept_by_different_processes_are_told_apart(tmp_path: Path) -> None:
    """Their object files may define equal symbols: the second loaded must not run the first."""
    code = (
        "import sys, numpy as np\n"
        "from invocupy.backends.pointwise import cpu\n"
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

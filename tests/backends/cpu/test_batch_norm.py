"""Batch norm on the CPU: against the reference, within derived bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bounds import DTYPES, SEEDS, agree, draw, filled, roundoff, sizes_of, wide
from hypothesis import example, given
from hypothesis import strategies as st

from invocupy.backends.cpu import batch_norm as norm
from invocupy.backends.reference import batch_norm as norm_reference


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


def test_threads_do_not_change_bits(same_bits: Any) -> None:
    image, other, channel = draw(1, "float32", (5, 20, 15, 20), (5, 20, 15, 20), (20,))

    def results() -> list[np.ndarray]:
        return [
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

    same_bits(results)

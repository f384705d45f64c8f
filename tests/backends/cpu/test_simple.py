"""The plain Numba loops agree with the reference, and the vector code with them.

Values are small integers, whose sums are exact in any order: results are equal to the bit.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from bounds import roundoff
from hypothesis import given, settings
from hypothesis import strategies as st

from invocupy.backends.cpu import batch_norm, convolution, involution, pooling, simple
from invocupy.backends.reference import batch_norm as batch_norm_reference
from invocupy.backends.reference import convolution as convolution_reference
from invocupy.backends.reference import involution as involution_reference
from invocupy.backends.reference import pooling as pooling_reference
from invocupy.geometry import Geometry
from invocupy.testing import geometries

WINDOWS = [((1, 1), (1, 1), (1, 1)), ((2, 1), (0, 2), (1, 2)), ((3, 2), (2, 1), (2, 1))]
IMAGE = 2, 6, 17, 19


def integers(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(-4, 5, shape).astype(np.float32) for shape in shapes]


def positions(taps: tuple[int, int], window: Any) -> tuple[int, ...]:
    axes = zip(IMAGE[2:], taps, *window, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)


def of(functions: Any, shapes: list[tuple[int, ...]], start: float = np.nan) -> list[np.ndarray]:
    """What ``functions(*results)`` leaves in arrays that were ``start`` before."""
    results = [np.full(shape, start, np.float32) for shape in shapes]
    functions(*results)
    return results


def same(*sets: list[np.ndarray]) -> None:
    for others in sets[1:]:
        for first, other in zip(sets[0], others, strict=True):
            np.testing.assert_array_equal(first, other)


def pixels(*arrays: np.ndarray) -> list[np.ndarray]:
    """Views with one axis in place of the spatial ones."""
    return [a.reshape(*a.shape[:2], -1) if a.ndim > 2 else a for a in arrays]


@settings(max_examples=60)
@given(
    geometries(dims=(1, 2, 3), max_width=70, max_channels_per_group=9, empty=False),
    st.integers(0, 99),
)
def test_involution(g: Geometry, seed: int) -> None:
    x, kernel, grad = integers(seed, g.x_shape, g.kernel_shape, g.out_shape)
    axes = g.size, g.kernel, g.out, g.stride, g.padding, g.dilation
    taps = g.batch, g.groups, prod(g.kernel), prod(g.out)
    backends = involution, involution_reference

    def plain_forward(y: np.ndarray) -> None:
        simple.involution(*pixels(x), kernel.reshape(taps), axes, *pixels(y))

    def plain_grads(in_x: np.ndarray, in_kernel: np.ndarray) -> None:
        arrays = *pixels(grad, x), kernel.reshape(taps)
        simple.involution_grads(*arrays, axes, *pixels(in_x), in_kernel.reshape(taps))

    def both(backend: Any) -> list[np.ndarray]:
        in_x = of(lambda r: backend.grad_x(grad, kernel, g, r), [g.x_shape])
        return in_x + of(lambda r: backend.grad_kernel(grad, x, g, r), [g.kernel_shape])

    vector = [of(lambda y, b=b: b.forward(x, kernel, g, y), [g.out_shape]) for b in backends]
    same(of(plain_forward, [g.out_shape]), *vector)
    same(of(plain_grads, [g.x_shape, g.kernel_shape], 0), *map(both, backends))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("channels", "outputs"), [(6, 5), (3, 4), (1, 6)])
def test_convolution(window: Any, channels: int, outputs: int) -> None:
    out = 2, outputs, *positions((3, 2), window)
    x, weight, bias, grad = integers(1, IMAGE, (outputs, channels, 3, 2), (outputs,), out)
    backends = convolution, convolution_reference
    axes = IMAGE[2:], (3, 2), out[2:], *window
    plain = of(lambda y: simple.convolution(*pixels(x, weight, bias), axes, *pixels(y)), [out])
    vector = [of(lambda y, b=b: b.forward(x, weight, bias, window, y), [out]) for b in backends]
    same(plain, *vector)

    def all_three(backend: Any) -> list[np.ndarray]:
        in_x = of(lambda r: backend.grad_x(grad, weight, window, r), [x.shape])
        shapes = [weight.shape, bias.shape]
        return in_x + of(lambda *r: backend.grad_weight(grad, x, window, *r), shapes)

    shapes = [x.shape, weight.shape, bias.shape]
    arrays = pixels(grad, x, weight)
    plain = of(lambda *r: simple.convolution_grads(*arrays, axes, *pixels(*r)), shapes, 0)
    same(plain, *map(all_three, backends))


@pytest.mark.parametrize(("stride", "padding", "_"), WINDOWS)
def test_pooling(stride: Any, padding: Any, _: Any) -> None:
    size, one = (4, 3), (1, 1)
    padding = tuple(min(p, k // 2) for p, k in zip(padding, size, strict=True))
    out = 2, 6, *positions(size, (stride, padding, one))
    axes = IMAGE[2:], size, out[2:], stride, padding, one
    (x,) = integers(2, IMAGE)
    x[0, 0, 3, 3] = np.nan
    scale = np.full(out[2:], 0.25, np.float32)
    backends = pooling, pooling_reference
    plain = of(lambda *r: simple.max_pool(*pixels(x), axes, *pixels(*r)), [out, out])
    winner = plain.pop().astype(np.int32)
    for backend in backends:
        found = np.empty(out, np.int32)
        pools = size, stride, padding
        same(plain, of(lambda y, b=backend, w=found, p=pools: b.max_pool(x, p, y, w), [out]))
        same([winner], [found])
    plain = of(lambda y: simple.avg_pool(*pixels(x), scale.ravel(), axes, *pixels(y)), [out])
    for backend in backends:
        pools = size, stride, padding
        same(plain, of(lambda y, b=backend, p=pools: b.avg_pool(x, scale, p, y), [out]))


def test_moments() -> None:
    (x,) = integers(3, IMAGE)
    terms = x.size // x.shape[1] + 1
    results = [
        of(lambda *r, m=module: m.moments(x, *r), [(6,), (6,)])
        for module in (simple, batch_norm, batch_norm_reference)
    ]
    for mean, var in results[1:]:
        assert (abs(mean - results[0][0]) <= 2 * roundoff("float32", terms) * 4).all()
        assert (abs(var - results[0][1]) <= 2 * roundoff("float32", 2 * terms) * 64).all()

"""The specification against the formula itself, output by output in Python's integers."""

from __future__ import annotations

from math import prod
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import SEEDS
from hypothesis import given
from hypothesis import strategies as st

import invocupy
from invocupy import Geometry, reference
from invocupy.testing import geometries, options

LIMITS = {"max_batch": 2, "max_groups": 2, "max_channels_per_group": 2, "max_kernel": 3}
SMALL = geometries(dims=(1, 2), max_size=4, **LIMITS) | geometries(dims=3, max_size=3, **LIMITS)


def integers(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(-3, 4, shape) for shape in shapes]


def naive(x: Any, kernel: Any, grad: Any, g: Geometry) -> tuple[Any, Any, Any]:
    """``out``, ``grad_x``, ``grad_kernel``: every product of the formula, one after the other."""
    out, grad_x, grad_kernel = np.zeros_like(grad), np.zeros_like(x), np.zeros_like(kernel)
    for n, c, *position in np.ndindex(grad.shape):
        group = c // (g.channels // g.groups)
        for tap in np.ndindex(g.kernel):
            axes = zip(position, g.stride, tap, g.dilation, g.padding, strict=True)
            place = tuple(i * stride + u * dilation - pad for i, stride, u, dilation, pad in axes)
            if all(0 <= k < size for k, size in zip(place, g.size, strict=True)):
                seen, made, weight = (n, c, *place), (n, c, *position), (n, group, *tap, *position)
                out[made] += kernel[weight] * x[seen]
                grad_x[seen] += kernel[weight] * grad[made]
                grad_kernel[weight] += grad[made] * x[seen]
    return out, grad_x, grad_kernel


def assert_same(actual: Any, expected: np.ndarray) -> None:
    host = invocupy.to_device(actual, "cpu")
    assert host.shape == expected.shape
    assert (host == expected).all()


@given(g=SMALL, seed=SEEDS)
def test_involution_is_the_formula(g: Geometry, seed: int, xp: ModuleType) -> None:
    x, kernel, grad = integers(seed, g.x_shape, g.kernel_shape, g.out_shape)
    out, grad_x, grad_kernel = naive(x, kernel, grad, g)
    x32, kernel32, grad32 = (xp.asarray(a.astype("float32")) for a in (x, kernel, grad))
    assert_same(reference.involution(x32, kernel32, **options(g)), out)
    grads = reference.involution_backward(grad32, x32, kernel32, **options(g))
    assert_same(grads[0], grad_x)
    assert_same(grads[1], grad_kernel)


@given(g=SMALL, width=st.integers(1, 3), bias=st.booleans(), seed=SEEDS)
def test_fused_involution_is_the_formula(
    g: Geometry, width: int, bias: bool, seed: int, xp: ModuleType
) -> None:
    taps = g.groups * prod(g.kernel)
    x, features, span_weight, span_bias, grad = integers(
        seed, g.x_shape, (g.batch, width, *g.out), (taps, width), (taps,), g.out_shape
    )
    if not bias:
        span_bias[:] = 0
    kernel = np.zeros((g.batch, taps, *g.out), int)
    for n, k, f, *i in np.ndindex(g.batch, taps, width, *g.out):
        kernel[n, k, *i] += span_weight[k, f] * features[n, f, *i]
    kernel += span_bias.reshape(-1, *[1] * g.dims)
    out, grad_x, grad_kernel = naive(x, kernel.reshape(g.kernel_shape), grad, g)
    grad_kernel = grad_kernel.reshape(kernel.shape)
    grad_features, grad_weight = np.zeros_like(features), np.zeros_like(span_weight)
    for n, k, f, *i in np.ndindex(g.batch, taps, width, *g.out):
        grad_features[n, f, *i] += span_weight[k, f] * grad_kernel[n, k, *i]
        grad_weight[k, f] += features[n, f, *i] * grad_kernel[n, k, *i]

    arrays = [xp.asarray(a.astype("float32")) for a in (x, features, span_weight, span_bias)]
    arrays[3] = arrays[3] if bias else None
    chosen = {**options(g), "kernel_size": g.kernel}
    assert_same(reference.fused_involution(*arrays, **chosen), out)
    grad32 = xp.asarray(grad.astype("float32"))
    grads = reference.fused_involution_backward(grad32, *arrays, **chosen)
    for actual, expected in zip(grads[:3], (grad_x, grad_features, grad_weight), strict=True):
        assert_same(actual, expected)
    if bias:
        assert_same(grads[3], grad_kernel.sum(axis=(0, *range(2, g.dims + 2))))
    else:
        assert grads[3] is None


@pytest.mark.parametrize(
    ("name", "size", "dilation", "pads"),
    [
        ("same", (3, 3), 1, (1, 1)),
        ("same", (5, 3), (1, 2), (2, 2)),
        ("same", (1, 7), 3, (0, 9)),
        ("valid", (3, 2), (2, 1), (0, 0)),
    ],
)
def test_named_paddings(name: Any, size: Any, dilation: Any, pads: tuple[int, int]) -> None:
    g = Geometry.of((1, 1, 9, 9), (1, 1, *size, *_out(9, size, dilation, pads)), 1, name, dilation)
    assert g.padding == pads
    if name == "same":
        assert g.out == (9, 9)


def _out(n: int, size: Any, dilation: Any, pads: tuple[int, int]) -> list[int]:
    dilations = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    return [
        n + 2 * p - d * (k - 1) for k, d, p in zip(size, dilations, pads, strict=True)
    ]  # fmt: skip


def test_geometry_record_holds_every_size_in_order() -> None:
    g = Geometry.of((2, 6, 9, 8), (2, 3, 5, 3, 4, 4), stride=(2, 2), padding=(1, 1), dilation=1)
    record = g.record()
    assert record.dtype.itemsize == 15 * 4
    assert record.tobytes() == np.array(
        [2, 6, 3, 9, 8, 5, 3, 4, 4, 2, 2, 1, 1, 1, 1], "int32"
    ).tobytes()  # fmt: skip
    with pytest.raises(ValueError, match=r"past 2\*\*31 - 1"):
        Geometry.of((1, 1, 1, 2**31), (1, 1, 1, 1, 1, 2**31)).record()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_reference_computes_halves_in_float32(dtype: str, xp: ModuleType) -> None:
    rng = np.random.default_rng(0)
    x = xp.asarray(rng.standard_normal((1, 2, 4, 4)).astype(dtype))
    kernel = xp.asarray(rng.standard_normal((1, 1, 3, 3, 4, 4)).astype(dtype))
    wide = "float32" if dtype == "float16" else dtype
    expected = reference.involution(x.astype(wide), kernel.astype(wide)).astype(dtype)
    out = reference.involution(x, kernel)
    assert out.dtype == dtype
    assert out.tobytes() == expected.tobytes()

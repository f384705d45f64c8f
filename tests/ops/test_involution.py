"""Involution and its fused form on every library: exact, within bounds, and what NaN reaches."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bounds import SEEDS, host
from forms import (
    FUSED,
    GEOMETRIES,
    IN,
    PLAIN,
    Form,
    forms,
    in_all,
)
from hypothesis import given
from hypothesis import strategies as st

import invocupy
from invocupy import Geometry, reference
from invocupy.testing import arrays, geometries, options, tolerance


def whole(array: Any) -> Any:
    """The integers that a floating array holds."""
    numbers = host(array).astype(np.int64)
    assert (numbers == host(array)).all()
    return numbers


# ---------------------------------------------------------------------------- exact


@forms
@in_all
@given(data=st.data(), seed=SEEDS)
def test_integers_are_exact(
    form: Form, dims: int, data: st.DataObject, seed: int, xp: ModuleType
) -> None:
    g = data.draw(IN[dims])
    *operands, grad = form.draw(g, seed, "float32", xp)
    wide = [host(a).astype("float64") for a in (grad, *operands)]
    chosen = form.options(g)

    out = form.forward(*operands, **chosen)
    assert (type(out), out.dtype, out.shape) == (xp.ndarray, "float32", g.out_shape)
    assert (whole(out) == form.forward(*wide[1:], module=reference, **chosen)).all()

    grads = form.backward(grad, *operands, **chosen)
    expected = form.backward(*wide, module=reference, **chosen)
    for actual, right, operand in zip(grads, expected, operands, strict=True):
        assert (type(actual), actual.dtype, actual.shape) == (xp.ndarray, "float32", operand.shape)
        assert (whole(actual) == right).all()


@pytest.mark.parametrize("form", [PLAIN, FUSED], ids=["plain", "fused"])
@in_all
@given(data=st.data(), seed=SEEDS)
def test_adjoint_identities_are_exact(
    form: Form, dims: int, data: st.DataObject, seed: int, xp: ModuleType
) -> None:
    """``<grad, out> = <grad_x, x> = <grad_kernel, kernel>``: linear in each argument."""
    g = data.draw(IN[dims])
    *operands, grad = form.draw(g, seed, "float32", xp)
    out = form.forward(*operands, **form.options(g))
    product = (whole(grad) * whole(out)).sum()
    grads = form.backward(grad, *operands, **form.options(g))
    for gradient, operand in zip(grads, operands, strict=True):
        assert (whole(gradient) * whole(operand)).sum() == product


@forms
@in_all
@given(data=st.data(), seed=SEEDS)
def test_step_one_difference_is_exact(
    form: Form, dims: int, data: st.DataObject, seed: int, xp: ModuleType
) -> None:
    """``f(a + d) - f(a - d) = 2 <gradient, d>``: affine in each argument, so any step will do."""
    g = data.draw(IN[dims])
    *operands, grad = form.draw(g, seed, "float32", xp)
    *steps, _ = form.draw(g, seed + 1, "float32", xp)
    grads = form.backward(grad, *operands, **form.options(g))
    for i, step in enumerate(steps):
        ahead, behind = (
            form.forward(*operands[:i], moved, *operands[i + 1 :], **form.options(g))
            for moved in (operands[i] + step, operands[i] - step)
        )
        difference = (whole(grad) * (whole(ahead) - whole(behind))).sum()
        assert difference == 2 * (whole(grads[i]) * whole(step)).sum()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@forms
def test_every_width_around_a_power_of_two(
    form: Form, dtype: str, stride: int, xp: ModuleType
) -> None:
    """Rows that end before, at and after the end of a vector, a tile, a chunk."""
    for width in sorted({2**power + more for power in range(12) for more in (-1, 0, 1)} - {0}):
        columns = (width - 1) // stride + 1
        g = Geometry.of((1, 3, 2, width), (1, 1, 3, 3, 2, columns), (1, stride))
        *operands, grad = form.draw(g, width, dtype, xp)
        chosen = form.options(g)
        results = [form.forward(*operands, **chosen), *form.backward(grad, *operands, **chosen)]
        expected = [
            form.forward(*operands, module=reference, **chosen),
            *form.backward(grad, *operands, module=reference, **chosen),
        ]
        for actual, right in zip(results, expected, strict=True):
            assert (actual == right).all(), width


@given(g=geometries(), seed=SEEDS)
def test_a_one_hot_kernel_shifts_the_image(g: Geometry, seed: int, xp: ModuleType) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((g.batch, g.channels, 6, 7)).astype("float32")
    u, v = rng.integers(0, 5, 2)
    kernel = np.zeros((g.batch, g.groups, 5, 5, 6, 7), "float32")
    kernel[:, :, u, v] = 1
    shifted = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))[:, :, u : u + 6, v : v + 7]
    assert (host(invocupy.involution(xp.asarray(x), xp.asarray(kernel))) == shifted).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(g=GEOMETRIES, seed=SEEDS)
def test_subnormals_are_not_flushed(dtype: str, g: Geometry, seed: int, xp: ModuleType) -> None:
    x, kernel, grad = PLAIN.draw(g, seed, dtype, xp)
    unit = xp.asarray(np.finfo(dtype).smallest_subnormal)
    tiny = PLAIN.forward(x * unit, kernel, **options(g))
    assert (host(tiny) == host(PLAIN.forward(x, kernel, **options(g)) * unit)).all()
    grads = PLAIN.backward(grad, x, kernel, **options(g))
    for actual, normal in zip(
        PLAIN.backward(grad * unit, x, kernel, **options(g)), grads, strict=True
    ):
        assert (host(actual) == host(normal * unit)).all()


# ---------------------------------------------------------------------------- rounding


@forms
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(g=GEOMETRIES, data=st.data())
def test_rounding_stays_in_its_bound(
    form: Form, dtype: str, g: Geometry, data: st.DataObject, xp: ModuleType
) -> None:
    """Twelve decades in each argument. The bound holds for the reference too, in float64."""
    operands = [
        data.draw(arrays(shape, dtypes=[dtype], layouts=["C"], values="decades", xp=xp))
        for shape in (g.out_shape, *form.shapes(g))
    ]
    wide = [host(a).astype("float64") for a in operands]
    chosen = form.options(g)

    def check(actual: Any, compute: Callable[..., Any], wide: list[Any], terms: int) -> None:
        exact = compute(*wide)
        allowed = sum(tolerance(compute, *wide, terms=terms, dtype=d) for d in (dtype, "float64"))
        assert (np.abs(host(actual).astype("float64") - exact) <= allowed).all()

    out = form.forward(*operands[1:], **chosen)
    check(
        out,
        lambda *arrays: form.forward(*arrays, module=reference, **chosen),
        wide[1:],
        form.terms(g),
    )
    grads = form.backward(*operands, **chosen)
    for i, (grad, terms) in enumerate(zip(grads, form.grad_terms(g), strict=False)):
        check(
            grad,
            lambda *arrays, i=i: form.backward(*arrays, module=reference, **chosen)[i],
            wide,
            terms,
        )


# ---------------------------------------------------------------------------- NaN and infinity


def marked(shape: tuple[int, ...], place: int, xp: Any = np) -> Any:
    """One at one place, zero elsewhere."""
    array = np.zeros(shape)
    array.flat[place] = 1
    return xp.asarray(array)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@given(g=geometries(max_width=40, empty=False), seed=SEEDS)
def test_nan_and_infinity_reach_what_sees_them(
    special: float, g: Geometry, seed: int, xp: ModuleType
) -> None:
    """Exactly the results that have it in one of their products.

    Where a tap looks outside of ``x``, a special value of ``kernel`` or ``grad`` meets a zero that
    is not stored anywhere: a backend may multiply with it or leave it out.
    """
    rng = np.random.default_rng(seed)
    shapes = [g.out_shape, g.x_shape, g.kernel_shape]
    ones = [np.ones(shape) for shape in shapes]

    def backward(operands: list[Any], module: Any = invocupy) -> Any:
        return module.involution_backward(*operands, **options(g))

    def forward(operands: list[Any], module: Any = invocupy) -> Any:
        return (module.involution(*operands[1:], **options(g)),)

    for which, shape in enumerate(shapes):
        mark = marked(shape, int(rng.integers(np.prod(shape))))
        spoiled = [rng.uniform(1, 2, s).astype("float32") for s in shapes]
        spoiled[which][mark == 1] = special
        traced = [*ones[:which], mark, *ones[which + 1 :]]
        # What outputs, and what taps of the kernel, share their place with the mark.
        per_pixel = {0: mark, 1: 0 * ones[0], 2: None}[which]
        if per_pixel is None:
            per_pixel = np.repeat(mark.any(axis=(2, 3)), g.channels_per_group, axis=1)
        per_tap = per_pixel.reshape(g.batch, g.groups, -1, *g.out_shape[2:]).any(axis=2)
        unseen = [per_pixel if which == 2 else 0, 0, per_tap[:, :, None, None] if which == 0 else 0]

        on_xp = [xp.asarray(a) for a in spoiled]
        results = [*forward(on_xp), *backward(on_xp)]
        seeing = [*forward(traced, reference), *backward(traced, reference)]
        # The gradient of an argument does not depend on it, nor the result on the gradient.
        for i, (result, sees, may) in enumerate(zip(results, seeing, unseen, strict=True)):
            must = (sees > 0) & (i != which)
            reached = ~np.isfinite(host(result))
            assert reached[must].all()
            assert not reached[~must & ~np.broadcast_to(np.asarray(may) > 0, must.shape)].any()


# ---------------------------------------------------------------------------- refusals


def ones(*shape: int, dtype: Any = "float64") -> Any:
    return np.ones(shape, dtype)

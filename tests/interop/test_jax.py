"""The JAX function: the same bits as for arrays, jit, gradients of two orders, vmap.

Skipped where JAX is not installed; it is no dependency.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import invocupy

jax = pytest.importorskip("jax", reason="JAX is not installed")
interop = pytest.importorskip("invocupy.interop.jax")
jnp: Any = jax.numpy

PLAIN = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
X, KERNEL = (2, 4, 7, 6), (2, 2, 3, 3, 4, 6)


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def operands(dtype: Any = np.float64, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in (X, KERNEL))


def plain(x: Any, kernel: Any) -> Any:
    return interop.involution(x, kernel, **PLAIN)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("jit", [False, True])
def test_same_bits_as_for_arrays(dtype: str, jit: bool) -> None:
    x, kernel = operands(dtype)
    arrays = np.asarray(x), np.asarray(kernel)
    out, pull = jax.vjp(jax.jit(plain) if jit else plain, x, kernel)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, invocupy.involution(*arrays, **PLAIN))
    grad = np.random.default_rng(1).standard_normal(out.shape).astype(dtype)
    wanted = invocupy.involution_backward(grad, *arrays, **PLAIN)
    for got, expected in zip(pull(jnp.asarray(grad)), wanted, strict=True):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, expected)


def test_gradients_of_two_orders() -> None:
    from jax.test_util import check_grads

    check_grads(plain, operands(), order=2, modes=["rev", "fwd"])


def test_grad_under_jit_of_one_argument() -> None:
    x, kernel = operands()

    def loss(x: Any) -> Any:
        return (plain(2 * x, kernel) ** 2).sum()

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(x), jax.grad(loss)(x), rtol=1e-14)


def test_vmap_makes_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    module = invocupy.backends.of("involution", np.ones(1))
    calls, forward = [], module.forward

    def spy(x: Any, *others: Any) -> None:
        calls.append(x.shape)
        forward(x, *others)

    monkeypatch.setattr(module, "forward", spy)
    x, kernel = operands()
    many = jnp.stack([x, 2 * x, 3 * x])
    out = jax.vmap(plain, (0, None))(many, kernel)
    assert calls == [(6, 4, 7, 6)]
    for i in range(3):
        np.testing.assert_array_equal(out[i], plain(many[i], kernel))

    def loss(x: Any) -> Any:
        return (plain(x, kernel) ** 2).sum()

    of_many = jax.jit(jax.vmap(jax.grad(loss)))(many)
    np.testing.assert_allclose(of_many[2], 3 * jax.grad(loss)(x), rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_computed_in_float32(dtype: str) -> None:
    x, kernel = operands(dtype)
    out = plain(x, kernel)
    wide = plain(x.astype("float32"), kernel.astype("float32"))
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, wide.astype(dtype))


LINES = (2, 4, 9), (2, 2, 3, 5), {"stride": (2,), "padding": (2,), "dilation": (2,)}
VOLUMES = (
    (2, 4, 4, 5, 3), (2, 2, 3, 1, 3, 4, 3, 5),
    {"stride": (1, 2, 1), "padding": (1, 0, 3), "dilation": (1, 1, 2)},
)  # fmt: skip


@pytest.mark.parametrize(("x", "kernel", "options"), [LINES, VOLUMES])
def test_lines_and_volumes(x: Any, kernel: Any, options: Any) -> None:
    """The bits are those for arrays; derivatives, ``vmap`` and ``jit`` as in two dimensions."""
    from jax.test_util import check_grads

    rng = np.random.default_rng(0)
    arrays = rng.standard_normal(x), rng.standard_normal(kernel)
    given = [jnp.asarray(array) for array in arrays]

    def ours(*operands: Any) -> Any:
        return interop.involution(*operands, **options)

    out, pull = jax.vjp(jax.jit(ours), *given)
    np.testing.assert_array_equal(out, invocupy.involution(*arrays, **options))
    grad = rng.standard_normal(out.shape)
    wanted = invocupy.involution_backward(grad, *arrays, **options)
    for got, expected in zip(pull(jnp.asarray(grad)), wanted, strict=True):
        np.testing.assert_array_equal(got, expected)
    check_grads(ours, given, order=2, modes=["rev", "fwd"])
    many = jnp.stack([given[0], 2 * given[0]], axis=2)
    for i, image in enumerate(jax.vmap(ours, (2, None))(many, given[1])):
        np.testing.assert_array_equal(image, (i + 1) * out)


def test_empty_batch() -> None:
    x, kernel = operands()
    assert plain(x[:0], kernel[:0]).shape == (0, 4, 4, 6)


def test_arrays_of_numpy() -> None:
    x, kernel = (np.asarray(a) for a in operands())
    wanted = plain(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_array_equal(plain(x.astype(">f8"), kernel.astype(">f8")), wanted)
    jax.config.update("jax_enable_x64", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as jnp.asarray, float64 becomes float32 without a word
        mixed = plain(jnp.asarray(x), kernel)
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed, wanted, rtol=1e-4, atol=1e-4)


def test_what_does_not_work_says_so() -> None:
    x, kernel = operands()
    with pytest.raises(TypeError, match="x has dtype int64, but only floating dtypes work"):
        plain(x.astype(int), kernel)
    for kind in ("longdouble", object):
        with pytest.raises(TypeError, match=r"^kernel has dtype .* floating dtypes work .*$"):
            plain(x, np.asarray(kernel).astype(kind))
    with pytest.raises(ValueError, match="kernel has 4x6 positions, but x of 7x6"):
        interop.involution(x, kernel)
    for wrong in (None, [1.0], 1.0):
        with pytest.raises(TypeError, match="kernel must be a JAX array, got"):
            plain(x, wrong)
    with pytest.raises(TypeError, match="x has dtype complex64, but only floating dtypes work"):
        plain(x.astype("complex64"), kernel)
    with pytest.raises(ValueError, match=r"^x must have 3, 4 or 5 dimensions.*got shape .*$"):
        interop.involution(jnp.ones((1,) * 6), jnp.ones((1,) * 10))
    with pytest.raises(ValueError, match=r"^stride must be an integer >= 1 or a pair of them.*$"):
        interop.involution(x, kernel, stride=(1, 1, 1))
    with pytest.raises(ValueError, match=r"^x must have 4 dimensions \(N, C, H, W\), got.*$"):
        interop.involution(x[:, :, 0], kernel)


def unfolded(x: Any, kernel: Any) -> Any:
    """The same sum in JAX's own operators."""
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (2, 2)))
    taps = [
        jnp.repeat(kernel[:, :, u, v], 2, 1) * padded[:, :, u : u + 7 : 2, 2 * v : 2 * v + 6]
        for u in range(3)
        for v in range(3)
    ]
    return sum(taps)


@pytest.mark.parametrize("jit", [False, True])
def test_transforms_in_any_nesting(jit: bool) -> None:
    x, kernel = (jnp.asarray(a, float) for a in operands())
    along = operands(seed=1)
    many = jnp.stack([kernel, 2 * kernel, 3 * kernel], axis=1)
    small = x[:1, :2, :3, :2], kernel[:1, :1, :, :, :2, :2]

    def cubes(function: Any) -> Any:
        return lambda *arrays: (function(*arrays) ** 3).sum()

    def all_of(f: Any) -> Any:
        slope = jax.grad(lambda x: cubes(f)(x, kernel))
        return (
            jax.jvp(f, (x, kernel), along),
            jax.linearize(f, x, kernel)[1](*along),
            jax.jvp(slope, (x,), along[:1]),
            jax.grad(lambda x: jax.jvp(slope, (x,), along[:1])[1].sum())(x),
            jax.vmap(f, (None, 1), 1)(x, many),
            jax.vmap(jax.grad(cubes(f), 1), (None, 1))(x, many),
            jax.grad(lambda many: jax.vmap(cubes(f), (None, 1))(x, many).sum())(many),
            jax.grad(jax.checkpoint(cubes(f)))(x, kernel),
        )

    ours, wanted = (
        (jax.jit(all_of, static_argnums=0) if jit else all_of)(f) for f in (plain, unfolded)
    )
    for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10)
    hessian = jax.hessian(
        cubes(lambda *a: interop.involution(*a, padding=1, stride=(2, 1))), (0, 1)
    )
    (xx, xk), (kx, kk) = hessian(*small)
    np.testing.assert_allclose(xk, jnp.moveaxis(kx, range(6), range(-6, 0)), rtol=1e-10)
    assert xx.any()
    assert kk.any()


def test_gradients_nobody_wants_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, kernel = operands()
    monkeypatch.delattr(invocupy.backends.of("involution", np.ones(1)), "grad_kernel")
    assert jax.grad(lambda x: plain(x, kernel).sum())(x).shape == x.shape

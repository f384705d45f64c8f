"""Involution for JAX: a function that ``jit``, ``grad`` and ``vmap`` know.

The work is done by the CPU backend, called back from the compiled program through
:func:`jax.pure_callback`; arrays on a GPU travel to the host and back. Reverse mode works to any
order, forward mode (``jvp``) not at all, because a callback has none. ``vmap`` makes one call of
all the mapped images together.
"""

# ruff: noqa: E402 (the library is asked for before it is imported)
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from invocupy.extras import require

require("jax", "JAX", "jax", "0.5")

import jax
import jax.numpy as jnp
import numpy as np

from invocupy import backends
from invocupy.arrays import contiguous
from invocupy.geometry import Geometry, IntOrPair, Padding

__all__ = ["involution"]


def involution(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: IntOrPair = 1,
    padding: Padding = "same",
    dilation: IntOrPair = 1,
) -> jax.Array:
    """:func:`invocupy.involution` of JAX arrays: ``jit``, ``grad`` and ``vmap`` work.

    Parameters
    ----------
    x : array (N, C, H, W), floating
    kernel : array (N, G, Kh, Kw, Ho, Wo), floating
        float64 needs ``jax_enable_x64``, as everywhere in JAX; float16 and bfloat16 are computed
        in float32. A mix of dtypes is promoted by JAX's rules.
    stride, dilation : int or pair
    padding : int, pair, "same" or "valid"
        Not traced: under ``jit`` close over the options, or make them static.

    Returns
    -------
    array (N, C, Ho, Wo)

    Raises
    ------
    TypeError
        For anything but floating arrays.
    ValueError
        For shapes or options that do not fit together.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from invocupy.interop.jax import involution
    >>> x, kernel = jnp.ones((1, 2, 4, 4)), jnp.ones((1, 1, 3, 3, 4, 4))
    >>> grad = jax.jit(jax.grad(lambda x: involution(x, kernel).sum()))(x)
    >>> grad[0, 0, 0].tolist()  # how many windows see each pixel
    [4.0, 6.0, 6.0, 4.0]
    """
    for name, array in {"x": x, "kernel": kernel}.items():
        if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
            raise TypeError(
                f"{name} has dtype {jnp.result_type(array)}, but only floating dtypes work: "
                "convert it with .astype('float32')"
            )
    geometry = Geometry.of(jnp.shape(x), jnp.shape(kernel), stride, padding, dilation)
    dtype = jnp.promote_types(x.dtype, kernel.dtype)
    work = jnp.promote_types(dtype, jnp.float32)
    return _forward(x.astype(work), kernel.astype(work), geometry).astype(dtype)


# With B(x, kernel) the involution, its gradients X(grad, kernel) and K(grad, x) are linear in both
# arguments too, so the three are each other's gradients.


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _forward(x: Any, kernel: Any, g: Geometry) -> Any:
    return _call("forward", x, kernel, g, g.out_shape)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _grad_x(grad: Any, kernel: Any, g: Geometry) -> Any:
    return _call("grad_x", grad, kernel, g, g.x_shape)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _grad_kernel(grad: Any, x: Any, g: Geometry) -> Any:
    return _call("grad_kernel", grad, x, g, g.kernel_shape)


def _keep(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda first, second, g: (function(first, second, g), (first, second))


def _backward(g: Geometry, kept: Any, grad: Any) -> tuple[Any, Any]:
    x, kernel = kept
    return _grad_x(grad, kernel, g), _grad_kernel(grad, x, g)


def _backward_of_grad_x(g: Geometry, kept: Any, u: Any) -> tuple[Any, Any]:
    grad, kernel = kept
    return _forward(u, kernel, g), _grad_kernel(grad, u, g)


def _backward_of_grad_kernel(g: Geometry, kept: Any, v: Any) -> tuple[Any, Any]:
    grad, x = kept
    return _forward(x, v, g), _grad_x(grad, v, g)


_forward.defvjp(_keep(_forward), _backward)
_grad_x.defvjp(_keep(_grad_x), _backward_of_grad_x)
_grad_kernel.defvjp(_keep(_grad_kernel), _backward_of_grad_kernel)


def _call(name: str, first: Any, second: Any, g: Geometry, shape: Sequence[int]) -> Any:
    result = jax.ShapeDtypeStruct(tuple(shape), first.dtype)
    run = partial(_run, name, g, tuple(shape))
    return jax.pure_callback(run, result, first, second, vmap_method="broadcast_all")


def _run(name: str, g: Geometry, shape: tuple[int, ...], *arrays: Any) -> Any:
    """Call the backend function; axes that ``vmap`` put in front join the batch."""
    operands = [np.asarray(array) for array in arrays]
    mapped = operands[0].shape[: operands[0].ndim - 4]  # every first argument has four axes
    batch = int(np.prod(mapped, dtype=int)) * g.batch
    wide = Geometry.of((batch, *g.x_shape[1:]), (batch, *g.kernel_shape[1:]), *_options(g))
    own = [array.reshape(batch, *array.shape[len(mapped) + 1 :]) for array in operands]
    result = np.zeros((batch, *shape[1:]), operands[0].dtype)
    if all(array.size for array in own) and result.size:
        backend = backends.of("involution", result)
        getattr(backend, name)(*(contiguous(array, None) for array in own), wide, result)
    return result.reshape(*mapped, *shape)


def _options(g: Geometry) -> tuple[tuple[int, int], ...]:
    strides, pads = (g.stride_h, g.stride_w), (g.pad_h, g.pad_w)
    return strides, pads, (g.dilation_h, g.dilation_w)

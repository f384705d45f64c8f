"""Involution for JAX, with ``jit``, ``grad``, ``jvp`` and ``vmap``.

The CPU backend computes it, called from the compiled program by :func:`jax.pure_callback`; arrays
on a GPU are copied to the host and back. Reverse and forward mode work to any order and in any
nesting. ``vmap`` makes one call for all mapped images together.
"""

# ruff: noqa: E402 (the library is asked for before it is imported)
from __future__ import annotations

from functools import partial
from typing import Any

from invocupy.extras import require

require("jax", "JAX", "jax", "0.5")

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from invocupy import backends
from invocupy.arrays import FLOATS, contiguous
from invocupy.geometry import Geometry, IntOrTuple, Padding

__all__ = ["involution"]


def involution(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
) -> jax.Array:
    """:func:`invocupy.involution` of JAX arrays: ``jit``, ``grad``, ``jvp`` and ``vmap`` work.

    Shapes, options and errors are those for arrays. Arrays of JAX or NumPy, floating; a mix of
    dtypes is promoted by JAX's rules. float64 needs ``jax_enable_x64``, as everywhere in JAX;
    float16 and bfloat16 are computed in float32. The options are not traced: under ``jit`` close
    over them, or make them static.

    Parameters
    ----------
    x, kernel, stride, padding, dilation
        As in :func:`invocupy.involution`, arrays of JAX or NumPy.

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
        if not isinstance(array, (jax.Array, np.ndarray)):
            raise TypeError(
                f"{name} must be a JAX array, got {type(array).__name__}: use jax.numpy.asarray"
            )
        if array.dtype.name not in FLOATS:
            raise TypeError(
                f"{name} has dtype {array.dtype}, but only floating dtypes work "
                f"({', '.join(FLOATS)}): convert it with .astype('float32')"
            )
    geometry = Geometry.of(jnp.shape(x), jnp.shape(kernel), stride, padding, dilation)
    first, second = (_native(array) for array in (x, kernel))
    dtype = jnp.promote_types(first.dtype, second.dtype)
    work = jnp.promote_types(dtype, jnp.float32)
    return _forward.bind(first.astype(work), second.astype(work), sizes=geometry).astype(dtype)


def _native(array: Any) -> jax.Array:
    """A JAX array, which JAX makes of NumPy's in the byte order of the machine only."""
    if isinstance(array, np.ndarray):
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return jnp.asarray(array)


def _shape(name: str, g: Geometry) -> tuple[int, ...]:
    return {"forward": g.out_shape, "grad_x": g.x_shape, "grad_kernel": g.kernel_shape}[name]


def _primitive(name: str) -> Any:
    """The backend function of this name as a primitive of JAX, whose parameter is the geometry."""
    primitive = Primitive(f"involution_{name}")

    def call(first: Any, second: Any, *, sizes: Geometry) -> Any:
        result = jax.ShapeDtypeStruct(_shape(name, sizes), first.dtype)
        return jax.pure_callback(partial(_run, name, sizes), result, first, second)

    def batch(operands: Any, axes: Any, *, sizes: Geometry) -> Any:
        """Mapped axes join the batch."""
        count = next(x.shape[i] for x, i in zip(operands, axes, strict=True) if i is not None)
        whole = [
            jnp.broadcast_to(x, (count, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(operands, axes, strict=True)
        ]
        flat = [x.reshape(count * sizes.batch, *x.shape[2:]) for x in whole]
        out = primitive.bind(*flat, sizes=sizes._replace(batch=count * sizes.batch))
        return out.reshape(count, *_shape(name, sizes)), 0

    primitive.def_impl(call)
    primitive.def_abstract_eval(lambda first, _, *, sizes: first.update(shape=_shape(name, sizes)))
    mlir.register_lowering(primitive, mlir.lower_fun(call, multiple_results=False))
    batching.primitive_batchers.__setitem__(primitive, batch)  # by name: the docs may mock JAX
    return primitive


_forward, _grad_x, _grad_kernel = map(_primitive, ("forward", "grad_x", "grad_kernel"))

# With B(x, kernel) the involution, its gradients X(grad, kernel) and K(grad, x) are linear in both
# arguments too, so the three are each other's transposes.
ad.defbilinear(
    _forward,
    lambda grad, x, kernel, sizes: _grad_x.bind(grad, kernel, sizes=sizes),
    lambda grad, x, kernel, sizes: _grad_kernel.bind(grad, x, sizes=sizes),
)
ad.defbilinear(
    _grad_x,
    lambda u, grad, kernel, sizes: _forward.bind(u, kernel, sizes=sizes),
    lambda u, grad, kernel, sizes: _grad_kernel.bind(grad, u, sizes=sizes),
)
ad.defbilinear(
    _grad_kernel,
    lambda v, grad, x, sizes: _forward.bind(x, v, sizes=sizes),
    lambda v, grad, x, sizes: _grad_x.bind(grad, v, sizes=sizes),
)


def _run(name: str, g: Geometry, *arrays: Any) -> Any:
    operands = [contiguous(np.asarray(array), None) for array in arrays]
    result = np.zeros(_shape(name, g), operands[0].dtype)
    if all(array.size for array in operands) and result.size:
        getattr(backends.of("involution", result), name)(*operands, g, result)
    return result

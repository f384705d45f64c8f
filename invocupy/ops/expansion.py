"""A 1x1 convolution from few channels to many, its norm and a ReLU as one operator.

Mean and variance of the wide result follow from those of x, as in :mod:`.block`, so that it is
written once and never read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from invocupy import backends
from invocupy.arrays import Array, check, contiguous, is_cupy, on_device
from invocupy.backends.memory import empty
from invocupy.ops.declaration import Result, Vjp, reading
from invocupy.ops.memo import each


@reading("x weight norm_weight")
def expansion(
    x: Array,
    weight: Array,
    bias: Array | None,
    norm_weight: Array,
    norm_bias: Array,
    *,
    eps: float,
    relu: bool,
    observe: Callable[[Array, Array, int], None],
) -> Result:
    """The norm of ``weight @ x + bias`` by the moments of the batch, all of one dtype.

    x is (N, C, *S), with more than one value per channel, the weight (O, C, 1, ...).
    ``observe`` gets mean and variance (O,) of the convolution, and the number of values.
    """
    wide, (n, c, *size) = len(weight), x.shape
    vectors = {"norm_weight": norm_weight, "norm_bias": norm_bias}
    vectors |= {} if bias is None else {"bias": bias}
    check(x=x, weight=weight, **vectors)
    for name, array in vectors.items():  # kernels would read past its end
        if array.shape != (wide,):
            raise ValueError(f"{name} must have shape ({wide},), got {array.shape}")
    sums = np.float64 if x.itemsize == 8 else np.float32
    backend, value = backends.of("expansion", x), empty((n, wide, *size), x.dtype, x)
    with on_device(x):
        flat = contiguous(x, None).reshape(n, c, -1)
        matrix = contiguous(weight, None).reshape(wide, c)
        norm = [contiguous(p, None) for p in (norm_weight, norm_bias)]
        mean, var, kept = (empty((k,), sums, x) for k in (wide, wide, (c + wide) * (c + 1)))
        backend.forward(
            flat, matrix, None if bias is None else contiguous(bias, None), *norm, eps, relu,
            value.reshape(n, wide, -1), mean, var, kept,
        )  # fmt: skip
    observe(mean, var, x.size // c)

    @each
    def gradients(grad: Array) -> list[Any]:
        made = [empty(a.shape, x.dtype, x) for a in (x, weight, mean, mean, mean)]
        with on_device(x):
            backend.backward(
                contiguous(grad, x.dtype).reshape(n, wide, -1), flat, matrix, norm[0], kept, eps,
                relu, made[0].reshape(flat.shape), made[1].reshape(matrix.shape), *made[2:],
            )  # fmt: skip
        return made

    def vjp(i: int) -> Vjp:
        return lambda grad: gradients(grad, i)

    return value, tuple(map(vjp, range(5)))


def runs_expanded(x: Array, hidden: int) -> bool:
    """Whether a wing has kernels of :func:`expansion` for these sizes."""
    if not is_cupy(x) or not x.shape[1] < hidden or x.size < 2 * x.shape[1]:
        return False
    from invocupy.backends.cuda.expansion import Sizes

    return Sizes.of(x, hidden).fit()

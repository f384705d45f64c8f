"""Dropout, whose mask is a hash of two keys and of the position of each element.

It is computed on the device of the array, equal on all devices, and needs no synchronisation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from invocupy.arrays import Array, check, is_cupy, namespace, on_device
from invocupy.geometry import number
from invocupy.messages import shown
from invocupy.ops.declaration import Result, op
from invocupy.ops.reductions import masked


@op(reads="")
def dropout(
    x: Array,
    p: float = 0.5,
    training: bool = True,
    rng: np.random.Generator | Array | None = None,
) -> Result:
    """``x / (1 - p)`` where an element is kept, else 0, each with the probability ``1 - p``.

    Parameters
    ----------
    x : array or Tensor, float
        Of any shape.
    p : float
        In [0, 1], the probability of 0.
    training : bool
        False gives ``x`` itself.
    rng : numpy.random.Generator or uint32 array (2,), optional
        Two keys, or a generator that draws them (by default with a random seed). Equal keys give
        equal masks, on every device.

    Returns
    -------
    array or Tensor, shape and dtype of ``x``

    Raises
    ------
    TypeError
        For arguments that are not floating-point arrays, or another ``rng``, such as a seed.
    ValueError
        For ``p`` outside of [0, 1].

    >>> F.dropout(np.ones(6), p=0.5, rng=np.random.default_rng(0))
    array([2., 0., 0., 2., 2., 0.])
    """
    check(x=x)
    p = number("p", p, 0, 1)
    keys: Any = np.random.default_rng() if rng is None else rng
    if isinstance(keys, np.random.Generator):
        keys = keys.integers(0, 1 << 32, 2, np.uint32)
    if getattr(keys, "dtype", None) != np.uint32 or keys.shape != (2,):
        raise TypeError(
            f"rng must be a numpy.random.Generator or a uint32 array (2,), got {shown(rng)}: "
            "use numpy.random.default_rng(seed)"
        )
    if not training or not p:
        return x, (lambda grad: grad,)
    if not is_cupy(keys):
        keys = keys.tolist()  # numbers that any library takes
    with on_device(x):
        bits = namespace(x).arange(x.size, dtype=np.uint32)
        for i in range(2):
            bits ^= keys[i]
            # the hash of Chris Wellons' hash-prospector, "lowbias32"
            bits ^= bits >> 16
            bits *= 0x7FEB352D
            bits ^= bits >> 15
            bits *= 0x846CA68B
            bits ^= bits >> 16
        kept = (bits >= min(round(p * 2**32), 2**32 - 1)).reshape(x.shape)
    scale = 1 / (1 - p) if p < 1 else 0.0

    def taken(array: Array) -> Any:
        return (masked(array, kept) * scale).astype(array.dtype, copy=False)

    return taken(x), (taken,)

"""The SGD update on CuPy arrays: one launch for sixteen of them.

Functions: see :mod:`invocupy.backends.reference.sgd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from invocupy.arrays import device_of, namespace, on_device
from invocupy.backends import cuda
from invocupy.backends.cuda import ceil_div

_TOGETHER = 16  # arrays in a launch, as update.cu has it
_EACH = 4  # elements of a thread
_NULL = np.uint64(0)
_NOTHING = (*(_NULL,) * 5, 0.0, np.int64(0))


def update(
    params: Sequence[Any],
    grads: Sequence[Any],
    velocities: Sequence[Any],
    decays: Sequence[float],
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
) -> tuple[list[Any], list[Any]]:
    """Arrays of one dtype and device go together, sixteen by sixteen."""
    new_params, new_velocities = [], []
    kinds: dict[Any, list[Any]] = {}
    for p, grad, old, decay in zip(params, grads, velocities, decays, strict=True):
        xp = namespace(p)
        with on_device(p):
            to = xp.empty(p.shape, p.dtype)
            velocity = xp.empty(p.shape, p.dtype) if momentum else None
            given = [
                _NULL if array is None else xp.ascontiguousarray(array, p.dtype)
                for array in (p, grad, old)
            ]
        new_params.append(to)
        new_velocities.append(velocity)
        if p.size:
            given += [to, _NULL if velocity is None else velocity, decay, np.int64(p.size)]
            kinds.setdefault((p.dtype, device_of(p)), []).append(given)
    for (dtype, _), arrays in kinds.items():
        macros = cuda.element(dtype) | {
            "EACH": _EACH,
            "MOMENTUM": int(momentum != 0),
            "NESTEROV": int(nesterov),
        }
        accum = np.float64 if macros["ACCUM"] == "double" else np.float32
        for first in range(0, len(arrays), _TOGETHER):
            few = arrays[first : first + _TOGETHER]
            blocks = sum(ceil_div(int(array[-1]), cuda.BLOCK * _EACH) for array in few)
            few += [_NOTHING] * (_TOGETHER - len(few))
            args = [x for *them, decay, size in few for x in (*them, accum(decay), size)]
            args += [accum(lr), accum(momentum)]
            files = ("cuda.cuh", "sgd/update.cu")
            cuda.launch("update", files, macros, blocks * cuda.BLOCK, tuple(args))
    return new_params, new_velocities

"""SGD and moving averages on CuPy arrays: one launch for up to sixteen of a dtype and device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from invocupy.arrays import Array, device_of, namespace, on_device
from invocupy.backends import cuda
from invocupy.backends.cuda import Macros, ceil_div

_TOGETHER = 16  # arrays per launch, as in sixteen.cuh
_EACH = 4  # elements per thread


def update(
    params: Sequence[Array], grads: Sequence[Array], velocities: Sequence[Array | None],
    decays: Sequence[float], *, lr: float | Array, momentum: float, nesterov: bool,
) -> tuple[list[Array], list[Array | None]]:  # fmt: skip
    """If ``lr`` is an array (3,) of float64 on the device, results overwrite the given arrays.

    It holds the rate, the momentum and the decay; ``decays`` are then factors of that, and
    ``momentum`` only says whether there is one. Parameters and given velocities must be contiguous.
    """
    fixed = not isinstance(lr, (int, float))
    numbers = (lr, 0.0, 0.0) if fixed else (None, float(lr), float(momentum))
    new_params: list[Array] = []
    new_velocities: list[Array | None] = []
    kinds: dict[Any, list[tuple[Any, ...]]] = {}
    for p, grad, old, decay in zip(params, grads, velocities, decays, strict=True):
        xp = namespace(p)
        with on_device(p):
            given = [
                None if a is None else xp.ascontiguousarray(a, p.dtype) for a in (p, grad, old)
            ]
            to = p if fixed else xp.empty(p.shape, p.dtype)
            velocity = old if fixed else None
            if momentum and velocity is None:
                velocity = xp.empty(p.shape, p.dtype)
        new_params.append(to)
        new_velocities.append(velocity)
        if p.size:
            one = (*given, to, velocity, float(decay), np.int64(p.size))
            kinds.setdefault((p.dtype, device_of(p)), []).append(one)
    macros: Macros = {"MOMENTUM": int(momentum != 0), "NESTEROV": int(nesterov)}
    _launch("sgd/update", macros, kinds, (*(None,) * 5, 0.0, np.int64(0)), *numbers)
    return new_params, new_velocities


def average(averages: Sequence[Array], arrays: Sequence[Array], share: float | Array) -> None:
    """If ``share`` is an array (1,) of float64 on the device, it is read there."""
    number = (None, float(share)) if isinstance(share, (int, float)) else (share, 0.0)
    kinds: dict[Any, list[tuple[Any, ...]]] = {}
    for mine, array in zip(averages, arrays, strict=True):
        if mine.size:
            dtype = array.dtype if cuda.accumulator(array) == mine.dtype else mine.dtype
            with on_device(array):
                array = namespace(array).ascontiguousarray(array, dtype)
            one = array, mine, mine, np.int64(mine.size)
            kinds.setdefault((array.dtype, device_of(array)), []).append(one)
    _launch("sgd/average", {}, kinds, (None, None, None, np.int64(0)), *number)


def _launch(
    kernel: str, macros: Macros, kinds: dict[Any, list[Any]], nothing: Any, *numbers: Any
) -> None:
    """Launch a kernel on the arrays of each dtype and device; ``nothing`` takes free places."""
    for (dtype, _), arrays in kinds.items():
        for first in range(0, len(arrays), _TOGETHER):
            few = arrays[first : first + _TOGETHER]
            blocks = sum(ceil_div(int(size), cuda.BLOCK * _EACH) for *_, size in few)
            few += [nothing] * (_TOGETHER - len(few))
            args = (argument for one in few for argument in one)
            fixed = cuda.element(dtype) | {"EACH": _EACH, **macros}
            cuda.launch(kernel, fixed, blocks * cuda.BLOCK, *args, *numbers)

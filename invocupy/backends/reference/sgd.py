"""One step of stochastic gradient descent, and moving averages, array by array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from invocupy.arrays import Array, wide, widen


def update(
    params: Sequence[Array],
    grads: Sequence[Array],
    velocities: Sequence[Array | None],
    decays: Sequence[float],
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
) -> tuple[list[Array], list[Array | None]]:
    """Half types are rounded once."""
    new_params: list[Array] = []
    new_velocities: list[Array | None] = []
    for param, grad, old, decay in zip(params, grads, velocities, decays, strict=True):
        p, grad, velocity = widen(param), widen(grad), None if old is None else widen(old)
        move = grad + decay * p if decay else grad
        if momentum:
            velocity = move.copy() if velocity is None else momentum * velocity + move
            move = move + momentum * velocity if nesterov else velocity
        # NumPy makes scalars of arrays without axes.
        step = np.asarray(lr * move)
        new = np.subtract(p, step, out=step)
        half = param.dtype if wide(param.dtype) else None
        new_params.append(new.astype(param.dtype) if half else new)
        new_velocities.append(None if velocity is None else np.asarray(velocity, half))
    return new_params, new_velocities


def average(averages: Sequence[Array], arrays: Sequence[Array], share: float) -> None:
    """``average += share * (array - average)`` in place; the averages of half types are float32."""
    for mine, array in zip(averages, arrays, strict=True):
        mine += share * (array - mine)

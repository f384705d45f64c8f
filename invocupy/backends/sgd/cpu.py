"""The SGD update on NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from invocupy.arrays import wide


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
    """See :mod:`invocupy.backends.sgd`."""
    new_params, new_velocities = [], []
    for p, grad, velocity, decay in zip(params, grads, velocities, decays, strict=True):
        dtype, work = p.dtype, wide(p.dtype)
        if work:  # half types are computed in float32 and rounded once
            p, grad = p.astype(work), grad.astype(work)
            velocity = None if velocity is None else velocity.astype(work)
        move = grad + decay * p if decay else grad
        if momentum:
            velocity = move.copy() if velocity is None else momentum * velocity + move
            move = move + momentum * velocity if nesterov else velocity
        # NumPy makes scalars of arrays without axes.
        step = np.asarray(lr * move)
        new = np.subtract(p, step, out=step)
        new_params.append(new.astype(dtype) if work else new)
        velocity = None if velocity is None else np.asarray(velocity, dtype if work else None)
        new_velocities.append(velocity)
    return new_params, new_velocities

"""The SGD update on NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


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
        move = grad + decay * p if decay else grad
        if momentum:
            velocity = move.copy() if velocity is None else momentum * velocity + move
            move = move + momentum * velocity if nesterov else velocity
        new_params.append(p - lr * move)
        new_velocities.append(velocity)
    return new_params, new_velocities

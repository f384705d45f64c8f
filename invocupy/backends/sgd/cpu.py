"""The SGD update on NumPy arrays."""

from __future__ import annotations

from typing import Any


def update(
    p: Any,
    grad: Any,
    velocity: Any,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> tuple[Any, Any]:
    """See :mod:`invocupy.backends.sgd`."""
    move = grad + weight_decay * p if weight_decay else grad
    if momentum:
        velocity = move.copy() if velocity is None else momentum * velocity + move
        move = move + momentum * velocity if nesterov else velocity
    return p - lr * move, velocity

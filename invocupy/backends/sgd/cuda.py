"""The SGD update on CuPy arrays: one launch a parameter."""

from __future__ import annotations

from functools import cache
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
    with p.device:
        if not momentum:
            return _plain()(p, grad, lr, weight_decay), None
        # At the first step the velocity is the move itself: a zero velocity with any momentum.
        old = p if velocity is None else velocity
        keep = 0.0 if velocity is None else momentum
        return _with_momentum()(p, grad, old, lr, keep, momentum, weight_decay, nesterov)  # type: ignore[no-any-return]


@cache
def _plain() -> Any:
    import cupy

    return cupy.ElementwiseKernel(
        "T p, T grad, float64 lr, float64 weight_decay",
        "T new_p",
        "new_p = p - T(lr) * (grad + T(weight_decay) * p)",
        "invocupy_sgd",
    )


@cache
def _with_momentum() -> Any:
    import cupy

    return cupy.ElementwiseKernel(
        "T p, T grad, T old, float64 lr, float64 keep, float64 momentum, float64 weight_decay, "
        "bool nesterov",
        "T new_p, T velocity",
        """
        T move = grad + T(weight_decay) * p;
        velocity = (keep == 0 ? T(0) : T(keep) * old) + move;
        new_p = p - T(lr) * (nesterov ? move + T(momentum) * velocity : velocity);
        """,
        "invocupy_sgd_momentum",
    )

"""One step of stochastic gradient descent on many parameters.

::

    update(params, grads, velocities, decays, *, lr, momentum, nesterov)
        -> (new params, new velocities)

Lists of the same length; ``decays`` are the weight decays, numbers. A velocity is ``None`` at the
first step and stays so without momentum. The results are new arrays of the dtypes of ``params``,
which may differ.
"""

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
    """See the top of this module."""
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

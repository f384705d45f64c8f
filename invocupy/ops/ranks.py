"""Messages between ranks inside an operator, in distributed training.

The batch of a synchronised norm is that of all ranks together, so its moments and the sums of its
gradients are merged from the shares of all ranks, in their order: the results are bit-identical. A
share may be empty; then its rank sends a count of 0. Each function sends one message, so all ranks
must make the same calls in the same order.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from invocupy.arrays import is_cupy, namespace
from invocupy.backends.memory import note_message


class Comm(Protocol):
    """The part of a communicator (of :mod:`invocupy.distributed`) that operators use."""

    def allgather(self, array: Any) -> Any:
        """Stack the arrays of all ranks, equal in shape and dtype, to (ranks, *shape)."""


def merge(comm: Comm, count: int, mean: Any, second: Any) -> tuple[Any, Any, Any]:
    """Count, mean and second central moments of the values of all ranks together, in float64.

    ``mean = sum n_r m_r / n`` and ``second = sum n_r (s_r + d_r d_r^T) / n`` with
    ``d_r = m_r - mean`` (Chan, Golub and LeVeque 1979), without cancellation for means far from
    zero. Each rank has ``count`` values of C numbers, their mean (C,), and variances (C,) or
    covariances (C, C), finite also if the count is 0. If no rank has a value, it raises a
    ValueError; on a GPU the total is an array (), which nothing waits for, and the moments are NaN.
    """
    xp, channels = namespace(mean), mean.size
    parts = xp.full(1, count, np.float64), mean, second.reshape(-1)
    rows = _sent(comm, xp.concatenate(parts))
    counts, means, seconds = rows[:, :1], rows[:, 1 : 1 + channels], rows[:, 1 + channels :]
    total = counts.sum()
    if not is_cupy(total) and total == 0:
        raise ValueError("x must have at least one value per channel on one of the ranks")
    mean = (counts * means).sum(axis=0) / total
    apart = means - mean
    if second.ndim == 1:
        spread = apart * apart
    else:
        spread = (apart[:, :, None] * apart[:, None]).reshape(len(rows), -1)
    merged = (counts * (seconds + spread)).sum(axis=0) / total
    return total if is_cupy(total) else int(total), mean, merged.reshape(second.shape)


def allreduce_sum(comm: Comm, *parts: Any) -> Any:
    """The sums over the ranks of arrays (C,), as one float64 array (number of arrays, C)."""
    message = namespace(parts[0]).stack(parts).astype(np.float64)
    return _sent(comm, message).sum(axis=0)


def _sent(comm: Comm, message: Any) -> Any:
    note_message()
    return comm.allgather(message)

"""Clipping of gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from invocupy.arrays import Array, namespace, on_device
from invocupy.autograd import Tensor
from invocupy.docstrings import documented
from invocupy.geometry import number
from invocupy.optim.params import check_fit, tensors_of


@documented
def clip_by_norm(params: Iterable[Tensor], limit: float) -> Array:
    """Shrink all gradients by one factor, so that their common norm is at most ``limit``.

    ``grad = grad * min(1, limit / (norm + 1e-6))`` with the norm over all gradients together, as
    in PyTorch's ``clip_grad_norm_``; new arrays replace the old ones. The result is the norm before
    clipping, as a float64 array () on the device of the parameters, so that nothing waits for a
    GPU. It is 0 if there is no gradient.

    Parameters
    ----------
    params
        The parameters; those without a gradient are skipped.
    limit
        A finite number above 0.

    Raises
    ------
    ValueError
        For a limit that is not a finite number above 0.
    TypeError, ValueError
        For ``params`` and gradients that :class:`SGD` refuses, but an empty list is allowed.

    >>> from invocupy import nn, optim
    >>> p = nn.Parameter(np.zeros(2))
    >>> p.grad = np.array([3.0, 4.0])
    >>> float(optim.clip_by_norm([p], 1.0)), p.grad.round(3)
    (5.0, array([0.6, 0.8]))
    """
    limit = number("limit", limit, 0)
    if not limit:
        raise ValueError(f"limit must be above 0, got {limit}")
    held = []
    for i, parameter in enumerate(tensors_of(params)):
        if parameter.grad is not None:
            check_fit("grad", i, parameter.grad, parameter.data)
            held.append(parameter)
    if not held:
        return np.zeros(())
    xp = namespace(held[0].grad)
    with on_device(held[0].grad):
        # Not stacked: CuPy would copy the arrays' addresses to the GPU, which no graph can record.
        squares = xp.empty_like(held[0].grad, np.float64, shape=(len(held),))
        for i, p in enumerate(held):
            xp.square(p.grad, dtype=np.float64).sum(out=squares[i : i + 1].reshape(()))
        norm: Array = xp.sqrt(squares.sum())
        factor = xp.minimum(1.0, limit / (norm + 1e-6))
        for parameter in held:
            grad: Any = parameter.grad
            parameter.grad = grad * factor.astype(grad.dtype)
    return norm

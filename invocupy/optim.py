"""Stochastic gradient descent, and learning-rate schedules as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from invocupy import backends
from invocupy.autograd import Tensor


class SGD:
    """Stochastic gradient descent with PyTorch's update rule.

    ``d = grad + weight_decay * p``; with momentum ``v = momentum * v + d`` (``v = d`` at the first
    step) and ``d = d + momentum * v`` (Nesterov) or ``d = v``; then ``p = p - lr * d``. New arrays
    replace the old ones, so arrays that others hold stay as they are.

    Parameters
    ----------
    params : iterable of Parameter
        Any Tensors that require a gradient.
    lr : float
        Learning rate; the attribute ``lr`` may be set before any step.
    momentum, weight_decay : float
    nesterov : bool
        Needs a momentum.

    Raises
    ------
    ValueError
        For no parameters, negative numbers, or Nesterov without momentum.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn, optim
    >>> p = nn.Parameter(np.array([1.0]))
    >>> sgd = optim.SGD([p], lr=0.5)
    >>> (p * p).sum().backward()
    >>> sgd.step()
    >>> p.data
    array([0.])
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        self.params = list(params)
        if not self.params:
            raise ValueError("params must hold at least one parameter, got none")
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if nesterov and not momentum:
            raise ValueError("nesterov needs a momentum > 0")
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.nesterov = nesterov
        self.velocities: list[Any] = [None] * len(self.params)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.params:
            parameter.grad = None

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for i, parameter in enumerate(self.params):
            if parameter.grad is None:
                continue
            update = backends.of("sgd", parameter.data).update
            parameter.data, self.velocities[i] = update(
                parameter.data,
                parameter.grad,
                self.velocities[i],
                lr=self.lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                nesterov=self.nesterov,
            )


def constant(step: int, total: int) -> float:
    """The factor 1 at every step.

    Parameters
    ----------
    step, total : int

    Returns
    -------
    float

    Examples
    --------
    >>> from invocupy import optim
    >>> optim.constant(3, 10)
    1.0
    """
    return 1.0


def cosine(step: int, total: int, warmup: int = 0) -> float:
    """A factor that rises linearly for ``warmup`` steps, then falls to 0 along half a cosine.

    Parameters
    ----------
    step : int
        From 0.
    total : int
        Steps of the whole run.
    warmup : int

    Returns
    -------
    float
        In [0, 1], to multiply the learning rate with.

    Examples
    --------
    >>> from invocupy import optim
    >>> [round(optim.cosine(step, 4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(total - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def one_cycle(step: int, total: int, rise: float = 0.3, start: float = 0.04) -> float:
    """A factor that rises from ``start`` to 1 in a share ``rise`` of the run, then falls to 0.

    Both ways along half a cosine.

    Parameters
    ----------
    step, total : int
    rise, start : float

    Returns
    -------
    float
        In [0, 1], to multiply the learning rate with.

    Examples
    --------
    >>> from invocupy import optim
    >>> [round(optim.one_cycle(step, 10), 2) for step in (0, 3, 10)]
    [0.04, 1.0, 0.0]
    """
    top = max(rise * total, 1e-9)
    if step < top:
        return start + (1 - start) * 0.5 * (1 - math.cos(math.pi * step / top))
    progress = (step - top) / max(total - top, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

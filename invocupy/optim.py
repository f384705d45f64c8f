"""Stochastic gradient descent, clipping, and learning-rate schedules as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from invocupy import backends
from invocupy.arrays import namespace, on_device
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
    decay_biases : bool
        Whether weight decay also takes parameters of one axis: biases, and the weights of norms.

    Raises
    ------
    TypeError
        For one Tensor in place of an iterable of them, or anything else in it.
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
        decay_biases: bool = True,
    ) -> None:
        # A Tensor is iterable, too: its rows would be moved, and it would stay.
        self.params = [] if isinstance(params, Tensor) else list(params)
        kinds = {type(p).__name__ for p in self.params if not isinstance(p, Tensor)}
        if isinstance(params, Tensor) or kinds:
            raise TypeError(
                "params must be an iterable of Tensors, such as model.parameters(), "
                f"got {f'one of {sorted(kinds)}' if kinds else 'a single Tensor'}"
            )
        if not self.params:
            raise ValueError("params must hold at least one parameter, got none")
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if nesterov and not momentum:
            raise ValueError("nesterov needs a momentum > 0")
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.nesterov, self.decay_biases = nesterov, decay_biases
        self.velocities: list[Any] = [None] * len(self.params)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.params:
            parameter.grad = None

    def step(self) -> None:
        """Move every parameter that has a gradient; ValueError for one that is not its gradient."""
        moving: dict[Any, list[int]] = {}
        for i, parameter in enumerate(self.params):
            if parameter.grad is not None:
                shape, dtype = parameter.grad.shape, parameter.grad.dtype
                if shape != parameter.data.shape or dtype != parameter.data.dtype:
                    raise ValueError(
                        f"grad of parameter {i} must have its shape and dtype, "
                        f"{parameter.data.shape} {parameter.data.dtype}, got {shape} {dtype}"
                    )
                moving.setdefault(backends.of("sgd", parameter.data), []).append(i)
        for backend, chosen in moving.items():
            params = [self.params[i] for i in chosen]
            arrays, velocities = backend.update(
                [p.data for p in params],
                [p.grad for p in params],
                [self.velocities[i] for i in chosen],
                [self.weight_decay if self.decay_biases or p.ndim > 1 else 0.0 for p in params],
                lr=self.lr,
                momentum=self.momentum,
                nesterov=self.nesterov,
            )
            for i, array, velocity in zip(chosen, arrays, velocities, strict=True):
                self.params[i].data, self.velocities[i] = array, velocity


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


def step_decay(
    step: int, total: int, milestones: Sequence[float] = (0.5, 0.75), factor: float = 0.1
) -> float:
    """A factor that is multiplied by ``factor`` at each milestone.

    Parameters
    ----------
    step, total : int
    milestones
        Shares of the run, in [0, 1]; the default is that of He et al., arXiv 1512.03385, section
        4.2 (to the rounding of its epochs).
    factor : float

    Returns
    -------
    float
        To multiply the learning rate with.

    Examples
    --------
    >>> from invocupy import optim
    >>> [round(optim.step_decay(step, 4), 3) for step in range(4)]
    [1.0, 1.0, 0.1, 0.01]
    """
    return factor ** sum(step >= share * total for share in milestones)


def cosine(step: int, total: int) -> float:
    """A factor that falls from 1 to 0 along half a cosine.

    Parameters
    ----------
    step : int
        From 0.
    total : int
        Steps of the whole run.

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
    return 0.5 * (1 + math.cos(math.pi * min(step / max(total, 1), 1.0)))


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


def warm_up(schedule: Callable[[int, int], float], step: int, total: int, warmup: int) -> float:
    """A schedule after ``warmup`` steps in which the factor rises linearly to its first value.

    Parameters
    ----------
    schedule : callable
        ``schedule(step, total)``: any of this module; it gets the steps after the warm-up.
    step, total, warmup : int

    Returns
    -------
    float

    Examples
    --------
    >>> from invocupy import optim
    >>> [round(optim.warm_up(optim.cosine, step, 6, 2), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if step < warmup:
        return schedule(0, max(total - warmup, 1)) * (step + 1) / warmup
    return schedule(step - warmup, max(total - warmup, 1))


def clip_by_norm(params: Iterable[Tensor], limit: float) -> Any:
    """Shrink all gradients by one factor, so that their common norm is at most ``limit``.

    ``grad = grad * min(1, limit / (norm + 1e-6))`` with the norm over all gradients together, as
    PyTorch's ``clip_grad_norm_``. On a GPU nothing waits for the norm: it stays there. New arrays
    replace the old ones.

    Parameters
    ----------
    params : iterable of Parameter
        On one device; those without a gradient are left out.
    limit : float
        Above 0.

    Returns
    -------
    float64 array ()
        The norm before, on the device; 0.0 if there is no gradient.

    Raises
    ------
    ValueError
        For a limit that is not above 0.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn, optim
    >>> p = nn.Parameter(np.zeros(2))
    >>> p.grad = np.array([3.0, 4.0])
    >>> float(optim.clip_by_norm([p], 1.0)), p.grad.round(3)
    (5.0, array([0.6, 0.8]))
    """
    if not limit > 0:
        raise ValueError(f"limit must be above 0, got {limit}")
    held = [parameter for parameter in params if parameter.grad is not None]
    if not held:
        return np.zeros(())
    xp = namespace(held[0].grad)
    with on_device(held[0].grad):
        squares = [xp.square(p.grad, dtype=np.float64).sum() for p in held]
        norm = xp.sqrt(xp.stack(squares).sum())
        factor = xp.minimum(1.0, limit / (norm + 1e-6))
        for parameter in held:
            parameter.grad = parameter.grad * factor.astype(parameter.grad.dtype)
    return norm

"""Stochastic gradient descent, clipping, and learning-rate schedules.

A schedule is a function of a step (from 0) and all steps of a run: it gives the factor of the
learning rate there, in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from invocupy import backends
from invocupy.arrays import Array, converted, namespace, on_device, to_device
from invocupy.autograd import Tensor
from invocupy.docstrings import documented
from invocupy.geometry import number


class SGD:
    """Stochastic gradient descent with PyTorch's update rule.

    ``d = grad + weight_decay * p``; with momentum ``v = momentum * v + d`` (``v = d`` at the first
    step) and ``d = d + momentum * v`` (Nesterov) or ``d = v``; then ``p = p - lr * d``. New arrays
    replace the old ones, so arrays that others hold stay as they are.

    Parameters
    ----------
    params : iterable of Parameter
        Any Tensors that no operator made. Those without a gradient stay as they are.
    lr, momentum, weight_decay : float
        Attributes that may be set before any step. They are Python's floats, so that the parameters
        keep their dtype whatever the library of the numbers given.
    nesterov : bool
        Needs a momentum.
    decay_biases : bool
        Whether weight decay also takes parameters of one axis: biases, and the weights of norms.

    Raises
    ------
    TypeError
        For one Tensor, a module or parameter groups in place of an iterable of Tensors.
    ValueError
        For no parameters, one that is given twice or was made by an operator, options that are no
        finite numbers from 0 on (also when they are assigned), or Nesterov without momentum.

    Examples
    --------
    >>> from invocupy import nn, optim
    >>> p = nn.Parameter(np.array([1.0]))
    >>> sgd = optim.SGD([p], lr=0.5)
    >>> (p * p).sum().backward()
    >>> sgd.step()
    >>> p.data
    array([0.])
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.0,
        weight_decay: float = 0.0, nesterov: bool = False, decay_biases: bool = True,
    ) -> None:  # fmt: skip
        self.params = _tensors(params)
        if not self.params:
            raise ValueError("params must hold at least one parameter, got none")
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        if nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum > 0")
        self.nesterov, self.decay_biases = nesterov, decay_biases
        self.velocities: list[Array | None] = [None] * len(self.params)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("lr", "momentum", "weight_decay"):
            value = number(name, value, 0)
        super().__setattr__(name, value)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.params:
            parameter.grad = None

    def step(self) -> None:
        """Move every parameter that has a gradient.

        Raises
        ------
        ValueError
            If a gradient or velocity has another shape or dtype than its parameter.
        """
        moving: dict[Any, list[int]] = {}
        for i, (parameter, velocity) in enumerate(zip(self.params, self.velocities, strict=True)):
            if parameter.grad is None:
                continue
            data = parameter.data
            for kind, array in (("grad", parameter.grad), ("velocity", velocity)):
                if array is not None and (array.shape, array.dtype) != (data.shape, data.dtype):
                    raise ValueError(
                        f"{kind} of parameter {i} must have its shape and dtype, "
                        f"{data.shape} {data.dtype}, got {array.shape} {array.dtype}"
                    )
            moving.setdefault(backends.of("sgd", data), []).append(i)
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

    def state_dict(self) -> dict[str, Array]:
        """Copies of the velocities as NumPy arrays: the only state of steps besides the parameters.

        ``"velocities.3"`` is that of the parameter number 3; there is none before its first step
        with a momentum. ``lr`` and the other options are not included.

        Examples
        --------
        >>> from invocupy import nn, optim
        >>> p = nn.Parameter(np.array([1.0]))
        >>> sgd = optim.SGD([p], lr=0.5, momentum=0.9)
        >>> (p * p).sum().backward()
        >>> sgd.step()
        >>> sgd.state_dict()
        {'velocities.0': array([2.])}
        >>> optim.SGD([p], lr=0.5, momentum=0.9).load_state_dict(sgd.state_dict())
        """
        return {
            f"velocities.{i}": np.array(to_device(velocity, "cpu"))
            for i, velocity in enumerate(self.velocities)
            if velocity is not None
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the velocities of :meth:`state_dict`; nothing changes if one is wrong.

        Dtypes are converted. Parameters that ``state`` does not name have no velocity then.

        Raises
        ------
        TypeError
            If ``state`` is no mapping.
        ValueError
            Listing every name that is none of a velocity, and every array that does not fit its
            parameter or is not finite.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"state must be a mapping of names to arrays, got {type(state).__name__}"
            )
        own = {f"velocities.{i}": parameter.data for i, parameter in enumerate(self.params)}
        found = dict.fromkeys(own)
        problems = [f"{name}: left over" for name in state if name not in own]
        for name in filter(state.__contains__, own):
            try:
                found[name] = converted(state[name], own[name])
                if not namespace(found[name]).isfinite(found[name]).all():
                    raise ValueError("NaN or infinite")
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ValueError("state does not fit the parameters: " + "; ".join(problems))
        self.velocities = list(found.values())


def _tensors(params: Any) -> list[Tensor]:
    """The given Tensors as a list, checked: each once, none made by an operator."""
    # A Tensor is iterable, too: its rows would be moved, and it would stay.
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        got = "a single " + ("Tensor" if isinstance(params, Tensor) else type(params).__name__)
    else:
        given = list(params)
        kinds = sorted({type(p).__name__ for p in given if not isinstance(p, Tensor)})
        got = f"one of {kinds}" if kinds else ""
    if got:
        raise TypeError(
            f"params must be an iterable of Tensors, such as model.parameters(), got {got}"
            + ("; for groups make one SGD each" if "'dict'" in got else "")
        )
    places: dict[int, int] = {}
    for i, parameter in enumerate(given):
        if parameter._parents:
            raise ValueError(
                f"params must be Tensors that no operator made, but number {i} was computed from "
                "others: give those"
            )
        first = places.setdefault(id(parameter), i)
        if first != i:
            raise ValueError(
                f"params must hold each parameter once, but number {i} is number {first} again"
            )
    return given


@documented
def constant(step: int, total: int) -> float:
    """The factor 1 at every step.

    >>> constant(3, 10)
    1.0
    """
    return 1.0


@documented
def step_decay(
    step: int, total: int, milestones: Sequence[float] = (0.5, 0.75), factor: float = 0.1
) -> float:
    """A factor that is multiplied by ``factor`` at each milestone.

    Milestones are shares of the run, in [0, 1]; the default is that of He et al., arXiv 1512.03385,
    section 4.2 (to the rounding of its epochs).

    >>> [round(step_decay(step, 4), 3) for step in range(4)]
    [1.0, 1.0, 0.1, 0.01]
    """
    return factor ** sum(step >= share * total for share in milestones)


@documented
def cosine(step: int, total: int) -> float:
    """A factor that falls from 1 to 0 along half a cosine.

    >>> [round(cosine(step, 4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * min(step / max(total, 1), 1.0)))


@documented
def one_cycle(step: int, total: int, rise: float = 0.3, start: float = 0.04) -> float:
    """A factor that rises from ``start`` to 1 in a share ``rise`` of the run, then falls to 0.

    Both ways along half a cosine.

    >>> [round(one_cycle(step, 10), 2) for step in (0, 3, 10)]
    [0.04, 1.0, 0.0]
    """
    top = max(rise * total, 1e-9)
    if step < top:
        return start + (1 - start) * 0.5 * (1 - math.cos(math.pi * step / top))
    progress = (step - top) / max(total - top, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


@documented
def warm_up(schedule: Callable[[int, int], float], step: int, total: int, warmup: int) -> float:
    """A schedule after ``warmup`` steps in which the factor rises linearly to its first value.

    ``schedule`` is any of this module; it gets the steps after the warm-up.

    >>> [round(warm_up(cosine, step, 6, 2), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    rest = max(total - warmup, 1)
    if step < warmup:
        return schedule(0, rest) * (step + 1) / warmup
    return schedule(step - warmup, rest)


@documented
def clip_by_norm(params: Iterable[Tensor], limit: float) -> Array:
    """Shrink all gradients by one factor, so that their common norm is at most ``limit``.

    ``grad = grad * min(1, limit / (norm + 1e-6))`` with the norm over all gradients together, as
    PyTorch's ``clip_grad_norm_``; new arrays replace the old ones. The result is the norm before, a
    float64 array () on the device of the parameters: nothing waits for a GPU. It is 0 if there is
    no gradient.

    Raises
    ------
    ValueError
        For a limit that is not a finite number above 0.
    TypeError, ValueError
        For ``params`` that :class:`SGD` refuses; there may be none.

    >>> from invocupy import nn, optim
    >>> p = nn.Parameter(np.zeros(2))
    >>> p.grad = np.array([3.0, 4.0])
    >>> float(optim.clip_by_norm([p], 1.0)), p.grad.round(3)
    (5.0, array([0.6, 0.8]))
    """
    limit = number("limit", limit, 0)
    if not limit:
        raise ValueError(f"limit must be above 0, got {limit}")
    held = [parameter for parameter in _tensors(params) if parameter.grad is not None]
    if not held:
        return np.zeros(())
    xp = namespace(held[0].grad)
    with on_device(held[0].grad):
        squares = [xp.square(p.grad, dtype=np.float64).sum() for p in held]
        norm: Array = xp.sqrt(xp.stack(squares).sum())
        factor = xp.minimum(1.0, limit / (norm + 1e-6))
        for parameter in held:
            grad: Any = parameter.grad
            parameter.grad = grad * factor.astype(grad.dtype)
    return norm

"""Stochastic gradient descent with groups of parameters, and the clipping of gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from invocupy import backends
from invocupy.arrays import Array, converted, namespace, to_device
from invocupy.autograd import Tensor
from invocupy.geometry import number
from invocupy.messages import did_you_mean, kind_of, shown
from invocupy.optim.params import check_fit, tensors_of

_NUMBERS = "lr", "momentum", "weight_decay"
_FLAGS = "nesterov", "decay_biases"


class Group:
    """Parameters of an :class:`SGD` with options of their own, which may be changed between steps.

    An option that is None has the value of the SGD. The rate of a group is its ``lr``, multiplied
    by ``sgd.lr`` and divided by the initial ``lr`` of the SGD: so schedules apply to all groups.

    Parameters
    ----------
    params : iterable of Parameter
        The parameters of the group.
    lr, momentum, weight_decay, nesterov, decay_biases : optional
        As in :class:`SGD`.

    Raises
    ------
    TypeError, ValueError
        As :class:`SGD`.

    Examples
    --------
    >>> from invocupy import nn, optim
    >>> body, head = nn.Linear(4, 3), nn.Linear(3, 2)
    >>> groups = [{"params": body.parameters(), "lr": 0.01}, {"params": head.parameters()}]
    >>> sgd = optim.SGD(groups, lr=0.1, momentum=0.9)
    >>> sgd.groups[0].lr, sgd.groups[1].lr
    (0.01, None)
    >>> sgd.lr = 0.05  # halves all rates: 0.005 and 0.05
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float | None = None, momentum: float | None = None,
        weight_decay: float | None = None, nesterov: bool | None = None,
        decay_biases: bool | None = None,
    ) -> None:  # fmt: skip
        self.params = tuple(tensors_of(params))
        if not self.params:
            raise ValueError("params must hold at least one parameter, got none")
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.nesterov, self.decay_biases = nesterov, decay_biases

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "params" and hasattr(self, name):
            raise AttributeError("params of a group cannot be replaced: create another SGD")
        super().__setattr__(name, value if value is None else _checked(name, value))


class SGD:
    """Stochastic gradient descent with PyTorch's update rule.

    ``d = grad + weight_decay * p``; with momentum ``v = momentum * v + d`` (``v = d`` at the first
    step) and ``d = d + momentum * v`` (Nesterov) or ``d = v``; then ``p = p - lr * d``. New arrays
    replace the old ones, which are not modified (but see ``numbers``).

    Parameters
    ----------
    params : iterable of Parameter, or of dict
        Any Tensors that no operator computed; those without a gradient are skipped. Or groups:
        dicts with ``"params"`` and, optionally, values of their own for the options below. The
        attribute ``groups`` is a tuple of :class:`Group`.
    lr, momentum, weight_decay : float
        Attributes that may be changed between steps. They are stored as Python floats, so that
        parameters keep their dtype. Setting ``lr`` changes the rates of all groups by the same
        factor.
    nesterov : bool
        Nesterov momentum; needs a momentum above 0.
    decay_biases : bool
        Whether weight decay also applies to parameters of one axis: biases and weights of norms.

    Attributes
    ----------
    numbers : CuPy array (groups, 3) of float64, optional
        For steps that a CUDA graph replays: if it is set, a step reads rate, momentum and weight
        decay of each group from it, and updates the arrays of parameters and velocities in place.
        They are the first part of :meth:`options`; a graph depends on the second.

    Raises
    ------
    TypeError
        For one Tensor or a module in place of an iterable of Tensors, or groups among Tensors.
    ValueError
        For no parameters, one that is given twice or was computed by an operator, options that are
        not finite numbers >= 0 or flags (also when they are assigned), Nesterov without momentum, a
        group without params or with an unknown key, or a group with an lr if ``lr`` is 0.

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
        groups, self._grouped = _groups(params)
        self.groups = tuple(groups)  # each parameter has its velocity by its place
        self.params = tuple(parameter for group in groups for parameter in group.params)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.nesterov, self.decay_biases = nesterov, decay_biases
        self._first_lr = self.lr
        for group in groups:
            self._check(group)
        self.velocities: list[Array | None] = [None] * len(self.params)
        self.numbers: Array | None = None

    def _check(self, group: Group) -> None:
        self.rate(group)
        if self._of(group, "nesterov") and not self._of(group, "momentum"):
            raise ValueError("nesterov needs a momentum > 0")

    def _of(self, group: Group, option: str) -> Any:
        own = getattr(group, option)
        return getattr(self, option) if own is None else own

    def rate(self, group: Group) -> float:
        """The learning rate of a group now."""
        if group.lr is None:
            return self.lr
        if not self._first_lr:
            raise ValueError(
                f"lr must be above 0 if a group has its own, {group.lr}: a schedule scales lr "
                "and all rates by the same factor"
            )
        return group.lr * (self.lr / self._first_lr)

    def options(self, group: Group) -> tuple[tuple[float, float, float], tuple[bool, bool, bool]]:
        """(rate, momentum, decay) of a group, and (has it momentum, nesterov, decay_biases)."""
        names = "momentum", "weight_decay", *_FLAGS
        momentum, decay, nesterov, biases = (self._of(group, name) for name in names)
        return (self.rate(group), momentum, decay), (momentum != 0, bool(nesterov), bool(biases))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, _checked(name, value))

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for parameter in self.params:
            parameter.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient.

        Raises
        ------
        TypeError, ValueError
            If a gradient or velocity is no array of the library of its parameter, or has another
            shape or dtype.
        """
        moving: dict[Any, list[tuple[int, float]]] = {}
        groups = iter((n, group) for n, group in enumerate(self.groups) for _ in group.params)
        for i, (parameter, (place, group)) in enumerate(zip(self.params, groups, strict=True)):
            if parameter.grad is None:
                continue
            data = parameter.data
            check_fit("grad", i, parameter.grad, data)
            if self.velocities[i] is not None:
                check_fit("velocity", i, self.velocities[i], data)
            decay = 0.0
            if parameter.ndim > 1 or self._of(group, "decay_biases"):
                decay = self._of(group, "weight_decay") if self.numbers is None else 1.0
            options = self._of(group, "momentum"), bool(self._of(group, "nesterov"))
            rate = self.rate(group) if self.numbers is None else place
            together = backends.of("sgd", data), rate, *options
            moving.setdefault(together, []).append((i, decay))
        for (backend, rate, momentum, nesterov), chosen in moving.items():
            numbers, decays = zip(*chosen, strict=True)
            params = [self.params[i] for i in numbers]
            arrays, velocities = backend.update(
                [p.data for p in params],
                [p.grad for p in params],
                [self.velocities[i] for i in numbers],
                decays,
                lr=rate if self.numbers is None else self.numbers[rate],
                momentum=momentum,
                nesterov=nesterov,
            )
            for i, array, velocity in zip(numbers, arrays, velocities, strict=True):
                self.params[i].data, self.velocities[i] = array, velocity

    def state_dict(self) -> dict[str, Array]:
        """Copies of the velocities as NumPy arrays, and the groups if groups were given.

        ``"velocities.3"`` is the velocity of parameter 3, counted through all groups; there is none
        before its first step with a momentum. ``"groups.1.params"`` is the number of parameters of
        group 1, ``"groups.1.lr"`` its own rate. Options of a group that are None, and those of the
        SGD, are not included.

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
        held = enumerate(self.velocities)
        state = {f"velocities.{i}": np.array(to_device(v, "cpu")) for i, v in held if v is not None}
        for i, group in enumerate(self.groups if self._grouped else ()):
            state[f"groups.{i}.params"] = np.array(len(group.params))
            own = ((name, getattr(group, name)) for name in (*_NUMBERS, *_FLAGS))
            state |= {f"groups.{i}.{name}": np.array(v) for name, v in own if v is not None}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned; if anything is wrong, nothing changes.

        Dtypes are converted. Parameters that ``state`` does not name then have no velocity, and
        groups only the options that it names. If ``state`` has no groups, they stay as they are.

        Raises
        ------
        TypeError
            If ``state`` is not a mapping.
        ValueError
            Listing every name that is left over, every array that does not fit its parameter or is
            not finite, every option that is wrong, and groups of other sizes.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping of names to arrays, got {kind_of(state)}")
        own = {f"velocities.{i}": parameter.data for i, parameter in enumerate(self.params)}
        found = dict.fromkeys(own)
        problems, groups = [], []
        left = {name: value for name, value in state.items() if name not in own}
        for name in filter(state.__contains__, own):
            try:
                found[name] = converted(state[name], own[name])
                if not namespace(found[name]).isfinite(found[name]).all():
                    raise ValueError("NaN or infinite")
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if self._grouped and any(str(name).startswith("groups.") for name in left):
            for i, group in enumerate(self.groups):
                size, count = left.pop(f"groups.{i}.params", None), len(group.params)
                if size is None or np.shape(size) or size != count:
                    problems.append(f"groups.{i}.params: {size} parameters, expected {count}")
                names = {f"groups.{i}.{name}": name for name in (*_NUMBERS, *_FLAGS)}
                options = {names[key]: left.pop(key) for key in names if key in left}
                try:
                    plain = {n: v.item() if hasattr(v, "item") else v for n, v in options.items()}
                    groups.append(Group(group.params, **plain))
                    self._check(groups[-1])
                except ValueError as error:
                    problems.append(f"groups.{i}: {error}")
        problems += [f"{name}: left over" for name in left]
        if problems:
            raise ValueError("state does not fit the parameters: " + "; ".join(problems))
        self.velocities = list(found.values())
        for group, loaded in zip(self.groups, groups, strict=False):
            vars(group).update(vars(loaded))


def _checked(name: str, value: Any) -> Any:
    """The value of an attribute, if it is no option or a valid one."""
    if name in _FLAGS and not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return number(name, value, 0) if name in _NUMBERS else value


def _groups(params: Any) -> tuple[list[Group], bool]:
    """The given groups, or one of all parameters; and whether groups were given."""
    several = isinstance(params, Iterable) and not isinstance(params, (Tensor, Mapping))
    given = list(params) if several else params
    if not several or not any(isinstance(one, Mapping) for one in given):
        return [Group(given)], False
    groups: list[Group] = []
    places: dict[int, int] = {}
    for i, one in enumerate(given):
        if not isinstance(one, Mapping):
            raise TypeError(
                f"params must be Tensors or groups, not both, but number {i} is a "
                f"{type(one).__name__}: put it into a group, {{'params': [...]}}"
            )
        known = ["params", *_NUMBERS, *_FLAGS]
        for key in one:
            if key not in known:
                near = did_you_mean(str(key), known)
                raise ValueError(f"keys of group {i} must be among {known}, got {key!r}{near}")
        if "params" not in one:
            raise ValueError(f"group {i} must have 'params', got {list(one)}")
        try:
            groups.append(Group(**one))
        except (TypeError, ValueError) as error:
            raise type(error)(f"group {i}: {error}") from None
        for parameter in groups[i].params:
            first = places.setdefault(id(parameter), i)
            if first != i:
                raise ValueError(
                    "params must hold each parameter once, but one of shape "
                    f"{parameter.shape} is in group {first} and in group {i}"
                )
    return groups, True

"""The base class of all layers and models, and their parameters and buffers.

A module finds its parameters, buffers and submodules by walking its attributes in the order of
their assignment; there is no registry. Assignments that the walk would miss, or that would drop a
registered value, raise a TypeError.
"""

from __future__ import annotations

from collections import UserDict, UserList, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType, MemberDescriptorType, SimpleNamespace
from typing import Any, TypeVar

import numpy as np

from invocupy import arrays
from invocupy.autograd import Tensor
from invocupy.messages import kind_of

M = TypeVar("M", bound="Module")


class Parameter(Tensor):
    """A trainable Tensor of a module: always a leaf that requires a gradient.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> nn.Parameter(np.zeros(3)).requires_grad
    True
    """

    __slots__ = ()

    def __init__(self, data: Any) -> None:
        super().__init__(data, requires_grad=True)


class Buffer:
    """A named array of a module that is saved but not trained, such as running statistics.

    Parameters
    ----------
    data : array
    least : float, optional
        The smallest value that ``load_state_dict`` accepts; NaN is then refused, too.
    """

    __slots__ = ("data", "least")

    def __init__(self, data: Any, least: float | None = None) -> None:
        self.data, self.least = data, least


class Module:
    """The base of all layers and models: ``forward`` computes, the rest is bookkeeping.

    Parameters, buffers and modules are registered by assigning them to attributes. A registered
    attribute accepts only its own kind; ``del`` removes it. Put a list of layers into a
    :class:`ModuleList`.

    Raises
    ------
    TypeError
        When another kind of value is assigned to a registered attribute, a container (list, tuple,
        set, dict, object array, ``functools.partial``, ...) is assigned whose modules or parameters
        are not registered (or has got some by the time the parameters are asked for or the mode is
        set), or ``training`` is set to something that is no bool.
    ValueError
        When the name of a registered attribute is empty or has a dot, or a module would contain
        itself.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> class Twice(nn.Module):
    ...     def __init__(self):
    ...         self.layer = nn.Linear(2, 2, rng=np.random.default_rng(0))
    ...
    ...     def forward(self, x):
    ...         return self.layer(self.layer(x))
    >>> model = Twice()
    >>> model
    Twice(
      (layer): Linear(weight=(2, 2), bias=(2,))
    )
    >>> [name for name, _ in model.named_parameters()]
    ['layer.weight', 'layer.bias']
    >>> model(np.ones((1, 2), np.float32)).shape
    (1, 2)
    """

    training: bool = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name, value in vars(cls).items():
            if isinstance(value, MemberDescriptorType):
                raise TypeError(
                    f"{cls.__name__}.__slots__ has {name}, and what is assigned to a slot is not "
                    "registered: leave __slots__ out"
                )
            if _members(value):
                raise TypeError(
                    f"{cls.__name__}.{name} holds modules or parameters that all instances would "
                    "share and none would register: assign it to self in __init__"
                )

    def __setattr__(self, name: str, value: Any) -> None:
        held = vars(self).get(name)
        if isinstance(held, _STATE):
            kind = next(kind for kind in _STATE if isinstance(held, kind))
            if not isinstance(value, kind):
                array = "" if kind is Module else f", an array to {name}.data"
                raise TypeError(
                    f"{type(self).__name__}.{name} is a {kind.__name__}, not to be replaced by "
                    f"{kind_of(value)}: assign a {kind.__name__}{array}, or `del` it first"
                )
        if name == "training":
            value = _mode(value)
        elif isinstance(value, _STATE):
            self._check_member(name, value)
        elif isinstance(value, _CONTAINERS):
            self._check_container(name, value)
        super().__setattr__(name, value)

    def _check_member(self, name: str, value: Any) -> None:
        if not name or "." in name:
            raise ValueError(
                f"the name of a registered attribute must have no dot and not be empty, "
                f"got {name!r}: dots separate the names of nested modules"
            )
        if isinstance(value, Module) and any(module is self for _, module in value.modules()):
            raise ValueError(
                f"{type(self).__name__}.{name} must not contain {type(self).__name__} itself: pass "
                "what a submodule needs as an argument, or keep a weakref.ref"
            )

    def _check_container(self, name: str, value: Any) -> None:
        found = _members(value)
        if not found:
            return
        modules = [module for _, module in self.modules()]
        known = {id(held) for module in modules for held in (module, *vars(module).values())}
        if not known.issuperset(map(id, found)):
            raise TypeError(
                f"{type(self).__name__}.{name} is a {type(value).__name__} that holds modules or "
                "parameters, which would not be registered: use nn.ModuleList for modules, and an "
                "attribute for each parameter"
            )

    def forward(self, x: Any) -> Any:
        """What the module computes; written by subclasses."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x)")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.forward(*inputs, **options)

    def __repr__(self) -> str:
        """The module as a tree: shapes of its arrays, its settings, and what it holds."""
        own = [
            f"{name}={value.data.shape}"
            if isinstance(value, (Parameter, Buffer))
            else f"{name}={value!r}"
            for name, value in vars(self).items()
            if isinstance(value, (Parameter, Buffer, int, float, str, tuple)) and name != "training"
        ]
        held = [
            f"\n  ({name}): " + repr(child).replace("\n", "\n  ") for name, child in self.children()
        ]
        return "".join([type(self).__name__, "(", ", ".join(own), *held, "\n)" if held else ")"])

    def children(self) -> Iterator[tuple[str, Module]]:
        """The direct submodules with the names of their attributes."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def modules(self) -> Iterator[tuple[str, Module]]:
        """This module (named ``""``) and all below it, with dotted names."""
        yield "", self
        for name, child in self.children():
            for path, module in child.modules():
                yield f"{name}.{path}" if path else name, module

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, with its dotted name."""
        seen: set[int] = set()
        for name, value in self._state(Parameter):
            if id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_buffers(self) -> Iterator[tuple[str, Any]]:
        """Every buffer as an array, with its dotted name."""
        for name, buffer in self._state(Buffer):
            yield name, buffer.data

    def buffers(self) -> Iterator[Any]:
        """Every buffer as an array."""
        for _, array in self.named_buffers():
            yield array

    def _state(self, kind: Any) -> Iterator[tuple[str, Any]]:
        for path, module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, kind):
                    yield f"{path}.{name}" if path else name, value
                elif isinstance(value, _MUTABLE):  # it may have been filled since
                    module._check_container(name, value)

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Names to NumPy arrays: parameters and buffers, copied."""
        return {
            name: np.array(arrays.to_device(value.data, "cpu"))
            for name, value in self._state((Parameter, Buffer))
        }

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take over arrays by name; nothing changes if anything is wrong.

        Parameters
        ----------
        state : mapping of str to array
            Of the module's shapes: floating dtypes for weights, converted to the module's, and
            whole numbers for counters.
        strict : bool
            Whether names that are missing or left over are errors.

        Raises
        ------
        TypeError
            If ``state`` is no mapping.
        ValueError
            Listing every name that is missing, left over, of another shape or kind of dtype, that
            cannot be converted without overflow, or has a value that its buffer excludes (a
            negative or NaN variance).
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"state must be a mapping of names to arrays, got {kind_of(state)}: read a file "
                "first, with invocupy.weights or invocupy.checkpoint.load"
            )
        own = dict(self._state((Parameter, Buffer)))
        taken: dict[int, tuple[str, Any, Any]] = {}
        problems = []
        for name, holder in own.items():
            if name not in state:
                problems += [f"{name}: missing"] if strict else []
                continue
            given = state[name]
            try:
                array = arrays.converted(
                    given.data if isinstance(given, Tensor) else given,
                    holder.data,
                    getattr(holder, "least", None),
                )
            except ValueError as error:
                problems.append(f"{name}: {error}")
                continue
            first, _, before = taken.setdefault(id(holder), (name, holder, array))
            if before is not array and not np.array_equal(
                arrays.readable(before), arrays.readable(array), equal_nan=True
            ):
                problems.append(f"{name}: not equal to {first}, with which it is shared")
        if strict:
            problems += [f"{name}: left over" for name in state if name not in own]
        if problems:
            raise ValueError("state does not fit the module: " + "; ".join(problems))
        for _, holder, array in taken.values():
            holder.data = array

    def train(self: M, mode: bool = True) -> M:
        """Set training mode (batch statistics) for this module and all below it."""
        mode = _mode(mode)
        list(self._state(()))  # refuses containers that have got modules, which it would miss
        for _, module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Set evaluation mode (running statistics) for this module and all below it."""
        return self.train(False)

    def to(self: M, device: str) -> M:
        """Move all state to ``"cpu"``, ``"cuda"`` or ``"cuda:i"``; gradients are dropped."""
        state = [value for _, value in self._state((Parameter, Buffer))]
        moved = [arrays.to_device(value.data, device) for value in state]
        for value, array in zip(state, moved, strict=True):
            value.data = array
            if isinstance(value, Parameter):
                value.grad = None
        return self

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None


_STATE = (Parameter, Buffer, Module)
_MAPPINGS = (dict, UserDict, MappingProxyType)
_MUTABLE = (list, set, deque, UserList, *_MAPPINGS)
_CONTAINERS = (*_MUTABLE, tuple, frozenset, partial, SimpleNamespace, np.ndarray)


def _members(value: Any) -> list[Any]:
    """The modules, parameters and buffers in a container, at any depth, or ``value`` itself."""
    seen: set[int] = set()
    left, found = [value], []
    while left:
        value = left.pop()
        if isinstance(value, _STATE):
            found.append(value)
        elif isinstance(value, _CONTAINERS) and id(value) not in seen:
            seen.add(id(value))
            left += _contents(value)
    return found


def _contents(value: Any) -> Iterable[Any]:
    """What one of the containers holds directly."""
    if isinstance(value, _MAPPINGS):
        return [*value, *value.values()]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, SimpleNamespace):
        return vars(value).values()
    if isinstance(value, np.ndarray):
        return value.flat if value.dtype.kind == "O" else ()
    return [*value]


def _mode(value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"training must be True or False, got {value!r}")
    return bool(value)


@contextmanager
def keep_modes(model: Module) -> Iterator[None]:
    """Restore the mode of every module at the end of the block, also after an exception.

    Parameters
    ----------
    model : Module

    Returns
    -------
    context manager

    Examples
    --------
    >>> from invocupy import nn
    >>> model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    >>> _ = model[0].eval()
    >>> with nn.keep_modes(model):
    ...     _ = model.eval()
    >>> [layer.training for layer in model]
    [False, True]
    """
    modes = [(module, module.training) for _, module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode

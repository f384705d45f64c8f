"""The base class of all layers and models, and their parameters and buffers.

A module finds its parameters, buffers and submodules by walking its attributes in the order of
their assignment; there is no registry. Assignments that the walk would miss, or that would drop a
registered value, raise a TypeError.
"""

from __future__ import annotations

from collections import UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from gc import get_referents
from itertools import chain
from types import MappingProxyType, MemberDescriptorType, SimpleNamespace
from typing import Any, ParamSpec, Protocol, Self, TypeAlias, TypeVar

import numpy as np

from invocupy import arrays
from invocupy.arrays import Array
from invocupy.autograd import Tensor
from invocupy.messages import kind_of
from invocupy.nn.misfit import located
from invocupy.nn.parameter import Buffer, Parameter

Input: TypeAlias = Tensor | Array
"""The input of a layer. With parameters it returns a Tensor, without the type of its input."""

_Inputs = ParamSpec("_Inputs")
_Output = TypeVar("_Output", covariant=True)
_Held = TypeVar("_Held")


class _Forward(Protocol[_Inputs, _Output]):
    """Has a ``forward``, whose types are also those of a call."""

    def forward(self, *inputs: _Inputs.args, **options: _Inputs.kwargs) -> _Output: ...


def _undefined(module: Module, *inputs: Any, **options: Any) -> Any:
    raise NotImplementedError(f"{type(module).__name__} must define forward(x)")


class Module:
    """The base of all layers and models: ``forward`` computes, the rest is bookkeeping.

    Parameters, buffers and modules are registered by assigning them to attributes. A registered
    attribute accepts only its own kind; ``del`` removes it. Put a list of layers into a
    :class:`ModuleList`.

    Raises
    ------
    TypeError
        When another kind of value is assigned to a registered attribute, a container (list, dict,
        ``functools.partial``, ...) holds modules or parameters that are not registered, at once or
        later, or ``training`` is set to something that is not a bool.
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
    forward: Callable[..., Any] = _undefined  # what the module computes; written by subclasses

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
        if isinstance(value, Module) and any(module is self for module in value.modules()):
            raise ValueError(
                f"{type(self).__name__}.{name} must not contain {type(self).__name__} itself: pass "
                "what a submodule needs as an argument, or keep a weakref.ref"
            )

    def _check_container(self, name: str, value: Any) -> None:
        found = _members(value)
        modules = self.modules() if found else ()
        known = {id(held) for module in modules for held in (module, *vars(module).values())}
        if not known.issuperset(map(id, found)):
            raise TypeError(
                f"{type(self).__name__}.{name} is a {type(value).__name__} that holds modules or "
                "parameters, which would not be registered: use nn.ModuleList for modules, and an "
                "attribute for each parameter"
            )

    def __call__(
        self: _Forward[_Inputs, _Output], *inputs: _Inputs.args, **options: _Inputs.kwargs
    ) -> _Output:
        try:
            return self.forward(*inputs, **options)
        except (AttributeError, TypeError, ValueError) as error:
            if (other := located(self, inputs, error)) is not error:
                raise other from None
            raise

    def __repr__(self) -> str:
        """The module as a tree: shapes of its arrays, settings, and submodules."""
        own, held = [], ""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                held += f"\n  ({name}): " + repr(value).replace("\n", "\n  ")
            elif isinstance(value, (Parameter, Buffer)):
                own.append(f"{name}={value.data.shape}")
            elif isinstance(value, (int, float, str, tuple)) and name != "training":
                own.append(f"{name}={value!r}")
        end = "\n)" if held else ")"
        return f"{type(self).__name__}({', '.join(own)}{held}{end}"

    def named_children(self, *, remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """The direct submodules under the first of their names, or under each of them."""
        children = [(n, value) for n, value in vars(self).items() if isinstance(value, Module)]
        return _once(children) if remove_duplicate else iter(children)

    def children(self) -> Iterator[Module]:
        """The direct submodules, each once."""
        return (child for _, child in self.named_children())

    def named_modules(self, *, remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """This module (named ``""``) and all below it, under the first of their dotted names."""
        below = (
            (f"{name}.{path}" if path else name, module)
            for name, child in self.named_children(remove_duplicate=False)
            for path, module in child.named_modules(remove_duplicate=False)
        )
        every = chain([("", self)], below)
        return _once(every) if remove_duplicate else every

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        return (module for _, module in self.named_modules())

    def named_state(self) -> Iterator[tuple[str, Parameter | Buffer]]:
        """Parameters and buffers with the names of :meth:`state_dict`: shared ones under each."""
        return self._named(Parameter, Buffer)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter once, with its dotted name."""
        return _once(self._named(Parameter))

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter once."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """Every buffer as an array, with its dotted name."""
        return ((name, buffer.data) for name, buffer in self._named(Buffer))

    def buffers(self) -> Iterator[Array]:
        """Every buffer as an array."""
        return (array for _, array in self.named_buffers())

    def _named(self, *kinds: type) -> Iterator[tuple[str, Any]]:
        """Attributes of these kinds; TypeError for containers to which modules were added later."""
        for path, module in self.named_modules(remove_duplicate=False):
            for name, value in vars(module).items():
                if isinstance(value, kinds):
                    yield f"{path}.{name}" if path else name, value
                elif isinstance(value, _MUTABLE):
                    module._check_container(name, value)

    def state_dict(self) -> dict[str, Array]:
        """Names to NumPy arrays: parameters and buffers, copied."""
        held = self.named_state()
        return {name: np.array(arrays.to_device(holder.data, "cpu")) for name, holder in held}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Load arrays by name; nothing changes if anything is wrong.

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
            If ``state`` is not a mapping.
        ValueError
            Listing every name that is missing, left over, of another shape or kind of dtype, with
            values that overflow, or that its buffer excludes (a negative or NaN variance).
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"state must be a mapping of names to arrays, got {kind_of(state)}: read a file "
                "first, with invocupy.weights or invocupy.checkpoint.load"
            )
        own = dict(self.named_state())
        problems = [f"{name}: missing" for name in own if name not in state] if strict else []
        taken: dict[int, tuple[str, Parameter | Buffer, Array]] = {}
        for name in filter(state.__contains__, own):
            holder, given = own[name], state[name]
            given = given.data if isinstance(given, Tensor) else given
            try:
                array = arrays.converted(given, holder.data, getattr(holder, "least", None))
                first, _, before = taken.setdefault(id(holder), (name, holder, array))
                if before is not array and not np.array_equal(
                    arrays.readable(before), arrays.readable(array), equal_nan=True
                ):
                    raise ValueError(f"not equal to {first}, with which it is shared")
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if strict:
            problems += [f"{name}: left over" for name in state if name not in own]
        if problems:
            raise ValueError("state does not fit the module: " + "; ".join(problems))
        for _, holder, array in taken.values():
            holder.data = array

    def train(self, mode: bool = True) -> Self:
        """Set training mode (batch statistics) for this module and all below it."""
        mode = _mode(mode)
        list(self._named())  # refuses containers of modules, whose mode would not change
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Set evaluation mode (running statistics) for this module and all below it."""
        return self.train(False)

    def to(self, device: str) -> Self:
        """Move all state to ``"cpu"``, ``"cuda"`` or ``"cuda:i"``; gradients are dropped."""
        holders = [holder for _, holder in self.named_state()]
        moved = [arrays.to_device(holder.data, device) for holder in holders]
        for holder, array in zip(holders, moved, strict=True):
            holder.data = array
        self.zero_grad()
        return self

    def zero_grad(self) -> None:
        """Set the gradients of all parameters to None."""
        for parameter in self.parameters():
            parameter.grad = None


def _once(named: Iterable[tuple[str, _Held]]) -> Iterator[tuple[str, _Held]]:
    """Each item once, under its first name."""
    seen: set[int] = set()
    for name, value in named:
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value


_STATE = (Parameter, Buffer, Module)
_MUTABLE = (list, set, deque, UserList, dict, UserDict, MappingProxyType)
_CONTAINERS = (*_MUTABLE, tuple, frozenset, partial, SimpleNamespace, np.ndarray)


def _members(value: Any) -> list[Parameter | Buffer | Module]:
    """The modules, parameters and buffers in a container, at any depth, or ``value`` itself."""
    seen: set[int] = set()
    left, found = [value], []
    while left:
        value = left.pop()
        if isinstance(value, _STATE):
            found.append(value)
        elif isinstance(value, _CONTAINERS) and id(value) not in seen:
            seen.add(id(value))
            left += get_referents(value)  # arrays do not show theirs
            if isinstance(value, np.ndarray) and value.dtype.kind == "O":
                left += value.flat
    return found


def _mode(value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"training must be True or False, got {value!r}")
    return bool(value)


@contextmanager
def keep_modes(model: Module) -> Iterator[None]:
    """Restore the mode of every module of ``model`` at the end of the block, or at an exception.

    Parameters
    ----------
    model : Module
        With all modules below it.

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
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode

"""Modules that contain other modules, named by their numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, MutableSequence
from typing import Any, Self, cast, overload

from invocupy.autograd import Tensor
from invocupy.messages import kind_of
from invocupy.nn.module import Input, Module


class ModuleList(Module, MutableSequence[Module]):
    """Modules in a list, with the methods of a list; the names of its members are their numbers.

    Members are renumbered from 0 when one is inserted or deleted. A slice is a new list of the
    same modules.

    Parameters
    ----------
    modules : iterable of Module
        The members.

    Raises
    ------
    TypeError
        For a member that is not a module.

    Examples
    --------
    >>> from invocupy import nn
    >>> layers = nn.ModuleList([nn.ReLU(), nn.Flatten()])
    >>> layers.insert(0, nn.Identity())
    >>> del layers[1]
    >>> layers
    ModuleList(
      (0): Identity()
      (1): Flatten()
    )
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        if not isinstance(modules, Iterable):
            raise TypeError(f"modules must be an iterable of modules, got {kind_of(modules)}")
        self._hold(list(modules))

    def _hold(self, modules: list[Any]) -> None:
        """Replace all members by these; an attribute of a subclass keeps its own name."""
        held = {id(m): name for name, m in self.named_children(remove_duplicate=False)}
        for place, module in enumerate(modules):
            if not isinstance(module, Module):
                raise TypeError(
                    f"the members of {type(self).__name__} must be modules such as nn.ReLU(), but "
                    f"number {place} is {kind_of(module)}: give an instance for a class, a Module "
                    "for a function, Sequential(*layers) for a list"
                )
            if id(module) not in held:
                self._check_member(str(place), module)
        names = {key: name for key, name in held.items() if not name.isdecimal()}
        for name, _ in self.named_children(remove_duplicate=False):
            del vars(self)[name]
        for place, module in enumerate(modules):
            vars(self)[names.pop(id(module), str(place))] = module

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Module]:
        return (child for _, child in self.named_children(remove_duplicate=False))

    @overload
    def __getitem__(self, index: int) -> Module: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: Any) -> Any:
        members = list(self)[index]
        if isinstance(members, Module):
            return members
        part = copy.copy(self)
        part._hold(members)
        return part

    def __setitem__(self, index: Any, value: Any) -> None:
        members = list(self)
        members[index] = value
        self._hold(members)

    def __delitem__(self, index: Any) -> None:
        members = list(self)
        del members[index]
        self._hold(members)

    def insert(self, index: int, value: Module) -> None:
        """Add one module before a place."""
        self[index:index] = [value]

    def extend(self, values: Iterable[Module]) -> None:
        """Add modules at the end."""
        self[len(self) :] = values


class Sequential(ModuleList):
    """Modules applied one after another.

    Parameters
    ----------
    *modules : Module
        Each gets the result of the one before it.

    Raises
    ------
    TypeError
        For anything that is not a module: a list, a function, a class.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> nn.Sequential(nn.ReLU(), nn.Flatten())(np.full((1, 2, 2), -1.0))
    array([[0., 0., 0., 0.]])
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Input) -> Tensor:
        """The result of the last module."""
        for module in self:
            x = module(x)
        return cast("Tensor", x)

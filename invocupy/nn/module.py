"""What all layers and models are: state with names, and what holds others.

A module finds its parameters, buffers and submodules by walking its attributes in the order of
their assignment: there is no metaclass and no ``__setattr__``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from invocupy import arrays
from invocupy.autograd import Tensor

M = TypeVar("M", bound="Module")


class Parameter(Tensor):
    """A Tensor that a module learns: always a leaf that requires a gradient.

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
    """A named array of a module that is state but not learned (running statistics)."""

    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        self.data = data


class Module:
    """The base of all layers and models: ``forward`` computes, the rest is bookkeeping.

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
            Of real numbers. Shapes must match; dtypes are converted to the module's.
        strict : bool
            Whether names that are missing or left over are errors.

        Raises
        ------
        ValueError
            Listing every name that is missing, left over, of another shape or not of real numbers.
        """
        own = dict(self._state((Parameter, Buffer)))
        problems = [
            f"{name}: shape {tuple(np.shape(state[name]))}, expected {tuple(value.data.shape)}"
            for name, value in own.items()
            if name in state and np.shape(state[name]) != value.data.shape
        ]
        problems += [
            f"{name}: {kind}, expected real numbers"
            for name in own
            if name in state and (kind := _unreal(state[name]))
        ]
        if strict:
            problems += [f"{name}: missing" for name in own if name not in state]
            problems += [f"{name}: left over" for name in state if name not in own]
        if problems:
            raise ValueError("state does not fit the module: " + "; ".join(problems))
        for name, value in own.items():
            if name in state:
                new = np.array(arrays.to_device(state[name], "cpu"), dtype=value.data.dtype)
                value.data = arrays.to_device(new, arrays.device_of(value.data))

    def train(self: M, mode: bool = True) -> M:
        """Set training mode (batch statistics) for this module and all below it."""
        for _, module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Set evaluation mode (running statistics) for this module and all below it."""
        return self.train(False)

    def to(self: M, device: str) -> M:
        """Move all state to ``"cpu"``, ``"cuda"`` or ``"cuda:i"``; gradients are dropped."""
        for _, value in self._state((Parameter, Buffer)):
            value.data = arrays.to_device(value.data, device)
            if isinstance(value, Parameter):
                value.grad = None
        return self

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None


def _unreal(array: Any) -> str:
    """What is wrong with what should hold real numbers, all of them; nothing: an empty string."""
    if isinstance(array, np.ma.MaskedArray):
        return "a masked array"
    dtype = array.dtype if hasattr(array, "dtype") else np.asarray(array).dtype
    if isinstance(dtype, np.dtype) and dtype.kind not in "biuf" and dtype.name != "bfloat16":
        return f"dtype {dtype}"
    return ""


class ModuleList(Module):
    """Modules in a list; the names of its members are their numbers.

    Examples
    --------
    >>> from invocupy import nn
    >>> layers = nn.ModuleList([nn.ReLU(), nn.Flatten()])
    >>> len(layers), type(layers[1]).__name__
    (2, 'Flatten')
    """

    def __init__(self, modules: Any = ()) -> None:
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> None:
        """Add one module at the end."""
        setattr(self, str(len(self)), module)

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return (child for _, child in self.children())

    def __getitem__(self, index: int) -> Module:
        return list(self)[index]


class Sequential(ModuleList):
    """Modules applied one after another.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import nn
    >>> nn.Sequential(nn.ReLU(), nn.Flatten())(np.full((1, 2, 2), -1.0))
    array([[0., 0., 0., 0.]])
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        """The last module's value."""
        for module in self:
            x = module(x)
        return x


class Identity(Module):
    """Gives back what it gets."""

    def forward(self, x: Any) -> Any:
        """``x``."""
        return x

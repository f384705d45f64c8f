"""How an operator is declared: :func:`op` above it, and everything else follows.

The tape makes the public function on Tensors and arrays from it (:mod:`invocupy.functional`), with
its docstring; its methods of Tensor; and what NumPy's functions do with a Tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeAlias, TypeVar

from invocupy.arrays import Array

Vjp: TypeAlias = Callable[[Array], Array]
"""The vector-Jacobian product: from the gradient of the value to that of one argument."""
Result: TypeAlias = tuple[Array, tuple[Vjp, ...]]
Axis: TypeAlias = int | tuple[int, ...] | None
_Op = TypeVar("_Op", bound=Callable[..., Result])


class Declaration(NamedTuple):
    """An operator; the functions of NumPy that are it; its methods and operators of Tensor."""

    op: Callable[..., Result]
    numpy: tuple[Any, ...]
    methods: list[str]


OPS: dict[str, Declaration] = {}


def op(*numpy: Any, methods: str = "") -> Callable[[_Op], _Op]:
    """Declare the operator below, whose array arguments are those annotated as ``Array``.

    Of its arguments the array comes first; a method ``__radd__`` gets them the other way round.
    """

    def declare(function: _Op) -> _Op:
        OPS[function.__name__] = Declaration(function, numpy, methods.split())
        return function

    return declare


def no_gradient(name: str) -> Callable[[Array], NoReturn]:
    """The vjp of an argument that has none."""

    def refuse(grad: Array) -> NoReturn:
        raise TypeError(f"{name} have no gradient")

    return refuse

"""From the declaration of an op: its public function, its methods of Tensor, NumPy's functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from invocupy.autograd import protocols
from invocupy.autograd.methods import Methods
from invocupy.autograd.tensor import run
from invocupy.ops import OPS
from invocupy.ops.declaration import Result

_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


def lift(op: Callable[..., Result]) -> Callable[..., Any]:
    """The function on Tensors and plain arrays that gives the value of ``op``, with its docstring.

    Its arguments are those of ``op``; several arrays of one name (``*parts``) become a sequence.
    Operands are those that ``op`` annotates as Array, options all others.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy import Tensor
    >>> from invocupy.ops.declaration import Result
    >>> def twice(x: "Array") -> Result:
    ...     return 2 * x, (lambda grad: 2 * grad,)
    >>> function = lift(twice)
    >>> function(np.ones(2)), function(Tensor([1.0]))
    (array([2., 2.]), Tensor(array([2.])))
    """
    first, *others = inspect.signature(op).parameters.values()
    several = first.kind is inspect.Parameter.VAR_POSITIONAL
    if several:
        first = first.replace(kind=_POSITIONAL, annotation="Sequence[Array]")
        others = [other.replace(kind=_POSITIONAL) for other in others]
    parameters = [first, *others]
    places = [p.name for p in parameters if p.kind is _POSITIONAL]
    names = [p.name for p in parameters if _is_operand(p)]
    count = len(names)
    missing = {p.name: p.default for p in parameters if p.default is not p.empty}

    @wraps(op)
    def function(*arguments: Any, **options: Any) -> Any:
        given = len(arguments)
        if given > count:  # options by their place
            placed = dict(zip(places[count:], arguments[count:], strict=False))
            if given > len(places) or not placed.keys().isdisjoint(options):
                _refuse(function, arguments, options)
            arguments, options = arguments[:count], options | placed
        elif given < count:  # operands by their names, or left out
            if not missing.keys() | options.keys() >= set(names[given:]):
                _refuse(function, arguments, options)
            rest = [options.pop(name, missing.get(name)) for name in names[given:]]
            arguments = (*arguments, *rest)
        return run(op, arguments[0] if several else arguments, options)

    function.__module__ = "invocupy.functional"
    signature = inspect.Signature(parameters, return_annotation="Array")
    function.__signature__ = signature  # type: ignore[attr-defined]
    del function.__wrapped__, function.__annotations__
    return function


def _refuse(function: Callable[..., Any], arguments: Any, options: dict[str, Any]) -> None:
    """Raise a TypeError that says which argument is missing, or too many."""
    try:
        inspect.signature(function).bind(*arguments, **options)
    except TypeError as error:
        raise TypeError(f"{function.__name__}() {error}") from None


def _is_operand(parameter: inspect.Parameter) -> bool:
    array = str(parameter.annotation).startswith(("Array", "Sequence[Array]"))
    return array and parameter.kind is _POSITIONAL


def _reflected(function: Callable[..., Any]) -> Callable[..., Any]:
    return wraps(function)(lambda self, other: function(other, self))


FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""The public function of each op."""
for _name, (_op, _numpy, _methods) in OPS.items():
    _function = FUNCTIONS[_name] = lift(_op)
    protocols.FUNCTIONS.update(dict.fromkeys(_numpy, _function))
    for _method in _methods:
        reflects = _method.startswith("__r")
        setattr(Methods, _method, _reflected(_function) if reflects else _function)

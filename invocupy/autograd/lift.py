"""From the declaration of an op: its public function, its methods of Tensor, NumPy's functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from invocupy.autograd import protocols
from invocupy.autograd.methods import Methods
from invocupy.autograd.tensor import apply
from invocupy.ops import OPS
from invocupy.ops.declaration import Result

_Parameter = inspect.Parameter
_POSITIONAL = _Parameter.POSITIONAL_OR_KEYWORD


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
    several = first.kind is _Parameter.VAR_POSITIONAL
    if several:
        first = first.replace(kind=_POSITIONAL, annotation="Sequence[Array]")
        others = [other.replace(kind=_POSITIONAL) for other in others]
    parameters = [first, *others]
    names = [p.name for p in parameters if _is_operand(p)]
    count, signature = len(names), inspect.Signature(parameters)

    @wraps(op)
    def function(*arguments: Any, **options: Any) -> Any:
        if len(arguments) != count:
            try:
                bound = signature.bind(*arguments, **options)
            except TypeError:
                op(*arguments, **options)  # says it with the name of the function
                raise
            bound.apply_defaults()
            options = bound.arguments
            arguments = tuple([options.pop(name) for name in names])
        return apply(op, *(arguments[0] if several else arguments), **options)

    function.__module__ = "invocupy.functional"
    function.__signature__ = signature.replace(return_annotation="Array")  # type: ignore[attr-defined]
    del function.__wrapped__, function.__annotations__
    return function


def _is_operand(parameter: inspect.Parameter) -> bool:
    return parameter.kind is _POSITIONAL and str(parameter.annotation).startswith(
        ("Array", "Sequence[Array]")
    )


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

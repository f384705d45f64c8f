"""Public functions, Tensor methods and NumPy support, generated from the declaration of an op."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any

from invocupy.autograd import protocols
from invocupy.autograd.methods import Methods
from invocupy.autograd.tensor import run
from invocupy.messages import did_you_mean
from invocupy.ops import OPS
from invocupy.ops.declaration import METHODS, NUMPY, Result


def lift(op: Callable[..., Result]) -> Callable[..., Any]:
    """The function on Tensors and plain arrays that returns the value of ``op``.

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
    # Reading the code object takes a tenth of the time of inspect.signature.
    code, notes, defaults = op.__code__, op.__annotations__, op.__defaults__ or ()
    places = code.co_varnames[: code.co_argcount]
    if several := bool(code.co_flags & inspect.CO_VARARGS):
        places = code.co_varnames[code.co_kwonlyargcount :: -1]
    names = [name for name in places if notes[name].startswith("Array")]
    count = len(names)
    missing = dict(zip(places[len(places) - len(defaults) :], defaults, strict=True))
    known = {*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]}

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
        try:
            return run(op, arguments[0] if several else arguments, options)
        except TypeError:
            if not options.keys() <= known:
                _refuse(function, arguments, options)
            raise

    function.__module__ = "invocupy.functional"
    shown = FunctionType(code, op.__globals__, op.__name__, op.__defaults__, op.__closure__)
    shown.__kwdefaults__, shown.__annotations__ = op.__kwdefaults__, notes | {"return": "Array"}
    if several:
        signature, one = inspect.signature(shown), inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [p.replace(kind=one) for p in signature.parameters.values()]
        parameters[0] = parameters[0].replace(annotation="Sequence[Array]")
        shown.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    function.__wrapped__ = shown
    function.__annotations__ = {}
    return function


def _refuse(function: Callable[..., Any], arguments: Any, options: dict[str, Any]) -> None:
    """Raise a TypeError that says which argument is missing, too many or unknown."""
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        names = signature.parameters
        unknown = next((name for name in options if name not in names), None)
        hint = did_you_mean(unknown, names) if unknown else ""
        if not unknown and len(arguments) > 1:
            named = [p.name for p in names.values() if p.kind is p.KEYWORD_ONLY]
            hint = f": give {', '.join(named)} by name" if named else ""
        raise TypeError(f"{function.__name__}() {error}{hint}") from None


def _reflected(function: Callable[..., Any]) -> Callable[..., Any]:
    return wraps(function)(lambda self, other: function(other, self))


FUNCTIONS = {name: lift(op) for name, op in OPS.items()}
"""The public function of each op."""
protocols.FUNCTIONS.update({numpy: FUNCTIONS[name] for numpy, name in NUMPY.items()})
for _method, _name in METHODS.items():
    _function = FUNCTIONS[_name]
    setattr(Methods, _method, _reflected(_function) if _method[:3] == "__r" else _function)

"""Declaration of operators by the decorator :func:`op`.

From the declaration follow the public function on Tensors and arrays (:mod:`invocupy.functional`),
with its docstring, the methods of Tensor, and the support of NumPy functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias, TypeVar

from invocupy.arrays import Array
from invocupy.docstrings import parameters
from invocupy.geometry import NAMES

Vjp: TypeAlias = Callable[[Array], Array]
"""The vector-Jacobian product: from the gradient of the value to that of one argument."""
Result: TypeAlias = tuple[Array, tuple[Vjp, ...]]
Axis: TypeAlias = int | tuple[int, ...] | None
_Op = TypeVar("_Op", bound=Callable[..., Result])

OPS: dict[str, Callable[..., Result]] = {}
"""The operators by name."""
NUMPY: dict[Any, str] = {}
"""The operators by the equivalent NumPy function."""
READS: dict[Callable[..., Result], tuple[int, ...]] = {}
"""Places of the operands whose values the vjps read, where that is not all of them."""
BILINEAR: set[Callable[..., Result]] = set()
"""Those whose vjps read an operand for the gradients of the others only."""
VALUE = -1
"""The place of the value itself."""
METHODS: dict[str, str] = {}
"""The operators that methods of Tensor are; a reflected one gets its arguments exchanged."""

_EXAMPLE = (
    "Examples", "--------", ">>> import numpy as np", ">>> from invocupy import functional as F",
)  # fmt: skip


def op(*numpy: Any, methods: str = "", reads: str | None = None) -> Callable[[_Op], _Op]:
    """Declare the operator below, whose array arguments are those annotated as ``Array``.

    Of its arguments the array comes first; ``reads`` is for :func:`reading`. A docstring without
    the sections Parameters and Examples gets them: the first from the signature, the second, with
    the imports, before its first ``>>>``.
    """

    def declare(function: _Op) -> _Op:
        name = function.__name__
        OPS[name] = function
        NUMPY.update(dict.fromkeys(numpy, name))
        METHODS.update(dict.fromkeys(methods.split(), name))
        if reads is not None:
            reading(reads)(function)
        text, prompt, example = (function.__doc__ or "").partition(">>> ")
        if prompt and _EXAMPLE[0] not in text:
            indent = "\n" + text.rpartition("\n")[2]
            own = [] if "Parameters\n" in text else parameters(inspect.signature(function))
            own = [line.replace(" : Array", " : array or Tensor") for line in own]
            function.__doc__ = text + indent.join([*own, *_EXAMPLE, prompt + example])
        return function

    return declare


def in_dimensions(
    function: Callable[..., Result], dims: int, doc: str, reads: str
) -> Callable[..., Result]:
    """Declare an operator that is the same in 1, 2 and 3 dimensions; their number joins its name.

    In ``doc``, "image", "kernel" and "out" in angle brackets stand for the names of the axes.
    """
    for key, axes in NAMES[dims]._asdict().items():
        doc = doc.replace(f"<{key}>", axes)
    function.__name__ = function.__qualname__ = f"{function.__name__}{dims}d"
    function.__doc__ = doc.replace("<dims>", str(dims))
    return op(reads=reads)(function)


def reading(names: str) -> Callable[[_Op], _Op]:
    """Say of which operands the vjps of the operator below read the values; ``value`` is its own.

    They may not be edited in place before backward. Without this, that goes for all operands.
    ``others`` says that each is read for the gradients of the others only.
    """

    def declare(function: _Op) -> _Op:
        places = {name: i for i, name in enumerate(function.__code__.co_varnames)}
        wanted = names.split()
        if "others" in wanted:
            wanted.remove("others")
            BILINEAR.add(function)
        READS[function] = tuple(VALUE if n == "value" else places[n] for n in wanted)
        return function

    return declare


def no_gradient(name: str) -> Callable[[Array], NoReturn]:
    """The vjp of an argument that has none."""

    def refuse(grad: Array) -> NoReturn:
        raise TypeError(f"{name} have no gradient")

    return refuse

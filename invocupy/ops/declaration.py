"""How an operator is declared: :func:`op` above it, and everything else follows.

The tape makes the public function on Tensors and arrays from it (:mod:`invocupy.functional`), with
its docstring; its methods of Tensor; and what NumPy's functions do with a Tensor.
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
"""The operators that functions of NumPy are."""
METHODS: dict[str, str] = {}
"""The operators that methods of Tensor are; a reflected one gets its arguments exchanged."""

_EXAMPLE = (
    "Examples", "--------", ">>> import numpy as np", ">>> from invocupy import functional as F",
)  # fmt: skip


def op(*numpy: Any, methods: str = "") -> Callable[[_Op], _Op]:
    """Declare the operator below, whose array arguments are those annotated as ``Array``.

    Of its arguments the array comes first. A docstring without the sections Parameters and Examples
    gets them: the first from the signature, the second, with the imports, before its first ``>>>``.
    """

    def declare(function: _Op) -> _Op:
        name = function.__name__
        OPS[name] = function
        NUMPY.update(dict.fromkeys(numpy, name))
        METHODS.update(dict.fromkeys(methods.split(), name))
        text, prompt, example = (function.__doc__ or "").partition(">>> ")
        if prompt and _EXAMPLE[0] not in text:
            indent = "\n" + text.rpartition("\n")[2]
            own = [] if "Parameters\n" in text else parameters(inspect.signature(function))
            own = [line.replace(" : Array", " : array or Tensor") for line in own]
            function.__doc__ = text + indent.join([*own, *_EXAMPLE, prompt + example])
        return function

    return declare


def in_dimensions(function: Callable[..., Result], dims: int, doc: str) -> Callable[..., Result]:
    """Declare an operator that is the same in 1, 2 and 3 dimensions; their number joins its name.

    In ``doc``, "image", "kernel" and "out" in angle brackets stand for the names of the axes.
    """
    for key, axes in NAMES[dims]._asdict().items():
        doc = doc.replace(f"<{key}>", axes)
    function.__name__ = function.__qualname__ = f"{function.__name__}{dims}d"
    function.__doc__ = doc.replace("<dims>", str(dims))
    return op()(function)


def no_gradient(name: str) -> Callable[[Array], NoReturn]:
    """The vjp of an argument that has none."""

    def refuse(grad: Array) -> NoReturn:
        raise TypeError(f"{name} have no gradient")

    return refuse

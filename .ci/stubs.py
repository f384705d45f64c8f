"""Write the types of all functions and methods that come from the declarations in ``invocupy/ops``.

``python .ci/stubs.py`` after an op was added or its signature changed; with ``--check`` it writes
nothing and fails where a file is out of date.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from invocupy.ops import OPS
from invocupy.ops.declaration import METHODS

HEAD = '''"""{what}; written by .ci/stubs.py."""

{imports}
'''
TYPES_OF_FUNCTIONS = """from collections.abc import Sequence
from typing import overload

import numpy as np

from invocupy.arrays import Array, ArrayLike
from invocupy.autograd import Tensor
from invocupy.functional.normalization import batch_moments as batch_moments
from invocupy.functional.normalization import batch_norm as batch_norm
from invocupy.geometry import IntOrTuple, Padding
from invocupy.ops.declaration import Axis
"""
TYPES_OF_METHODS = """from invocupy.arrays import ArrayLike
from invocupy.autograd import Tensor
from invocupy.ops.declaration import Axis
"""
Parameter = inspect.Parameter


def written(name: str, parameters: list[Parameter], result: str, indent: str = "") -> str:
    """A line of a stub, as ruff formats it."""
    items: list[str] = []
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and "*" not in items:
            items.append("*")
        annotation = f": {p.annotation}" if p.annotation is not p.empty else ""
        default = "" if p.default is p.empty else f" = {repr(p.default).replace(chr(39), chr(34))}"
        items.append(f"{p.name}{annotation}{default}")
        if p.kind is p.POSITIONAL_ONLY:
            items.append("/")
    line = f"{indent}def {name}({', '.join(items)}) -> {result}: ..."
    if len(line) <= 100:
        return line
    inner = f"{indent}    {', '.join(items)}"
    if len(inner) <= 100 and "*" not in items:
        return f"{indent}def {name}(\n{inner}\n{indent}) -> {result}: ..."
    lines = "".join(f"{indent}    {item},\n" for item in items)
    return f"{indent}def {name}(\n{lines}{indent}) -> {result}: ..."


def operands(op: object) -> tuple[list[Parameter], list[Parameter]]:
    """The parameters of an op that are arrays, and the others."""
    arrays, options = [], []
    for p in inspect.signature(op).parameters.values():  # type: ignore[arg-type]
        positional = p.kind is p.POSITIONAL_OR_KEYWORD
        (arrays if positional and p.annotation.startswith("Array") else options).append(p)
    if op.__module__.endswith(".elementwise"):  # which take numbers, too
        arrays = [p.replace(annotation=p.annotation.replace("Array", "ArrayLike")) for p in arrays]
    return arrays, options


def with_tensor(p: Parameter) -> Parameter:
    first, *rest = p.annotation.split(" | ")
    return p.replace(annotation=" | ".join([first, "Tensor", *rest]))


def functions() -> Iterator[str]:
    """An overload for plain arrays, and one for each operand that is the first Tensor."""
    for name, op in sorted(OPS.items()):
        arrays, options = operands(op)
        if not arrays:  # any number of them
            axis = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in options[1:]]
            parts = options[0].replace(kind=Parameter.POSITIONAL_OR_KEYWORD)
            for item in ("Array", "Tensor"):
                sequence = parts.replace(annotation=f"Sequence[{item}]")
                ignored = "" if item == "Tensor" else "  # type: ignore[overload-overlap]"
                yield "@overload\n" + written(name, [sequence, *axis], item) + ignored
            mixed = parts.replace(annotation="Sequence[Array | Tensor]")
            yield "@overload\n" + written(name, [mixed, *axis], "Tensor")
            continue
        yield "@overload\n" + written(name, [*arrays, *options], "Array")
        options = [p for p in options if p.name != "out"]
        for i, p in enumerate(arrays):
            before = [q.replace(default=q.empty) for q in arrays[:i]]
            tensor = p.replace(annotation="Tensor", default=p.empty)
            after = [with_tensor(q) for q in arrays[i + 1 :]]
            yield "@overload\n" + written(name, [*before, tensor, *after, *options], "Tensor")


def methods() -> Iterator[str]:
    """The methods and operators of Tensor."""
    me = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    yield "class Methods:"
    for method, name in METHODS.items():
        arrays, options = operands(OPS[name])
        others = [with_tensor(p) for p in arrays[1:]]
        if method.startswith("__"):
            others = [p.replace(name="other", kind=p.POSITIONAL_ONLY) for p in others]
            others = [p.replace(annotation="ArrayLike | Tensor") for p in others]
        yield written(method, [me, *others, *options], "Tensor", "    ")


def stubs() -> dict[Path, str]:
    """What belongs into each file."""
    package = Path(__file__).parents[1] / "invocupy"
    function = HEAD.format(what="The public functions of all operators", imports=TYPES_OF_FUNCTIONS)
    method = HEAD.format(what="What operators add to Tensor", imports=TYPES_OF_METHODS)
    return {
        package / "functional" / "__init__.pyi": function + "\n".join(functions()) + "\n",
        package / "autograd" / "methods.pyi": method + "\n".join(methods()) + "\n",
    }


if __name__ == "__main__":
    for path, text in stubs().items():
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path} is out of date: python .ci/stubs.py")

"""What the stand-in for CuPy has to be like: signatures, and arguments of kernels, of the real one.

    python tests/cuda_proof/real_cupy.py > cupy.json    what the CuPy on the path is like

CuPy can be imported without a GPU, so this needs none: ``pip install cupy-cuda13x==14.0.1``.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("cupy.json")
CLASSES = (
    "ndarray", "RawModule", "cuda.Device", "cuda.Stream", "cuda.Event", "cuda.MemoryPool",
    "cuda.Graph",
)  # fmt: skip
_PYTHON = ("typing", "collections", "functools", "contextlib", "pathlib", "types", "__future__")
ARGUMENTS: dict[str, Any] = {
    "None": None, "int": 1, "float": 1.0, "bool": True, "str": "1", "bytes": b"1",
    "list": [1], "tuple": (1, 2), "complex": 1j,
    **{f"numpy.{kind}": np.dtype(kind).type(1) for kind in ("bool", "int32", "int64", "uint64")},
    **{f"numpy.{kind}": np.dtype(kind).type(1) for kind in ("float16", "float32", "float64")},
    "numpy.void of 12 bytes": np.zeros((), [("a", "i4", (3,))])[()],
    "numpy.void of 80 bytes": np.zeros((), [("a", "i4", (20,))])[()],
    "numpy.ndarray of a record": np.zeros(1, [("a", "i4", (20,))]),
    "numpy.ndarray of two": np.zeros(2),
}  # fmt: skip


def signature(function: Any) -> str:
    """``(a, b=1)``: of Python's functions as they say, of Cython's from the docstring."""
    try:
        found = inspect.signature(function)
        plain = [p.replace(annotation=p.empty) for p in found.parameters.values()]
        return str(inspect.Signature(plain))
    except (TypeError, ValueError):
        text = re.match(r"[\w.]+(\(.*\))", (function.__doc__ or "").partition("\n")[0])
        # Types of C stand before the names.
        return re.sub(r"[\w ]*\b(\w+)(?=[,)=])", r" \1", text[1]).replace("( ", "(") if text else ""


def kind_of(value: Any) -> str:
    """What there is under a name: a signature, or of which kind it is."""
    if type(value).__name__ in ("ufunc", "_Ufunc", "_Add"):
        return "ufunc"
    if isinstance(value, type) and issubclass(value, np.generic | Exception):
        return "error" if issubclass(value, Exception) else value.__name__
    if callable(value):
        return signature(value.__init__ if isinstance(value, type) else value)
    return "attribute"


def described(cupy: Any) -> dict[str, str]:
    found = {}
    parts = {"": cupy, "cuda.": cupy.cuda, "cuda.runtime.": cupy.cuda.runtime}
    for name in CLASSES:
        whole, _, own = name.rpartition(".")
        parts[f"{name}."] = getattr(cupy.cuda if whole else cupy, own, None)
    for prefix, owner in parts.items():
        for name in dir(owner):
            value = getattr(owner, name, None)
            imported = str(getattr(value, "__module__", "")).partition(".")[0] in _PYTHON
            if name.startswith("_") or inspect.ismodule(value) or imported or name == "annotations":
                continue
            found[prefix + name] = kind_of(value)
    return found


def refused(launch: Any) -> list[str]:
    """The arguments that a kernel refuses; what is past them fails without a device."""
    found = []
    for name, value in ARGUMENTS.items():
        try:
            launch(value)
        except RuntimeError:  # there is no device
            continue
        except Exception:  # a TypeError, or what Cython asserts
            found.append(name)
    return found


def parameters(text: str) -> list[inspect.Parameter]:
    """Those of a signature, without ``self``."""
    scope: dict[str, Any] = {}
    plain = re.sub(r"<class '(\w+)'>", r"\1", text)
    exec(f"def function{plain}: pass", scope)  # noqa: S102 (written by this program)
    found = inspect.signature(scope["function"]).parameters.values()
    return [parameter for parameter in found if parameter.name != "self"]


def differs(own: str, real: str) -> str:
    """What of a call that fits the first signature does not fit the second, or nothing."""
    if not own.startswith("(") or not real.startswith("("):
        return "" if own == real else f"is of kind {own}, not {real}"
    theirs = parameters(real)
    kinds = {parameter.kind for parameter in theirs}
    names = {p.name: p for p in theirs if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    places = [p.name for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    for place, p in enumerate(parameters(own)):
        by_place = place < len(places) or p.VAR_POSITIONAL in kinds
        if p.kind is p.VAR_POSITIONAL:
            if p.kind not in kinds:
                return f"takes any number of arguments, {real} does not"
            continue
        by_name = p.name in names or p.VAR_KEYWORD in kinds
        if p.kind is not p.POSITIONAL_ONLY and not by_name:
            return f"takes {p.name}=, {real} does not"
        if p.kind is not p.KEYWORD_ONLY and not by_place:
            return f"takes {p.name} without its name, {real} does not"
        if p.kind is p.POSITIONAL_OR_KEYWORD and places[place : place + 1] not in ([], [p.name]):
            return f"has {p.name} where {real} has {places[place]}"
        theirs_too = names.get(p.name, p)
        if p.default is not p.empty and repr(p.default) != repr(theirs_too.default):
            return f"has {p.name}={p.default!r}, {real} has not"
    return ""


def main() -> None:
    import cupy

    found = described(cupy)
    if "stand-in" in cupy.__version__:
        sys.stdout.write(json.dumps(found))
        return
    kind = cupy.cuda.function.Function
    kernel = kind.__new__(kind)  # of no module: arguments are looked at before it is started
    no = refused(lambda value: kernel((1,), (1,), (value,)))
    told = {"cupy": cupy.__version__, "refused": no, "names": found}
    sys.stdout.write(json.dumps(told, indent=0) + "\n")


if __name__ == "__main__":
    main()

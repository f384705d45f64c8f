"""Sections of a docstring that repeat the signature: they are made from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def documented(function: _Function) -> _Function:
    """Put sections Parameters and Returns into a docstring, and the heading Examples.

    For functions whose docstring has no sections but Raises: names, types and defaults are those of
    the signature.
    """
    text, prompt, example = (function.__doc__ or "").partition(">>> ")
    if not prompt:  # python -OO has no docstrings
        return function
    text, raises, errors = text.partition("Raises\n")
    indent = "\n" + text.rpartition("\n")[2]
    signature = inspect.signature(function)
    lines = []
    for p in signature.parameters.values():
        default = "" if p.default is p.empty else f", default {p.default!r}"
        lines.append(f"{p.name} : {p.annotation}{default}")
    if lines:
        lines = ["Parameters", "----------", *lines, ""]
    if signature.return_annotation != "None":
        lines += ["Returns", "-------", signature.return_annotation, ""]
    example = indent.join(["Examples", "--------", prompt + example])
    function.__doc__ = text + indent.join([*lines, raises + errors + example])
    return function

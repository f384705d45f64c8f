"""Sections of a docstring that are generated from the signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])

COMMON = {
    "a": "The first operand.",
    "about": "What is known of the images; by default that of the data set.",
    "axes": "The new order; reversed by default.",
    "axis": "The axis to reduce, or several; None stands for all.",
    "b": "The second operand; shapes are broadcast.",
    "comm": "The group of ranks.",
    "config": "The settings of the run.",
    "device": '``"cpu"``, ``"cuda"`` or ``"cuda:i"``.',
    "folder": "The folder of the run.",
    "images": "Of shape (N, C, H, W).",
    "keepdims": "Whether reduced axes stay, with size 1.",
    "model": "The network.",
    "path": "The file; ``~`` is expanded.",
    "root": "The folder of the data; ``~`` is expanded.",
    "shape": "The new sizes; one may be -1.",
    "start": "The first axis that is joined.",
    "step": "The step, from 0.",
    "total": "The number of steps of the run.",
    "x": "Of any shape.",
}
"""Explanations of parameters by name, for docstrings that do not explain them."""


def documented(function: _Function) -> _Function:
    """Add the sections Parameters and Returns, and the heading Examples, to a docstring.

    Names, types and defaults are those of the signature. Explanations are those of the docstring's
    own section Parameters, which has names without types, or of :data:`COMMON`.
    """
    text, prompt, example = (function.__doc__ or "").partition(">>> ")
    if not prompt:  # python -OO has no docstrings
        return function
    text, raises, errors = text.partition("Raises\n")
    text, _, own = text.partition("Parameters\n")
    indent = "\n" + text.rpartition("\n")[2]
    signature = inspect.signature(function)
    lines = parameters(signature, (line.removeprefix(indent[1:]) for line in own.splitlines()[1:]))
    if signature.return_annotation != "None":
        lines += ["Returns", "-------", signature.return_annotation, ""]
    example = indent.join(["Examples", "--------", prompt + example])
    function.__doc__ = text + indent.join([*lines, raises + errors + example])
    return function


def parameters(signature: inspect.Signature, own: Iterable[str] = ()) -> list[str]:
    """The lines of the section Parameters; none without parameters.

    ``own`` are lines of such a section without types: names, and below them explanations.
    """
    said: dict[str, list[str]] = {}
    names: list[str] = []
    for line in filter(str.strip, own):
        if not line.startswith(" "):
            names = line.split(", ")
        for name in names:
            said[name] = [*said.get(name, []), line] if line.startswith(" ") else []
    lines = ["Parameters", "----------"]
    for p in signature.parameters.values():
        default = "" if p.default is p.empty else f", default {p.default!r}"
        lines.append(f"{p.name} : {p.annotation}{default}")
        lines += said.get(p.name) or [f"    {COMMON[name]}" for name in [p.name] if name in COMMON]
    return [*lines, ""] if signature.parameters else []

"""Errors in a layer: their messages name the layer and the input that it accepts."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, TypeAlias

from invocupy.arrays import no_array
from invocupy.geometry import NAMES
from invocupy.messages import layout_hint

Takes: TypeAlias = tuple[str, int, Sequence[int]]
"""What ``layer._takes()`` returns: an option, the channels it sets, and numbers of dimensions."""


def misfit(x: Any, option: str, channels: int, dims: Sequence[int]) -> str:
    """Why a layer with ``option=channels`` in ``dims`` dimensions does not accept x; or ``""``.

    Examples
    --------
    >>> import numpy as np
    >>> misfit(np.zeros((2, 16, 8)), "channels", 32, (1,))
    'x must be (N, 32, W), got shape (2, 16, 8): the layer has channels=32, x has 16'
    """
    shape = getattr(x, "shape", None)
    if not isinstance(shape, tuple):
        return str(no_array("x", x))
    spatial = len(shape) - 2
    if spatial in dims and shape[1] == channels:
        return ""
    fits = " or ".join(f"(N, {channels}{', ' + NAMES[d].image if d else ''})" for d in dims)
    hint = next(filter(None, (layout_hint(shape, channels, d) for d in dims)), "")
    if not hint and spatial in dims:
        hint = f": the layer has {option}={channels}, x has {shape[1]}"
    elif not hint and prod(shape[1:]) == channels:
        hint = ": flatten it with x.reshape(len(x), -1)"
    return f"x must be {fits}, got shape {shape}{hint}"


def located(module: Any, inputs: tuple[Any, ...], error: Exception) -> Exception:
    """``error`` of ``module(*inputs)``, with the path of the layer in its message.

    Each module that an error passes through calls this, the innermost first. If a layer does not
    accept its input, that replaces the message of the operator inside it.
    """
    kind = type(error)
    if kind not in (AttributeError, TypeError, ValueError) or len(error.args) != 1:
        return error  # of another class, with arguments of its own
    layer, path, name, text = vars(error).get("_layer", (None, "", "", error.args[0]))
    takes = getattr(module, "_takes", None)
    refused = misfit(inputs[0], *takes()) if takes is not None and inputs else ""
    if refused:
        if not hasattr(inputs[0], "shape"):
            error = TypeError(refused)
        layer, path, name, text = module, "", type(module).__name__, refused
    elif layer is None:
        layer, name = module, type(module).__name__
    else:
        for key, below in module.named_modules(remove_duplicate=False):
            if below is layer and key:
                layer, path = module, f"{key}.{path}".rstrip(".")
                break
    error.args = (f"layer {path} ({name}): {text}" if path else f"{name}: {text}",)
    vars(error)["_layer"] = layer, path, name, text
    return error

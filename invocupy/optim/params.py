"""The checks of parameters and their gradients, for all that changes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from invocupy.arrays import Array, is_cupy, namespace
from invocupy.autograd import Tensor
from invocupy.messages import kind_of


def check_fit(kind: str, i: int, array: Any, data: Array) -> None:
    """Raise an error unless ``array`` is one like ``data``, that of parameter ``i``."""
    alike = is_cupy(array) if is_cupy(data) else isinstance(array, (np.ndarray, np.generic))
    if not alike:
        library = namespace(data).__name__
        raise TypeError(
            f"{kind} of parameter {i} must be an array of {library}, got {kind_of(array)}"
        )
    if (array.shape, array.dtype) != (data.shape, data.dtype):
        raise ValueError(
            f"{kind} of parameter {i} must have its shape and dtype, "
            f"{data.shape} {data.dtype}, got {array.shape} {array.dtype}"
        )


def tensors_of(params: Any) -> list[Tensor]:
    """The given Tensors as a list, checked: each once, none made by an operator."""
    # A Tensor is iterable too, but only copies of its rows would be updated.
    if isinstance(params, (Tensor, Mapping)) or not isinstance(params, Iterable):
        got = "a single " + ("Tensor" if isinstance(params, Tensor) else type(params).__name__)
    else:
        given = list(params)
        kinds = sorted({type(p).__name__ for p in given if not isinstance(p, Tensor)})
        got = f"one of {kinds}" if kinds else ""
    if got:
        raise TypeError(
            f"params must be an iterable of Tensors, such as model.parameters(), got {got}"
            + ("; for groups pass sgd.params" if "'dict'" in got else "")
            + ("; put it into a list" if got == "a single dict" else "")
        )
    places: dict[int, int] = {}
    for i, parameter in enumerate(given):
        if parameter._parents:
            raise ValueError(
                f"params must be Tensors that no operator made, but number {i} was computed from "
                "others: pass those"
            )
        first = places.setdefault(id(parameter), i)
        if first != i:
            raise ValueError(
                f"params must hold each parameter once, but number {i} is number {first} again"
            )
    return given

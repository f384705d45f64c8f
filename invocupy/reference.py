"""Involution in plain array code: the specification, public so that users can test against it.

The functions have the names of those in :mod:`invocupy`, and run the loops over the taps of
``backends/reference``, which read like the formulas. The results are equal up to rounding. They
accept NumPy and CuPy arrays, are slow, and store the whole generated kernel.

Examples
--------
>>> import numpy as np
>>> x = np.arange(9.0).reshape(1, 1, 3, 3)
>>> involution(x, np.ones((1, 1, 3, 3, 3, 3)))[0, 0]
array([[ 8., 15., 12.],
       [21., 36., 27.],
       [20., 33., 24.]])
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from invocupy import functional, ops
from invocupy.backends import plain

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _specification(function: _Function) -> _Function:
    @wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        with plain():
            return function(*arguments, **options)

    run.__module__ = __name__
    return cast(_Function, run)


involution = _specification(functional.involution)
involution_backward = _specification(ops.involution_backward)
fused_involution = _specification(functional.fused_involution)
fused_involution_backward = _specification(ops.fused_involution_backward)

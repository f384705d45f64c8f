"""Bounds for the rounding error of sums of products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from invocupy.arrays import Array, to_device

_PRECISION = {  # unit roundoff, smallest positive number
    "float16": (2.0**-11, 2.0**-24),
    "bfloat16": (2.0**-8, 2.0**-133),
    "float32": (2.0**-24, 2.0**-149),
    "float64": (2.0**-53, 2.0**-1074),
}


def tolerance(
    function: Callable[..., Any], *arrays: Any, terms: int, dtype: Any = None, **options: Any
) -> Array:
    """A bound for the rounding error of each element of ``function(*arrays)``.

    For sums of ``n`` products in any order, with or without fused multiply-add, in a precision of
    unit roundoff ``u``: ``n*u / (1 - n*u) * function(|arrays|)`` (Higham, Accuracy and Stability
    of Numerical Algorithms, 3.1), and ``n`` times the smallest positive number for products that
    underflow. Half types sum in float32 and round once more at the end. No constant is chosen.

    Parameters
    ----------
    function : callable
        A function that is a sum of products of its arguments, such as
        :func:`invocupy.reference.involution`. It is called with NumPy arrays of float64.
    *arrays : array or None
        Arguments as ``function`` takes them, here also CuPy's.
    terms : int
        ``n``, the largest number of roundings of one term: the taps for involution and the gradient
        of ``x``, C/G for that of ``kernel``; the sum of these for nested sums.
    dtype : dtype, optional
        Of the result; by default promoted from the arrays.
    **options
        Passed on to ``function``.

    Returns
    -------
    array of float64, shape of the result

    Examples
    --------
    >>> import numpy as np
    >>> import invocupy
    >>> from invocupy.testing import tolerance
    >>> x = np.full((1, 1, 4, 4), 0.1, np.float32)
    >>> kernel = np.full((1, 1, 3, 3, 4, 4), 0.3, np.float32)
    >>> exact = invocupy.reference.involution(x.astype(np.float64), kernel.astype(np.float64))
    >>> allowed = tolerance(invocupy.reference.involution, x, kernel, terms=9)
    >>> bool((abs(invocupy.involution(x, kernel) - exact) <= allowed).all())
    True
    """
    given = [None if a is None else to_device(a, "cpu") for a in arrays]
    if dtype is None:
        dtype = np.result_type(*(a.dtype for a in given if a is not None))
    name = np.dtype(dtype).name
    size = function(
        *(None if a is None else np.abs(a.astype(np.float64)) for a in given), **options
    )
    half = name in ("float16", "bfloat16")
    roundoff, smallest = _PRECISION["float32" if half else name]
    bound = terms * roundoff / (1 - terms * roundoff) * size + terms * smallest
    if half:
        roundoff, smallest = _PRECISION[name]
        bound = bound + roundoff * (size + bound) + smallest
    return np.asarray(bound)

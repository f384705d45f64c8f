"""The ways in which an array can lie in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from invocupy.arrays import namespace

LAYOUTS = ("C", "Fortran", "negative strides", "zero strides", "sliced")
"""The memory layouts that NumPy and CuPy arrays can have; see :func:`lay_out`."""

NUMPY_LAYOUTS = (*LAYOUTS, "big-endian", "unaligned", "read-only")
"""All memory layouts of :func:`lay_out`."""


def lay_out(array: Any, layout: str) -> Any:
    """A copy of an array that lies in memory in another way.

    Parameters
    ----------
    array : array of one or more dimensions, floating
    layout : str
        ``"C"``, ``"Fortran"``, ``"negative strides"`` (all axes), ``"zero strides"`` (the last
        axis: its first element stands for all, the one layout that changes values), ``"sliced"``
        (every second element of a larger array that is NaN elsewhere); for NumPy arrays also
        ``"big-endian"``, ``"unaligned"`` and ``"read-only"``.

    Returns
    -------
    array
        Equal to ``array``, but for ``"zero strides"``.

    Raises
    ------
    ValueError
        For another name.

    Examples
    --------
    >>> import numpy as np
    >>> from invocupy.testing import lay_out
    >>> lay_out(np.ones((2, 3)), "negative strides").strides
    (-24, -8)
    """
    xp = namespace(array)
    match layout:
        case "C":
            return xp.array(array, order="C")
        case "Fortran":
            return xp.array(array, order="F")
        case "negative strides":
            backwards = (slice(None, None, -1),) * array.ndim
            return xp.array(array[backwards], order="C")[backwards]
        case "zero strides":
            return xp.broadcast_to(array[..., :1].copy(), array.shape)
        case "sliced":
            larger = xp.full([2 * n + 1 for n in array.shape], xp.nan, array.dtype)
            view = larger[(slice(1, None, 2),) * array.ndim]
        case "big-endian":
            return array.astype(array.dtype.newbyteorder(">"))
        case "unaligned":
            memory = np.empty(array.nbytes + 1, np.uint8)
            view = memory[1:].view(array.dtype).reshape(array.shape)
        case "read-only":
            view = array.copy()
            view.flags.writeable = False
            return view
        case _:
            raise ValueError(f"layout must be one of {NUMPY_LAYOUTS}, got {layout!r}")
    view[...] = array
    return view

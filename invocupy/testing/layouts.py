"""Memory layouts of arrays."""

from __future__ import annotations

import numpy as np

from invocupy.arrays import Array, namespace

LAYOUTS = ("C", "Fortran", "negative strides", "zero strides", "sliced")
"""The memory layouts that NumPy and CuPy arrays can have; see :func:`lay_out`."""

NUMPY_LAYOUTS = (*LAYOUTS, "big-endian", "unaligned", "read-only")
"""All memory layouts of :func:`lay_out`."""


def lay_out(array: Array, layout: str) -> Array:
    """A copy of an array with another memory layout.

    Parameters
    ----------
    array : array of one or more dimensions, floating
        Not changed.
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
    xp, shape, dtype = namespace(array), array.shape, array.dtype
    view: Array
    match layout:
        case "C" | "Fortran":
            view = xp.empty(shape, dtype, order=layout[0])
        case "negative strides":
            view = xp.empty(shape, dtype)[(slice(None, None, -1),) * array.ndim]
        case "zero strides":
            view = xp.broadcast_to(array[..., :1].copy(), shape)
            return view
        case "sliced":
            larger = xp.full([2 * n + 1 for n in shape], xp.nan, dtype)
            view = larger[(slice(1, None, 2),) * array.ndim]
        case "big-endian":
            view = np.empty(shape, dtype.newbyteorder(">"))
        case "unaligned":
            view = np.empty(array.nbytes + 1, np.uint8)[1:].view(dtype).reshape(shape)
        case "read-only":
            view = np.empty(shape, dtype)
        case _:
            raise ValueError(f"layout must be one of {NUMPY_LAYOUTS}, got {layout!r}")
    view[...] = array
    if layout == "read-only":
        view.flags.writeable = False
    return view

"""Involution of dask arrays: signals, images and volumes larger than memory, chunk by chunk.

Neighbouring chunks exchange the rows that the kernel reaches into, along each spatial axis
(:func:`dask.array.overlap.overlap`), so the result equals that of the whole arrays. Chunks may be
NumPy or CuPy arrays, and are passed to :func:`invocupy.involution`.
"""

# ruff: noqa: E402 (the library is asked for before it is imported)
from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import Any

from invocupy.extras import require

require("dask", "dask", "dask", "2025.1")

import dask.array as da
import numpy as np
from dask.array.overlap import overlap

from invocupy import ops
from invocupy.arrays import FLOATS, Array
from invocupy.geometry import Geometry, IntOrTuple, Padding, Shape

__all__ = ["involution"]


def involution(
    x: da.Array,
    kernel: da.Array,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
) -> da.Array:
    """:func:`invocupy.involution` of dask arrays, lazily; all axes but the taps may be chunked.

    The result has the chunks of ``kernel``, and ``x`` is rechunked if it does not match: along each
    spatial axis in steps of ``stride``, channels in whole groups. Output chunks narrower than the
    reach of the kernel are merged. Nothing is rechunked if the chunks match, such as equal chunks
    with a stride of 1.

    Shapes, in 1 to 3 dimensions, options and errors are those for arrays, and unknown sizes are a
    ``ValueError``. The result has the promoted dtype.

    Parameters
    ----------
    x, kernel, stride, padding, dilation
        As in :func:`invocupy.involution`, dask arrays in place of arrays.

    Examples
    --------
    >>> import dask.array as da
    >>> from invocupy.interop.dask import involution
    >>> x = da.ones((1, 2, 100, 100), chunks=(1, 2, 50, 50))
    >>> kernel = da.ones((1, 1, 3, 3, 100, 100), chunks=(1, 1, 3, 3, 50, 50))
    >>> out = involution(x, kernel)
    >>> out.chunks[2:], float(out[0, 0, 49:51].sum())
    (((50, 50), (50, 50)), 1788.0)
    """
    for name, array in {"x": x, "kernel": kernel}.items():
        if not isinstance(array, da.Array):
            raise TypeError(
                f"{name} must be a dask array, got {type(array).__name__}: use dask.array.asarray"
            )
        if any(n != n for n in array.shape):  # dask writes unknown sizes as NaN
            raise ValueError(f"{name} has unknown sizes {array.shape}: call compute_chunk_sizes()")
        if array.dtype.name not in FLOATS:
            raise TypeError(
                f"{name} has dtype {array.dtype}, but only floating dtypes work "
                f"({', '.join(FLOATS)}): convert it with .astype('float32')"
            )
    g = Geometry.of(x.shape, kernel.shape, stride, padding, dilation)
    reaches = (d * (k - 1) for d, k in zip(g.dilation, g.kernel, strict=True))
    axes = zip(g.size, kernel.chunks[2 + g.dims :], g.stride, g.padding, reaches, strict=True)
    ours, theirs, halos = zip(*(_align(*axis) for axis in axes), strict=True)
    images = _chunks(accumulate(x.chunks[0]), accumulate(kernel.chunks[0]))
    # The channels of a chunk are whole groups.
    edges = (divmod(edge, g.channels_per_group) for edge in accumulate(x.chunks[1]))
    whole = (group for group, rest in edges if not rest)
    groups = _chunks(accumulate(kernel.chunks[1]), whole)
    channels = tuple(n * g.channels_per_group for n in groups)
    kernel = kernel.rechunk((images, groups, *((k,) for k in g.kernel), *ours))
    x = x.rechunk((images, channels, *theirs))
    if any(halos):
        depth = dict(enumerate((0, 0, *halos)))
        x = overlap(x, depth=depth, boundary=0, allow_rechunk=False)
    dtype = np.result_type(x.dtype, kernel.dtype)
    axes_of_x, taps = "ncdhw"[: 2 + g.dims], "uvt"[: g.dims]
    return da.blockwise(
        _block, axes_of_x, x, axes_of_x, kernel, f"nc{taps}{axes_of_x[2:]}",
        dtype=dtype, concatenate=True, align_arrays=False, meta=x._meta.astype(dtype),
        adjust_chunks=dict(zip(axes_of_x[1:], (channels, *ours), strict=True)),
        halos=halos, stride=g.stride, padding=g.padding, dilation=g.dilation,
    )  # fmt: skip


def _block(
    x: Array, kernel: Array, *, halos: Shape, stride: Shape, padding: Shape, dilation: Shape
) -> Array:
    """One chunk: the halo is cropped to the size needed; without a halo there is zero padding."""
    taps, positions = kernel.shape[2 : x.ndim], kernel.shape[x.ndim :]
    seen, zeros = [], []
    for halo, s, p, d, k, n in zip(halos, stride, padding, dilation, taps, positions, strict=True):
        needed = (n - 1) * s + d * (k - 1) + 1
        seen.append(slice(halo - p, halo - p + needed) if halo else slice(None))
        zeros.append(0 if halo else p)
    options: dict[str, Any] = {"stride": stride, "padding": tuple(zeros), "dilation": dilation}
    return ops.involution(x[:, :, *seen], kernel, **options)[0]


def _align(
    size: int, outputs: Shape, stride: int, padding: int, reach: int
) -> tuple[Shape, Shape, int]:
    """Chunks of the result and of x along one axis, and the halo of x; 0 where one chunk does.

    Output i sees ``i*stride - padding`` to that plus ``reach``; its chunk of x begins at
    ``i*stride``. Chunks are merged until each holds as much as a neighbour may ask for.
    """
    total = sum(outputs)
    halo = max(padding, reach - padding - stride + 1, 1)
    starts = [0, *(start for start in accumulate(outputs[:-1]) if 0 < start < total)]
    kept = [0]
    for start in starts[1:]:
        if (start - kept[-1]) * stride >= halo and size - start * stride >= halo:
            kept.append(start)
    if len(kept) == 1:
        return (total,), (size,), 0
    return _chunks(kept, [total]), _chunks((start * stride for start in kept), [size]), halo


def _chunks(*edges: Iterable[int]) -> Shape:
    """The chunks between 0 and all of these edges."""
    found = sorted({0}.union(*edges))
    return tuple(b - a for a, b in pairwise(found)) or (0,)

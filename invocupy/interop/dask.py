"""Involution of dask arrays: images larger than memory, chunk by chunk.

Neighbouring chunks lend each other the rows and columns that the kernel reaches into
(:func:`dask.array.overlap.overlap`), so the result equals that of the whole arrays. Chunks may be
NumPy or CuPy arrays; each is given to :func:`invocupy.involution` as it is.
"""

# ruff: noqa: E402 (the library is asked for before it is imported)
from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

from invocupy.extras import require

require("dask", "dask", "dask", "2025.1")

import dask.array as da
import numpy as np
from dask.array.overlap import overlap

from invocupy import ops
from invocupy.arrays import FLOATS
from invocupy.geometry import Geometry, IntOrTuple, Padding

__all__ = ["involution"]

_Chunks = tuple[int, ...]


def involution(
    x: da.Array,
    kernel: da.Array,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
) -> da.Array:
    """:func:`invocupy.involution` of dask arrays, lazily, in chunks of any dimension but the taps.

    The chunks of the result are those of ``kernel``, and ``x`` is rechunked where it does not fit
    them: rows in steps of ``stride``, channels in whole groups. Output chunks narrower than the
    reach of the kernel are merged. Nothing is rechunked where the chunks fit, as with a stride of
    1 and the same chunks in both.

    Shapes, options and errors are those for arrays, and unknown sizes are a ``ValueError``. The
    result has the promoted dtype.

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
            raise TypeError(f"{name} must be a dask array, got {type(array).__name__}")
        if any(n != n for n in array.shape):  # dask writes unknown sizes as NaN
            raise ValueError(f"{name} has unknown sizes {array.shape}: call compute_chunk_sizes()")
        if array.dtype.name not in FLOATS:
            raise TypeError(
                f"{name} has dtype {array.dtype}, but only floating dtypes work "
                f"({', '.join(FLOATS)}): "
                "convert it with .astype('float32')"
            )
    g = Geometry.of(x.shape, kernel.shape, stride, padding, dilation)
    reaches = (d * (k - 1) for d, k in zip(g.dilation, g.kernel, strict=True))
    axes = [
        _align(*axis)
        for axis in zip(x.shape[2:], kernel.chunks[4:], g.stride, g.padding, reaches, strict=True)
    ]
    images = _common(x.chunks[0], kernel.chunks[0])
    groups = _groups(x.chunks[1], kernel.chunks[1], g.channels_per_group)
    channels = tuple(n * g.channels_per_group for n in groups)
    rows, columns = (ours for ours, _, _ in axes)
    kernel = kernel.rechunk((images, groups, *((k,) for k in g.kernel), rows, columns))
    x = x.rechunk((images, channels, *(theirs for _, theirs, _ in axes)))
    depth = {2 + i: halo for i, (_, _, halo) in enumerate(axes)}
    if any(depth.values()):
        x = overlap(x, depth={0: 0, 1: 0, **depth}, boundary=0, allow_rechunk=False)
    dtype = np.result_type(x.dtype, kernel.dtype)
    return da.blockwise(
        _block, "nchw", x, "nchw", kernel, "ncuvhw",
        dtype=dtype, concatenate=True, align_arrays=False,
        adjust_chunks={"c": channels, "h": rows, "w": columns}, meta=x._meta.astype(dtype),
        halos=tuple(depth.values()), stride=g.stride, padding=g.padding,
        dilation=g.dilation,
    )  # fmt: skip


def _block(x: Any, kernel: Any, *, halos: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    """One chunk: what the halo holds too much is cut off, and where there is none zeros pad."""
    window = []
    for i in (0, 1):
        reach = dilation[i] * (kernel.shape[2 + i] - 1)
        start = halos[i] - padding[i]
        needed = (kernel.shape[4 + i] - 1) * stride[i] + reach + 1
        window.append(slice(start, start + needed) if halos[i] else slice(None))
    zeros = [0 if halo else pad for halo, pad in zip(halos, padding, strict=True)]
    x = x[:, :, window[0], window[1]]
    options = {"stride": stride, "padding": (zeros[0], zeros[1]), "dilation": dilation}
    return ops.involution(x, kernel, **options)[0]


def _align(
    size: int, outputs: _Chunks, stride: int, padding: int, reach: int
) -> tuple[_Chunks, _Chunks, int]:
    """Chunks of the result and of x along one axis, and the halo of x; 0 where one chunk does.

    Output row i sees the rows ``i*stride - padding`` to that plus ``reach``; its chunk of x begins
    at ``i*stride``. Chunks are merged until each holds as many rows as a neighbour may ask for.
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
    ours = tuple(b - a for a, b in pairwise([*kept, total]))
    theirs = tuple(b - a for a, b in pairwise([*(start * stride for start in kept), size]))
    return ours, theirs, halo


def _common(first: _Chunks, second: _Chunks) -> _Chunks:
    """The coarsest chunks whose edges contain those of both."""
    edges = sorted({*accumulate(first), *accumulate(second)} | {0})
    return tuple(b - a for a, b in pairwise(edges)) or (0,)


def _groups(channels: _Chunks, groups: _Chunks, per_group: int) -> _Chunks:
    """Chunks of groups: the kernel's, and the channels' where they end with a whole group."""
    whole = tuple(edge // per_group for edge in accumulate(channels) if edge % per_group == 0)
    edges = [0, *(edge for edge in whole if edge)]
    return _common(tuple(b - a for a, b in pairwise(edges)), groups)

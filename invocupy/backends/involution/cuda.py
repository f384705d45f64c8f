"""Involution on the GPU: chooses the specialisation and the number of threads for each kernel."""

from __future__ import annotations

from typing import Any

from invocupy.backends import cuda
from invocupy.geometry import Geometry

_FILES = ("cuda.cuh", "involution/involution.cuh")
_CHANNELS = 16  # channels a thread sums at once: with 4 columns 64 registers
_ENOUGH = 2**16  # threads that keep a large GPU busy; below it, threads own fewer channels


def forward(x: Any, kernel: Any, g: Geometry, out: Any) -> None:
    """See :mod:`invocupy.backends.involution`."""
    if not out.size:
        return
    columns = _columns(x)
    macros = {
        **_macros(x, g),
        "COLUMNS": columns,
        "VECTOR_X": min(columns, cuda.vector(g.width, x)),
        "VECTOR_OUT": min(columns, cuda.vector(g.out_w, kernel, out)),
    }
    strips = g.batch * g.groups * g.out_h * -(-g.out_w // columns)
    channels, parts = _share_channels(g.channels_per_group, strips)
    macros |= {"CHANNELS": channels, "RAGGED": int(channels * parts != g.channels_per_group)}
    files = (*_FILES, "involution/forward.cu")
    cuda.launch("forward", files, macros, strips * parts, (x, kernel, out, g.record()))


def _macros(array: Any, g: Geometry) -> dict[str, str | int]:
    return {
        **cuda.element(array.dtype),
        "KERNEL_H": g.kernel_h,
        "KERNEL_W": g.kernel_w,
        "STRIDE_H": g.stride_h,
        "STRIDE_W": g.stride_w,
        "PAD_H": g.pad_h,
        "PAD_W": g.pad_w,
        "DILATION_H": g.dilation_h,
        "DILATION_W": g.dilation_w,
    }


def _columns(array: Any) -> int:
    """Columns a thread owns: four, or two where arithmetic is in double."""
    return 2 if array.itemsize == 8 else 4


def _share_channels(per_group: int, strips: int) -> tuple[int, int]:
    """Channels a thread owns, and in how many parts a group is cut for that."""
    parts = -(-per_group // _CHANNELS)
    while strips * parts < _ENOUGH and per_group > 4 * parts:
        parts *= 2
    channels = -(-per_group // parts)
    return channels, -(-per_group // channels)

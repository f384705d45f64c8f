"""Convolutions larger than 1x1 by im2col, one block of outputs at a time.

The input pixels of each output (a patch) are copied into a matrix, which the backend's 1x1
convolution multiplies by the weights; only the patches of one block are stored. Depthwise
convolution adds one weighted view of the image per tap. Half types are accumulated in float32.
Tests also run this module on NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, TypeAlias

from invocupy import backends
from invocupy.arrays import Array, namespace, wide
from invocupy.backends.far import bounded
from invocupy.backends.memory import empty
from invocupy.backends.windows import Window, pad, unpad, windows

_BLOCK = 1 << 28  # bytes of patches per block

_Seen: TypeAlias = list[tuple[Any, Any]]


@bounded
def forward(x: Array, weight: Array, bias: Array | None, window: Window, out: Array) -> None:
    """One product of weights and patches per block."""
    padded, groups = pad(x, window[1], 0), x.shape[1] // weight.shape[1]
    if _is_depthwise(x, weight):
        work = wide(x.dtype) or x.dtype
        total = out if work == x.dtype else empty(out.shape, work, x)
        total[...] = 0 if bias is None else bias[:, None, None]
        share = {"out": empty(out.shape, work, x), "dtype": work}
        for (u, v), seen in _windows(weight, window, out):
            total += namespace(x).multiply(weight[:, 0, u, v, None, None], padded[seen], **share)
        if total is not out:
            out[...] = total
        return
    matrix = weight.reshape(groups, len(weight) // groups, -1)
    offsets = [None] * groups if bias is None else bias.reshape(groups, -1)
    backend = backends.of("pointwise", x)
    for group, some, seen in _blocks(padded, weight, window, out):
        patches = _patches(weight, some, seen)
        result = empty((1, matrix.shape[1], patches.shape[2]), x.dtype, x)
        backend.forward(patches, matrix[group], offsets[group], result)
        some[...] = result.reshape(some.shape)


@bounded
def grad_x(grad: Array, weight: Array, window: Window, out: Array) -> None:
    """The gradient of each patch is added at the pixels from which the patch was copied."""
    xp, groups = namespace(grad), out.shape[1] // weight.shape[1]
    (top, left), (n, c, h, w) = window[1], out.shape
    work = wide(grad.dtype) or grad.dtype
    total = empty((n, c, h + 2 * top, w + 2 * left), work, grad)
    total[...] = 0
    if _is_depthwise(out, weight):
        share = {"out": empty(grad.shape, work, grad), "dtype": work}
        for (u, v), seen in _windows(weight, window, grad):
            total[seen] += xp.multiply(weight[:, 0, u, v, None, None], grad, **share)
    else:
        matrix = weight.reshape(groups, len(weight) // groups, -1)
        backend = backends.of("pointwise", grad)
        for group, some, seen in _blocks(total, weight, window, grad):
            flat = xp.ascontiguousarray(some).reshape(1, len(some), -1)
            patches = empty((1, matrix.shape[2], flat.shape[2]), grad.dtype, grad)
            backend.grad_x(flat, matrix[group], None, patches)
            patches = patches.reshape(*weight.shape[1:], *some.shape[1:])
            for tap, place in seen:
                place += patches[:, *tap]
    out[...] = unpad(total, window[1], out)


@bounded
def grad_weight(grad: Array, x: Array, window: Window, out: Array, grad_bias: Array | None) -> None:
    """The sum of the products of all blocks."""
    xp, padded, groups = namespace(x), pad(x, window[1], 0), x.shape[1] // out.shape[1]
    work = wide(x.dtype) or x.dtype
    if grad_bias is not None:
        grad_bias[...] = grad.sum(axis=(0, 2, 3), dtype=work)
    if _is_depthwise(x, out):
        share = {"out": empty(grad.shape, work, x), "dtype": work}
        for (u, v), seen in _windows(out, window, grad):
            out[:, 0, u, v] = xp.multiply(grad, padded[seen], **share).sum(axis=(0, 2, 3))
        return
    total = xp.zeros((groups, len(out) // groups, out.size // len(out)), work)
    part = xp.empty(total.shape[1:], x.dtype)
    for group, some, seen in _blocks(padded, out, window, grad):
        flat = xp.ascontiguousarray(some).reshape(1, len(some), -1)
        backends.of("pointwise", x).grad_weight(flat, _patches(out, some, seen), part, None)
        total[group] += part
    out[...] = total.reshape(out.shape)


def _is_depthwise(x: Array, weight: Array) -> bool:
    return bool(weight.shape[1] == 1 and x.shape[1] == len(weight))


def _windows(weight: Array, window: Window, out: Array) -> Any:
    """Each tap, with the index of the pixels of the padded image that it multiplies."""
    stride, _, dilation = window
    return windows(weight.shape[2:], out.shape[2:], stride, dilation)


def _blocks(
    padded: Array, weight: Array, window: Window, out: Array
) -> Iterator[tuple[int, Any, _Seen]]:
    """Blocks of outputs of a group: several images, or some of the rows of one.

    Each is the group's number, the view of ``out`` (O/g, images, rows, Wo), and for each tap the
    pixels of the padded image that it multiplies (C/g, images, rows, Wo).
    """
    (n, o, height, width), c = out.shape, weight.shape[1]
    row = weight.size // len(weight) * width * out.itemsize  # bytes of patches per row
    budget = _BLOCK // row
    rows = max(min(budget, height), 1)
    images, groups = max(budget // rows, 1), padded.shape[1] // c
    for group, b, i in product(range(groups), range(0, n, images), range(0, height, rows)):
        channels = slice(group * (o // groups), (group + 1) * (o // groups))
        some = out[b : b + images, channels, i : i + rows]
        look = padded[b : b + images, group * c : (group + 1) * c, i * window[0][0] :]
        taps = _windows(weight, window, some)
        yield group, some.swapaxes(0, 1), [(tap, look[view].swapaxes(0, 1)) for tap, view in taps]


def _patches(weight: Array, some: Array, seen: _Seen) -> Any:
    """The patches of a block, as one image (1, C/g * Kh * Kw, images * rows * Wo)."""
    patches = empty((*weight.shape[1:], *some.shape[1:]), some.dtype, some)
    for tap, look in seen:
        patches[:, *tap] = look
    return patches.reshape(1, weight.size // len(weight), -1)

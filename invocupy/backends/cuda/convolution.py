"""Convolution as products for blocks of outputs, by the 1x1 convolution of the arrays' machine.

A larger convolution than 1x1 is a product of the weights with the patches that the outputs of a
block see; no more than a block's patches are ever stored. A depthwise one is multiply-adds of the
image's windows. Half types are accumulated in float32. Tests run it on NumPy arrays, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from invocupy import backends
from invocupy.arrays import is_cupy, namespace, wide
from invocupy.backends.far import bounded
from invocupy.backends.memory import empty
from invocupy.backends.windows import pad, unpad, windows

_BLOCK = 1 << 22  # bytes of patches that are made at a time: what the caches hold
_BLOCK_ON_GPU = 1 << 28


class _Block(NamedTuple):
    """Outputs of one group: some images, and some rows of them."""

    group: int
    images: slice
    rows: slice


@bounded
def forward(x: Any, weight: Any, bias: Any, window: Any, out: Any) -> None:
    """A product of the weights with the patches of each block."""
    padded, groups = pad(x, window[1], 0), x.shape[1] // weight.shape[1]
    if _is_depthwise(x, weight):
        work = wide(x.dtype) or x.dtype
        total = out if work == x.dtype else empty(out.shape, work, x)
        total[...] = 0 if bias is None else bias[:, None, None]
        product = {"out": empty(out.shape, work, x), "dtype": work}
        for u, v, seen in _windows(weight, window, out):
            tap = weight[:, 0, u, v, None, None]
            total += namespace(x).multiply(tap, padded[seen], **product)
        if total is not out:
            out[...] = total
        return
    matrix = weight.reshape(groups, len(weight) // groups, -1)
    offset = None if bias is None else bias.reshape(groups, -1)
    backend = backends.of("pointwise", x)
    for block in _blocks(x, weight, out):
        place, g = _outputs(out, groups, block), block.group
        patches = _patches(padded, weight, window, place, block)
        product = empty((1, matrix.shape[1], patches.shape[2]), x.dtype, x)
        backend.forward(patches, matrix[g], None if offset is None else offset[g], product)
        place[...] = product.reshape(place.shape)


@bounded
def grad_x(grad: Any, weight: Any, window: Any, out: Any) -> None:
    """Each patch's gradient is added to where it was seen."""
    xp, groups = namespace(grad), out.shape[1] // weight.shape[1]
    (top, left), (n, c, h, w) = window[1], out.shape
    work = wide(grad.dtype) or grad.dtype
    total = empty((n, c, h + 2 * top, w + 2 * left), work, grad)
    total[...] = 0
    if _is_depthwise(out, weight):
        share = {"out": empty(grad.shape, work, grad), "dtype": work}
        for u, v, seen in _windows(weight, window, grad):
            total[seen] += xp.multiply(weight[:, 0, u, v, None, None], grad, **share)
    else:
        matrix = weight.reshape(groups, len(weight) // groups, -1)
        backend = backends.of("pointwise", grad)
        for block in _blocks(out, weight, grad):
            some = _outputs(grad, groups, block)
            flat = xp.ascontiguousarray(some).reshape(1, len(some), -1)
            patches = empty((1, matrix.shape[2], flat.shape[2]), grad.dtype, grad)
            backend.grad_x(flat, matrix[block.group], patches)
            patches = patches.reshape(*weight.shape[1:], *some.shape[1:])
            for u, v, seen in _seen(total, weight, window, some, block):
                seen += patches[:, u, v]
    out[...] = unpad(total, window[1], out)


@bounded
def grad_weight(grad: Any, x: Any, window: Any, out: Any, grad_bias: Any) -> None:
    """The blocks' products, summed."""
    xp, padded, groups = namespace(x), pad(x, window[1], 0), x.shape[1] // out.shape[1]
    work = wide(x.dtype) or x.dtype
    if grad_bias is not None:
        grad_bias[...] = grad.sum(axis=(0, 2, 3), dtype=work)
    if _is_depthwise(x, out):
        product = {"out": empty(grad.shape, work, x), "dtype": work}
        for u, v, seen in _windows(out, window, grad):
            out[:, 0, u, v] = xp.multiply(grad, padded[seen], **product).sum(axis=(0, 2, 3))
        return
    total = xp.zeros((groups, len(out) // groups, out.size // len(out)), work)
    share = xp.empty(total.shape[1:], x.dtype)
    for block in _blocks(x, out, grad):
        some = _outputs(grad, groups, block)
        flat = xp.ascontiguousarray(some).reshape(1, len(some), -1)
        patches = _patches(padded, out, window, some, block)
        backends.of("pointwise", x).grad_weight(flat, patches, share, None)
        total[block.group] += share
    out[...] = total.reshape(out.shape)


def _is_depthwise(x: Any, weight: Any) -> bool:
    return bool(weight.shape[1] == 1 and x.shape[1] == len(weight))


def _windows(weight: Any, window: Any, out: Any) -> Any:
    """Each tap with what the outputs see of the padded image."""
    stride, _, dilation = window
    return windows(weight.shape[2:], out.shape[2:], stride, dilation)


def _blocks(x: Any, weight: Any, out: Any) -> Iterator[_Block]:
    """Whole rows: many images, or some of the rows of one."""
    n, _, height, width = out.shape
    row = weight.size // len(weight) * width * out.itemsize  # bytes of patches
    budget = (_BLOCK_ON_GPU if is_cupy(out) else _BLOCK) // row
    rows = max(min(budget, height), 1)
    images = max(budget // rows, 1)
    for g in range(x.shape[1] // weight.shape[1]):
        for b in range(0, n, images):
            for i in range(0, height, rows):
                yield _Block(g, slice(b, min(b + images, n)), slice(i, min(i + rows, height)))


def _outputs(array: Any, groups: int, block: _Block) -> Any:
    """Their part in an array like ``out``, channels first: (O/g, images, rows, Wo)."""
    each = array.shape[1] // groups
    first = block.group * each
    return array[block.images, first : first + each, block.rows].swapaxes(0, 1)


def _seen(
    padded: Any, weight: Any, window: Any, outputs: Any, block: _Block
) -> Iterator[tuple[int, int, Any]]:
    """What they see of the padded image, tap by tap: (C/g, images, rows, Wo)."""
    (stride, _, dilation), each = window, weight.shape[1]
    first = block.group * each
    part = padded[block.images, first : first + each, block.rows.start * stride[0] :]
    for u, v, seen in windows(weight.shape[2:], outputs.shape[2:], stride, dilation):
        yield u, v, part[seen].swapaxes(0, 1)


def _patches(padded: Any, weight: Any, window: Any, outputs: Any, block: _Block) -> Any:
    """All that they see, as one image: (1, C/g * Kh * Kw, images * rows * Wo)."""
    patches = empty((*weight.shape[1:], *outputs.shape[1:]), padded.dtype, padded)
    for u, v, seen in _seen(padded, weight, window, outputs, block):
        patches[:, u, v] = seen
    return patches.reshape(1, weight.size // len(weight), -1)

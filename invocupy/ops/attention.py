"""Self-attention over images, for comparison: involution whose kernel is made from pairs of pixels.

Local attention is three involutions around a softmax. The scores of all pairs of a pixel and a
neighbour are the gradient of an involution by its kernel; what a pixel gets is an involution of
the values with the softmax of its scores, of shape (N, heads, Kh, Kw, H, W); and the gradients are
involutions again. So it runs on the same backends, on the CPU and on the GPU.
"""

from __future__ import annotations

import math
from typing import Any

from invocupy import backends
from invocupy.arrays import check, contiguous, namespace, native, on_device
from invocupy.backends import memory
from invocupy.geometry import Geometry, IntOrPair, integer, pair
from invocupy.ops.basic import Result, total
from invocupy.ops.convolution import working_dtypes
from invocupy.ops.memo import once


def local_self_attention(
    query: Any,
    key: Any,
    value: Any,
    positions: Any = None,
    *,
    kernel_size: IntOrPair,
    heads: int = 1,
    dilation: IntOrPair = 1,
) -> Result:
    """``out[n,c,i,j] = sum_uv softmax_uv(scores[n,h,u,v,i,j]) * value[n,c,i+u*dh-ph,j+v*dw-pw]``.

    ``scores[n,h,u,v,i,j] = query[n,h,:,i,j] . (key[n,h,:,i+u*dh-ph,j+v*dw-pw] +
    positions[h,u,v,:]) / sqrt(D)``, over neighbours inside the image only.
    """
    given = {} if positions is None else {"positions": positions}
    _check(query, key, value, heads, given)
    size = pair("kernel_size", kernel_size, 1)
    (n, _, h, w), depth = query.shape, query.shape[1] // heads
    kernel_shape = (n, heads, *size, h, w)
    seen = Geometry.of(query.shape, kernel_shape, 1, "same", dilation)
    summed = Geometry.of(value.shape, kernel_shape, 1, "same", dilation)
    if positions is not None and positions.shape != (heads, *size, depth):
        raise ValueError(
            f"positions must be (heads, Kh, Kw, channels of a head), {(heads, *size, depth)}, "
            f"got {positions.shape}"
        )
    xp = namespace(query)
    dtype, work = working_dtypes(query, key, value, positions)
    q, k, v = (contiguous(array, work) for array in (query, key, value))
    taps = size[0] * size[1]
    if positions is not None:
        r = contiguous(positions, work).reshape(heads, taps, depth)
    scale = work.type(1 / math.sqrt(depth)) if depth else work.type(0)
    backend = backends.of("involution", query)

    def run(name: str, first: Any, second: Any, g: Geometry, shape: Any) -> Any:
        result = memory.empty(shape, work, query)
        if first.size and second.size and result.size:
            getattr(backend, name)(first, second, g, result)
        else:
            result[...] = 0
        return result

    def pixels(array: Any, each: int) -> Any:
        """(N, heads, channels of a head or taps, H*W)."""
        return array.reshape(n, heads, each, h * w)

    with on_device(query):
        weights = run("grad_kernel", q, k, seen, kernel_shape)
        if positions is not None:
            weights += (r @ pixels(q, depth)).reshape(kernel_shape)
        weights *= scale
        weights += xp.where(_inside(seen, xp), work.type(0), work.type(-xp.inf))
        weights -= weights.max(axis=(2, 3), keepdims=True)
        xp.exp(weights, out=weights)
        weights /= total(weights, (2, 3), keepdims=True)
        out = run("forward", v, weights, summed, value.shape).astype(dtype, copy=False)

    @once
    def grad_scores(grad: Any) -> Any:
        """Gradient of what is scaled: (N, heads, Kh, Kw, H, W)."""
        result = run("grad_kernel", contiguous(grad, work), v, summed, kernel_shape)
        result *= weights
        result -= weights * total(result, (2, 3), keepdims=True)
        result *= scale
        return result

    def grad_query(grad: Any) -> Any:
        with on_device(query):
            scores = grad_scores(grad)
            result = run("forward", k, scores, seen, query.shape)
            if positions is not None:
                result += (r.swapaxes(-1, -2) @ pixels(scores, taps)).reshape(query.shape)
            return native(result, query)

    def grad_key(grad: Any) -> Any:
        with on_device(query):
            return native(run("grad_x", q, grad_scores(grad), seen, key.shape), key)

    def grad_value(grad: Any) -> Any:
        with on_device(query):
            return native(
                run("grad_x", contiguous(grad, work), weights, summed, value.shape), value
            )

    def grad_positions(grad: Any) -> Any:
        with on_device(query):
            # (N, heads, taps, H*W) @ (N, heads, H*W, D), summed over the batch
            result = total(pixels(grad_scores(grad), taps) @ pixels(q, depth).swapaxes(-1, -2), 0)
            return native(result.reshape(positions.shape), positions)

    return out, (grad_query, grad_key, grad_value, grad_positions)


def self_attention(query: Any, key: Any, value: Any, *, heads: int = 1) -> Result:
    """``out[n,c,p] = sum_q softmax_q(query[n,h,:,p] . key[n,h,:,q] / sqrt(D)) * value[n,c,q]``.

    p and q over all pixels: (N, heads, H*W, H*W) weights are stored.
    """
    _check(query, key, value, heads, {})
    n, channels, h, w = query.shape
    dtype, work = working_dtypes(query, key, value)
    depth, xp = channels // heads, namespace(query)
    scale = work.type(1 / math.sqrt(depth)) if depth else work.type(0)

    def pixels(array: Any) -> Any:
        """(N, heads, channels of a head, H*W)."""
        return contiguous(array, work).reshape(n, heads, array.shape[1] // heads, h * w)

    with on_device(query):
        q, k, v = pixels(query), pixels(key), pixels(value)
        weights = q.swapaxes(-1, -2) @ k  # (N, heads, H*W, H*W): of pixel p, for pixel q
        weights *= scale
        if weights.size:
            weights -= weights.max(axis=-1, keepdims=True)
        xp.exp(weights, out=weights)
        weights /= total(weights, -1, keepdims=True)
        out = (v @ weights.swapaxes(-1, -2)).reshape(value.shape).astype(dtype, copy=False)

    @once
    def grad_scores(grad: Any) -> Any:
        """Gradient of what is scaled: (N, heads, H*W, H*W)."""
        result = pixels(grad).swapaxes(-1, -2) @ v
        result *= weights
        result -= weights * total(result, -1, keepdims=True)
        result *= scale
        return result

    def grad_query(grad: Any) -> Any:
        with on_device(query):
            result = k @ grad_scores(grad).swapaxes(-1, -2)
            return native(result.reshape(query.shape), query)

    def grad_key(grad: Any) -> Any:
        with on_device(query):
            return native((q @ grad_scores(grad)).reshape(key.shape), key)

    def grad_value(grad: Any) -> Any:
        with on_device(query):
            return native((pixels(grad) @ weights).reshape(value.shape), value)

    return out, (grad_query, grad_key, grad_value)


def _check(query: Any, key: Any, value: Any, heads: int, more: dict[str, Any]) -> None:
    check(query=query, key=key, value=value, **more)
    for name, array in {"query": query, "key": key, "value": value}.items():
        if array.ndim != 4:
            raise ValueError(f"{name} must have 4 dimensions (N, C, H, W), got {array.shape}")
    if key.shape != query.shape:
        raise ValueError(f"key must have the shape of query, {query.shape}, got {key.shape}")
    if value.shape[:1] + value.shape[2:] != query.shape[:1] + query.shape[2:]:
        raise ValueError(
            f"value must have the batch and image size of query, {query.shape}, got {value.shape}"
        )
    heads = integer("heads", heads, 1)
    if query.shape[1] % heads or value.shape[1] % heads:
        raise ValueError(
            f"heads must divide the channels of query and value, {query.shape[1]} and "
            f"{value.shape[1]}, got {heads}"
        )


def _inside(g: Geometry, xp: Any) -> Any:
    """Whether tap (u, v) of pixel (i, j) lies in the image: (Kh, Kw, H, W)."""

    def along(size: int, kernel: int, dilation: int, padding: int) -> Any:
        place = xp.arange(size) + xp.arange(kernel)[:, None] * dilation - padding
        return (place >= 0) & (place < size)

    rows = along(g.height, g.kernel_h, g.dilation_h, g.pad_h)
    columns = along(g.width, g.kernel_w, g.dilation_w, g.pad_w)
    return rows[:, None, :, None] & columns[None, :, None, :]

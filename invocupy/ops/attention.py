"""Self-attention over images, for comparison: involution with a kernel from pairs of pixels.

Local attention is three involutions around a softmax. The scores of all pairs of a pixel and a
neighbour are the gradient of an involution by its kernel; what a pixel gets is an involution of
the values with the softmax of its scores, of shape (N, heads, Kh, Kw, H, W); and the gradients are
involutions again. So it runs on the same backends, on the CPU and on the GPU.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from invocupy.arrays import Array, check, contiguous, namespace, on_device
from invocupy.geometry import Geometry, IntOrTuple, integer, per_axis
from invocupy.ops.call import Call, Shape, given, vjp_of, working_dtypes
from invocupy.ops.declaration import Result, op
from invocupy.ops.memo import once
from invocupy.ops.reductions import total


@op()
def local_self_attention(
    query: Array,
    key: Array,
    value: Array,
    positions: Array | None = None,
    *,
    kernel_size: IntOrTuple,
    heads: int = 1,
    dilation: IntOrTuple = 1,
) -> Result:
    """Attention of each pixel to its neighbours: an involution with weights from pairs of pixels.

    ``out[n,c,i,j] = sum_uv A[n,h,u,v,i,j] * value[n, c, i+u*dh-ph, j+v*dw-pw]``, h the head of c,
    ``A = softmax_uv(query[n,h,:,i,j] . (key[n,h,:,i+u*dh-ph,j+v*dw-pw] + positions[h,u,v,:]) /
    sqrt(D))`` (Ramachandran et al., arXiv 1906.05909, but divided by ``sqrt(D)``). Neighbours
    outside of the image have no weight. With keys of zero it is :func:`involution` whose kernel is
    the softmax of a 1x1 convolution of the query.

    Parameters
    ----------
    query, key : array or Tensor (N, heads*D, H, W), float
        A vector of D values for each head and pixel.
    value : array or Tensor (N, C, H, W), float
        ``heads`` divides C; channel c uses head ``c // (C // heads)``.
    positions : array or Tensor (heads, Kh, Kw, D), optional
        Added to the key of each neighbour.
    kernel_size : int or pair
        Odd: the neighbours.
    heads : int
        The number of heads.
    dilation : int or pair
        Steps between neighbours.

    Returns
    -------
    array or Tensor (N, C, H, W)

    Raises
    ------
    TypeError, ValueError
        As :func:`involution`.

    >>> nothing, x = np.zeros((1, 2, 1, 4)), np.array([1.0, 2, 3, 4]).reshape(1, 1, 1, 4)
    >>> F.local_self_attention(nothing, nothing, x, kernel_size=(1, 3))[0, 0]
    array([[1.5, 2. , 3. , 3.5]])
    """
    _check(query, key, value, heads, **given(positions=positions))
    size = per_axis("kernel_size", kernel_size, 1)
    (n, _, h, w), taps, depth = query.shape, size[0] * size[1], query.shape[1] // heads
    kernel_shape = (n, heads, *size, h, w)
    seen = Geometry.of(query.shape, kernel_shape, 1, "same", dilation)
    summed = Geometry.of(value.shape, kernel_shape, 1, "same", dilation)
    if positions is not None and positions.shape != (heads, *size, depth):
        raise ValueError(
            f"positions must be (heads, Kh, Kw, channels of a head), {(heads, *size, depth)}, "
            f"got {positions.shape}"
        )
    call, xp = Call("involution", query, key, value, positions), namespace(query)
    q, k, v, r = call.inputs
    scale = _scale(depth, call.work)

    def run(name: str, first: Array, second: Array, g: Geometry, shape: Shape) -> Any:
        return call.run(name, (first, second), (g,), shape)[0]

    with on_device(query):
        flat_q = q.reshape(n, heads, depth, h * w)
        weights = run("grad_kernel", q, k, seen, kernel_shape)
        if positions is not None:
            r = r.reshape(heads, taps, depth)
            weights += (r @ flat_q).reshape(kernel_shape)
        weights *= scale
        weights += xp.where(_inside(seen, xp), call.work.type(0), call.work.type(-xp.inf))
        _softmax(weights, (2, 3))
        out = run("forward", v, weights, summed, value.shape).astype(call.dtype, copy=False)

    @once
    def grad_scores(grad: Array) -> Any:
        """Gradient of what is scaled: (N, heads, Kh, Kw, H, W)."""
        result = run("grad_kernel", contiguous(grad, call.work), v, summed, kernel_shape)
        return _softmax_grad(result, weights, (2, 3), scale)

    def grad_query(grad: Array) -> Any:
        scores = grad_scores(grad)
        result = run("forward", k, scores, seen, query.shape)
        if positions is not None:
            flat = scores.reshape(n, heads, taps, h * w)
            result += (r.swapaxes(-1, -2) @ flat).reshape(query.shape)
        return result

    def grad_positions(grad: Array) -> Any:
        flat = grad_scores(grad).reshape(n, heads, taps, h * w)
        # (N, heads, taps, H*W) @ (N, heads, H*W, D), summed over the batch
        return total(flat @ flat_q.swapaxes(-1, -2), 0)

    return out, (
        vjp_of(query, grad_query),
        vjp_of(key, lambda grad: run("grad_x", q, grad_scores(grad), seen, key.shape)),
        lambda grad: call.gradient("grad_x", grad, (weights,), (summed,), value),
        vjp_of(positions, grad_positions),
    )


@op()
def self_attention(query: Array, key: Array, value: Array, *, heads: int = 1) -> Result:
    """Attention of each pixel to all pixels.

    ``out[n,c,p] = sum_q softmax_q(query[n,h,:,p] . key[n,h,:,q] / sqrt(D)) * value[n,c,q]``, h the
    head of c, p and q over all H*W pixels (Vaswani et al., arXiv 1706.03762, eq. 1). Stores
    ``heads * (H*W)**2`` weights per image: for comparison, not for large images.

    Parameters
    ----------
    query, key : array or Tensor (N, heads*D, H, W), float
        A vector of D values for each head and pixel.
    value : array or Tensor (N, C, H, W), float
        ``heads`` divides C.
    heads : int
        The number of heads.

    Returns
    -------
    array or Tensor (N, C, H, W)

    Raises
    ------
    TypeError, ValueError
        As :func:`involution`.

    >>> nothing, x = np.zeros((1, 2, 1, 4)), np.array([1.0, 2, 3, 4]).reshape(1, 1, 1, 4)
    >>> F.self_attention(nothing, nothing, x)[0, 0]
    array([[2.5, 2.5, 2.5, 2.5]])
    """
    _check(query, key, value, heads)
    n, channels, h, w = query.shape
    dtype, work = working_dtypes(query, key, value)
    scale = _scale(channels // heads, work)

    def pixels(array: Array) -> Any:
        """(N, heads, channels of a head, H*W)."""
        return contiguous(array, work).reshape(n, heads, array.shape[1] // heads, h * w)

    with on_device(query):
        q, k, v = pixels(query), pixels(key), pixels(value)
        weights = q.swapaxes(-1, -2) @ k  # (N, heads, H*W, H*W): of pixel p, for pixel q
        weights *= scale
        _softmax(weights, (3,))
        out = (v @ weights.swapaxes(-1, -2)).reshape(value.shape).astype(dtype, copy=False)

    @once
    def grad_scores(grad: Array) -> Any:
        """Gradient of what is scaled: (N, heads, H*W, H*W)."""
        return _softmax_grad(pixels(grad).swapaxes(-1, -2) @ v, weights, (3,), scale)

    return out, (
        vjp_of(query, lambda grad: k @ grad_scores(grad).swapaxes(-1, -2)),
        vjp_of(key, lambda grad: q @ grad_scores(grad)),
        vjp_of(value, lambda grad: pixels(grad) @ weights),
    )


def _scale(depth: int, work: np.dtype[Any]) -> Any:
    return work.type(1 / math.sqrt(depth)) if depth else work.type(0)


def _softmax(scores: Any, axes: Shape) -> None:
    """In place."""
    if scores.size:
        scores -= scores.max(axis=axes, keepdims=True)
    namespace(scores).exp(scores, out=scores)
    scores /= total(scores, axes, keepdims=True)


def _softmax_grad(grad: Any, weights: Array, axes: Shape, scale: Any) -> Any:
    """The gradient of the scores before scaling, in place of that of their softmax."""
    grad *= weights
    grad -= weights * total(grad, axes, keepdims=True)
    grad *= scale
    return grad


def _check(query: Array, key: Array, value: Array, heads: int, **more: Array) -> None:
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

    axes = zip(g.size, g.kernel, g.dilation, g.padding, strict=True)
    rows, columns = (along(*axis) for axis in axes)
    return rows[:, None, :, None] & columns[None, :, None, :]

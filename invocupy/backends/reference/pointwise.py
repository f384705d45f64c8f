"""The 1x1 convolution: one product for each image. ``matmul`` sums half types in float32."""

from __future__ import annotations

from invocupy.arrays import Array, namespace, wide


def forward(x: Array, weight: Array, bias: Array | None, out: Array) -> None:
    namespace(x).matmul(weight, x, out=out)
    if bias is not None:
        out += bias[:, None]


def grad_x(grad: Array, weight: Array, base: Array | None, out: Array) -> None:
    if base is None:
        namespace(grad).matmul(weight.T, grad, out=out)
    else:
        out[...] = base + weight.T @ grad


def grad_weight(grad: Array, x: Array, out: Array, grad_bias: Array | None) -> None:
    out[...] = (grad @ x.swapaxes(1, 2)).sum(axis=0, dtype=wide(x.dtype))
    if grad_bias is not None:
        grad_bias[...] = grad.sum(axis=(0, 2), dtype=wide(grad.dtype))

"""The 1x1 convolution of x (N, C, P) to (N, O, P), P pixels of an image in a row.

``bias`` and ``grad_bias`` may be ``None``.

::

    forward(x, weight, bias, out)       out[n,o,p] = bias[o] + sum_c weight[o,c] * x[n,c,p]
    grad_x(grad, weight, out)           out[n,c,p] = sum_o weight[o,c] * grad[n,o,p]
    grad_weight(grad, x, out, grad_bias)
                                        out[o,c] = sum_np grad[n,o,p] * x[n,c,p] and
                                        grad_bias[o] = sum_np grad[n,o,p] in one pass

Half types are accumulated in float32, which ``matmul`` does by itself.
"""

from __future__ import annotations

from typing import Any

from invocupy.arrays import namespace, wide


def forward(x: Any, weight: Any, bias: Any, out: Any) -> None:
    """One product for each image."""
    namespace(x).matmul(weight, x, out=out)
    if bias is not None:
        out += bias[:, None]


def grad_x(grad: Any, weight: Any, out: Any) -> None:
    """The transpose of :func:`forward`."""
    namespace(grad).matmul(weight.T, grad, out=out)


def grad_weight(grad: Any, x: Any, out: Any, grad_bias: Any) -> None:
    """One product for each image, summed over the batch."""
    out[...] = (grad @ x.swapaxes(1, 2)).sum(axis=0, dtype=wide(x.dtype))
    if grad_bias is not None:
        grad_bias[...] = grad.sum(axis=(0, 2), dtype=wide(grad.dtype))

"""Every operator on Tensors and on plain arrays: :mod:`invocupy.ops` lifted to the tape.

With a :class:`~invocupy.Tensor` among its array arguments a function returns a Tensor, through
which gradients flow; with NumPy or CuPy arrays it returns an array and records nothing.
"""

from __future__ import annotations

from invocupy.functional.basic import (
    absolute,
    add,
    concatenate,
    divide,
    exp,
    flatten,
    log,
    matmul,
    max,  # noqa: A004
    maximum,
    mean,
    multiply,
    negative,
    power,
    relu,
    reshape,
    sqrt,
    subtract,
    sum,  # noqa: A004
    tanh,
    transpose,
)
from invocupy.functional.layers import (
    batch_moments,
    batch_norm,
    cross_entropy,
    linear,
    log_softmax,
    softmax,
)
from invocupy.functional.spatial import (
    avg_pool2d,
    conv2d,
    fused_involution,
    involution,
    local_self_attention,
    max_pool2d,
    self_attention,
)

__all__ = [
    "absolute",
    "add",
    "avg_pool2d",
    "batch_moments",
    "batch_norm",
    "concatenate",
    "conv2d",
    "cross_entropy",
    "divide",
    "exp",
    "flatten",
    "fused_involution",
    "involution",
    "linear",
    "local_self_attention",
    "log",
    "log_softmax",
    "matmul",
    "max",
    "max_pool2d",
    "maximum",
    "mean",
    "multiply",
    "negative",
    "power",
    "relu",
    "reshape",
    "self_attention",
    "softmax",
    "sqrt",
    "subtract",
    "sum",
    "tanh",
    "transpose",
]

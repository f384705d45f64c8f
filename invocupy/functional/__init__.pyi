"""The public functions of all operators; written by .ci/stubs.py."""

from collections.abc import Sequence
from typing import overload

import numpy as np

from invocupy.arrays import Array, ArrayLike
from invocupy.autograd import Tensor
from invocupy.functional.normalization import batch_moments as batch_moments
from invocupy.functional.normalization import batch_norm as batch_norm
from invocupy.geometry import IntOrTuple, Padding
from invocupy.ops.declaration import Axis

@overload
def absolute(x: ArrayLike) -> Array: ...
@overload
def absolute(x: Tensor) -> Tensor: ...
@overload
def add(a: ArrayLike, b: ArrayLike) -> Array: ...
@overload
def add(a: Tensor, b: ArrayLike | Tensor) -> Tensor: ...
@overload
def add(a: ArrayLike, b: Tensor) -> Tensor: ...
@overload
def avg_pool1d(
    x: Array,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array: ...
@overload
def avg_pool1d(
    x: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor: ...
@overload
def avg_pool2d(
    x: Array,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array: ...
@overload
def avg_pool2d(
    x: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor: ...
@overload
def avg_pool3d(
    x: Array,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array: ...
@overload
def avg_pool3d(
    x: Tensor,
    kernel_size: IntOrTuple,
    stride: IntOrTuple | None = None,
    padding: IntOrTuple = 0,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor: ...
@overload
def clip(x: ArrayLike, min: ArrayLike | None = None, max: ArrayLike | None = None) -> Array: ...
@overload
def clip(
    x: Tensor, min: ArrayLike | Tensor | None = None, max: ArrayLike | Tensor | None = None
) -> Tensor: ...
@overload
def clip(x: ArrayLike, min: Tensor, max: ArrayLike | Tensor | None = None) -> Tensor: ...
@overload
def clip(x: ArrayLike, min: ArrayLike | None, max: Tensor) -> Tensor: ...
@overload
def concatenate(parts: Sequence[Array], axis: int = 0) -> Array: ...  # type: ignore[overload-overlap]
@overload
def concatenate(parts: Sequence[Tensor], axis: int = 0) -> Tensor: ...
@overload
def concatenate(parts: Sequence[Array | Tensor], axis: int = 0) -> Tensor: ...
@overload
def conv1d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Array: ...
@overload
def conv1d(
    x: Tensor,
    weight: Array | Tensor,
    bias: Array | Tensor | None = None,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor: ...
@overload
def conv1d(
    x: Array,
    weight: Tensor,
    bias: Array | Tensor | None = None,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor: ...
@overload
def conv1d(
    x: Array,
    weight: Array,
    bias: Tensor,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor: ...
@overload
def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Array: ...
@overload
def conv2d(
    x: Tensor,
    weight: Array | Tensor,
    bias: Array | Tensor | None = None,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor: ...
@overload
def conv2d(
    x: Array,
    weight: Tensor,
    bias: Array | Tensor | None = None,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor: ...
@overload
def conv2d(
    x: Array,
    weight: Array,
    bias: Tensor,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor: ...
@overload
def conv3d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Array: ...
@overload
def conv3d(
    x: Tensor,
    weight: Array | Tensor,
    bias: Array | Tensor | None = None,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor: ...
@overload
def conv3d(
    x: Array,
    weight: Tensor,
    bias: Array | Tensor | None = None,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor: ...
@overload
def conv3d(
    x: Array,
    weight: Array,
    bias: Tensor,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = 0,
    dilation: IntOrTuple = 1,
    groups: int = 1,
) -> Tensor: ...
@overload
def cross_entropy(
    logits: Array,
    labels: Array,
    label_smoothing: float = 0.0,
    *,
    weight: Array | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
) -> Array: ...
@overload
def cross_entropy(
    logits: Tensor,
    labels: Array | Tensor,
    label_smoothing: float = 0.0,
    *,
    weight: Array | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
) -> Tensor: ...
@overload
def cross_entropy(
    logits: Array,
    labels: Tensor,
    label_smoothing: float = 0.0,
    *,
    weight: Array | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
) -> Tensor: ...
@overload
def divide(a: ArrayLike, b: ArrayLike) -> Array: ...
@overload
def divide(a: Tensor, b: ArrayLike | Tensor) -> Tensor: ...
@overload
def divide(a: ArrayLike, b: Tensor) -> Tensor: ...
@overload
def dropout(
    x: Array, p: float = 0.5, training: bool = True, rng: np.random.Generator | Array | None = None
) -> Array: ...
@overload
def dropout(
    x: Tensor, p: float = 0.5, training: bool = True, rng: np.random.Generator | Array | None = None
) -> Tensor: ...
@overload
def exp(x: ArrayLike) -> Array: ...
@overload
def exp(x: Tensor) -> Tensor: ...
@overload
def flatten(x: Array, start: int = 1) -> Array: ...
@overload
def flatten(x: Tensor, start: int = 1) -> Tensor: ...
@overload
def fused_involution(
    x: Array,
    features: Array,
    span_weight: Array,
    span_bias: Array | None = None,
    *,
    kernel_size: IntOrTuple,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
    out: Array | None = None,
) -> Array: ...
@overload
def fused_involution(
    x: Tensor,
    features: Array | Tensor,
    span_weight: Array | Tensor,
    span_bias: Array | Tensor | None = None,
    *,
    kernel_size: IntOrTuple,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
) -> Tensor: ...
@overload
def fused_involution(
    x: Array,
    features: Tensor,
    span_weight: Array | Tensor,
    span_bias: Array | Tensor | None = None,
    *,
    kernel_size: IntOrTuple,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
) -> Tensor: ...
@overload
def fused_involution(
    x: Array,
    features: Array,
    span_weight: Tensor,
    span_bias: Array | Tensor | None = None,
    *,
    kernel_size: IntOrTuple,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
) -> Tensor: ...
@overload
def fused_involution(
    x: Array,
    features: Array,
    span_weight: Array,
    span_bias: Tensor,
    *,
    kernel_size: IntOrTuple,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
) -> Tensor: ...
@overload
def involution(
    x: Array,
    kernel: Array,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
    out: Array | None = None,
) -> Array: ...
@overload
def involution(
    x: Tensor,
    kernel: Array | Tensor,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
) -> Tensor: ...
@overload
def involution(
    x: Array,
    kernel: Tensor,
    *,
    stride: IntOrTuple = 1,
    padding: Padding = "same",
    dilation: IntOrTuple = 1,
) -> Tensor: ...
@overload
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array: ...
@overload
def linear(x: Tensor, weight: Array | Tensor, bias: Array | Tensor | None = None) -> Tensor: ...
@overload
def linear(x: Array, weight: Tensor, bias: Array | Tensor | None = None) -> Tensor: ...
@overload
def linear(x: Array, weight: Array, bias: Tensor) -> Tensor: ...
@overload
def local_self_attention(
    query: Array,
    key: Array,
    value: Array,
    positions: Array | None = None,
    *,
    kernel_size: IntOrTuple,
    heads: int = 1,
    dilation: IntOrTuple = 1,
) -> Array: ...
@overload
def local_self_attention(
    query: Tensor,
    key: Array | Tensor,
    value: Array | Tensor,
    positions: Array | Tensor | None = None,
    *,
    kernel_size: IntOrTuple,
    heads: int = 1,
    dilation: IntOrTuple = 1,
) -> Tensor: ...
@overload
def local_self_attention(
    query: Array,
    key: Tensor,
    value: Array | Tensor,
    positions: Array | Tensor | None = None,
    *,
    kernel_size: IntOrTuple,
    heads: int = 1,
    dilation: IntOrTuple = 1,
) -> Tensor: ...
@overload
def local_self_attention(
    query: Array,
    key: Array,
    value: Tensor,
    positions: Array | Tensor | None = None,
    *,
    kernel_size: IntOrTuple,
    heads: int = 1,
    dilation: IntOrTuple = 1,
) -> Tensor: ...
@overload
def local_self_attention(
    query: Array,
    key: Array,
    value: Array,
    positions: Tensor,
    *,
    kernel_size: IntOrTuple,
    heads: int = 1,
    dilation: IntOrTuple = 1,
) -> Tensor: ...
@overload
def log(x: ArrayLike) -> Array: ...
@overload
def log(x: Tensor) -> Tensor: ...
@overload
def log_softmax(x: Array, axis: int = -1) -> Array: ...
@overload
def log_softmax(x: Tensor, axis: int = -1) -> Tensor: ...
@overload
def matmul(a: Array, b: Array) -> Array: ...
@overload
def matmul(a: Tensor, b: Array | Tensor) -> Tensor: ...
@overload
def matmul(a: Array, b: Tensor) -> Tensor: ...
@overload
def max(x: Array, axis: Axis = None, keepdims: bool = False) -> Array: ...
@overload
def max(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor: ...
@overload
def max_pool1d(
    x: Array, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0
) -> Array: ...
@overload
def max_pool1d(
    x: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0
) -> Tensor: ...
@overload
def max_pool2d(
    x: Array, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0
) -> Array: ...
@overload
def max_pool2d(
    x: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0
) -> Tensor: ...
@overload
def max_pool3d(
    x: Array, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0
) -> Array: ...
@overload
def max_pool3d(
    x: Tensor, kernel_size: IntOrTuple, stride: IntOrTuple | None = None, padding: IntOrTuple = 0
) -> Tensor: ...
@overload
def maximum(a: ArrayLike, b: ArrayLike) -> Array: ...
@overload
def maximum(a: Tensor, b: ArrayLike | Tensor) -> Tensor: ...
@overload
def maximum(a: ArrayLike, b: Tensor) -> Tensor: ...
@overload
def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Array: ...
@overload
def mean(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor: ...
@overload
def minimum(a: ArrayLike, b: ArrayLike) -> Array: ...
@overload
def minimum(a: Tensor, b: ArrayLike | Tensor) -> Tensor: ...
@overload
def minimum(a: ArrayLike, b: Tensor) -> Tensor: ...
@overload
def multiply(a: ArrayLike, b: ArrayLike) -> Array: ...
@overload
def multiply(a: Tensor, b: ArrayLike | Tensor) -> Tensor: ...
@overload
def multiply(a: ArrayLike, b: Tensor) -> Tensor: ...
@overload
def negative(x: ArrayLike) -> Array: ...
@overload
def negative(x: Tensor) -> Tensor: ...
@overload
def power(a: ArrayLike, b: ArrayLike) -> Array: ...
@overload
def power(a: Tensor, b: ArrayLike | Tensor) -> Tensor: ...
@overload
def power(a: ArrayLike, b: Tensor) -> Tensor: ...
@overload
def relu(x: ArrayLike) -> Array: ...
@overload
def relu(x: Tensor) -> Tensor: ...
@overload
def reshape(x: Array, shape: tuple[int, ...]) -> Array: ...
@overload
def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor: ...
@overload
def self_attention(query: Array, key: Array, value: Array, *, heads: int = 1) -> Array: ...
@overload
def self_attention(
    query: Tensor,
    key: Array | Tensor,
    value: Array | Tensor,
    *,
    heads: int = 1,
) -> Tensor: ...
@overload
def self_attention(
    query: Array,
    key: Tensor,
    value: Array | Tensor,
    *,
    heads: int = 1,
) -> Tensor: ...
@overload
def self_attention(query: Array, key: Array, value: Tensor, *, heads: int = 1) -> Tensor: ...
@overload
def sigmoid(x: ArrayLike) -> Array: ...
@overload
def sigmoid(x: Tensor) -> Tensor: ...
@overload
def softmax(x: Array, axis: int = -1) -> Array: ...
@overload
def softmax(x: Tensor, axis: int = -1) -> Tensor: ...
@overload
def sqrt(x: ArrayLike) -> Array: ...
@overload
def sqrt(x: Tensor) -> Tensor: ...
@overload
def subtract(a: ArrayLike, b: ArrayLike) -> Array: ...
@overload
def subtract(a: Tensor, b: ArrayLike | Tensor) -> Tensor: ...
@overload
def subtract(a: ArrayLike, b: Tensor) -> Tensor: ...
@overload
def sum(x: Array, axis: Axis = None, keepdims: bool = False) -> Array: ...
@overload
def sum(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor: ...
@overload
def tanh(x: ArrayLike) -> Array: ...
@overload
def tanh(x: Tensor) -> Tensor: ...
@overload
def transpose(x: Array, axes: tuple[int, ...] | None = None) -> Array: ...
@overload
def transpose(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor: ...
@overload
def where(condition: ArrayLike, x: ArrayLike, y: ArrayLike) -> Array: ...
@overload
def where(condition: Tensor, x: ArrayLike | Tensor, y: ArrayLike | Tensor) -> Tensor: ...
@overload
def where(condition: ArrayLike, x: Tensor, y: ArrayLike | Tensor) -> Tensor: ...
@overload
def where(condition: ArrayLike, x: ArrayLike, y: Tensor) -> Tensor: ...

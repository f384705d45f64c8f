"""The steps of an involution block, forward and backward: the algebra is in :mod:`.block`."""

from __future__ import annotations

from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from invocupy import backends
from invocupy.arrays import Array, contiguous, is_cupy, namespace, on_device
from invocupy.backends.memory import empty
from invocupy.backends.signatures import Perceptron
from invocupy.geometry import Geometry, IntOrTuple, Shape, number
from invocupy.ops.ranks import Comm, allreduce_sum, merge

Moments = tuple[Any, Any]
NAMES = (
    "expand_weight", "expand_bias", "expand_norm_weight", "expand_norm_bias",
    "reduce_weight", "reduce_bias", "norm_weight", "norm_bias", "span_weight", "span_bias",
    "project_weight", "project_bias", "project_norm_weight", "project_norm_bias",
)  # fmt: skip
"""The parameters of a block, in order."""


class FoldedNorm(NamedTuple):
    """A batch norm as ``scale * z + shift``; float64 arrays (C,)."""

    mean: Array
    inverse: Any  # 1 / standard deviation
    scale: Any
    shift: Any
    batch: bool  # whether the moments are the batch's own, so that gradients go through them

    @classmethod
    def of(
        cls, weight: Array, bias: Array, moments: tuple[Any, Any], eps: float, batch: bool
    ) -> FoldedNorm:
        """From the parameters and (mean, variance)."""
        mean, var = moments
        inverse = (var.astype(np.float64, copy=False) + eps) ** -0.5
        scale = weight * inverse
        return cls(mean, inverse, scale, bias - mean * scale, batch)

    def back(self, total: Array, total_x: Array, count: Any) -> tuple[Any, Any, Any]:
        """a, b, c of the gradient ``a * h + b * z + c``, from sum h and sum h * (z - mean)."""
        if not self.batch:
            return self.scale, 0 * total, 0 * total
        turned = -self.scale
        b = turned * self.inverse**2 * total_x / count
        return self.scale, b, turned * total / count - b * self.mean


@lru_cache(maxsize=512)
def _groups(
    shape: Shape, given: tuple[Shape, ...], moments: tuple[Shape, ...] | None, size: Shape
) -> int:
    """The number of groups; a ValueError names the first array whose shape does not fit.

    ``given`` are the shapes of the parameters, ``moments`` of three pairs (mean, variance) or None,
    ``shape`` that of x (N, C, H, W), ``size`` the kernel's.
    """
    channels, hidden, width, taps = shape[1], given[0][0], given[4][0], size[0] * size[1]
    groups = given[8][0] // taps
    wanted: list[Shape] = [(hidden, channels, 1, 1)]
    wanted += [(hidden,)] * 3 + [(width, hidden, 1, 1)] + [(width,)] * 3
    wanted += [(groups * taps, width, 1, 1), (groups * taps,)]
    wanted += [(channels, hidden, 1, 1)] + [(channels,)] * 3
    for name, actual, expected in zip(NAMES, given, wanted, strict=True):
        if actual != expected:
            raise ValueError(f"{name} must have shape {expected}, got {actual}")
    pairs = tuple((number,) for number in (hidden, width, channels) for _ in range(2))
    if moments not in (None, pairs):
        raise ValueError(f"moments must be three pairs of arrays of shapes {pairs}, got {moments}")
    if groups < 1 or hidden % groups:
        raise ValueError(
            f"expand_weight makes {hidden} channels, which the {groups} groups of span_weight "
            "do not divide: make them a multiple"
        )
    return groups


class Block:
    """The steps of one call, and what they hand on to the gradients. A norm's sums are float64."""

    def __init__(
        self, x: Array, parameters: tuple[Any, ...], size: Shape, dilation: IntOrTuple,
        eps: tuple[float, float, float], moments: tuple[Moments, Moments, Moments] | None,
        relu: bool, comm: Comm | None,
    ) -> None:  # fmt: skip
        self.xp, self.shape, self.comm = namespace(x), x.shape, comm
        self.work = self.working_dtype(x.dtype)
        # The CPU has sums in float64 anyhow; on the way to other ranks they stay as exact.
        self.exact = self.work if comm is None or is_cupy(x) else np.dtype(np.float64)
        n, c, h, w = x.shape
        self.here = self.count = n * h * w  # values per channel: of this rank, of the batch
        given = None if moments is None else tuple(m.shape for m in chain(*moments))
        shapes = tuple(p.shape for p in parameters)
        self.groups = _groups(x.shape, shapes, given, size)
        if 0 in x.shape[comm is not None :]:
            raise ValueError(f"x must not be empty, got shape {x.shape}")
        with on_device(x):
            self.x = contiguous(x, self.work)
        kernel_shape = (n, self.groups, *size, h, w)
        self.g = Geometry.of((n, self.groups * c, h, w), kernel_shape, 1, "same", dilation)
        self.eps = tuple(number("eps", each, 0) for each in eps)
        self.parameters, self.given, self.relu = parameters, moments, relu

    @staticmethod
    def working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
        return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)

    def backend(self, op: str) -> Any:
        return backends.of(op, self.x) if self.here else backends.NOTHING

    def new(self, channels: int) -> Any:
        """An array (N, channels, H, W) to be filled."""
        n, _, h, w = self.shape
        return empty((n, channels, h, w), self.work, self.x)

    def filled(self, op: str, *arguments: Any) -> Any:
        """An array of the shape of x that the backend fills."""
        out = self.new(self.shape[1])
        self.backend(op).forward(*arguments, out)
        return out

    def channel(self, *arrays: Any) -> list[Any]:
        """Per-channel arrays in the dtype that the backends take them."""
        return [contiguous(array, self.work) for array in arrays]

    def forward(self, recompute: bool) -> Any:
        """The value, leaving behind ``moments``, the folded norms, and what backward needs."""
        self.held = None
        if self.given is not None:
            self.moments = self.given
            with on_device(self.x):
                parameters, moments = self.channel(*self.parameters), chain(*self.given)
                return self.filled(
                    "involution_block", self.x, parameters, self.channel(*moments), self.eps,
                    self.relu, self.g,
                )  # fmt: skip
        w1, b1 = self.prepare()
        self.center, covariance, self.scatter = self.spread()
        b1 = w1 @ self.center + b1
        first = b1, ((w1 @ covariance) * w1).sum(axis=1)
        self.fold(w1, b1, first)
        reduced, shares = self.perceive(self.centered())
        if not recompute:
            self.held = reduced, shares
        second = self.measure(reduced)
        self.norm2 = self.norm(1, second)
        self.projected = self.involve(reduced, shares)
        third = self.measure(self.projected)
        self.norm3 = self.norm(2, third)
        self.moments = first, second, third
        value = self.last()
        value += self.x
        return value

    def prepare(self) -> tuple[Any, Any]:
        """The parameters as the steps take them; expand's, exact."""
        both = zip(self.parameters[::2], self.parameters[1::2], strict=True)
        (w1, b1), first, reduce, second, span, project, third = both
        self.norms = first, second, third
        with on_device(self.x):
            self.reduce, self.span, self.project = (
                self.channel(weight.reshape(len(weight), -1), bias)
                for weight, bias in (reduce, span, project)
            )
            self.expand = w1.reshape(len(w1), -1).astype(np.float64), b1.astype(np.float64)
        return self.expand

    def norm(self, number: int, moments: Moments) -> FoldedNorm:
        weight, bias = self.norms[number]
        return FoldedNorm.of(weight, bias, moments, self.eps[number], self.given is None)

    def fold(self, w1: Array, b1: Array, moments: Moments) -> None:
        """The first norm into expand."""
        self.norm1 = norm = self.norm(0, moments)
        first, offset = self.channel(norm.scale[:, None] * w1, norm.shift + norm.scale * b1)
        dense, bias = self.reduce
        self.weights = Perceptron(first, offset, dense, bias, self.project[0])

    def backward(self, grad: Array) -> list[Any]:
        """The gradients of x and of all parameters, in the order of the arguments."""
        with on_device(self.x):
            return self.backward_here(contiguous(grad, self.work))

    def backward_here(self, grad: Array) -> list[Any]:
        """Backwards through the steps of :meth:`forward`."""
        if self.given is not None:  # nothing has been made yet
            self.fold(*self.prepare(), self.given[0])
            self.norm2, self.norm3 = self.norm(1, self.given[1]), self.norm(2, self.given[2])
        c, x, zeros = self.shape[1], self.centered(), self.xp.zeros
        reduced, shares = self.held or self.perceive(x)
        if self.given is not None:
            self.projected = self.involve(reduced, shares)
        passed = self.last() if self.relu else None
        grad_z, *last = self.norm_back(self.norm3, grad, self.projected, passed)
        grad_shares, grad_normed = self.new(self.groups * c), self.new(reduced.shape[1])
        grad_span = [zeros(p.shape, np.float64) for p in self.span]
        self.backend("involution_sum").backward(
            grad_z, shares, reduced, *self.channel(self.norm2.scale, self.norm2.shift), *self.span,
            self.g, grad_shares, grad_normed, *grad_span,
        )  # fmt: skip
        grad_reduced, *middle = self.norm_back(self.norm2, grad_normed, reduced, None)
        grad_x = self.new(c)
        grads = Perceptron(*(zeros(weight.shape, np.float64) for weight in self.weights))
        self.backend("perceptron").backward(
            *map(flat, (grad_reduced, grad_shares, x)), self.weights, self.groups, flat(grad_x),
            grads,
        )  # fmt: skip

        # The norm that is folded into first and offset; x here is x - center.
        (w1, b1), norm, total = self.expand, self.norm1, grads.offset
        total_x = (w1 * grads.first).sum(axis=1)
        a, b, shift = self.coefficients(norm, total, total_x)
        grad_expand = a[:, None] * grads.first
        if self.given is None:
            grad_expand = grad_expand + b[:, None] * (w1 @ self.scatter)
            # of z = w1 @ (x - center), whose mean is 0
            more = self.channel(w1.T @ (b[:, None] * w1), w1.T @ (shift + b * norm.mean))
            change = self.new(c)
            self.backend("pointwise").forward(flat(x), *more, flat(change))
            grad_x += change
            grad_expand_bias = grad_project_bias = 0
        else:
            total_x = total_x + total * (b1 - norm.mean)
            grad_expand_bias, grad_project_bias = a * total, self.norm3.scale * last[1]
        grad_x += grad
        return [
            grad_x, grad_expand, zeros(len(w1)) + grad_expand_bias, total_x * norm.inverse, total,
            grads.dense, grads.bias, *middle, *grad_span, grads.grouped,
            zeros(c) + grad_project_bias, *last,
        ]  # fmt: skip

    def spread(self) -> tuple[Any, Any, Any]:
        """Mean and covariance of the batch; this rank's sum of products of distances from it."""
        mean, c = self.moments_here(self.x)[0].astype(np.float64), self.shape[1]
        here = self.xp.zeros((c, c), np.float64)
        self.backend("perceptron").covariance(flat(self.x), mean, here)
        if self.comm is None:
            return mean, here, here * self.here
        self.count, center, covariance = merge(self.comm, self.here, mean, here)
        center = center.astype(self.work).astype(np.float64)  # as it is taken from x
        apart = mean - center
        return center, covariance, (here + apart[:, None] * apart) * self.here

    def measure(self, z: Array) -> Moments:
        """Mean and variance of each channel in the batch."""
        mean, var = self.moments_here(z)
        if self.comm is not None:
            self.count, mean, var = merge(self.comm, self.here, mean, var)
        return mean.astype(self.work), var.astype(self.work)

    def moments_here(self, z: Array) -> Moments:
        """Mean and variance of each channel in this rank's share."""
        mean, var = self.xp.zeros((2, z.shape[1]), self.exact)
        self.backend("batch_norm").moments(z, mean, var)
        return mean, var

    def centered(self) -> Any:
        """x without its mean, where the norm's moments are the batch's."""
        if self.given is not None:
            return self.x
        one, shift = self.channel(self.xp.ones(self.shape[1]), -self.center)
        return self.filled("batch_norm", self.x, one, shift, None, False)

    def perceive(self, x: Array) -> tuple[Any, Any]:
        """What reduce and project, by group, see of the hidden layer."""
        results = self.new(len(self.weights.dense)), self.new(self.groups * self.shape[1])
        forward = self.backend("perceptron").forward
        forward(flat(x), self.weights, self.groups, *map(flat, results))
        return results

    def involve(self, reduced: Array, shares: Array) -> Any:
        """The involution of the shares, added up: what project would have given."""
        folded = self.channel(self.norm2.scale, self.norm2.shift)
        parameters = *folded, *self.span, self.project[1]
        return self.filled("involution_sum", shares, reduced, *parameters, self.g)

    def last(self) -> Any:
        """``relu(norm(projected))``, with the last norm, and the ReLU if there is one."""
        folded = self.channel(self.norm3.scale, self.norm3.shift)
        return self.filled("batch_norm", self.projected, *folded, None, self.relu)

    def norm_back(
        self, norm: FoldedNorm, grad: Array, z: Array, out: Array | None
    ) -> tuple[Any, Any, Any]:
        """Gradients of z, and of the norm's weight and bias; ``out`` None if no ReLU follows."""
        backend, result = self.backend("batch_norm"), self.new(z.shape[1])
        sums = self.xp.zeros((2, z.shape[1]), self.exact)
        backend.grad_sums(grad, z, out, *self.channel(norm.mean), *sums)
        total, total_x = sums.astype(np.float64)
        factors = self.channel(*self.coefficients(norm, total, total_x))
        backend.grad_x(grad, z, out, *factors, result, None)
        return result, total_x * norm.inverse, total

    def coefficients(self, norm: FoldedNorm, total: Array, total_x: Array) -> tuple[Any, Any, Any]:
        """``norm.back`` for the sums of the batch, of which the given ones are a share."""
        if self.comm is not None:
            total, total_x = allreduce_sum(self.comm, total, total_x)
        return norm.back(total, total_x, self.count)


def flat(z: Array) -> Any:
    """(N, C, H, W) as (N, C, P)."""
    return z.reshape(*z.shape[:2], z.shape[2] * z.shape[3])

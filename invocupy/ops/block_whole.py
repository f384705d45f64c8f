"""An involution block where a wing trains it in a few launches: on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from invocupy import backends
from invocupy.arrays import Array, is_cupy, on_device
from invocupy.backends.memory import empty
from invocupy.backends.signatures import Kept
from invocupy.geometry import IntOrTuple, Shape, per_axis
from invocupy.ops.block_steps import Block, Moments


class WholeBlock(Block):
    """The wing takes forward and backward as one each; nothing is computed again."""

    @staticmethod
    def working_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
        return dtype

    def forward(self, recompute: bool) -> Any:
        with on_device(self.x):
            self.operands = self.channel(*self.parameters)
            c, d, f = self.shape[1], len(self.operands[0]), len(self.operands[4])
            parts, sums = Kept.statistics(c, d, f), super().working_dtype(self.work)
            stats = empty((parts[-1].stop,), sums, self.x)
            self.kept = Kept(self.new(f), self.new(self.groups * c), self.new(c), stats)
            value = self.new(c)
            self.backend("involution_block").train(
                self.x, self.operands, self.eps, self.relu, self.g, value, self.kept
            )
        pairs = zip(parts[2::2], parts[3::2], strict=True)
        self.moments: Any = BatchMoments((stats[mean], stats[var]) for mean, var in pairs)
        self.moments.stats = stats
        return value

    def backward_here(self, grad: Array) -> list[Any]:
        grads = [empty(p.shape, self.work, self.x) for p in self.operands]
        grad_x = self.new(self.shape[1])
        self.backend("involution_block").gradients(
            grad, self.x, self.operands, self.kept, self.eps, self.relu, self.g, grad_x, grads
        )
        return [grad_x, *grads]


class BatchMoments(tuple[Moments, ...]):
    """Mean and variance of the three norms; where one array has them all, that is ``stats``."""

    stats: Any = None


def runs_whole(x: Array, *parameters: Array, kernel_size: Shape, dilation: IntOrTuple) -> bool:
    """Whether a wing has :func:`involution_block` for this dtype and these sizes."""
    if not is_cupy(x):
        return x.dtype in (np.float32, np.float64)
    from invocupy.backends.cuda.involution_block import Sizes

    hidden, reduced, span = (len(parameters[i]) for i in (0, 4, 8))
    reach, itemsize = per_axis("dilation", dilation, 1), 8 if x.itemsize == 8 else 4
    groups = span // prod(kernel_size)
    return Sizes(x.shape[1], hidden, reduced, groups, kernel_size, reach, itemsize).fit()


def running_statistics(
    old: Sequence[tuple[Array, ...]], moments: Any, momenta: Sequence[float], count: Any,
    new: Sequence[tuple[Array, ...]],
) -> None:  # fmt: skip
    """Fill ``new``, (mean, variance, number of batches) of the three norms, from those before."""
    stats = moments.stats
    unbiased = count / max(count - 1, 1)
    backends.of("involution_block", stats).running(stats, old, list(momenta), unbiased, new)

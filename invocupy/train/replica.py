"""A step of training that several ranks do together: shares of a batch, one message, one weight."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from invocupy import nn
from invocupy.arrays import namespace, on_device, to_device
from invocupy.autograd import Tensor
from invocupy.distributed import Comm, share, synchronise
from invocupy.train.run import Run

_ALIGNED = 64  # elements: kernels may load several at a time


class Part(NamedTuple):
    """The rows of a batch that this rank takes through the model at a time."""

    first: int  # within the batch
    last: int
    alone: bool  # whether all ranks take them, and only those of rank 0 count


def parts(count: int, size: int, comm: Comm) -> list[Part]:
    """How a rank cuts a batch of ``count`` images that all ranks take in parts of ``size``.

    A part is cut over the ranks, as batch norm sees it whole. One with fewer images than ranks is
    taken by all of them, each for itself: a rank without images could not follow the others.

    Examples
    --------
    >>> from invocupy.distributed import Single
    >>> [tuple(part) for part in parts(10, 4, Single())]
    [(0, 4, False), (4, 8, False), (8, 10, False)]
    """
    found = []
    for start in range(0, count, size):
        images = min(size, count - start)
        alone = images < comm.size
        first, last = (0, images) if alone else share(images, comm)
        found.append(Part(start + first, start + last, alone))
    return found


def rows(count: int, size: int, comm: Comm) -> NDArray[np.int64]:
    """The positions of the rows of all :func:`parts`, in their order."""
    return np.concatenate([np.arange(p.first, p.last) for p in parts(count, size, comm)])


@contextmanager
def norms_apart(run: Run) -> Iterator[None]:
    """Within it batch norm sees what this rank computes, whatever the run's norms see else."""
    if not run.config.sync_norm:
        yield
        return
    synchronise(run.model, None)
    try:
        yield
    finally:
        synchronise(run.model, run.comm)


class Message:
    """The gradients of a model and a few numbers in one flat array, to be summed over the ranks.

    A gradient that is missing on some ranks counts as zero there; one that is missing on all of
    them stays missing.

    Parameters
    ----------
    params : list of Parameter
        On one device.
    numbers : int
        How many.
    comm : communicator
    """

    def __init__(self, params: list[Tensor], numbers: int, comm: Comm) -> None:
        self.params, self.comm, self.places = params, comm, []
        # Behind the numbers, on how many ranks each parameter has a gradient.
        self.counts = slice(numbers, numbers + len(params))
        end = -(-self.counts.stop // _ALIGNED) * _ALIGNED
        for parameter in params:
            self.places.append(slice(end, end + parameter.size))
            end += -(-parameter.size // _ALIGNED) * _ALIGNED
        # Half types would lose in the sum what the gradients still have.
        dtype = np.result_type(np.float32, *{p.dtype for p in params if p.dtype.itemsize == 8})
        first = params[0].data
        with on_device(first):
            self.buffer = namespace(first).zeros(end, dtype)

    def sum(self, *numbers: Any) -> Any:
        """Make each gradient its sum over the ranks; the sums of the numbers, as an array."""
        missing = [i for i, parameter in enumerate(self.params) if parameter.grad is None]
        with on_device(self.buffer):
            for i, number in enumerate(numbers):
                self.buffer[i] = number
            self.buffer[self.counts] = 1
            for i in missing:
                self.buffer[self.counts.start + i] = 0
            for parameter, place in zip(self.params, self.places, strict=True):
                self.buffer[place] = 0 if parameter.grad is None else parameter.grad.reshape(-1)
            self.comm.allreduce_sum(self.buffer)
            # Only a rank that lacks a gradient has to know who has one; on a GPU it waits for that.
            counts = to_device(self.buffer[self.counts], "cpu") if missing else ()
            nowhere = {i for i in missing if not counts[i]}
            for i, (parameter, place) in enumerate(zip(self.params, self.places, strict=True)):
                if i not in nowhere:
                    total = self.buffer[place].reshape(parameter.shape)
                    parameter.grad = total.astype(parameter.dtype, copy=False)
            return self.buffer[: len(numbers)].copy()


def average_norms(run: Run) -> None:
    """Average the running statistics over the ranks where each has its own."""
    if run.comm.size == 1 or run.config.sync_norm:
        return
    averages = run.average.arrays if run.average is not None else {}
    for name, holder in run.model.named_state():
        if isinstance(holder, nn.Buffer) and holder.data.dtype.kind == "f":
            holder.data = _mean(holder.data, run.comm)
            if name in averages:
                averages[name] = _mean(averages[name], run.comm)


def _mean(array: Any, comm: Comm) -> Any:
    with on_device(array):
        return comm.allgather(array).mean(axis=0, dtype=np.float64).astype(array.dtype)


def digest(model: nn.Module) -> str:
    """Of all parameters and buffers, to the bit."""
    found = hashlib.sha256()
    for array in model.state_dict().values():
        found.update(array.tobytes())
    return found.hexdigest()

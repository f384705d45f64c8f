"""Cooperation of the ranks in training; the loop calls its ``Replica``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from invocupy import nn
from invocupy._version import __version__
from invocupy.arrays import Array, namespace, on_device, to_device
from invocupy.autograd import Tensor
from invocupy.distributed import Comm, Single, agree, share, synchronise, together
from invocupy.train.config import Config, ConfigError
from invocupy.train.setup import pick_device

T = TypeVar("T")
_ALIGNED = 64  # elements: kernels may load several at a time


class Part(NamedTuple):
    """Rows of a batch that this process computes at a time."""

    first: int  # within the batch
    last: int
    shared: bool  # whether all ranks take the same rows
    counts: bool  # whether these are the ones that count


class Replica:
    """This process among the ranks. A single process sends nothing: every method is the identity.

    Raises ConfigError if the ranks' device is not that of the settings.
    """

    def __init__(self, comm: Comm | None, config: Config) -> None:
        if comm is None or comm.size == 1:
            comm = Single(pick_device(config.device))
        elif config.device not in ("auto", comm.device.partition(":")[0]):
            raise ConfigError(
                f"device is {config.device}, but the ranks compute on {comm.device}: give the "
                "communicator that invocupy.distributed.with_gpus makes for that device"
            )
        self.comm, self.config = comm, config
        self.alone, self.is_root = comm.size == 1, comm.rank == 0
        self.grace = 0.0 if self.alone else 1.0  # seconds in which launchers repeat one Ctrl-C
        self._norms = comm if config.sync_norm else None
        self._message: Message | None = None

    def together(self) -> AbstractContextManager[None]:
        """A context in which one rank may fail alone: at its end all ranks continue, or none."""
        return nullcontext() if self.alone else together(self.comm)

    def check(self, model: nn.Module, resume: bool) -> None:
        """Number the dropout; refuse ranks with other settings, versions or parameters."""
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.rank = self.comm.rank
        if not self.alone:
            shapes = [[name, list(p.shape), str(p.dtype)] for name, p in model.named_parameters()]
            settings = asdict(self.config)
            agree(self.comm, version=__version__, **settings, resume=resume, parameters=shapes)

    def root_first(self, function: Callable[[], T]) -> T:
        """The result of a function that rank 0 calls first, since it may download."""
        for turn in (self.is_root, not self.is_root):
            with self.together():
                if turn:
                    found = function()
        return found

    def from_root(self, value: T) -> T:
        """A small value of rank 0, sent as JSON."""
        found: T = self.comm.exchange(value if self.is_root else None)[0]
        return found

    def broadcast(self, array: Array) -> Array:
        """The array of rank 0."""
        if self.alone:
            return array
        # A copy: the array may be held by somebody.
        with on_device(array):
            copy: Array = namespace(array).array(array, order="C")
            self.comm.broadcast(copy)
        return copy

    def rows(self) -> Callable[[int], NDArray[np.int64]] | None:
        """The rows of a batch of a given size that this rank needs; None for all."""
        if self.alone:
            return None
        return lambda count: np.concatenate([np.arange(p.first, p.last) for p in self.split(count)])

    def split(self, images: int) -> list[Part]:
        """The parts in which this process computes a batch of ``images`` images.

        A part is split over the ranks, and batch norm sees it whole. A part with fewer images than
        ranks is computed by every rank alone, since a rank without images could not take part.
        """
        found = []
        for start in range(0, images, self.config.part):
            count = min(self.config.part, images - start)
            shared = count < self.comm.size
            first, last = (0, count) if shared else share(count, self.comm)
            found.append(Part(start + first, start + last, shared, self.is_root or not shared))
        return found

    def smallest(self, images: int) -> int:
        """The fewest images that a norm may see, in an epoch of so many."""
        batch, alone = self.config.batch_size, self.alone or not self.config.sync_norm
        parts = (p for n in {min(batch, images), images % batch} for p in self.split(n))
        return min((p.last - p.first for p in parts if alone or p.shared), default=2)

    def reduce(
        self, params: Sequence[Tensor], numbers: tuple[Any, ...], asked: bool
    ) -> tuple[Any, ...]:
        """Sum numbers and gradients over the ranks; also the number of ranks asked to stop."""
        if self.alone:
            return numbers
        if self._message is None:
            self._message = Message(params, len(numbers) + 1, self.comm)
        return tuple(self._message.sum(*numbers, asked))

    def stops(self, asked: bool) -> bool:
        """Whether to stop at once; several ranks stop together, by the sum of :meth:`reduce`."""
        return asked and self.alone

    def joins(self, model: nn.Module) -> bool:
        """Whether batch norms of a model exchange messages in each step."""
        if self.alone or self._norms is None:
            return False
        return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())

    @contextmanager
    def norms(self, model: nn.Module, apart: bool = False) -> Iterator[None]:
        """A context in which batch norms use the batches of all ranks, if so configured.

        ``apart``: within such a context, this rank computes alone.
        """
        inside, after = (None, self._norms) if apart else (self._norms, None)
        if not self.alone:
            synchronise(model, inside)
        try:
            yield
        finally:
            if not self.alone:
                synchronise(model, after)

    def average_norms(self, model: nn.Module, averages: MutableMapping[str, Array]) -> None:
        """Average the running statistics over the ranks where each has its own."""
        if self.alone or self.config.sync_norm:
            return
        for name, holder in model.named_state():
            if isinstance(holder, nn.Buffer) and holder.data.dtype.kind == "f":
                holder.data = self._mean(holder.data)
                if name in averages:  # in place: CUDA graphs know where they are
                    averages[name][...] = self._mean(averages[name])

    def _mean(self, array: Any) -> Any:
        with on_device(array):
            mean = self.comm.allgather(array).mean(axis=0, dtype=np.float64)
            return mean.astype(array.dtype)

    def same(
        self, model: nn.Module, row: dict[str, Any], stop: bool, asked: bool
    ) -> tuple[dict[str, Any], bool, bool]:
        """The epoch's line, whether the run ends and whether it pauses, as all ranks see it."""
        if self.alone:
            return row, stop, False
        digest = hashlib.sha256()
        for array in model.state_dict().values():
            digest.update(array.tobytes())
        mine = {"weights": digest.hexdigest(), "stop": stop, "asked": asked}
        answers = self.comm.exchange({**mine, "row": row if self.is_root else None})
        row = answers[0]["row"]
        for rank, answer in enumerate(answers):
            if answer["weights"] != answers[0]["weights"]:
                raise RuntimeError(
                    f"the weights of rank {rank} are not those of rank 0 after epoch "
                    f"{row['epoch']}: a function given to fit changes the model on some ranks "
                    "only, or a machine computes wrong numbers"
                )
        ends, pauses = (any(answer[key] for answer in answers) for key in ("stop", "asked"))
        return row, ends, pauses


class Message:
    """The gradients of a model and a few numbers in one flat array, to be summed over the ranks.

    A gradient that is missing on some ranks is zero there; one that is missing on all ranks stays
    missing.
    """

    def __init__(self, params: Sequence[Tensor], numbers: int, comm: Comm) -> None:
        self.params, self.comm = params, comm
        # Behind the numbers, on how many ranks each parameter has a gradient.
        self.counts = slice(numbers, numbers + len(params))
        sizes = [self.counts.stop, *(parameter.size for parameter in params)]
        *starts, end = np.cumsum([-(-size // _ALIGNED) * _ALIGNED for size in sizes]).tolist()
        self.places = [slice(i, i + p.size) for i, p in zip(starts, params, strict=True)]
        # In half types the sum would lose precision.
        dtype = np.result_type(np.float32, *{p.dtype for p in params if p.dtype.itemsize == 8})
        first = params[0].data
        with on_device(first):
            self.buffer = namespace(first).zeros(end, dtype)
        # The same arrays in each step: CUDA graphs read them.
        places = zip(params, self.places, strict=True)
        self.sums = [self.buffer[place].reshape(p.shape) for p, place in places]

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
            for i, (parameter, total) in enumerate(zip(self.params, self.sums, strict=True)):
                if i not in nowhere:
                    parameter.grad = total.astype(parameter.dtype, copy=False)
            return self.buffer[: len(numbers)].copy()

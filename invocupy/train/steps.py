"""How the steps of a run are computed: one operation after another, or as CUDA graphs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from invocupy import functional as F  # noqa: N812
from invocupy import nn, optim
from invocupy.arrays import Array, is_cupy, namespace
from invocupy.autograd import Tensor
from invocupy.data import Batches
from invocupy.messages import one_line
from invocupy.settings import flag
from invocupy.train.evaluation import logits_of
from invocupy.train.run import Run

_CHANGES = 3  # of options that graphs depend on; after more, steps run without graphs


class Steps:
    """A step is :meth:`gradients`, :meth:`reduce`, :meth:`clip`, and then :meth:`update`."""

    def __init__(self, run: Run, batches: Batches) -> None:
        self.run, self.batches = run, batches

    @contextmanager
    def running(self) -> Iterator[None]:
        """The context of all steps and of what the run does between them."""
        yield

    def look(self) -> None:
        """Check whether hooks have changed the model or the optimiser."""

    def gradients(self, sheet: Array, images: int) -> tuple[Any, Any]:
        """Compute the gradients of a batch; returns its loss and number of correct answers.

        ``sheet`` is one of :meth:`Batches.sheets`: this rank's share of a batch of ``images``. Each
        image has the weight 1 / images, on any rank. The settings say how many parts a share has.
        """
        x, labels = self.batches.take(sheet)
        run, loss_sum, correct_sum, start = self.run, 0.0, 0, 0
        run.optimiser.zero_grad()
        for part in run.replica.split(images):
            end = start + part.last - part.first
            share, answers = x[start:end], labels[start:end]
            with run.replica.norms(run.model, apart=True) if part.shared else nullcontext():
                logits = logits_of(run.model, Tensor(share))
                loss = F.cross_entropy(
                    logits, answers, run.config.label_smoothing, ignore_index=None
                )
                if len(share) < images or not part.counts:
                    loss = loss * (part.counts * len(share) / images)
                loss.backward()
            loss_sum = loss_sum + loss.data
            if part.counts:
                correct_sum = correct_sum + (logits.data.argmax(axis=1) == answers).sum()
            del logits, loss  # the next part reuses the memory of their graph
            start = end
        return loss_sum, correct_sum

    def reduce(self, numbers: tuple[Any, ...], asked: bool) -> tuple[Any, ...]:
        """Sum numbers and gradients over the ranks, as :meth:`Replica.reduce`."""
        return self.run.replica.reduce(self.run.optimiser.params, numbers, asked)

    def clip(self) -> None:
        """Clip the gradients, if the settings say so."""
        if self.run.config.clip_norm is not None:
            optim.clip_by_norm(self.run.optimiser.params, self.run.config.clip_norm)

    def update(self) -> None:
        """Update the parameters and their averages."""
        self.run.optimiser.step()
        self.run.average.update(self.run.model, self.run.done)


class _Shape:
    """What is recorded for batches of one shape."""

    def __init__(self, sheet: Array) -> None:
        self.sheet = sheet.copy()  # the sheet of each step is copied here
        self.warm = False  # whether a step has run, which compiles everything
        self.starts: dict[str, tuple[Callable[[], None], Any]] = {}
        self.grads: dict[str, list[Any]] = {}  # as they are after each part, of its own memory
        self.velocities: list[Any] = []  # that the recorded update changes


class GraphSteps(Steps):
    """Each part of a step is recorded at the second batch of a shape; later steps only launch it.

    Parameters, velocities, running statistics and averages keep their memory; learning rates,
    momenta, weight decay and the share of the averages are numbers on the device. An array that
    replaces one of them between two parts of a step is copied into it. If something cannot be
    recorded, one warning says why, and the run continues without graphs.
    """

    def __init__(self, run: Run, batches: Batches) -> None:
        from invocupy.backends.cuda.graph import Recorder

        super().__init__(run, batches)
        self.recorder, self.ended = Recorder(), False
        self.shapes: dict[tuple[int, int], _Shape] = {}
        self.shape: Any = None
        self.holders: dict[int, tuple[Any, Array]] = {}
        self.as_recorded: Any = None
        self.changes = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        with self.recorder.current():
            self.fix()
            try:
                yield
            finally:
                self.loosen()

    def fix(self) -> None:
        """Copy all state to memory of its own, where it stays."""
        run, xp = self.run, namespace(self.batches.images)
        for _, holder in run.model.named_state():
            if isinstance(holder, nn.Buffer):
                holder.fixed = True
            holder.data = holder.data.copy()
            self.holders[id(holder)] = holder, holder.data
        self.written = np.zeros((len(run.optimiser.groups), 3))
        run.optimiser.numbers = xp.zeros(self.written.shape, np.float64)
        self.share_written, self.share = 0.0, xp.zeros(1, np.float64)

    def loosen(self) -> None:
        """Undo :meth:`fix`."""
        self.run.optimiser.numbers = None
        for holder, _ in self.holders.values():
            if isinstance(holder, nn.Buffer):
                holder.fixed = False

    def settle(self) -> None:
        """Copy arrays that have replaced fixed ones into these."""
        for key, (holder, array) in self.holders.items():
            data = holder.data
            if data is array:
                continue
            if is_cupy(data) and (data.shape, data.dtype) == (array.shape, array.dtype):
                array[...] = data
                holder.data = array
            else:
                holder.data = data.copy()
                self.holders[key] = holder, holder.data
                self.forget()

    def look(self) -> None:
        optimiser = self.run.optimiser
        found = [
            *(optimiser.options(group)[1] for group in optimiser.groups),
            [parameter.requires_grad for parameter in optimiser.params],
            *map(_plain, self.run.model.modules()),
        ]
        if found != self.as_recorded:
            self.forget()
            self.changes += 1
        self.as_recorded = found
        if self.changes > 1 + _CHANGES:
            self.give_up("options of the optimiser or of layers keep changing")

    def gradients(self, sheet: Array, images: int) -> tuple[Any, Any]:
        self.settle()
        key = len(sheet), images
        self.shape = self.shapes.get(key) or self.shapes.setdefault(key, _Shape(sheet))
        self.shape.sheet[...] = sheet

        def work() -> Any:
            result = super(GraphSteps, self).gradients(self.shape.sheet, images)
            self.settle()  # arrays that a user's model has replaced
            return result

        loss, correct = self._do("gradients", work)
        return loss.copy(), correct.copy()

    def reduce(self, numbers: tuple[Any, ...], asked: bool) -> tuple[Any, ...]:
        """Ranks exchange their message between two graphs; the next ones read what it leaves."""
        numbers = super().reduce(numbers, asked)
        grads, params = self.shape.grads, self.run.optimiser.params
        if not self.run.replica.alone and "gradients" in grads:
            mine = [p.grad for p in params]
            if _refilled(kept := grads.setdefault("reduced", mine), mine):
                _give(params, kept)
            else:
                self.forget()
        return numbers

    def clip(self) -> None:
        if self.run.config.clip_norm is not None:
            self._do("clip", super().clip)

    def update(self) -> None:
        self.settle()
        optimiser, average = self.run.optimiser, self.run.average
        now = np.array([optimiser.options(group)[0] for group in optimiser.groups])
        for place in np.argwhere(now != self.written).tolist():
            optimiser.numbers[*place, None].fill(now[*place])  # type: ignore[index]
        self.written = now
        share = average.share(self.run.done)
        if average.arrays and share != self.share_written:
            self.share.fill(share)
            self.share_written = share

        def work() -> None:
            optimiser.step()
            average.update(self.run.model, self.run.done, self.share)

        if self._has_state():
            self._do("update", work)
        else:
            work()
        self.shape.warm = True

    def give_up(self, reason: str) -> None:
        """Warn, and compute all further steps without graphs."""
        if not self.ended:
            without(reason)
        self.ended = True
        self.forget()

    def forget(self) -> None:
        """Drop all that was recorded."""
        for shape in self.shapes.values():
            shape.warm = False
        self.shapes.clear()

    def _do(self, name: str, work: Callable[[], Any]) -> Any:
        """Launch a part of a step; before that record it or, if that is impossible, just do it."""
        shape, params = self.shape, self.run.optimiser.params
        if self.ended or not shape.warm:
            return work()
        if name not in shape.starts:
            grads = [p.grad for p in params]
            try:
                shape.starts[name] = self.recorder.record(work)
            except Exception as error:
                for holder, array in self.holders.values():
                    holder.data = array
                _give(params, grads)
                self.give_up(one_line(error))
                return work()
            shape.grads[name] = [p.grad for p in params]
        start, result = shape.starts[name]
        start()
        _give(params, shape.grads[name])
        return result

    def _has_state(self) -> bool:
        """Whether the recorded update applies to the current gradients and velocities.

        Those that have replaced the recorded arrays are copied into these.
        """
        shape, optimiser = self.shape, self.run.optimiser
        last = "gradients" if self.run.replica.alone else "reduced"
        grads = shape.grads.get(last if self.run.config.clip_norm is None else "clip")
        if grads is None:  # this step uses no graphs
            return True
        velocities = optimiser.velocities
        if "update" not in shape.starts:
            moving = zip(velocities, optimiser.params, strict=True)
            momenta = optimiser.momentum, *(group.momentum for group in optimiser.groups)
            if any(momenta) and any(v is None and p.grad is not None for v, p in moving):
                return False  # the first velocity is computed by another formula
            shape.velocities = [*velocities]
        mine = [p.grad for p in optimiser.params]
        if not _refilled([*grads, *shape.velocities], [*mine, *velocities]):
            return False
        optimiser.velocities = [*shape.velocities]
        _give(optimiser.params, grads)
        return True


def _refilled(kept: Sequence[Any], arrays: Sequence[Any]) -> bool:
    """Copy arrays that have replaced those of a graph into these; False if one does not fit."""
    new = [(old, one) for old, one in zip(kept, arrays, strict=True) if one is not old]
    if any(a is None or b is None or (a.shape, a.dtype) != (b.shape, b.dtype) for a, b in new):
        return False
    for old, one in new:
        old[...] = one
    return True


def _give(params: Sequence[Tensor], grads: Sequence[Any]) -> None:
    for parameter, grad in zip(params, grads, strict=True):
        parameter.grad = grad


def steps_of(run: Run, batches: Batches) -> Steps:
    """Steps with or without graphs, as the settings say; a warning if graphs are impossible."""
    graph, on_gpu = run.config.graph, is_cupy(batches.images)
    own = (m for m in run.model.modules() if not type(m).__module__.startswith("invocupy."))
    reason = ""
    if not on_gpu:
        reason = "the run computes on the CPU" if graph is True else ""
    elif run.replica.joins(run.model):
        reason = (
            "batch norms of several ranks exchange messages within it; with sync_norm=False each "
            "rank normalises its own share"
        )
    elif flag("INVOCUPY_CUDA_SYNC"):
        reason = "INVOCUPY_CUDA_SYNC=1 waits after each launch"
    elif graph == "auto" and (module := next(own, None)) is not None:
        reason = (
            f"{type(module).__name__} is a module of your own, which may do different work in each "
            "step; graph=True records what it does in the second step"
        )
    if graph is False or reason or not on_gpu:
        if graph is not False and reason:
            without(reason)
        return Steps(run, batches)
    return GraphSteps(run, batches)


def without(reason: str) -> None:
    """Warn that the steps run without a graph."""
    warnings.warn(f"the steps run without a CUDA graph: {reason}", RuntimeWarning, stacklevel=2)


def _plain(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are numbers or text, which decide what it computes."""
    kinds = (bool, int, float, str, type(None))
    held = vars(module) | {"training": module.training}
    return {
        name: value for name, value in held.items()
        if all(isinstance(v, kinds) for v in (value if isinstance(value, tuple) else [value]))
    }  # fmt: skip

"""The training loop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from invocupy import data, nn, optim
from invocupy import functional as F  # noqa: N812
from invocupy.arrays import is_cupy, namespace, on_device, to_device
from invocupy.autograd import Tensor
from invocupy.train.average import Average
from invocupy.train.choices import DATASETS
from invocupy.train.config import Config
from invocupy.train.evaluation import evaluate, logits_of
from invocupy.train.memory import EVALUATION_BATCH, check_memory, estimate, free_memory
from invocupy.train.run import Row, Run
from invocupy.train.setup import augmentation, build, load_data, pick_device, rate

_READ_EVERY = 50  # steps between two looks at a GPU's losses: each look waits for it


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the step at hand was finished and saved."""


class Progress(NamedTuple):
    """Where a run stands: what :func:`fit` hands to its progress function."""

    epoch: int  # from 1
    epochs: int
    step: int  # done in this epoch, of ...
    steps: int
    loss: float  # means of this epoch so far; on a GPU as they were last read
    accuracy: float
    row: Row | None  # the epoch's line of metrics.jsonl, once it has ended


def fit(
    config: Config,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    model: nn.Module | None = None,
    before_update: Callable[[nn.Module, optim.SGD], object] | None = None,
    after_epoch: Callable[[nn.Module, Row], object] | None = None,
    testing: Callable[[int, int], object] | None = None,
) -> list[Row]:
    """Train a model; stop and go on as often as you like.

    Parameters
    ----------
    config : Config
    out : path, optional
        The run's folder, made if need be: ``config.json``, ``machine.json`` (versions and devices),
        ``metrics.jsonl`` (a line an epoch),
        ``last.safetensors`` (after each epoch, and when interrupted) and ``best.safetensors``
        (of the highest test accuracy). Without it nothing is written.
    resume : bool
        Go on from ``last.safetensors`` in ``out``. ``config`` must be the run's own, but for
        ``epochs``, ``patience``, ``accumulate``, ``data_dir`` and ``device``. With more epochs the
        schedule is that of the longer run, from the next step on.
    progress
        Called with a :class:`Progress` after each step and each epoch. Nothing is printed.
    model : Module, optional
        What to train, in place; by default :func:`build` makes it from ``config``. With
        ``config.ema`` it ends with the averaged weights.
    before_update
        Called with the model and the optimiser in each step, when the gradients are there (and
        clipped): look at them, change them, or set ``optimiser.lr``. On a GPU, whoever reads a
        number waits for it.
    after_epoch
        Called after each epoch's evaluation with the model, as it was evaluated, and the epoch's
        line, before that is written: what is added to the line (numbers, strings) is kept. The run
        stops if it returns True.
    testing
        Called in each evaluation with the batches of the test set that are done, and all of them.

    Returns
    -------
    list of dict
        The lines of ``metrics.jsonl``: ``epoch`` and ``step`` (done in all, from 1),
        ``train_loss``, ``train_accuracy`` (means over the epoch's batches as they were trained
        on), ``test_loss`` (None if it is not finite: a network of many involutions can blow up
        single images although it learns well), ``test_accuracy``, ``seconds`` and
        ``images_per_second`` (of the training alone), ``lr`` (of the last step).

    Raises
    ------
    ConfigError
        If ``out`` holds a run already, ``config`` contradicts the run to resume, the device is
        missing, or a step would not fit into its memory (not checked for a ``model`` of your own).
    invocupy.checkpoint.CheckpointError
        If there is no whole checkpoint to resume from.
    invocupy.data.DataError, invocupy.data.DownloadError
        As :func:`invocupy.data.cifar10`.
    NonFiniteLoss
        For the training loss. The checkpoints then hold the run before it went wrong.
    Interrupted
        In the main thread, for Ctrl-C: the step at hand is finished and saved first. A second
        Ctrl-C raises ``KeyboardInterrupt`` at once.

    Examples
    --------
    >>> from invocupy.train import Config, fit
    >>> history = fit(Config(layers=1, epochs=2, limit=20, batch_size=10, device="cpu"))
    >>> [(row["epoch"], row["step"]) for row in history]
    [(1, 2), (2, 4)]

    Hooks are plain functions; this one stops the run at the first epoch that is good enough:

    >>> def good_enough(model, row):
    ...     return row["test_accuracy"] >= 0.0
    >>> config = Config(layers=1, epochs=9, limit=20, batch_size=10, device="cpu")
    >>> len(fit(config, after_epoch=good_enough))
    1
    """
    dataset, device = DATASETS[config.dataset], pick_device(config.device)
    own = model is not None
    model = build(config) if model is None else model
    model.to(device)
    images, labels, *test = (
        to_device(array, device) for train in (True, False) for array in load_data(config, train)
    )
    batches = data.Batches(
        images, labels, config.batch_size,
        seed=config.seed, augment=augmentation(config), mean=dataset.mean, std=dataset.std,
    )  # fmt: skip
    optimiser = optim.SGD(
        model.parameters(), config.lr, config.momentum, config.weight_decay, config.nesterov,
        config.decay_biases,
    )  # fmt: skip
    if not own:
        check_memory(config, estimate(config, model)._replace(data=0), free_memory(device))
    average = Average(model, config.ema) if config.ema else None
    folder = None if out is None else Path(out)
    run = Run(config, folder, model, optimiser, len(batches), average)
    if resume:
        run.restore()
    run.begin(resume)

    # The checks of the loss are the guard; NumPy's warnings would only double them.
    with _interrupts() as asked, on_device(images), np.errstate(all="ignore"):

        def pause(*batches: int) -> None:
            if testing is not None and batches:
                testing(*batches)
            if asked():
                raise _Pause

        try:
            stop = False
            while run.state.epoch < config.epochs and not (stop or run.stalled()):
                _train_epoch(run, batches, progress, before_update, pause)
                with average.used_by(model) if average else nullcontext():
                    result = evaluate(
                        model, *test, mean=dataset.mean, std=dataset.std,
                        batch_size=EVALUATION_BATCH, progress=pause,
                    )  # fmt: skip
                    row = run.row(result, _rate(run, run.steps - 1))
                    if after_epoch is not None:
                        stop = after_epoch(model, row) is True
                run.end_epoch(row)
                if progress is not None:
                    means = row["train_loss"], row["train_accuracy"]
                    now = run.state.epoch, config.epochs, run.steps, run.steps
                    progress(Progress(*now, *means, row))
        except _Pause:
            run.save("last")
            number = run.state.epoch * run.steps + run.state.step
            raise Interrupted(
                f"interrupted in epoch {run.state.epoch + 1} after step {number}"
            ) from None
    if average:
        average.put_into(model)
    return run.state.history


def _train_epoch(
    run: Run,
    batches: data.Batches,
    progress: Callable[[Progress], None] | None,
    before_update: Callable[[nn.Module, optim.SGD], object] | None,
    pause: Callable[[], None],
) -> None:
    """Do the steps of the current epoch that are left."""
    model, optimiser, state = run.model.train(), run.optimiser, run.state
    unread: list[tuple[Any, Any, int]] = []  # loss, correct answers, images of each step
    clock = time.perf_counter()
    for x, labels in batches.epoch(state.epoch, state.step):
        optimiser.lr = _rate(run, state.step)
        optimiser.zero_grad()
        unread.append(_gradients(run, x, labels))
        state.step += 1
        # Read before the update: then parameters and gradients are those of the loss.
        if not is_cupy(x) or state.step % _READ_EVERY == 0 or state.step == run.steps:
            _read(run, unread)
        if run.config.clip_norm is not None:
            optim.clip_by_norm(optimiser.params, run.config.clip_norm)
        if before_update is not None:
            before_update(model, optimiser)
        optimiser.step()
        if run.average is not None:
            run.average.update(model, state.epoch * run.steps + state.step)
        now = time.perf_counter()
        state.seconds += now - clock
        clock = now
        if progress is not None:
            epochs = state.epoch + 1, run.config.epochs
            means = state.loss / max(state.images, 1), state.correct / max(state.images, 1)
            progress(Progress(*epochs, state.step, run.steps, *means, None))
        try:
            pause()
        except _Pause:
            _read(run, unread)
            raise


def _gradients(run: Run, x: Any, labels: Any) -> tuple[Any, Any, int]:
    """Leave the gradients of a batch in the parameters; its loss, correct answers and images.

    In as many parts as the settings say: each part's loss counts by its share of the images.
    """
    size = -(-run.config.batch_size // run.config.accumulate)
    loss_sum, correct_sum = 0.0, 0
    for start in range(0, len(x), size):
        part, answers = x[start : start + size], labels[start : start + size]
        logits = logits_of(run.model, Tensor(part))
        loss = F.cross_entropy(logits, answers, run.config.label_smoothing)
        if len(part) < len(x):
            loss = loss * (len(part) / len(x))
        loss.backward()
        loss_sum = loss_sum + loss.data
        correct_sum = correct_sum + (logits.data.argmax(axis=1) == answers).sum()
        del logits, loss  # their graph's memory serves the next part
    return loss_sum, correct_sum, len(x)


def _read(run: Run, unread: list[tuple[Any, Any, int]]) -> None:
    """Add steps to the epoch's sums; NonFiniteLoss if one of them has no finite loss."""
    if not unread:
        return
    xp = namespace(unread[0][0])
    losses, hits = (
        to_device(xp.stack([step[i] for step in unread]), "cpu").tolist() for i in (0, 1)
    )
    for ago, loss in zip(range(len(losses) - 1, -1, -1), losses, strict=True):
        if not np.isfinite(loss):
            raise run.non_finite(loss, run.state.step - ago)
    for (_, _, count), loss, correct in zip(unread, losses, hits, strict=True):
        run.state.images += count
        run.state.loss += loss * count
        run.state.correct += correct
    unread.clear()


def _rate(run: Run, step: int) -> float:
    """The learning rate in a step of the current epoch."""
    total = run.config.epochs * run.steps
    return rate(run.config, run.state.epoch * run.steps + step, total)


class _Pause(Exception):  # noqa: N818
    """Ctrl-C was pressed, and the run stands between two steps."""


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Within it the first Ctrl-C is only noted, the second one acts as ever."""
    before = signal.getsignal(signal.SIGINT)
    noted = False

    def note(*_: Any) -> None:
        nonlocal noted
        noted = True
        signal.signal(signal.SIGINT, before)

    if threading.current_thread() is threading.main_thread() and callable(before):
        signal.signal(signal.SIGINT, note)
        try:
            yield lambda: noted
        finally:
            signal.signal(signal.SIGINT, before)
    else:  # another thread's business, or switched off by the parent process
        yield lambda: False

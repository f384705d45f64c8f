"""The training loop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from invocupy import checkpoint, data, nn, optim
from invocupy import functional as F  # noqa: N812
from invocupy._version import __version__
from invocupy.arrays import is_cupy, namespace, on_device, to_device
from invocupy.autograd import Tensor
from invocupy.distributed import Comm, Single, agree, synchronise, together
from invocupy.paths import expand
from invocupy.train.average import Average
from invocupy.train.choices import DATASETS
from invocupy.train.config import Config, ConfigError
from invocupy.train.evaluation import check_model, evaluate, logits_of
from invocupy.train.interrupts import Interrupted, interrupts
from invocupy.train.lock import locked
from invocupy.train.needs import EVALUATION_BATCH, check_memory, estimate, free_memory
from invocupy.train.replica import Message, average_norms, digest, norms_apart, parts, rows
from invocupy.train.run import Row, Run, check_folder
from invocupy.train.setup import augmentation, build, load_data, pick_device, rate

_READ_EVERY = 50  # steps between two looks at a GPU's losses: each look waits for it
_ONE_CTRL_C = 1.0  # seconds in which launchers may hand on one Ctrl-C more than once


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
    comm: Comm | None = None,
) -> list[Row]:
    """Train a model; stop and go on as often as you like.

    Parameters
    ----------
    config : Config
    out : path, optional
        The run's folder, made if need be: ``config.json``, ``machine.json`` (versions and devices),
        ``metrics.jsonl`` (a line an epoch),
        ``last.safetensors`` (after each epoch, and when interrupted) and ``best.safetensors``
        (of the highest test accuracy). One process at a time trains in a folder; others may read
        it. Without it nothing is written.
    resume : bool
        Go on from ``last.safetensors`` in ``out``. ``config`` must be the run's own, but for
        ``epochs``, ``patience``, ``accumulate``, ``recompute``, ``data_dir`` and ``device``. With
        more epochs the schedule is that of the longer run, from the next step on. A ``model`` of
        your own has to be given again.
    progress
        Called with a :class:`Progress` after each step and each epoch. Nothing is printed.
    model : Module, optional
        What to train, in place; by default :func:`build` makes it from ``config``. With
        ``config.ema`` it ends with the averaged weights. Modules that are in evaluation mode stay
        so, for example frozen norms, unless the model itself is: then all of it is trained. At the
        end each module has its own mode again.
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
    comm : communicator, optional
        On each of several ranks (:mod:`invocupy.distributed`) that call this function together,
        with the same settings: each computes its share of every batch, and the result is that of a
        single process to rounding. Rank 0 alone writes to ``out``, and alone reads it to resume,
        also what another number of ranks has written. Each calls its own functions; a run stops if
        ``after_epoch`` returns True on one of them, and the line is that of rank 0.

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
    TypeError
        If ``config`` is no Config, ``model`` no module, or a hook no function.
    ConfigError
        If ``out`` holds a run already or another process trains there, ``config`` contradicts the
        run to resume (told before data is downloaded), the device is missing, or a step would not
        fit into its memory (not checked for a ``model`` of your own).
    invocupy.checkpoint.CheckpointError
        If there is no whole checkpoint to resume from.
    invocupy.data.DataError, invocupy.data.DownloadError
        As :func:`invocupy.data.cifar10`.
    invocupy.distributed.LaunchError
        If settings or models differ between ranks.
    invocupy.distributed.PeerError
        If rank 0 could not write its files, on the others.
    RuntimeError
        If ranks have come to different weights, which only a fault can bring about.
    NonFiniteLoss
        For the training loss. The checkpoints then hold the run before it went wrong.
    Interrupted
        In the main thread, for Ctrl-C, SIGTERM and SIGHUP: the step at hand is finished and saved
        first. Ctrl-C after that raises ``KeyboardInterrupt`` at once. SIGTERM and SIGHUP are left
        alone where the caller handles or ignores them.

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
    if not isinstance(config, Config):
        raise TypeError(f"config must be a Config, got {type(config).__name__}: Config(**settings)")
    if model is not None:
        check_model(model)
    hooks = {"progress": progress, "before_update": before_update, "after_epoch": after_epoch}
    for name, hook in {**hooks, "testing": testing}.items():
        if hook is not None and not callable(hook):
            raise TypeError(f"{name} must be a function, got {type(hook).__name__}")
    if comm is None or comm.size == 1:
        comm = Single(pick_device(config.device))
    elif config.device not in ("auto", comm.device.partition(":")[0]):
        raise ConfigError(
            f"device is {config.device}, but the ranks compute on {comm.device}: give the "
            "communicator that invocupy.distributed.with_gpus makes for that device"
        )
    dataset, device, first = DATASETS[config.dataset], comm.device, comm.rank == 0
    own = model is not None
    model = build(config) if model is None else model
    model.to(device)
    folder = None if out is None or not first else expand(out)
    shapes = [[name, list(p.shape), str(p.dtype)] for name, p in model.named_parameters()]
    agree(comm, version=__version__, **asdict(config), resume=resume, parameters=shapes)
    with together(comm):  # before data is downloaded
        if folder is not None:
            check_folder(config, folder, resume, model if own else None)
    for turn in (first, not first):  # rank 0 first: it may have to download them
        with together(comm):
            if turn:
                sets = [load_data(config, train) for train in (True, False)]
    images, labels, *test = (to_device(array, device) for pair in sets for array in pair)
    part = -(-config.batch_size // config.accumulate)
    batches = data.Batches(
        images, labels, config.batch_size,
        seed=config.seed, augment=augmentation(config), mean=dataset.mean, std=dataset.std,
        rows=None if comm.size == 1 else lambda count: rows(count, part, comm),
    )  # fmt: skip
    optimiser = optim.SGD(
        model.parameters(), config.lr, config.momentum, config.weight_decay, config.nesterov,
        config.decay_biases,
    )  # fmt: skip
    if not own:
        needs = estimate(config, model)._replace(data=0)
        sharing = comm.local_size if device == "cpu" else 1
        check_memory(config, needs, free_memory(device) // sharing, comm.size)
    average = Average(model, config.ema) if config.ema else None
    run = Run(config, folder, model, optimiser, len(batches), average, comm)

    grace = 0.0 if comm.size == 1 else _ONE_CTRL_C
    # The checks of the loss are the guard; NumPy's warnings would only double them.
    with (
        ExitStack() as held, interrupts(grace) as asked, on_device(images),
        np.errstate(all="ignore"), nn.keep_modes(model),
    ):  # fmt: skip
        with together(comm):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(folder))
                if not resume:  # another process may have been faster
                    check_folder(config, folder, resume)
            if resume and first:
                run.restore()
            run.begin(resume)
        run.spread()
        if not model.training:
            model.train()
        frozen = [module for module in model.modules() if not module.training]

        def tested(*batches: int) -> None:
            if testing is not None:
                testing(*batches)
            if comm.size == 1 and asked():  # several ranks stop together, when all are through
                raise _Pause

        if comm.size > 1 and config.sync_norm:
            synchronise(model, comm)
        try:
            stop = False
            while run.state.epoch < config.epochs and not (stop or run.stalled()):
                if not model.training:  # a function given to fit has left it so
                    model.train()
                    for module in frozen:
                        module.training = False
                _train_epoch(run, batches, progress, before_update, asked)
                average_norms(run)
                with average.used_by(model) if average else nullcontext():
                    result = evaluate(
                        model, *test, mean=dataset.mean, std=dataset.std,
                        batch_size=EVALUATION_BATCH, progress=tested, comm=comm,
                    )  # fmt: skip
                    row = run.row(result, _rate(run, run.steps - 1))
                    if after_epoch is not None:
                        answer = after_epoch(model, row)
                        stop = isinstance(answer, (bool, np.bool_)) and bool(answer)
                        row = checkpoint.strict(row)
                if comm.size > 1:
                    row, stop = _agreed(run, row, stop, asked())
                with together(comm):
                    run.end_epoch(row)
                if progress is not None:
                    means = row["train_loss"], row["train_accuracy"]
                    now = run.state.epoch, config.epochs, run.steps, run.steps
                    progress(Progress(*now, *means, row))
        except _Pause:
            average_norms(run)
            with together(comm):
                run.save("last")
            number = run.state.epoch * run.steps + run.state.step
            end = Interrupted(f"interrupted in epoch {run.state.epoch + 1} after step {number}")
            end.signal = asked.signal or end.signal
            raise end from None
        finally:
            if comm.size > 1:
                synchronise(model, None)
    if average:
        average.put_into(model)
    return run.state.history


class _Step(NamedTuple):
    """What a step has found, where it was computed."""

    images: int
    numbers: tuple[Any, ...]  # loss, correct answers; on several ranks: how many shall stop


def _train_epoch(
    run: Run,
    batches: data.Batches,
    progress: Callable[[Progress], None] | None,
    before_update: Callable[[nn.Module, optim.SGD], object] | None,
    asked: Callable[[], bool],
) -> None:
    """Do the steps of the current epoch that are left."""
    model, optimiser, state, comm = run.model, run.optimiser, run.state, run.comm
    message = Message(optimiser.params, 3, comm) if comm.size > 1 else None
    unread: list[_Step] = []
    clock = time.perf_counter()
    for x, labels in batches.epoch(state.epoch, state.step):
        optimiser.lr = _rate(run, state.step)
        optimiser.zero_grad()
        images = min(batches.batch_size, len(batches.images) - state.step * batches.batch_size)
        numbers = _gradients(run, x, labels, images)
        if message is not None:
            numbers = tuple(message.sum(*numbers, asked()))
        unread.append(_Step(images, numbers))
        state.step += 1
        # Read before the update: then parameters and gradients are those of the loss.
        stop = False
        if not is_cupy(x) or state.step % _READ_EVERY == 0 or state.step == run.steps:
            stop = _read(run, unread)
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
        if stop or (message is None and asked()):
            _read(run, unread)
            raise _Pause


def _gradients(run: Run, x: Any, labels: Any, images: int) -> tuple[Any, Any]:
    """Leave the gradients of this rank's share of a batch in the parameters; loss, correct answers.

    ``images`` is the size of the batch: each image counts by 1 / images, wherever it is computed.
    In as many parts as the settings say.
    """
    size = -(-run.config.batch_size // run.config.accumulate)
    loss_sum, correct_sum, start = 0.0, 0, 0
    for part in parts(images, size, run.comm):
        end = start + part.last - part.first
        share, answers = x[start:end], labels[start:end]
        counts = run.comm.rank == 0 or not part.alone
        with norms_apart(run) if part.alone else nullcontext():
            logits = logits_of(run.model, Tensor(share))
            loss = F.cross_entropy(logits, answers, run.config.label_smoothing)
            if len(share) < images or not counts:
                loss = loss * (counts * len(share) / images)
            loss.backward()
        loss_sum = loss_sum + loss.data
        if counts:
            correct_sum = correct_sum + (logits.data.argmax(axis=1) == answers).sum()
        del logits, loss  # their graph's memory serves the next part
        start = end
    return loss_sum, correct_sum


def _read(run: Run, unread: list[_Step]) -> bool:
    """Add steps to the epoch's sums; NonFiniteLoss if one of them has no finite loss.

    Returns whether a rank has been asked to stop: all of them read that in the same step.
    """
    if not unread:
        return False
    xp = namespace(unread[0].numbers[0])
    losses, hits, *stops = (
        to_device(xp.stack(column), "cpu").tolist()
        for column in zip(*(step.numbers for step in unread), strict=True)
    )
    for ago, loss in zip(range(len(losses) - 1, -1, -1), losses, strict=True):
        if not np.isfinite(loss):
            raise run.non_finite(loss, run.state.step - ago)
    for step, loss, correct in zip(unread, losses, hits, strict=True):
        run.state.images += step.images
        run.state.loss += loss * step.images
        run.state.correct += int(correct)
    unread.clear()
    return any(map(any, stops))


def _agreed(run: Run, row: Row, stop: bool, asked: bool) -> tuple[Row, bool]:
    """The epoch's line and whether the run stops, as all ranks see it.

    Raises RuntimeError if their weights differ, and _Pause if one of them was asked to stop.
    """
    mine = {"weights": digest(run.model), "stop": stop, "asked": asked}
    answers = run.comm.exchange({**mine, "row": row if run.comm.rank == 0 else None})
    for rank, answer in enumerate(answers):
        if answer["weights"] != answers[0]["weights"]:
            raise RuntimeError(
                f"the weights of rank {rank} are not those of rank 0 after epoch "
                f"{run.state.epoch + 1}: a function given to fit changes the model on some ranks "
                "only, or a machine computes wrong numbers"
            )
    if any(answer["asked"] for answer in answers):
        raise _Pause
    return answers[0]["row"], any(answer["stop"] for answer in answers)


def _rate(run: Run, step: int) -> float:
    """The learning rate in a step of the current epoch."""
    total = run.config.epochs * run.steps
    return rate(run.config, run.state.epoch * run.steps + step, total)


class _Pause(Exception):  # noqa: N818
    """A signal has asked to end, and the run stands between two steps."""

"""``fit``, the training: the loop over epochs and steps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from invocupy import checkpoint, nn, optim
from invocupy.arrays import Array, is_cupy, namespace, on_device, to_device
from invocupy.data import Batches, own_sets
from invocupy.distributed import Comm
from invocupy.messages import shown
from invocupy.paths import AnyPath, expand
from invocupy.train.average import Average
from invocupy.train.config import Config, ConfigError
from invocupy.train.evaluation import Evaluation, check_model, evaluate
from invocupy.train.interrupts import Asked, Interrupted, interrupts
from invocupy.train.lock import locked
from invocupy.train.needs import EVALUATION_BATCH, check_memory, check_norms, estimate, free_memory
from invocupy.train.replica import Replica
from invocupy.train.run import Run
from invocupy.train.saved import Row, check_folder
from invocupy.train.sets import About, describe, load_sets
from invocupy.train.setup import augmentation, build, rate
from invocupy.train.steps import Steps, steps_of

_READ_EVERY = 50  # steps between two looks at a GPU's losses: each look waits for it


class Progress(NamedTuple):
    """The progress of a run, for the ``progress`` hook of :func:`fit`."""

    epoch: int  # from 1
    epochs: int
    step: int  # done in this epoch, of ...
    steps: int
    loss: float  # means of this epoch so far; on a GPU as they were last read
    accuracy: float
    row: Row | None  # the epoch's line of metrics.jsonl, once it has ended


def fit(
    config: Config, out: AnyPath | None = None, resume: bool = False,
    progress: Callable[[Progress], None] | None = None, model: nn.Module | None = None,
    before_update: Callable[[nn.Module, optim.SGD], object] | None = None,
    after_epoch: Callable[[nn.Module, Row], object] | None = None,
    testing: Callable[[int, int], object] | None = None, comm: Comm | None = None,
    data: tuple[Array, Array, Array, Array] | None = None,
    started: Callable[[nn.Module, About], object] | None = None,
) -> list[Row]:  # fmt: skip
    """Train a model; a resumed run gives, on the CPU, the same bits as an uninterrupted one.

    Parameters
    ----------
    config : Config
        The settings.
    out : path, optional
        The run folder, created if needed; without it nothing is written. It contains
        ``config.json``, ``machine.json`` (versions and devices), ``metrics.jsonl`` (one line per
        epoch), ``last.safetensors`` (after each epoch, and when interrupted) and
        ``best.safetensors`` (the epoch with the highest validation accuracy; without validation the
        last epoch). One process at a time can train in it; others may read it.
    resume : bool
        Continue from ``last.safetensors`` in ``out``. ``config`` must be that of the run, except
        for the settings marked * on the page of settings. With more epochs the schedule is that of
        the longer run, from the next step on. A ``model`` of your own must be given again.
    progress
        Called with a :class:`Progress` after each step and each epoch.
    model : Module, optional
        Trained in place; by default :func:`build` creates it from ``config``. At the end it has the
        averaged weights with ``config.ema``, the best ones with ``config.validation``. Modules in
        evaluation mode, such as frozen norms, stay in it, unless the whole model is in evaluation
        mode: then all of it is trained. At the end the mode of each module is restored.
    before_update
        Called in each step with the model and the optimiser; it may change the (clipped) gradients,
        or set ``optimiser.lr``. Reading a number waits for a GPU. With
        ``config.graph`` the next step overwrites these arrays.
    after_epoch
        Called after the evaluation of each epoch with the evaluated model and the epoch's line
        before it is written; entries that it adds (numbers, strings) are saved. True ends the run.
    testing
        Called in each evaluation with the number of batches done, and of all batches.
    comm : communicator, optional
        Of ranks (:mod:`invocupy.distributed`) that call this function together with the same
        settings. Each computes its share of every batch; the result is that of a single process up
        to rounding. Only rank 0 reads and writes ``out``. Each rank calls its own hooks; True of
        one ``after_epoch`` ends the run.
    data
        ``(train_images, train_labels, test_images, test_labels)`` in place of ``config.dataset``:
        uint8 images (N, C, H, W) of any size and channels, and integers (N,) from 0. The number of
        classes follows from the training labels; mean and standard deviation are those of the
        training images, and are saved in the run. To resume, give the same data again.
    started
        Called once, before the first step, with the model and an :class:`About` of the images.

    Returns
    -------
    list of dict
        The lines of ``metrics.jsonl``: ``epoch`` and ``step`` (done in all, from 1),
        ``train_loss``, ``train_accuracy`` (means over the batches, before each update),
        ``test_loss`` (None if it is not finite: a network of many involutions can overflow for
        single images although it learns well), ``test_accuracy``, ``seconds`` and
        ``images_per_second`` (of the training alone), ``lr`` (of the last step). With
        ``config.validation`` each epoch has ``val_loss`` and ``val_accuracy``, and the test set is
        read once: the last line has the test result of the best weights, the others have None.

    Raises
    ------
    TypeError
        If ``config`` is not a Config, ``model`` not a module, a hook not a function, ``data`` not
        arrays of these dtypes, or an entry that ``after_epoch`` adds neither number nor string.
    ValueError
        If ``after_epoch`` takes a number from the epoch's line.
    ConfigError
        If ``out`` already holds a run or another process trains there, ``config`` contradicts the
        run to resume (checked before data is downloaded), the device is missing, a step would not
        fit into its memory or would leave batch norm a single value (neither is checked for a
        ``model`` of your own), or there is patience without validation.
    invocupy.checkpoint.CheckpointError, invocupy.data.DataError, invocupy.data.DownloadError
        If there is no whole checkpoint to resume from, or no data; if the shapes or labels of
        ``data`` do not fit.
    invocupy.distributed.LaunchError, invocupy.distributed.PeerError, RuntimeError
        If settings or models differ between ranks, another rank failed, or the weights of the ranks
        differ, which only a fault can cause.
    NonFiniteLoss
        For the training loss. The checkpoints are from before that step.
    Interrupted
        In the main thread, for Ctrl-C, SIGTERM and SIGHUP: the current step is finished and saved
        first. A second Ctrl-C raises ``KeyboardInterrupt`` at once. SIGTERM and SIGHUP have no such
        effect if the caller handles or ignores them.

    Examples
    --------
    >>> from invocupy.train import Config, fit
    >>> history = fit(Config(layers=1, epochs=2, limit=20, batch_size=10, device="cpu"))
    >>> [(row["epoch"], row["step"]) for row in history]
    [(1, 2), (2, 4)]
    """
    if not isinstance(config, Config):
        raise TypeError(f"config must be a Config, got {type(config).__name__}: Config(**settings)")
    if model is not None:
        check_model(model)
    hooks = _Hooks(progress, before_update, after_epoch, testing, started)
    for name, hook in hooks._asdict().items():
        if hook is not None and not callable(hook):
            raise TypeError(f"{name} must be a function, got {type(hook).__name__}")
    if config.patience is not None and not config.validation and not resume:
        raise ConfigError(
            f"patience {config.patience} needs validation, the share of the training images to "
            "look at, such as 0.1: the test set does not choose"
        )
    arrays = None if data is None else own_sets(data)
    about = describe(config, arrays)
    replica, own = Replica(comm, config), model is not None
    device = replica.comm.device
    model = (build(config, about) if model is None else model).to(device)
    folder = None if out is None or not replica.is_root else expand(out)
    replica.check(model, resume)
    with replica.together():  # before data is downloaded
        if folder is not None:
            check_folder(config, folder, resume, about, model if own else None)
    sets = replica.root_first(lambda: load_sets(config, arrays))
    about = about.measured(sets)
    (images, labels), *measured = (tuple(to_device(a, device) for a in pair) for pair in sets)
    batches = Batches(
        images, labels, config.batch_size, seed=config.seed, augment=augmentation(config, about),
        rows=replica.rows(), **about.style(),
    )  # fmt: skip
    optimiser = optim.SGD(
        model.parameters(), config.lr, config.momentum, config.weight_decay, config.nesterov,
        config.decay_biases,
    )  # fmt: skip
    if not own:
        needs = estimate(config, model, about)._replace(data=0)
        sharing = replica.comm.local_size if device == "cpu" else 1
        check_memory(config, needs, free_memory(device) // sharing, replica.comm.size)
        with replica.together():
            check_norms(config, model, about.shape, replica.smallest(len(images)))
    average = Average(model, config.ema)
    run = Run(config, folder, model, optimiser, len(batches), average, replica, about)
    # The checks of the loss are the guard; NumPy's warnings would only double them.
    with (
        ExitStack() as held, interrupts(replica.grace) as asked, on_device(images),
        np.errstate(all="ignore"), nn.keep_modes(model),
    ):  # fmt: skip
        with replica.together():
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(folder))
                if not resume:  # another process may have been faster
                    check_folder(config, folder, resume, about)
            run.begin(resume)
        run.spread()
        if started is not None:
            started(model, about)
        steps = steps_of(run, batches)
        with steps.running():
            _train(run, steps, measured, hooks, asked)
    average.put_into(model)
    run.best.put_into(model)
    return run.state.history


class _Hooks(NamedTuple):
    """The functions that were given to :func:`fit`."""

    progress: Callable[[Progress], None] | None
    before_update: Callable[[nn.Module, optim.SGD], object] | None
    after_epoch: Callable[[nn.Module, Row], object] | None
    testing: Callable[[int, int], object] | None
    started: Callable[[nn.Module, About], object] | None


class _Pause(Exception):  # noqa: N818
    """A signal has asked to end, and the run stands between two steps."""


def _train(
    run: Run, steps: Steps, sets: Sequence[tuple[Array, ...]], hooks: _Hooks, asked: Asked
) -> None:
    """Do the epochs that are left; the first of ``sets`` is for each, the last for the end."""
    model, replica = run.model, run.replica
    frozen = [module for module in model.modules() if model.training and not module.training]

    def tested(*done: int) -> None:
        if hooks.testing is not None:
            hooks.testing(*done)
        if replica.stops(asked()):
            raise _Pause

    def measured(images: Array, labels: Array) -> Evaluation:
        return evaluate(
            model, images, labels, batch_size=EVALUATION_BATCH, progress=tested, comm=replica.comm,
            **run.about.style(),
        )  # fmt: skip

    try:
        stop = pause = False
        with replica.norms(model):
            while run.state.epoch < run.config.epochs and not (stop or run.stalled()):
                if not model.training:  # or a function given to fit has left it so
                    model.train()
                    for module in frozen:
                        module.training = False
                _train_epoch(run, steps, hooks, asked)
                run.average_norms()
                with run.average.used_by(model):
                    row = run.row(measured(*sets[0]))
                    if hooks.after_epoch is not None:
                        own = [name for name, value in row.items() if value is not None]
                        answer = hooks.after_epoch(model, row)
                        stop = isinstance(answer, (bool, np.bool_)) and bool(answer)
                        row = _noted(row, own)
                row, stop, pause = replica.same(model, row, stop, asked())
                if pause:
                    raise _Pause
                with replica.together():
                    run.end_epoch(row)
                if hooks.progress is not None:
                    done = run.state.epoch, run.config.epochs, run.steps, run.steps
                    hooks.progress(Progress(*done, row["train_loss"], row["train_accuracy"], row))
            if run.untested:
                with run.best.used_by(model):
                    result = measured(*sets[-1])
                with replica.together():
                    run.end(result)
    except _Pause:
        run.average_norms()
        with replica.together():
            run.save("last")
        epoch = min(run.state.epoch + 1, run.config.epochs)
        end = Interrupted(f"interrupted in epoch {epoch} after step {run.done}")
        end.signal = asked.signal or end.signal
        raise end from None


def _noted(row: Row, own: Sequence[str]) -> Row:
    """An epoch's line as it is saved, after ``after_epoch``, which must keep these numbers."""
    try:
        saved: Row = json.loads(json.dumps(checkpoint.strict(row)))
    except TypeError as error:
        raise TypeError(f"after_epoch must add numbers and strings only ({error})") from error
    for name in own:
        value = saved.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(
                f"after_epoch must keep {name} of the epoch's line a finite number, "
                f"got {shown(value)}: add entries of other names"
            )
    return saved


_Step = tuple[int, tuple[Any, ...]]
"""Images; loss, correct answers and, of several ranks, how many shall stop, on the device."""


def _train_epoch(run: Run, steps: Steps, hooks: _Hooks, asked: Asked) -> None:
    """Do the steps of the current epoch that are left."""
    optimiser, state, config, batches = run.optimiser, run.state, run.config, steps.batches
    unread: list[_Step] = []
    clock = time.perf_counter()
    steps.look()
    for sheet in batches.sheets(state.epoch, state.step):
        optimiser.lr = rate(config, run.done, config.epochs * run.steps)
        images = min(batches.batch_size, len(batches.images) - state.step * batches.batch_size)
        numbers = steps.gradients(sheet, images)
        numbers = steps.reduce(numbers, asked())
        unread.append((images, numbers))
        state.step += 1
        # Read before the update: then parameters and gradients are those of the loss.
        stop = False
        if not is_cupy(sheet) or state.step % _READ_EVERY == 0 or state.step == run.steps:
            stop = _read(run, unread)
        steps.clip()
        if hooks.before_update is not None:
            hooks.before_update(run.model, optimiser)
            steps.look()
        steps.update()
        now = time.perf_counter()
        state.seconds += now - clock
        clock = now
        if hooks.progress is not None:
            done = state.epoch + 1, config.epochs, state.step, run.steps
            seen = max(state.images, 1)
            hooks.progress(Progress(*done, state.loss / seen, state.correct / seen, None))
        if stop or run.replica.stops(asked()):
            _read(run, unread)
            raise _Pause


def _read(run: Run, unread: list[_Step]) -> bool:
    """Add steps to the epoch's sums; NonFiniteLoss if one of them has no finite loss.

    Returns whether a rank has been asked to stop: all of them read that in the same step.
    """
    if not unread:
        return False
    counts, numbers = zip(*unread, strict=True)
    xp = namespace(numbers[0][0])
    losses, hits, *stops = (
        to_device(xp.stack(column), "cpu").tolist() for column in zip(*numbers, strict=True)
    )
    for ago, loss in zip(range(len(losses) - 1, -1, -1), losses, strict=True):
        if not np.isfinite(loss):
            raise run.non_finite(loss, run.state.step - ago)
    for images, loss, correct in zip(counts, losses, hits, strict=True):
        run.state.images += images
        run.state.loss += loss * images
        run.state.correct += int(correct)
    unread.clear()
    return any(map(any, stops))

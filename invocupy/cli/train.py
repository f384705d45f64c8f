"""``invocupy train``: train a model, show progress, and write a run folder."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from invocupy.cli.look import findings
from invocupy.cli.options import Commands, command, path, tell
from invocupy.cli.settings import add_settings, given_settings, tell_unused
from invocupy.messages import printable

if TYPE_CHECKING:
    from invocupy import nn
    from invocupy.train import About, Config, Progress

_QUIET = 60.0  # without a bar, seconds until a line of progress


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = command(
        commands, "train", _run, late=add_settings, argument_default=argparse.SUPPRESS,
        help="train a model",
        description="Train a model; without options, a small SimpleModel on generated images. "
        "Under mpiexec or srun, each process computes its share of every batch.",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="DIR", type=path, help="the new run folder (default runs/...)"
    )
    parser.add_argument(
        "--resume", metavar="DIR", type=path, help="continue the run in this folder"
    )
    parser.add_argument(
        "--comm-timeout", metavar="SECONDS", type=_seconds, default=600.0,
        help="with several ranks (mpiexec -n N invocupy train ...): how long a rank waits for "
        "another before all exit with code 75 (default 600)",
    )  # fmt: skip
    parser.add_argument(
        "--plots", action=argparse.BooleanOptionalAction,
        help="write pictures at the end, like plot (default: if matplotlib is installed)",
    )  # fmt: skip
    parser.add_argument(
        "--tensorboard", action="store_true", default=False,
        help="write the numbers of each epoch for TensorBoard into the run folder",
    )  # fmt: skip


def _run(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict, replace

    from invocupy.distributed import start, together, with_gpus
    from invocupy.train import Config, ConfigError, Interrupted, fit, load_run, tensorboard
    from invocupy.train.saved import counted

    comm = start(arguments.comm_timeout)
    given = given_settings(arguments)
    resume, out, plots = map(vars(arguments).get, ("resume", "out", "plots"))
    if resume and out:
        raise ConfigError("give --out or --resume, not both: a run continues in its own folder")
    # Only rank 0 needs to see the folder.
    old = "{}"
    with together(comm):
        if comm.rank == 0 and resume:
            old = load_run(resume, "last")[0].to_json()
    config = replace(Config.from_json(comm.exchange(old)[0]), **given)
    comm = with_gpus(comm, config.device)
    if comm.rank:
        fit(config, resume=bool(resume), comm=comm)
        return 0
    tell_unused(config)
    plots = find_spec("matplotlib") is not None if plots is None else plots
    if plots:
        from invocupy.report import draw, load_matplotlib

        load_matplotlib()  # now, not after the training
    folder = resume or out
    with nullcontext(folder) if folder else _new_folder(config) as out:
        report, testing, started = _reporter(str(out))
        write = tensorboard(f"{out}/tensorboard") if arguments.tensorboard else None
        try:
            with _lines():
                history = fit(
                    config, out, resume=bool(resume), progress=report, testing=testing, comm=comm,
                    started=started, after_epoch=write,
                )  # fmt: skip
        except Interrupted as error:
            command = f"invocupy train --resume {shlex.quote(str(out))}"
            error.args = (f"{error}, saved in {out}; continue with: {command}",)
            raise
    last, best = history[-1], counted(history) or {}
    if write is not None:
        write(None, last)  # the test result, where there is validation
    epochs, seconds = int(last["epoch"]), sum(row["seconds"] for row in history)
    result = {
        "run": str(out), "epochs": epochs, "test_loss": last["test_loss"],
        "test_accuracy": last["test_accuracy"], "best_accuracy": best.get("val_accuracy"),
        "best_epoch": int(best["epoch"]), "seconds": seconds,
        "config": asdict(config), "history": history,
    }  # fmt: skip
    chosen = ""
    if "val_accuracy" in best:
        chosen = f" (weights of epoch {best['epoch']}, validation {best['val_accuracy']:.2%})"
    code = tell(
        arguments,
        result,
        f"test accuracy {last['test_accuracy']:.2%} after {epochs} epoch{'s' * (epochs > 1)} and "
        f"{seconds:.0f} s of training{chosen}",
        f"run: {out}",
    )
    if plots:
        files = draw(findings(out, device=config.device, data_dir=config.data_dir), out)
        print("pictures:", " ".join(path.name for path in files), file=sys.stderr)
    print(f"next: invocupy report {shlex.quote(str(out))}", file=sys.stderr)
    return code


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text}")
    return value


@contextmanager
def _lines() -> Iterator[None]:
    """Warnings are lines among the progress."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(message, file=sys.stderr, flush=True)
        yield


@contextmanager
def _new_folder(config: Config) -> Iterator[Path]:
    """A folder that no other process has; it is removed if nothing was written into it."""
    for number in count(1):
        folder = Path("runs", f"{config.dataset}-{config.model}-{number}")
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            if not os.path.lexists(folder):  # runs is a file
                raise
    try:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()


class _Reporter(NamedTuple):
    """The hooks that ``fit`` calls."""

    report: Callable[[Progress], None]
    testing: Callable[[int, int], None]
    started: Callable[[nn.Module, About], None]


def _reporter(folder: str) -> _Reporter:
    """A line at the start and for each epoch, in between a bar, or a line per minute."""
    import numpy as np
    from tqdm import tqdm

    from invocupy.arrays import device_of
    from invocupy.train.saved import measured_on

    bars: list[Any] = []
    last = time.monotonic()  # when a line was written

    def say(line: str) -> None:
        nonlocal last
        last = time.monotonic()
        print(printable(line), file=sys.stderr, flush=True)

    def started(model: nn.Module, about: About) -> None:
        train, test = about.counts
        place = device_of(next((p.data for p in model.parameters()), np.empty(0)))
        say(
            f"{place}, {about.dataset} ({train:,} + {test:,} images, {len(about.classes)} classes)"
            f", {sum(p.size for p in model.parameters()):,} parameters, run {folder}"
        )

    def report(now: Progress) -> None:
        title, row = f"epoch {now.epoch}/{now.epochs}", now.row
        if row is None:
            if not bars:
                # disable=None: no bar where standard error is not a terminal
                bars.append(tqdm(total=now.steps, desc=title, leave=False, disable=None))
            loss, accuracy = f"{now.loss:.3f}", f"{now.accuracy:.1%}"
            bars[0].set_postfix(loss=loss, accuracy=accuracy, refresh=False)
            bars[0].update(now.step - bars[0].n)
            if bars[0].disable and time.monotonic() - last >= _QUIET:
                say(f"{title}  step {now.step}/{now.steps}  loss {loss}  accuracy {accuracy}")
            return
        while bars:
            bars.pop().close()
        part = measured_on(row)
        what, behind = ("test", "  test") if part == "test" else ("validation", ",")
        loss = row[f"{part}_loss"]
        shown = "not finite" if loss is None else f"{loss:.3f}" if loss < 1000 else f"{loss:.3g}"
        line = (  # of 80 columns at most
            f"{title}  loss {row['train_loss']:.3f}  {what} loss {shown}{behind} accuracy "
            f"{row[f'{part}_accuracy']:.2%}  {row['images_per_second']:.0f} images/s"
        )
        say(line if len(line) <= 80 else line.replace("  ", " "))

    def testing(done: int, batches: int) -> None:
        if bars:
            bars[0].set_postfix_str(f"testing, {done / batches:.0%}")

    return _Reporter(report, testing, started)

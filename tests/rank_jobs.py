"""What the tests let several ranks do: ``mpiexec -n N python rank_jobs.py JOB ...``.

``compute FOLDER`` trains and evaluates, and rank 0 writes what came out; an assertion that fails on
a rank fails the job. ``fault NAME ARGUMENTS`` runs the command line with a fault planted in it.
"""

from __future__ import annotations

import errno
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from invocupy import checkpoint, cli, nn, optim
from invocupy.distributed import (
    Comm,
    LaunchError,
    PeerError,
    Single,
    agree,
    share,
    start,
    synchronise,
    together,
)
from invocupy.distributed.mpi import MPI
from invocupy.models import SimpleModel
from invocupy.train import Config, Interrupted, build, evaluate, fit, load_data
from invocupy.train.choices import DATASETS
from invocupy.train.steps import Steps

# 20 steps; the last batch of an epoch is one image, fewer than there are ranks. Small, so that no
# rounding of float32 moves a pixel over the kink of a ReLU: of larger batches a single process with
# weights changed in their last bit is 1e-2 from itself after 20 steps.
PLAIN = Config(
    layers=1, epochs=5, batch_size=7, limit=22, device="cpu", augment="crop_flip", cutout=6,
    label_smoothing=0.1,
)  # fmt: skip
# 20 steps; the last batch has three images, in parts of two and one
OPTIONS = replace(
    PLAIN, limit=24, accumulate=4, clip_norm=1.0, ema=0.9, decay_biases=False, schedule="cosine",
    warmup=3,
)  # fmt: skip
SHORT = replace(PLAIN, epochs=2, schedule="constant")


class Case(NamedTuple):
    """A training, and on how many ranks it is done."""

    dtype: str
    config: Config
    ranks: tuple[int, ...]
    means: bool = False  # whether the ranks' means are averaged: the mistake of uneven shares


CASES = {
    "plain": Case("float64", PLAIN, (2, 3)),
    "options": Case("float64", OPTIONS, (2, 3)),
    "single": Case("float32", PLAIN, (2,)),
    "local": Case("float32", replace(SHORT, sync_norm=False, ema=0.5), (2,)),
    "means": Case("float32", SHORT, (2,), means=True),
}
MISTAKES = ("local", "means")
STOPPED_AT = (2, 2)  # epoch and step of the Ctrl-C
IMAGES = (22, 2, 1)  # to evaluate: also fewer than ranks


def trained(case: str, comm: Comm | None) -> tuple[dict[str, NDArray[Any]], list[Any]]:
    """Weights and history of a case."""
    dtype, config, _, wrong = CASES[case]
    model = build(config)
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, (nn.Parameter, nn.Buffer)) and value.data.dtype == np.float32:
                value.data = value.data.astype(dtype)
    right = Steps.gradients

    def mean_of_means(steps: Any, sheet: Any, images: int) -> Any:
        found = right(steps, sheet, images)
        for parameter in steps.run.optimiser.params:
            parameter.grad *= images / (steps.run.replica.comm.size * len(sheet))
        return found

    if wrong and comm is not None:
        Steps.gradients = mean_of_means  # type: ignore[method-assign]
    try:
        history = fit(config, model=model, comm=comm)
    finally:
        Steps.gradients = right  # type: ignore[method-assign]
    return model.state_dict(), history


def evaluated(count: int, comm: Comm | None) -> list[Any]:
    """Loss, accuracy and confusion matrix of some images."""
    images, labels = load_data(PLAIN, train=True)
    mean, std = DATASETS["shapes10"].mean, DATASETS["shapes10"].std
    model = build(PLAIN)
    loss, accuracy, confusion = evaluate(
        model, images[:count], labels[:count], mean=mean, std=std, batch_size=5, comm=comm
    )
    return [loss, accuracy, confusion.tolist()]


def stop(folder: Path, comm: Comm | None, who: int) -> None:
    """Train until one rank gets Ctrl-C: all stop after the same step, the next one."""

    def progress(now: Any) -> None:
        asked = comm is None or comm.rank == who
        if (now.epoch, now.step) == STOPPED_AT and now.row is None and asked:
            signal.raise_signal(signal.SIGINT)

    try:
        fit(PLAIN, folder, progress=progress, comm=comm)
    except Interrupted:
        return
    raise AssertionError("nothing was interrupted")


def compute(folder: Path, comm: MPI) -> None:
    messages(comm)
    for case in [name for name, case in CASES.items() if comm.size in case.ranks]:
        arrays, history = trained(case, comm)
        if comm.rank == 0:
            checkpoint.save(folder / f"{case}.safetensors", arrays, {"history": history})
    info = {str(count): evaluated(count, comm) for count in IMAGES}
    if comm.rank == 0:
        checkpoint.save(folder / "evaluated.safetensors", {"none": np.zeros(1)}, info)
    if comm.size == 2:
        hooks(comm)
        stop(folder / "stopped", comm, 1)
        fit(PLAIN, folder / "resumed", resume=True, comm=comm)  # what a single process has begun


def hooks(comm: MPI) -> None:
    """Of functions given to fit one rank's word stops all, and its changes are found out."""
    config = replace(PLAIN, layers=0, epochs=3)

    def after_epoch(model: nn.Module, row: dict[str, Any]) -> bool:
        row["rank"] = comm.rank
        return comm.rank == 1 and row["epoch"] == 2

    history = fit(config, after_epoch=after_epoch, comm=comm)
    assert [row["rank"] for row in history] == [0, 0]

    def change(model: nn.Module, sgd: optim.SGD) -> None:
        sgd.params[-1].grad = sgd.params[-1].grad * (1 + comm.rank)

    with pytest.raises(RuntimeError, match="weights of rank 1 are not those of rank 0"):
        fit(config, before_update=change, comm=comm)
    model = SimpleModel(num_layers=comm.rank)
    with pytest.raises(LaunchError, match="parameters differs between ranks"):
        fit(config, model=model, comm=comm)
    model = SimpleModel(num_layers=0, rng=comm.rank)  # all take that of rank 0
    fit(replace(config, epochs=1), model=model, comm=comm)


def messages(comm: MPI) -> None:
    """Every method, and the functions on top of them."""
    rank, size = comm.rank, comm.size
    assert (comm.local_rank, comm.local_size) == (rank, size)
    for dtype in ("float16", "float32", "float64", "int64", "uint8", "bool"):
        for shape in ((), (3,), (2, 1, 2), (0,)):
            mine = np.full(shape, rank % 2, dtype)
            rows = comm.allgather(mine)
            assert rows.dtype == dtype
            np.testing.assert_array_equal(rows, [np.full(shape, r % 2) for r in range(size)])
            comm.broadcast(mine, root=1)
            np.testing.assert_array_equal(mine, np.full(shape, 1))
    for dtype in ("float32", "float64", "int64"):
        buffer = np.arange(1000).astype(dtype) * (rank + 1)
        comm.allreduce_sum(buffer)
        np.testing.assert_array_equal(buffer, np.arange(1000) * (size * (size + 1) // 2))
    values = comm.exchange({"rank": rank, "word": "ä" * rank, "x": 0.1 + rank, "no": math.inf})
    assert [(v["rank"], len(v["word"]), v["x"]) for v in values] == [
        (r, r, 0.1 + r) for r in range(size)
    ]
    assert values[1]["no"] == math.inf
    assert comm.exchange(rank, locally=True) == list(range(size))
    shares = comm.exchange(share(10, comm))
    assert [i for first, last in shares for i in range(first, last)] == list(range(10))
    agree(comm, same=[1, 2], other={"b": 1, "a": 2})
    with pytest.raises(
        LaunchError, match=r"lr differs between ranks: 0\.1 on rank 0, 1\.1 on rank 1"
    ):
        agree(comm, lr=0.1 + (rank == 1), seed=0)
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail_on_one() -> None:
        with together(comm):
            if rank == 1:
                raise full

    with pytest.raises((OSError, PeerError), match="No space left") as caught:
        fail_on_one()
    assert (caught.value is full) == (rank == 1)
    model = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())
    synchronise(model, comm)
    assert model[0].comm is comm


def fault(name: str, arguments: list[str]) -> int:
    """The command line with a fault in the third step of the training."""
    rank = int(os.environ["PMI_RANK"])
    gradients, steps = Steps.gradients, 0

    def alone(who: int, act: Callable[[], object]) -> None:
        if rank == who:
            act()

    def raise_error() -> None:
        raise ValueError("planted")

    def tell_and_hang() -> None:
        folder = Path(os.environ["RANK_JOBS"])
        (folder / f".{rank}").write_text(str(os.getpid()))
        (folder / f".{rank}").rename(folder / f"{rank}.pid")
        while True:
            time.sleep(1)

    faults: dict[str, Callable[[], object]] = {
        "exception": lambda: alone(1, raise_error),
        "kill": lambda: alone(1, lambda: os.kill(os.getpid(), signal.SIGKILL)),
        "stall": lambda: alone(1, lambda: time.sleep(3600)),
        "full": lambda: alone(
            0, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        ),
        "hang": tell_and_hang,
    }

    def planted(*given: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            faults[name]()
        return gradients(*given)

    Steps.gradients = planted  # type: ignore[method-assign]
    return cli.main(arguments)


if __name__ == "__main__":
    job, *rest = sys.argv[1:]
    if job == "fault":
        sys.exit(fault(rest[0], rest[1:]))
    communicator = start(120.0)
    assert not isinstance(communicator, Single)
    compute(Path(rest[0]), communicator)  # type: ignore[arg-type]

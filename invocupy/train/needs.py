"""The memory that a run needs, and the check that it fits."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from invocupy import nn
from invocupy.arrays import require_cupy
from invocupy.docstrings import documented
from invocupy.summary import StepMemory, dry_forward, evaluation_memory, training_memory
from invocupy.train.config import Config, ConfigError
from invocupy.train.sets import About, describe

EVALUATION_BATCH = 250
PROGRAM = 256 << 20  # bytes: the interpreter, the libraries, and the compiler of the CPU kernels

_PER_IMAGE = 8 + 9 * 8 * 3  # beside its pixels: label, the epoch's random numbers


class Needs(NamedTuple):
    """The estimated memory of a run in bytes."""

    training: StepMemory
    evaluation: StepMemory
    program: int  # on the CPU; a GPU's context counts as used
    images: int  # to train on
    tested: int  # at a time in the evaluation
    data: int  # of all images

    def training_peak(self, config: Config, ranks: int = 1) -> int:
        """Peak of a training step, including program and data; with several ranks, of one rank."""
        part = -(-min(config.part, self.images) // ranks)
        return self.program + self.data + self.training.of(part)

    def evaluation_peak(self) -> int:
        """Peak of the evaluation of a batch, including program and data."""
        # Gradients and velocities stay, and training.fixed has the weights already.
        images = self.tested * self.evaluation.per_image
        return self.program + self.data + self.training.fixed + images


@documented
def estimate(config: Config, model: nn.Module, about: About | None = None) -> Needs:
    """The memory that a run needs; the model, on its device, is not changed.

    >>> from invocupy.train import build
    >>> config = Config(batch_size=1000, device="cpu")
    >>> needs = estimate(config, build(config))
    >>> needs.training_peak(config) > needs.training.of(100)
    True
    """
    options = {"momentum": config.momentum, "weight_decay": config.weight_decay}
    about = describe(config) if about is None else about
    training = training_memory(model, about.shape, nesterov=config.nesterov, **options)
    if config.ema:
        weights = sum(array.nbytes for array in model.state_dict().values())
        training = training.plus(2 * weights)
    on_cpu = all(isinstance(p.data, np.ndarray) for p in model.parameters())
    evaluation, program = evaluation_memory(model, about.shape), PROGRAM if on_cpu else 0
    images, tests = about.counts
    held = round(config.validation * images)
    tested = min(EVALUATION_BATCH, max(tests, held))
    data = (images + tests) * (math.prod(about.shape) + _PER_IMAGE)
    return Needs(training, evaluation, program, images - held, tested, data)


@documented
def check_memory(config: Config, needs: Needs, available: int, ranks: int = 1) -> None:
    """Refuse a run that does not fit: ConfigError, naming a batch size that would.

    Parameters
    ----------
    needs
        From :func:`estimate`.
    available
        Bytes on each rank, as from :func:`free_memory`.
    ranks
        How many processes share a batch.

    >>> needs = Needs(StepMemory(((10 << 20, 1 << 20),)), StepMemory(((0, 0),)), 0, 1000, 250, 0)
    >>> check_memory(Config(batch_size=100), needs, 60 << 20)
    Traceback (most recent call last):
    invocupy.train.config.ConfigError: batch_size 100 needs about 115 MB ... accumulate=2 ...
    """
    smaller = "take fewer layers" if config.model == "simple" else "take a smaller model"
    step = needs.training_peak(config, ranks)
    if step > available:
        besides = available - needs.program - needs.data
        fits = needs.training.images(besides) * ranks
        what = f"batch_size {config.batch_size}"
        if config.accumulate > 1:
            what += f" in {config.accumulate} parts of {config.part}"
        short = f"{what} needs about {size(step)} of memory, but {size(available)} are free: "
        if config.model == "simple" and needs.program and not config.recompute:
            short += "recompute=True needs less, and with recompute=False "
        if fits < 1:
            raise ConfigError(f"{short}not even one image at a time fits, {smaller}")
        raise ConfigError(
            f"{short}accumulate={-(-config.batch_size // fits)} (the same step in parts) or "
            f"batch_size={fits} fits"
        )
    if needs.evaluation_peak() > available:
        raise ConfigError(
            f"model {config.model} needs about {size(needs.evaluation_peak())} of memory in the "
            f"evaluation, but {size(available)} are free: {smaller}"
        )


def check_norms(config: Config, model: nn.Module, shape: tuple[int, ...], smallest: int) -> None:
    """ConfigError if ``smallest``, the images of the smallest part of a batch, are too few."""
    try:
        if smallest == 1:
            dry_forward(model, shape, 1)
    except ValueError as error:
        names = ["batch_size", "accumulate"][: 1 + (config.accumulate > 1)]
        given = " and ".join(f"{name} {getattr(config, name)}" for name in names)
        raise ConfigError(
            f"{given} leave{'s' * (len(names) == 1)} one training image alone, of which "
            f"{str(error).partition(':')[0]} cannot take a variance: give another "
            f"{' or '.join(names)}, more images, or larger ones"
        ) from error


@documented
def free_memory(device: str) -> int:
    """Bytes that a new array may use on a device: of the machine, its control group, or its GPU.

    >>> free_memory("cpu") > 0
    True
    """
    if device == "cpu":
        return min([int(psutil.virtual_memory().available), *_left_in_groups(Path("/"))])
    cupy = require_cupy()
    with cupy.cuda.Device(int(device.partition(":")[2] or 0)):
        idle = cupy.get_default_memory_pool().free_bytes()
        return int(cupy.cuda.runtime.memGetInfo()[0]) + int(idle)


def _left_in_groups(root: Path) -> Iterator[int]:
    """Free bytes in each control group (version 2 or 1) of this process; psutil ignores them."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            base, names = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = "sys/fs/cgroup/memory"
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        group = root / base / path.lstrip("/")
        for folder in (group, *group.parents):
            limit, used = (_text(folder / name).strip() for name in names[:2])
            if limit.isdecimal() and used.isdecimal():
                idle = re.search(rf"^{names[2]} (\d+)", _text(folder / "memory.stat"), re.MULTILINE)
                yield int(limit) - int(used) + (int(idle[1]) if idle else 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def size(count: int) -> str:
    """Bytes for people: ``"31 MB"``, ``"2.4 GB"``."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count, 0) / 1e6:.0f} MB"

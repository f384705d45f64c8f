"""What the names in a run's settings stand for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from invocupy import data, models, nn, optim

if TYPE_CHECKING:
    from invocupy.train.config import Config

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]


class DataSet(NamedTuple):
    """What training knows of a data set: a row of ``DATASETS``."""

    load: Callable[[Config, bool], Images]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str  # what "auto" means
    sizes: tuple[int, int]  # images to train on and to test on, without a limit


def _shapes10(config: Config, train: bool) -> Images:
    # The set stays the same whatever the seed of the run, so that runs compare.
    wanted = config.overfit or config.limit or 10_000
    return data.shapes10(wanted, 0) if train else data.shapes10(1000, 0, False)


DATASETS = {
    "shapes10": DataSet(
        _shapes10, data.SHAPES10_CLASSES, data.SHAPES10_MEAN, data.SHAPES10_STD, "none",
        (10_000, 1000),
    ),
    "cifar10": DataSet(
        lambda config, train: data.cifar10(config.data_dir, train),
        data.CIFAR10_CLASSES, data.CIFAR10_MEAN, data.CIFAR10_STD, "crop_flip",
        (50_000, 10_000),
    ),
}  # fmt: skip


def _network(make: Callable[..., nn.Module], config: Config, classes: int) -> nn.Module:
    """With the stem for small images: those of both sets are 32x32."""
    return make(num_classes=classes, stem="cifar", rng=config.seed)


MODELS: dict[str, Callable[[Config, int], nn.Module]] = {
    "simple": lambda config, classes: models.SimpleModel(
        num_layers=config.layers,
        num_classes=classes,
        head_relu=config.head_relu,
        signed=config.signed,
        rng=config.seed,
        recompute=config.recompute,
    ),
    "small": lambda config, classes: models.SmallNet(
        config.spatial, config.width, num_classes=classes, rng=config.seed
    ),
    **{name: partial(_network, make) for name, make in models.NETWORKS.items()},
}
SCHEDULES: dict[str, Callable[[Config, int, int], float]] = {
    "constant": lambda config, step, total: optim.constant(step, total),
    "step": lambda config, step, total: optim.step_decay(
        step, total, config.milestones, config.drop
    ),
    "cosine": lambda config, step, total: optim.cosine(step, total),
    "one_cycle": lambda config, step, total: optim.one_cycle(step, total),
}
AUGMENT = {"none": (), "crop_flip": (data.random_crop, data.random_flip)}

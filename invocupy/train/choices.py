"""Data sets, models, schedules and augmentations, by their names in the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from invocupy import data, models, optim
from invocupy.data.own import Images


class DataSet(NamedTuple):
    """A data set: a row of ``DATASETS``."""

    load: Callable[[Any, bool, int | None], Images]  # settings, training set?, at most
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str  # what "auto" means
    sizes: tuple[int, int]  # images to train on and to test on, without a limit
    shape: tuple[int, int, int] = (3, 32, 32)  # of an image


class Choice(NamedTuple):
    """A function, and the settings that are its arguments."""

    function: Callable[..., Any]
    arguments: Mapping[str, str]

    def of(self, config: object) -> Callable[..., Any]:
        """The function with the arguments of these settings."""
        given = {name: getattr(config, key) for key, name in self.arguments.items()}
        return partial(self.function, **given)


def _shapes10(_: object, train: bool, most: int | None) -> Images:
    # The set does not depend on the seed of the run, so that runs can be compared.
    return data.shapes10(most or 10_000, 0) if train else data.shapes10(1000, 0, False)


def _folder(config: Any, train: bool, _: int | None) -> Images:
    return data.image_folder(config.data_dir, train, config.image_size, config.skip_broken)


DATASETS = {
    "shapes10": DataSet(
        _shapes10, data.SHAPES10_CLASSES, data.SHAPES10_MEAN, data.SHAPES10_STD, "none",
        (10_000, 1000),
    ),
    "cifar10": DataSet(
        lambda config, train, _: data.cifar10(config.data_dir, train),
        data.CIFAR10_CLASSES, data.CIFAR10_MEAN, data.CIFAR10_STD, "crop_flip",
        (50_000, 10_000),
    ),
    "cifar100": DataSet(
        lambda config, train, _: data.cifar100(config.data_dir, train),
        data.CIFAR100_CLASSES, data.CIFAR100_MEAN, data.CIFAR100_STD, "crop_flip",
        (50_000, 10_000),
    ),
    # Classes, mean and deviation are those of the folder: train.sets.
    "folder": DataSet(_folder, (), (), (), "none", (0, 0)),
}  # fmt: skip
MODELS = {
    "simple": Choice(
        models.SimpleModel,
        {"layers": "num_layers"} | {k: k for k in ("head_relu", "signed", "recompute")},
    ),
    "small": Choice(models.SmallNet, {"spatial": "spatial", "width": "width"}),
    # Images are small.
    **{name: Choice(partial(make, stem="cifar"), {}) for name, make in models.NETWORKS.items()},
}
SCHEDULES = {
    "constant": Choice(optim.constant, {}),
    "step": Choice(optim.step_decay, {"milestones": "milestones", "drop": "factor"}),
    "cosine": Choice(optim.cosine, {}),
    "one_cycle": Choice(optim.one_cycle, {}),
}
AUGMENT = {"none": (), "crop_flip": (data.random_crop, data.random_flip)}

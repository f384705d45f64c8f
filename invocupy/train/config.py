"""The settings of a run, and what they mean: data, model, device."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from invocupy import data, models, nn
from invocupy.arrays import require_cupy


class ConfigError(ValueError):
    """Settings that make no sense, or do not fit the run. One line: setting, rule, values."""


class DataSet(NamedTuple):
    """What training knows of a data set: a row of ``DATASETS``."""

    load: Callable[[Config, bool], tuple[NDArray[np.uint8], NDArray[np.int64]]]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str  # what "auto" means


def _shapes10(config: Config, train: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    # The set stays the same whatever the seed of the run, so that runs compare.
    return data.shapes10(config.limit or 10_000, 0) if train else data.shapes10(1000, 0, False)


DATASETS = {
    "shapes10": DataSet(
        _shapes10, data.SHAPES10_CLASSES, data.SHAPES10_MEAN, data.SHAPES10_STD, "none"
    ),
    "cifar10": DataSet(
        lambda config, train: data.cifar10(config.data_dir, train),
        data.CIFAR10_CLASSES, data.CIFAR10_MEAN, data.CIFAR10_STD, "crop_flip",
    ),
}  # fmt: skip
MODELS: dict[str, Callable[[Config, int], nn.Module]] = {
    "simple": lambda config, classes: models.SimpleModel(
        num_layers=config.layers, num_classes=classes, head_relu=config.head_relu, rng=config.seed
    ),
}
SCHEDULES = ("constant", "cosine", "one_cycle")
AUGMENT = {"none": (), "crop_flip": (data.random_crop, data.random_flip)}


@dataclass(frozen=True)
class Config:
    """The settings of a run.

    Parameters
    ----------
    dataset : "shapes10" or "cifar10"
    data_dir : str, optional
        Where CIFAR-10 lies; see :func:`invocupy.data.cifar10`.
    model : "simple"
        :class:`invocupy.models.SimpleModel`.
    layers : int
        Of the model.
    head_relu : bool
        Whether a ReLU stands between the dense layers at the model's end. The article has none,
        and its head is then a linear map, which learns shapes10 many times slower.
    epochs, batch_size : int
    lr : float
        The highest learning rate; ``schedule`` gives the share of it in each step.
    momentum, weight_decay, nesterov
        Of :class:`invocupy.optim.SGD`.
    schedule : "one_cycle", "cosine" or "constant"
        Over all epochs, step by step; see :mod:`invocupy.optim`.
    warmup : int
        Steps at the beginning of ``"cosine"`` in which the rate rises.
    label_smoothing : float
        In training, not in evaluation.
    augment : "auto", "none" or "crop_flip"
        Training images are shifted by up to four pixels and mirrored; ``"auto"`` does so for
        CIFAR-10.
    seed : int
        Of the initial weights, the order of the images and their augmentation.
    limit : int, optional
        Take the first so many images only, of the training and of the test set. Without it,
        shapes10 has 10,000 and 1,000.
    device : "auto", "cpu", "cuda" or "cuda:i"
        ``"auto"`` takes a GPU if CuPy finds one.

    Raises
    ------
    ConfigError
        If a setting has another type or lies out of range.

    Examples
    --------
    >>> from invocupy.train import Config
    >>> config = Config(layers=2, lr=0.1)
    >>> Config.from_json(config.to_json()) == config
    True
    >>> Config(dataset="mnist")
    Traceback (most recent call last):
    ...
    invocupy.train.config.ConfigError: dataset must be one of shapes10, cifar10, got 'mnist'
    """

    dataset: str = "shapes10"
    data_dir: str | None = None
    model: str = "simple"
    layers: int = 2
    head_relu: bool = True
    epochs: int = 4
    batch_size: int = 32
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True
    schedule: str = "one_cycle"
    warmup: int = 0
    label_smoothing: float = 0.0
    augment: str = "auto"
    seed: int = 0
    limit: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.data_dir, os.PathLike):
            object.__setattr__(self, "data_dir", os.fspath(self.data_dir))
        for item in fields(self):
            value = getattr(self, item.name)
            if type(value).__name__.replace("NoneType", "None") not in _accepted(str(item.type)):
                raise ConfigError(f"{item.name} must be of type {item.type}, got {value!r}")
        for name, known in (
            ("dataset", DATASETS), ("model", MODELS), ("schedule", SCHEDULES),
            ("augment", ("auto", *AUGMENT)),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        limit = 1 if self.limit is None else self.limit
        device = re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None
        for name, right, rule in (
            ("layers", self.layers >= 0, "at least 0"),
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("lr", 0 < self.lr < math.inf, "a finite number above 0"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "a finite number from 0 on"),
            ("nesterov", self.momentum > 0 or not self.nesterov, "false without a momentum"),
            ("warmup", self.warmup >= 0, "at least 0"),
            ("warmup", self.schedule == "cosine" or not self.warmup, "0 but with cosine"),
            ("label_smoothing", 0 <= self.label_smoothing <= 1, "in [0, 1]"),
            ("seed", self.seed >= 0, "at least 0"),
            ("limit", limit >= 1, "at least 1"),
            ("device", device, "auto, cpu, cuda or cuda:i"),
        ):
            if not right:
                raise ConfigError(f"{name} must be {rule}, got {getattr(self, name)!r}")

    def to_json(self) -> str:
        """All settings as a JSON object, indented for reading."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Config:
        """Settings from a JSON object; those it does not name have their defaults.

        Raises
        ------
        ConfigError
            If it is not such an object.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"config must be JSON: {error}") from error
        names = {item.name for item in fields(Config)}
        if not isinstance(values, dict) or not names.issuperset(values):
            raise ConfigError(f"config must be a JSON object with {', '.join(sorted(names))} only")
        return Config(**values)


def load_data(config: Config, train: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The training or test set of a run.

    Parameters
    ----------
    config : Config
    train : bool

    Returns
    -------
    images : uint8 array (N, 3, 32, 32)
        NumPy; the first ``config.limit`` of the set.
    labels : int64 array (N,)

    Raises
    ------
    invocupy.data.DataError, invocupy.data.DownloadError
        As :func:`invocupy.data.cifar10`.

    Examples
    --------
    >>> from invocupy.train import Config, load_data
    >>> images, labels = load_data(Config(limit=20), train=False)
    >>> images.shape
    (20, 3, 32, 32)
    """
    images, labels = DATASETS[config.dataset].load(config, train)
    return images[: config.limit], labels[: config.limit]


def build(config: Config) -> nn.Module:
    """The untrained model of a run.

    Parameters
    ----------
    config : Config

    Returns
    -------
    Module
        On the CPU; its weights depend on ``config.seed``.

    Examples
    --------
    >>> from invocupy.train import Config, build
    >>> type(build(Config(layers=1))).__name__
    'SimpleModel'
    """
    return MODELS[config.model](config, len(DATASETS[config.dataset].classes))


def pick_device(device: str) -> str:
    """What ``"auto"`` means on this machine; other names are checked.

    Parameters
    ----------
    device : "auto", "cpu", "cuda" or "cuda:i"

    Returns
    -------
    str
        ``"cpu"``, ``"cuda"`` or ``"cuda:i"``.

    Raises
    ------
    ConfigError
        If a GPU is asked for and there is none, or none of that number.

    Examples
    --------
    >>> from invocupy.train import pick_device
    >>> pick_device("cpu")
    'cpu'
    """
    if device == "cpu":
        return device
    try:
        cupy = require_cupy()
    except RuntimeError as error:
        if device == "auto":
            return "cpu"
        raise ConfigError(f"device is {device}, but {error}") from error
    count = cupy.cuda.runtime.getDeviceCount()
    if int(device.partition(":")[2] or 0) >= count:
        raise ConfigError(f"device must be below cuda:{count} on this machine, got {device}")
    return "cuda" if device == "auto" else device


def _accepted(annotation: str) -> list[str]:
    """The names of the types of a setting: an integer will do for a float, a bool for neither."""
    return [*annotation.split(" | "), *(["int"] if "float" in annotation else [])]

"""From a run's settings to its data, model, device and learning rates."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from invocupy import data, nn, optim
from invocupy.arrays import require_cupy
from invocupy.docstrings import documented
from invocupy.train.choices import AUGMENT, DATASETS, MODELS, SCHEDULES, Images
from invocupy.train.config import Config, ConfigError
from invocupy.train.fields import DEVICE


@documented
def load_data(config: Config, train: bool) -> Images:
    """The training or test set of a run: uint8 images (N, 3, 32, 32) and int64 labels (N,), NumPy.

    They are the first ``config.limit`` of the set. With ``config.overfit`` they are the first so
    many of the training set, for training and test. Raises as :func:`invocupy.data.cifar10`.

    >>> images, labels = load_data(Config(limit=20), train=False)
    >>> images.shape
    (20, 3, 32, 32)
    """
    most = config.overfit or config.limit
    load = DATASETS[config.dataset].load
    images, labels = load(train or bool(config.overfit), most, config.data_dir)
    return images[:most], labels[:most]


@documented
def hold_out(config: Config, images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the training images to train on, and of those held out for validation, in order.

    Which ones depends on ``config.seed``, ``config.validation`` and the number of ``images`` alone.

    Raises
    ------
    ConfigError
        If one of the two would have none.

    >>> hold_out(Config(validation=0.3), 10)
    (array([0, 1, 3, 4, 6, 7, 8]), array([2, 5, 9]))
    """
    count = round(config.validation * images)
    if config.validation and not 0 < count < images:
        raise ConfigError(
            f"validation {config.validation} of {images} training images is {count}: give a share "
            "that leaves images on both sides"
        )
    # Words and a stable sort, as in data.Batches; the epochs' tables have other keys.
    bits = np.random.Philox(np.random.SeedSequence([config.seed, images, 1 << 32]))
    order = np.argsort(bits.random_raw(images), kind="stable")
    return np.sort(order[count:]), np.sort(order[:count])


@documented
def augmentation(config: Config) -> list[data.batches.Augment]:
    """The functions by which ``config`` alters training images, in their order.

    >>> [function.__name__ for function in augmentation(Config(dataset="cifar10"))]
    ['random_crop', 'random_flip']
    """
    auto = "none" if config.overfit else DATASETS[config.dataset].augment
    name = auto if config.augment == "auto" else config.augment
    cover = [partial(data.cutout, size=config.cutout)] if config.cutout else []
    return [*AUGMENT[name], *cover]


@documented
def rate(config: Config, step: int, total: int) -> float:
    """The learning rate of a step, which counts from 0, of a run of ``total`` steps.

    >>> config = Config(lr=0.1, schedule="constant", warmup=4)
    >>> [rate(config, step, 100) for step in (0, 3, 50)]
    [0.025, 0.1, 0.1]
    """
    schedule = SCHEDULES[config.schedule].of(config)
    return config.lr * optim.warm_up(schedule, step, total, config.warmup)


@documented
def build(config: Config) -> nn.Module:
    """The untrained model of a run, on the CPU; its weights depend on ``config.seed``.

    >>> type(build(Config(layers=1))).__name__
    'SimpleModel'
    """
    classes = len(DATASETS[config.dataset].classes)
    model: nn.Module = MODELS[config.model].of(config)(num_classes=classes, rng=config.seed)
    return model


@documented
def pick_device(device: str) -> str:
    """``"cpu"``, ``"cuda"`` or ``"cuda:i"``: what ``"auto"`` means here, or the device itself.

    Raises ConfigError for another name, and if there is no GPU, or none of that number.

    >>> pick_device("cpu")
    'cpu'
    """
    if not DEVICE.holds(device):
        raise ConfigError(f"device must be {DEVICE.text}, got {device[:40]!r}")
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

"""The model, device and learning rates of a run, from its settings."""

from __future__ import annotations

from functools import partial

from invocupy import data, nn, optim
from invocupy.arrays import require_cupy
from invocupy.docstrings import documented
from invocupy.train.choices import AUGMENT, DATASETS, MODELS, SCHEDULES
from invocupy.train.config import Config, ConfigError
from invocupy.train.fields import DEVICE
from invocupy.train.sets import About, describe


@documented
def augmentation(config: Config, about: About | None = None) -> list[data.batches.Augment]:
    """The functions that alter training images, in their order.

    >>> [function.__name__ for function in augmentation(Config(dataset="cifar10"))]
    ['random_crop', 'random_flip']
    """
    known = DATASETS.get(config.dataset if about is None else about.dataset)
    auto = "none" if config.overfit or known is None else known.augment
    name = auto if config.augment == "auto" else config.augment
    cover = [partial(data.cutout, size=config.cutout)] if config.cutout else []
    return [*AUGMENT[name], *cover]


@documented
def rate(config: Config, step: int, total: int) -> float:
    """The learning rate of a step.

    >>> config = Config(lr=0.1, schedule="constant", warmup=4)
    >>> [rate(config, step, 100) for step in (0, 3, 50)]
    [0.025, 0.1, 0.1]
    """
    schedule = SCHEDULES[config.schedule].of(config)
    return config.lr * optim.warm_up(schedule, step, total, config.warmup)


@documented
def build(config: Config, about: About | None = None) -> nn.Module:
    """The untrained model of a run, on the CPU; its weights depend on ``config.seed``.

    >>> type(build(Config(layers=1))).__name__
    'SimpleModel'
    """
    about = describe(config) if about is None else about
    channels, height, width = about.shape
    sizes = {"in_channels": channels, "num_classes": len(about.classes)}
    if config.model == "simple":  # the others take any size
        sizes |= {"height": height, "width": width}
    model: nn.Module = MODELS[config.model].of(config)(rng=config.seed, **sizes)
    return model


@documented
def pick_device(device: str) -> str:
    """The device that a name stands for; ConfigError if it does not exist.

    Parameters
    ----------
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:i"``, or ``"auto"``: a GPU if there is one.

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

"""The data of a run: its training, validation and test images, and their description."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from invocupy import data
from invocupy.data.own import Images, digest
from invocupy.docstrings import documented
from invocupy.train.choices import DATASETS
from invocupy.train.config import Config, ConfigError

ARRAYS = "arrays"
"""The name of a data set that was given as arrays."""


class About(NamedTuple):
    """The description of the images of a run; it is part of each checkpoint."""

    dataset: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # (C, H, W) of an image
    counts: tuple[int, int]  # images to train on, validation included, and to test on
    mean: tuple[float, ...] = ()  # of the training images, a channel; empty until they are measured
    std: tuple[float, ...] = ()
    digest: str = ""  # of images and labels that the settings do not determine

    def style(self) -> dict[str, Any]:
        """The arguments ``mean`` and ``std`` of :func:`invocupy.train.evaluate` and others."""
        return {"mean": self.mean, "std": self.std}

    def names(self, scores: int) -> tuple[str, ...]:
        """The classes of so many scores; a model may give more than there are classes."""
        return (*self.classes, *map(str, range(len(self.classes), scores)))[:scores]

    def measured(self, sets: list[Images]) -> About:
        """A copy with what only the images tell; :func:`load_sets` has read them."""
        *trained, tested = (len(labels) for _, labels in sets)
        about = self._replace(counts=(sum(trained), tested))
        if self.mean:
            return about
        mean, std = data.moments(sets[0][0])
        return about._replace(mean=mean, std=std, digest=digest(sets))

    def like(self, other: About) -> bool:
        """Whether a run on these images may continue with others: they must be the same."""
        pairs = zip(self[4:], other[4:], strict=True)  # empty ones are not known, or not yet
        return self[:3] == other[:3] and all(a == b for a, b in pairs if a and b)

    @staticmethod
    def of(saved: Any) -> About:
        """What a checkpoint has; ValueError if that describes no images."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in dict(saved).items()
        }
        found = About(**values)
        numbers = (*found.mean, *found.std)
        if not (
            isinstance(found.dataset, str)
            and isinstance(found.digest, str)
            and all(isinstance(name, str) for name in found.classes)
            and len(found.shape) == 3
            and all(type(n) is int and n > 0 for n in (len(found.classes), *found.shape))
            and len(found.mean) == len(found.std) == found.shape[0]
            and all(isinstance(n, float) and math.isfinite(n) for n in numbers)
            and min(found.std) > 0
        ):
            raise ValueError("its data is not described")
        return found


def describe(config: Config, own: tuple[Images, Images] | None = None) -> About:
    """The description before any image is read; ``own`` images replace those of the settings."""
    most = config.overfit or config.limit
    if own is not None:
        (images, labels), (tests, _) = own
        about = About(
            ARRAYS, tuple(map(str, range(int(labels.max()) + 1))), images.shape[1:],
            (len(images), len(tests)),
        )  # fmt: skip
    elif config.dataset == "folder":
        classes, *counts = data.folder_listing(config.data_dir or "")
        shape = 3, config.image_size, config.image_size
        about = About("folder", classes, shape, (counts[0], counts[1]))
    else:
        known = DATASETS[config.dataset]
        about = About(
            config.dataset, known.classes, known.shape, known.sizes, known.mean, known.std
        )
    train, test = (min(most or n, n) for n in about.counts)
    return about._replace(counts=(train, train if config.overfit else test))


@documented
def load_data(config: Config, train: bool) -> Images:
    """The training or test set of a run: uint8 images (N, C, H, W) and int64 labels (N,), NumPy.

    They are the first ``config.limit`` of the set. With ``config.overfit`` both sets are the first
    so many training images. Raises as :func:`invocupy.data.cifar10`.

    Parameters
    ----------
    train
        True for the training set, False for the test set.

    >>> images, labels = load_data(Config(limit=20), train=False)
    >>> images.shape
    (20, 3, 32, 32)
    """
    most = config.overfit or config.limit
    load = DATASETS[config.dataset].load
    images, labels = load(config, train or bool(config.overfit), most)
    return images[:most], labels[:most]


def load_sets(config: Config, own: tuple[Images, Images] | None = None) -> list[Images]:
    """All images of a run: training, validation if there is a share, and test."""
    if own is None:
        sets = [load_data(config, train) for train in (True, False)]
    else:
        most = config.overfit or config.limit
        sets = [(images[:most], labels[:most]) for images, labels in own]
        sets[1] = sets[0] if config.overfit else sets[1]
    if config.validation:
        images, labels = sets[0]
        sets[:1] = ((images[i], labels[i]) for i in hold_out(config, len(images)))
    return sets


def read_test_set(config: Config, about: About, data_dir: str | None = None) -> Images:
    """The test set of a finished run, whose files may have moved."""
    if about.dataset == ARRAYS:
        raise ConfigError(
            "the run was trained on arrays, which its folder does not hold: give the test images "
            "to invocupy.train.evaluate, or data= to invocupy.report.gather"
        )
    here = config.data_dir if data_dir is None else data_dir
    config = replace(config, data_dir=here)
    if describe(config).classes != about.classes:
        raise ConfigError(f"{here} has other classes than the images of the run")
    return load_data(config, train=False)


@documented
def hold_out(config: Config, images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted indices of the images to train on, and of those held out for validation.

    They depend on ``config.seed``, ``config.validation`` and ``images`` alone.

    Parameters
    ----------
    images
        The number of training images.

    Raises
    ------
    ConfigError
        If one of the two would have none.

    >>> hold_out(Config(validation=0.3), 10)
    (array([1, 2, 4, 5, 6, 8, 9]), array([0, 3, 7]))
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

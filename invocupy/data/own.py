"""Arrays of images from the user: checks, and their mean and standard deviation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invocupy.arrays import is_cupy, to_device
from invocupy.data.cifar import DataError
from invocupy.docstrings import documented
from invocupy.messages import kind_of

_MOST_CLASSES = 1 << 16
_BLOCK = 100  # images whose sums are taken at a time

Images = tuple[NDArray[np.uint8], NDArray[np.int64]]


@documented
def own_sets(data: Any) -> tuple[Images, Images]:
    """Checked arrays ``(train_images, train_labels, test_images, test_labels)``, as two pairs.

    The number of classes is one more than the largest training label.

    Parameters
    ----------
    data
        Images are uint8 (N, C, H, W), with equal C, H and W in both sets; labels are integers (N,).
        NumPy or CuPy arrays.

    Raises
    ------
    TypeError, DataError
        For other types; for other shapes, no images, or labels out of range. Each names the array.

    >>> images = np.zeros((4, 1, 24, 24), np.uint8)
    >>> train, test = own_sets((images, [0, 1, 0, 1], images[:1], [2]))
    Traceback (most recent call last):
    TypeError: train_labels must be a plain array of NumPy or CuPy, got list
    """
    arrays = _arrays(data, "train_images", "train_labels", "test_images", "test_labels")
    train = _pair("train", arrays[0], arrays[1], _MOST_CLASSES)
    lowest, largest = int(train[1].min()), int(train[1].max())
    if lowest == largest:
        raise DataError(f"train_labels must name at least two classes, got {lowest} alone")
    test = _pair("test", arrays[2], arrays[3], largest + 1)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            "train_images and test_images must have the same channels and size, got "
            f"{train[0].shape} and {test[0].shape}"
        )
    return train, test


def own_test_set(data: Any, classes: int) -> Images:
    """Checked arrays ``(test_images, test_labels)`` of so many classes; errors as above."""
    images, labels = _arrays(data, "test_images", "test_labels")
    return _pair("test", images, labels, classes)


def _pair(part: str, images: NDArray[Any], labels: NDArray[Any], most: int) -> Images:
    """Images and labels of one set, whose labels are to be below ``most``."""
    _check_images(f"{part}_images", images)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{part}_labels must be integers, got {labels.dtype}")
    if labels.shape != images.shape[:1]:
        raise DataError(
            f"{part}_labels must have shape ({len(images)},), one for each image, "
            f"got {labels.shape}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= most:
        why = "" if part == "train" else ", as those of the training images"
        wrong = low if low < 0 else high
        raise DataError(f"{part}_labels must be from 0 to {most - 1}{why}, got {wrong}")
    return images, labels.astype(np.int64)


def _check_images(name: str, images: NDArray[Any]) -> None:
    if images.dtype != np.uint8:
        raise TypeError(f"{name} must be uint8, from 0 to 255, got {images.dtype}")
    if images.ndim != 4 or not images.size:
        raise DataError(f"{name} must have shape (N, C, H, W), none of them 0, got {images.shape}")


def check_plain(name: str, value: Any) -> None:
    """TypeError for a list, and for a masked array, whose mask would be ignored."""
    known = isinstance(value, np.ndarray) or is_cupy(value)
    if not known or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array of NumPy or CuPy, got {kind_of(value)}")


def _arrays(data: Any, *names: str) -> list[NDArray[Any]]:
    if not isinstance(data, tuple | list) or len(data) != len(names):
        got = f"{len(data)} values" if isinstance(data, tuple | list) else kind_of(data)
        raise TypeError(f"data must be ({', '.join(names)}), got {got}")
    for name, value in zip(names, data, strict=True):
        check_plain(name, value)
    return [np.asarray(to_device(value, "cpu")) for value in data]


def digest(sets: Iterable[Images]) -> str:
    """The SHA-256 of labels and pixels, in their order."""
    found = hashlib.sha256()
    for images, labels in sets:
        found.update(labels.tobytes())
        for start in range(0, len(images), _BLOCK):
            found.update(images[start : start + _BLOCK].tobytes())
    return found.hexdigest()


@documented
def moments(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images (N, C, H, W), in units of 0..1.

    The sums are of integers, and exact. A channel of one value has the deviation 1, by which
    :class:`Batches` can divide.

    Raises
    ------
    TypeError, DataError
        For images that are not uint8 (N, C, H, W), or none.

    >>> moments(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1))
    ((0.5,), (0.5,))
    """
    check_plain("images", images)
    _check_images("images", images)
    count = images.size // images.shape[1]
    totals, squares = np.zeros((2, images.shape[1]), np.int64)
    for start in range(0, len(images), _BLOCK):
        block = images[start : start + _BLOCK].astype(np.int64)
        totals += block.sum(axis=(0, 2, 3))
        squares += (block * block).sum(axis=(0, 2, 3))
    mean = totals / count
    spread = np.sqrt(np.maximum(squares / count - mean * mean, 0))
    return tuple((mean / 255).tolist()), tuple(np.where(spread, spread / 255, 1.0).tolist())

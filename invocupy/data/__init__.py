"""Image sets as arrays, and batches of them that resume exactly.

``cifar`` reads CIFAR-10 and CIFAR-100, described in ``versions``, ``generated`` draws a synthetic
set, ``folder`` reads image files from one folder per class, ``own`` checks arrays of the user,
``batches`` makes normalised, augmented batches, ``images`` reads image files. Sets are uint8 images
(N, C, H, W) and int64 labels (N,).
"""

from __future__ import annotations

from invocupy.data.batches import Batches, cutout, random_crop, random_flip
from invocupy.data.cifar import DataError, DownloadError, cifar10, cifar100
from invocupy.data.folder import folder_listing, image_folder
from invocupy.data.generated import SHAPES10_CLASSES, SHAPES10_MEAN, SHAPES10_STD, shapes10
from invocupy.data.images import grey, read_image
from invocupy.data.own import moments, own_sets
from invocupy.data.versions import (
    CIFAR10_CLASSES,
    CIFAR10_MEAN,
    CIFAR10_STD,
    CIFAR100_CLASSES,
    CIFAR100_COARSE_CLASSES,
    CIFAR100_MEAN,
    CIFAR100_STD,
)

__all__ = [
    "CIFAR10_CLASSES", "CIFAR10_MEAN", "CIFAR10_STD", "CIFAR100_CLASSES",
    "CIFAR100_COARSE_CLASSES", "CIFAR100_MEAN", "CIFAR100_STD", "SHAPES10_CLASSES",
    "SHAPES10_MEAN", "SHAPES10_STD", "Batches", "DataError", "DownloadError", "cifar10",
    "cifar100", "cutout", "folder_listing", "grey", "image_folder", "moments", "own_sets",
    "random_crop", "random_flip", "read_image", "shapes10",
]  # fmt: skip

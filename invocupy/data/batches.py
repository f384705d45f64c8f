"""Batches that depend on (seed, epoch, sample number) alone, and augmentation.

Each epoch draws one table of random numbers with a row for each sample: its first column orders the
samples, the others drive the augmentation. So a batch is the same in a resumed epoch, or split over
ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from invocupy.arrays import Array, namespace, on_device
from invocupy.geometry import integer
from invocupy.messages import shown

Augment = Callable[[Array, Array], Array]

_COLUMNS = 8  # random numbers for augmentation, per sample and epoch


class Batches:
    """A data set as normalised batches, in an order drawn from a seed.

    Parameters
    ----------
    images : uint8 array (N, C, H, W)
        NumPy, or CuPy for a set that stays on the GPU; not modified.
    labels : integer array (N,)
        Of the same library and device.
    batch_size
        Images per batch; the last one of an epoch may have fewer.
    seed
        From 0; with the epoch it decides order and augmentation.
    shuffle
        Draw a new order each epoch. Otherwise the order is that of ``images``.
    augment
        Functions ``f(images, random) -> images`` applied in turn to a batch: uint8 (B, C, H, W)
        and float64 (B, 8), uniform in [0, 1), with the samples' rows of the epoch's table. Columns
        0, 1 belong to ``random_crop``, 2 to ``random_flip``, 3, 4 to ``cutout``; 5 to 7 are free.
    mean, std
        One number per channel, for pixels in units of 0..1.
    drop_last
        Leave out a last batch that is not full.
    rows
        A function ``f(count)`` that returns which rows (an integer array) of a batch of ``count``
        this process needs; the others are neither read nor augmented. By default all.

    Raises
    ------
    TypeError, ValueError
        If dtypes or libraries of the arrays, or shapes, sizes or numbers of channels do not fit.

    Examples
    --------
    >>> from invocupy.data import SHAPES10_MEAN, SHAPES10_STD, shapes10
    >>> images, labels = shapes10(100, seed=0)
    >>> batches = Batches(images, labels, 40, mean=SHAPES10_MEAN, std=SHAPES10_STD)
    >>> len(batches), [x.shape for x, _ in batches.epoch(0, start=1)]
    (3, [(40, 3, 32, 32), (20, 3, 32, 32)])
    """

    def __init__(
        self,
        images: Array,
        labels: Array,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        augment: Sequence[Augment] = (),
        mean: Sequence[float],
        std: Sequence[float],
        drop_last: bool = False,
        rows: Callable[[int], Array] | None = None,
    ) -> None:
        xp, given = namespace(images), (images, labels)
        if not all(type(a) is not np.ma.MaskedArray and isinstance(a, xp.ndarray) for a in given):
            raise TypeError(
                "images and labels must be plain arrays of one library, NumPy or CuPy, got "
                f"{type(images).__name__} and {type(labels).__name__}"
            )
        if images.dtype != np.uint8 or labels.dtype.kind not in "iu":
            raise TypeError(
                f"images must be uint8 and labels integers, got {images.dtype} and {labels.dtype}"
            )
        if images.ndim != 4 or labels.shape != images.shape[:1]:
            raise ValueError(
                "images must have shape (N, C, H, W) and labels (N,), "
                f"got {images.shape} and {labels.shape}"
            )
        channels = images.shape[1]
        centre, spread = np.asarray(mean), np.asarray(std)
        if (
            not all(
                a.shape == (channels,) and a.dtype.kind in "iuf" and np.isfinite(a).all()
                for a in (centre, spread)
            )
            or not (spread > 0).all()
        ):
            raise ValueError(
                f"mean and std must have {channels} finite numbers, one per channel, and std "
                f"positive ones, got {shown(mean)} and {shown(std)}"
            )
        self.images, self.labels = images, labels
        self.batch_size = integer("batch_size", batch_size, 1)
        self.seed = integer("seed", seed, 0)
        if drop_last and len(images) < self.batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} with drop_last leaves nothing of {len(images)} "
                "images: give a smaller one"
            )
        if not isinstance(augment, Sequence) or not all(map(callable, augment)):
            raise TypeError(f"augment must be a list of functions, got {shown(augment)}")
        self.shuffle, self.augment = shuffle, tuple(augment)
        self.drop_last, self.rows = drop_last, rows
        # x = (pixel / 255 - mean) / std = pixel * scale + shift
        centre, spread = centre.astype(np.float64), spread.astype(np.float64)
        constants = np.array([1 / (255 * spread), -centre / spread], "f4")[..., None, None]
        with on_device(images):
            self._scale, self._shift = xp.asarray(constants)

    def __len__(self) -> int:
        """Steps per epoch."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Array, Array]]:
        """The batches of one epoch from step ``start`` on; ValueError if there is none.

        Parameters
        ----------
        epoch
            From 0.
        start
            The first step wanted, 0 to ``len(self)``: what was left of an interrupted epoch.

        Yields
        ------
        x : float32 array (B, C, H, W)
            Normalised, C-contiguous, new memory, of the library and device of the images.
        labels : array (B,)
            Of the dtype of the labels given.
        """
        return map(self.take, self.sheets(epoch, start))

    def sheets(self, epoch: int, start: int = 0) -> Iterator[Array]:
        """What :meth:`take` makes the batches of :meth:`epoch` from, float64 (B, 9) each.

        A row is the number of an image and its random numbers. They lie on the device of the
        images, those of an epoch in one piece, so that no step has to copy them there.
        """
        epoch, start = integer("epoch", epoch, 0), integer("start", start, 0)
        if start > len(self):
            raise ValueError(
                f"start must be at most {len(self)}, the number of batches, got {start}"
            )
        return self._sheets(epoch, start)

    def _sheets(self, epoch: int, start: int) -> Iterator[Array]:
        order, table = self._draw(epoch)
        steps = range(start * self.batch_size, len(self) * self.batch_size, self.batch_size)
        chosen = [order[first : first + self.batch_size] for first in steps]
        if self.rows is not None:
            chosen = [index[self.rows(len(index))] for index in chosen]
        with on_device(self.images):
            # float64 holds numbers of images exactly
            index = np.concatenate(chosen or [order[:0]])
            whole = namespace(self.images).asarray(np.column_stack([index, table[index]]))
        first = 0
        for index in chosen:
            yield whole[first : first + len(index)]
            first += len(index)

    def take(self, sheet: Array) -> tuple[Array, Array]:
        """One batch of :meth:`epoch`."""
        with on_device(self.images):
            rows = sheet[:, 0].astype(np.int64)
            batch = self.images[rows]
            for function in self.augment:
                batch = function(batch, sheet[:, 1:])
            x = batch.astype(np.float32, order="C")
            x *= self._scale
            x += self._shift
            return x, self.labels[rows]

    def _draw(self, epoch: int) -> tuple[Array, Array]:
        """Order (N,) and random numbers (N, 8) of an epoch, the same in all versions of NumPy.

        So Philox words and a stable sort of them, not ``Generator.permutation``.
        """
        n = len(self.images)
        bits = np.random.Philox(np.random.SeedSequence([self.seed, epoch]))
        words = bits.random_raw(n * (1 + _COLUMNS)).reshape(n, 1 + _COLUMNS)
        order = np.argsort(words[:, 0], kind="stable") if self.shuffle else np.arange(n)
        return order, (words[:, 1:] >> np.uint64(11)) * 2.0**-53


def random_crop(images: Array, random: Array, *, pad: int = 4) -> Array:
    """Pad each image with black on all sides and crop it to its size, at a random place.

    As He et al., arXiv 1512.03385, section 4.2.

    Parameters
    ----------
    images : uint8 array (B, C, H, W)
        The batch, which is not changed.
    random : float array (B, 8)
        Columns 0 and 1: row and column offset, ``floor(random * (2 * pad + 1))``.
    pad
        Pixels added on each side.

    Returns
    -------
    uint8 array (B, C, H, W)

    Examples
    --------
    >>> image = np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3)
    >>> random_crop(image, np.array([[0.9, 0.5]]), pad=1)[0, 0]
    array([[3, 4, 5],
           [6, 7, 8],
           [0, 0, 0]], dtype=uint8)
    """
    xp, pad = namespace(images), integer("pad", pad, 0)
    n, channels, height, width = images.shape
    padded: Array = xp.zeros((n, channels, height + 2 * pad, width + 2 * pad), images.dtype)
    padded[:, :, pad : pad + height, pad : pad + width] = images
    offset = (random[:, :2] * (2 * pad + 1)).astype(np.int64)
    rows = offset[:, 0, None] + xp.arange(height)  # (B, H)
    columns = offset[:, 1, None] + xp.arange(width)  # (B, W)
    index = xp.arange(n)[:, None, None, None], xp.arange(channels)[:, None, None]
    moved: Array = padded[*index, rows[:, None, :, None], columns[:, None, None, :]]
    return moved


def random_flip(images: Array, random: Array) -> Array:
    """Mirror each image left to right with probability one half.

    Parameters
    ----------
    images : uint8 array (B, C, H, W)
        The batch, which is not changed.
    random : float array (B, 8)
        Column 2: mirrored below 0.5.

    Returns
    -------
    uint8 array (B, C, H, W)

    Examples
    --------
    >>> image = np.array([[[[1, 2, 3]]]], np.uint8)
    >>> random_flip(image, np.array([[0.0, 0.0, 0.2]])).tolist()
    [[[[3, 2, 1]]]]
    """
    xp = namespace(images)
    mirrored = (random[:, 2] < 0.5)[:, None, None, None]
    flipped: Array = xp.where(mirrored, images[..., ::-1], images)
    return flipped


def cutout(images: Array, random: Array, *, size: int = 8, fill: int = 127) -> Array:
    """Cover a square of each image, as DeVries and Taylor, arXiv 1708.04552.

    The square's centre is uniform over the image, so that part of it may fall outside.

    Parameters
    ----------
    images : uint8 array (B, C, H, W)
        The batch, which is not changed.
    random : float array (B, 8)
        Columns 3 and 4: the centre, ``floor(random * (H, W))``.
    size
        Side of the square in pixels.
    fill
        The pixel value of the square; the default is about the mean of usual images.

    Returns
    -------
    uint8 array (B, C, H, W)

    Examples
    --------
    >>> image = np.zeros((1, 1, 3, 4), np.uint8)
    >>> cutout(image, np.array([[0, 0, 0, 0.5, 0.99]]), size=2, fill=9)[0, 0]
    array([[0, 0, 9, 9],
           [0, 0, 9, 9],
           [0, 0, 0, 0]], dtype=uint8)
    """
    xp, size, fill = namespace(images), integer("size", size, 0), integer("fill", fill, 0)
    if fill > 255:
        raise ValueError(f"fill must be at most 255, got {fill}")
    inside = []  # (B, H) and (B, W)
    for axis, length in enumerate(images.shape[2:]):
        first = (random[:, 3 + axis] * length).astype(np.int64)[:, None] - size // 2
        place = xp.arange(length)
        inside.append((place >= first) & (place < first + size))
    covered = inside[0][:, None, :, None] & inside[1][:, None, None, :]  # (B, 1, H, W)
    cut: Array = xp.where(covered, xp.full_like(images, fill), images)
    return cut

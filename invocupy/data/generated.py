"""shapes10-v1: ten classes of synthetic 32x32 colour images, without any download.

Each image shows a shape of random position, size, rotation and colour on a random background with
shading and noise. Colour, brightness and position do not depend on the class: a small network
learns it, a colour histogram or a linear model does not.

The same (n, seed, train) gives the same bytes everywhere: the random numbers are the raw output of
Philox, and the float32 operations are +, -, *, /, sqrt, min and max, which IEEE 754 rounds
identically. There is no sine, no matrix product, and no sum whose order could vary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from invocupy.geometry import integer

SHAPES10_CLASSES = (
    "disc", "square", "triangle", "ring", "cross", "star", "crescent", "bar", "pair", "ell"
)  # fmt: skip
SHAPES10_MEAN = (0.5, 0.5, 0.5)
SHAPES10_STD = (0.294, 0.294, 0.294)

_SIDE = 32
_CHUNK = 500  # images drawn at once: the arrays of a chunk stay in cache; a multiple of ten
_PARAMETERS = 16  # 64-bit words per image for class, place, colour, ...
_NOISE = 3 * _SIDE * _SIDE // 8  # and for one noise byte per value

Plane = NDArray[np.float32]  # (m, 32, 32)


def shapes10(n: int, seed: int, train: bool = True) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw ``n`` images of the synthetic set "shapes10-v1".

    Parameters
    ----------
    n
        Number of images. A longer set starts with the images of a shorter one.
    seed
        Any integer from 0. Its training and test set are from disjoint parts of its random stream.
    train
        True for the training set, False for the test set.

    Returns
    -------
    images : uint8 array (n, 3, 32, 32)
        Red, green and blue planes.
    labels : int64 array (n,)
        Indices into ``SHAPES10_CLASSES``; every ten consecutive images, from a multiple of ten,
        have all ten classes in random order.

    Raises
    ------
    ValueError
        If ``n`` or ``seed`` is not an integer >= 0.

    Examples
    --------
    >>> images, labels = shapes10(100, seed=0)
    >>> images.shape, images.dtype.name, sorted(labels[:10].tolist())
    ((100, 3, 32, 32), 'uint8', [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    n, seed = integer("n", n, 0), integer("seed", seed, 0)
    # The counter's highest word keeps the two sets apart: they could meet after 2**192 blocks.
    key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    bits = np.random.Philox(key=key, counter=[0, 0, 0, 0 if train else 1])
    images, labels = np.empty((n, 3, _SIDE, _SIDE), np.uint8), np.empty(n, np.int64)
    for start in range(0, n, _CHUNK):
        count = min(_CHUNK, n - start)
        whole = -(-count // 10) * 10
        words = bits.random_raw(whole * (_PARAMETERS + _NOISE)).reshape(whole, -1)
        order = np.argsort(words[:, 0].reshape(-1, 10), axis=1, kind="stable")
        labels[start : start + count] = order.reshape(-1)[:count]
        images[start : start + count] = _draw(labels[start : start + count], words[:count])
    return images, labels


def _draw(labels: NDArray[np.int64], words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Images (m, 3, 32, 32) of the given classes from random words (m, 400)."""
    # (16, m, 1, 1), uniform in [0, 1): 24 bits are exact in float32
    uniform = (words[:, :_PARAMETERS] >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    uniform = np.ascontiguousarray(uniform.T)[:, :, None, None]
    radius = 8 + 4 * uniform[1]
    room = 15 - radius
    grid = np.arange(_SIDE, dtype=np.float32) - np.float32(15.5)
    x = grid - room * (2 * uniform[2] - 1)  # (m, 1, 32), pixels from the shape's centre
    y = grid[:, None] - room * (2 * uniform[3] - 1)  # (m, 32, 1)

    # The turn: t = tan(angle / 2) gives cosine and sine without calling either.
    t = 2 * uniform[4] - 1
    side = np.where(uniform[5] < 0.5, np.float32(1), np.float32(-1)) / (1 + t * t)
    cosine, sine = side * (1 - t * t) / radius, side * 2 * t / radius
    u, v = cosine * x + sine * y, cosine * y - sine * x  # (m, 32, 32), in radii

    cover = np.empty_like(u)  # share of each pixel that the shape covers
    for label, outline in enumerate(_OUTLINES):
        mine = labels == label
        cover[mine] = np.clip(0.5 - radius[mine] * outline(u[mine], v[mine]), 0, 1)

    # Shape or background is the lighter one, by 0.3 to 0.7 in each channel, whatever the class.
    gap = 0.3 + 0.4 * uniform[9:12, :, 0].transpose(1, 0, 2)[..., None]  # (m, 3, 1, 1)
    dark = uniform[6:9, :, 0].transpose(1, 0, 2)[..., None] * (1 - gap)
    cover = np.where(uniform[15] < 0.5, cover, 1 - cover)
    shade = (uniform[12] - 0.5) * (grid / 80) + (uniform[13] - 0.5) * (grid[:, None] / 80)
    image = cover[:, None] * gap
    image += dark
    image += shade[:, None]
    image *= 255

    noise = words[:, _PARAMETERS:].astype("<u8").view(np.uint8).reshape(image.shape)
    strength = (4 + 20 * uniform[14, :, None]) / np.float32(127.5)  # up to 24 of 255 levels
    grain = noise.astype(np.float32)
    grain -= np.float32(127.5)
    grain *= strength
    image += grain
    image += np.float32(0.5)  # so that cutting off the fraction rounds
    levels: NDArray[np.uint8] = np.clip(image, 0, 255, out=image).astype(np.uint8)
    return levels


# Outlines: negative inside, positive outside, about the distance in radii; u, v from the centre.


def _box(u: Plane, v: Plane, width: float, height: float) -> Plane:
    return np.maximum(np.abs(u) - width, np.abs(v) - height)


def _circle(u: Plane, v: Plane, radius: float) -> Plane:
    return np.sqrt(u * u + v * v) - np.float32(radius)


def _star(u: Plane, v: Plane) -> Plane:
    # On the inner side of at least four of five lines: the second largest distance decides.
    first = second = np.full_like(u, -np.inf)
    for a, b in (
        (0.0, 1.0), (0.95105652, 0.30901699), (0.58778525, -0.80901699),
        (-0.58778525, -0.80901699), (-0.95105652, 0.30901699),
    ):  # fmt: skip
        line = a * u + b * v
        first, second = np.maximum(first, line), np.maximum(second, np.minimum(first, line))
    return second - np.float32(0.36)


_OUTLINES: tuple[Callable[[Plane, Plane], Plane], ...] = (
    lambda u, v: _circle(u, v, 0.9),
    lambda u, v: _box(u, v, 0.8, 0.8),
    lambda u, v: np.maximum(0.5 * v + 0.8660254 * np.abs(u), -v) - np.float32(0.55),
    lambda u, v: np.maximum(_circle(u, v, 1.0), -_circle(u, v, 0.55)),
    lambda u, v: np.minimum(_box(u, v, 1.0, 0.3), _box(u, v, 0.3, 1.0)),
    _star,
    lambda u, v: np.maximum(_circle(u, v, 1.0), -_circle(u - np.float32(0.5), v, 0.8)),
    lambda u, v: _box(u, v, 1.05, 0.28),
    lambda u, v: _circle(np.abs(u) - np.float32(0.6), v, 0.42),
    lambda u, v: np.minimum(
        _box(u + np.float32(0.55), v, 0.27, 0.95), _box(u, v + np.float32(0.68), 0.82, 0.27)
    ),
)
"""In the order of ``SHAPES10_CLASSES``."""

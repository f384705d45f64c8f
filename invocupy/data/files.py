"""Image files as a model takes them."""

from __future__ import annotations

import os
import warnings

import numpy as np
from numpy.typing import NDArray

from invocupy.data.cifar import DataError
from invocupy.extras import require


def read_image(path: str | os.PathLike[str], size: int = 32) -> NDArray[np.uint8]:
    """An image file as a small square image in colour.

    Turned as its EXIF orientation says, transparency put on white, the middle square cut out, and
    that resized by area averages (Pillow's box filter), or enlarged bicubically.

    Parameters
    ----------
    path
        Of any format that Pillow reads; of an animation the first frame.
    size : int
        Side of the result.

    Returns
    -------
    uint8 array (3, size, size)

    Raises
    ------
    DataError
        If the file cannot be read, is no image, or has more pixels than Pillow takes for safe.
    invocupy.extras.MissingExtra
        Without Pillow.

    Examples
    --------
    >>> read_image("no/such/file.png")
    Traceback (most recent call last):
    ...
    invocupy.data.cifar.DataError: no/such/file.png cannot be read as an image (...)
    """
    pillow = require("PIL.Image", "Pillow", "plots")
    turned = require("PIL.ImageOps", "Pillow", "plots")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(path) as file:
                image = turned.exif_transpose(file).convert("RGBA")
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError, Warning) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"{os.fspath(path)} cannot be read as an image ({reason})") from error
    on_white = pillow.new("RGBA", image.size, "white")
    on_white.alpha_composite(image)
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    square = on_white.convert("RGB").crop((left, top, left + side, top + side))
    filter_ = pillow.Resampling.BOX if side > size else pillow.Resampling.BICUBIC
    small = np.asarray(square.resize((size, size), filter_), np.uint8)
    return np.ascontiguousarray(small.transpose(2, 0, 1))

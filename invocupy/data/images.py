"""Image files as the input of a model."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from invocupy.data.cifar import DataError
from invocupy.extras import require
from invocupy.geometry import integer
from invocupy.messages import one_line
from invocupy.paths import AnyPath, existing

_SIXTEEN_BITS = "PNG", "PPM", "TIFF", "JPEG2000"
"""Formats whose 16-bit grey pixels go from black at 0 to white at 65535 in Pillow."""
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262


def read_image(path: AnyPath, size: int = 32) -> NDArray[np.uint8]:
    """An image file as a small square image in colour.

    The EXIF orientation is applied, transparent pixels are put on white, and the centre square is
    resized by area averages (Pillow's box filter), or enlarged bicubically. Grey images of 16 bits
    and of floats from 0 (black) to 1 (white) are scaled to 8 bits. Other floats and 32-bit integers
    are an error: their value of white is unknown.

    Parameters
    ----------
    path
        A file of any format that Pillow reads; of an animation the first frame.
    size : int
        Side of the result, from 1.

    Returns
    -------
    uint8 array (3, size, size)

    Raises
    ------
    DataError
        If the file cannot be read, is damaged, has pixels of unknown scale, or more of them than
        Pillow considers safe or than fit into memory.
    ValueError
        If ``size`` is not an integer >= 1.
    invocupy.extras.MissingExtra
        Without Pillow.

    Examples
    --------
    >>> read_image("no/such/file.png")
    Traceback (most recent call last):
    ...
    invocupy.data.cifar.DataError: no/such/file.png cannot be read as an image (...): ...
    """
    return sized_image(path, size)[0]


def sized_image(path: AnyPath, size: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """As :func:`read_image`, and width and height of the file's image in pixels."""
    size = integer("size", size, 1)
    pillow, ops = (require(f"PIL.{name}", "Pillow", "plots") for name in ("Image", "ImageOps"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong with an image is an error or harmless
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(existing(path)) as file:
                image = ops.exif_transpose(file)
                whole = image.size
                side = min(whole)
                left, top = ((length - side) // 2 for length in whole)
                image = image.crop((left, top, left + side, top + side))
                image = _eight_bits(pillow, image, file.format, getattr(file, "tag_v2", {}))
            if image.mode == "RGBA":
                on_white = pillow.new("RGBA", image.size, "white")
                on_white.alpha_composite(image)
                image = on_white.convert("RGB")
            filter_ = pillow.Resampling.BOX if side > size else pillow.Resampling.BICUBIC
            small = np.asarray(image.resize((size, size), filter_), np.uint8)
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        bomb = pillow.DecompressionBombWarning, pillow.DecompressionBombError, MemoryError
        way_out = ": give a whole file of a format that Pillow reads, such as PNG or JPEG"
        way_out = ": give a smaller image" if isinstance(error, bomb) else way_out
        way_out = "" if isinstance(error, DataError) else way_out  # it says so itself
        raise DataError(
            f"{path} cannot be read as an image ({one_line(error)}){way_out}"
        ) from error
    return np.ascontiguousarray(small.transpose(2, 0, 1)), whole


def grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The brightness of an image: uint8 (3, H, W) to (1, H, W), by the weights of ITU-R 601.

    Parameters
    ----------
    image : uint8 array (3, H, W)
        Red, green and blue.

    Returns
    -------
    uint8 array (1, H, W)

    Examples
    --------
    >>> grey(np.array([200, 100, 50], np.uint8).reshape(3, 1, 1)).item()
    124
    """
    if image.dtype != np.uint8 or image.ndim != 3 or len(image) != 3:
        raise ValueError(f"image must be uint8 (3, H, W), got {image.dtype} {image.shape}")
    weighted = np.tensordot((0.299, 0.587, 0.114), image, 1)
    return np.asarray(weighted + 0.5, np.uint8)[None]


def _eight_bits(pillow: Any, image: Any, kind: str, tags: Any) -> Any:
    """A Pillow image of any mode in RGBA or RGB, its brightness scaled and never clipped."""
    if image.mode == "F":
        white = 1.0
    elif not image.mode.startswith("I"):
        # Premultiplied grey is converted to nothing else; LAB becomes RGBA of alpha 0.
        image = image.convert("LA") if image.mode == "La" else image
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif kind in _SIXTEEN_BITS and (image.mode != "I" or kind in ("PPM", "PNG")):
        white = 2.0 ** min(np.atleast_1d(tags.get(_TIFF_BITS, 16))[0], 16) - 1
    else:
        raise DataError(
            f"nothing says which value is white in {kind} with pixels of Pillow's mode "
            f"{image.mode}: save it with 8 or 16 bits a channel"
        )
    values = np.asarray(image, np.float32)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # so that NaN is refused, too
        raise DataError(
            f"its pixels are numbers from {low:g} to {high:g} and must be from 0 (black) to "
            f"{white:g} (white): scale them, or save it with 8 or 16 bits a channel"
        )
    clear = values == image.info.get("transparency", -1)
    share = values / white
    share = 1 - share if tags.get(_TIFF_PHOTOMETRIC) == 0 else share  # there 0 is white
    grey = pillow.fromarray((share * 255 + 0.5).astype(np.uint8))
    alpha = pillow.fromarray(np.where(clear, 0, 255).astype(np.uint8))
    return pillow.merge("LA", (grey, alpha)).convert("RGBA")

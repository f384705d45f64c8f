"""PNG images without any library, and colours for numbers."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

# Nine colours of matplotlib's viridis, evenly apart: as light as the value is high, in grey, too.
_VIRIDIS = np.array(
    [
        (68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140),
        (40, 174, 128), (94, 201, 98), (173, 220, 48), (253, 231, 37),
    ]
)  # fmt: skip


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """An RGB image (H, W, 3) as a PNG file (ISO/IEC 15948): 8 bits a channel, no filter.

    Examples
    --------
    >>> encode(np.zeros((2, 3, 3), np.uint8))[:8]
    b'\\x89PNG\\r\\n\\x1a\\n'
    """
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row begins with its filter, 0
    rows[:, 1:] = pixels.reshape(height, -1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + chunk(b"IEND", b"")
    )


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """An RGB image (H, W, 3) as text that a page can hold."""
    return "data:image/png;base64," + base64.b64encode(encode(pixels)).decode()


def colours(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    """Numbers (H, W) as an RGB image (H, W, 3), from dark violet at ``low`` to yellow at ``high``.

    Examples
    --------
    >>> colours(np.array([[0.0, 5.0, 99.0]]), 0, 10).tolist()
    [[[68, 1, 84], [33, 145, 140], [253, 231, 37]]]
    """
    place = np.clip((values - low) / max(high - low, 1e-30), 0, 1) * (len(_VIRIDIS) - 1)
    place = np.nan_to_num(place)
    grid = np.arange(len(_VIRIDIS))
    channels = [np.interp(place, grid, _VIRIDIS[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def legend() -> str:
    """The colours from low to high, as a CSS gradient."""
    return "linear-gradient(90deg," + ",".join(f"rgb{tuple(c)}" for c in _VIRIDIS.tolist()) + ")"

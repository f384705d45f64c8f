"""Weights and images that any program can make: the rule behind ``tests/files/networks.json``.

Number i of an array named ``name`` is ``u = (mix(i + 2**32 * crc32(name)) >> 40) / 2**24`` in
[0, 1), with ``mix`` the finaliser of splitmix64 on unsigned 64-bit integers: exact in float32, the
same everywhere. Names are those of the checkpoint.

- An array of two or more dimensions is ``(2u - 1) * sqrt(1.5 / fan_in)``, in float32: small,
  since an involution squares what it sees, from block to block.
- One of one dimension is ``0.5 + u`` if its name ends in ``running_var`` or ``weight``, else
  ``u - 0.5``.
- An image is ``4u - 2``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np

SIZES = {"large": (1, 3, 224, 224), "odd": (2, 3, 65, 97)}
GRADIENTS = 5  # stored numbers of each array's gradient: every (size // 5)th
TRAINED = (2, 3, 45, 37)


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [0, 1), float64 but exact in float32."""
    z = np.arange(math.prod(shape), dtype=np.uint64)
    z += np.uint64(zlib.crc32(name.encode()) << 32)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(40)) / 2.0**24).reshape(shape)


def weights(shapes: Mapping[str, tuple[int, ...]], variance: float = 0.5) -> dict[str, np.ndarray]:
    """Names to arrays, float32."""
    arrays = {}
    for name, shape in shapes.items():
        u = uniform(name, shape)
        if name.endswith("num_batches_tracked"):
            arrays[name] = np.zeros(shape, np.int64)
            continue
        if len(shape) > 1:
            u = (2 * u - 1) * math.sqrt(3 * variance / math.prod(shape[1:]))
        elif name.endswith(("weight", "running_var")):
            u = u + 0.5
        else:
            u = u - 0.5
        arrays[name] = u.astype(np.float32)
    return arrays


def image(shape: tuple[int, ...]) -> np.ndarray:
    """float64, exact in float32."""
    return 4 * uniform("image", shape) - 2


def some(gradient: np.ndarray) -> np.ndarray:
    """The numbers of a gradient that are stored."""
    flat = gradient.ravel()
    return flat[:: max(flat.size // GRADIENTS, 1)][:GRADIENTS]

"""Involution of an image whose kernel exceeds the memory: ``python benchmarks/dask_image.py``.

A square image is generated in bands of rows, with a kernel for each pixel that depends on the pixel
(bright ones are kept, dark ones blurred; nine float32 per pixel, 2.3 GB for 8000 x 8000). The
result is written to disk band by band. A strip across the border of two bands is compared with one
call; then the time and the peak memory of the process are printed, pages of the file included.

Bands of whole rows need the least memory: dask computes the kernel of a chunk as soon as it has the
pixels of the chunk, but involution waits for the neighbours on all sides.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np

import invocupy
from invocupy.interop.dask import involution

TAPS = 3


def chunk_of_image(rows: Any, columns: Any) -> Any:
    """Rings and stripes with noise; a pixel is the same whatever the chunks are."""
    y, x = rows[:, None].astype(np.float32), columns[None, :].astype(np.float32)
    noise = np.sin(12.9898 * (x % 251) + 78.233 * (y % 241)) * 43758.5453 % 1
    shapes = np.hypot(x % 1000 - 500, y % 1000 - 500) < 300
    return (0.8 * shapes + 0.2 * noise).astype(np.float32)


def make_kernel(image: Any) -> Any:
    """(H, W) to (3, 3, H, W): bright pixels are kept, dark ones are blurred."""
    box = np.full((TAPS, TAPS, 1, 1), 1 / TAPS**2, np.float32)
    centre = np.zeros_like(box)
    centre[TAPS // 2, TAPS // 2] = 1
    keep = (image > 0.5).astype(np.float32)
    return keep * centre + (1 - keep) * box


def run(size: int, rows: int, threads: int, folder: Path) -> dict[str, Any]:
    y, x = da.arange(size, chunks=rows), da.arange(size, chunks=size)
    image = da.blockwise(chunk_of_image, "hw", y, "h", x, "w", dtype=np.float32,
                         meta=np.empty((0, 0), np.float32))  # fmt: skip
    kernel = da.map_blocks(make_kernel, image, new_axis=(0, 1), dtype=np.float32,
                           chunks=((TAPS,), (TAPS,), *image.chunks))  # fmt: skip
    out = involution(image[None, None], kernel[None, None])[0, 0]

    result = np.lib.format.open_memmap(folder / "result.npy", "w+", np.float32, (size, size))
    start = time.perf_counter()
    with dask.config.set(scheduler="threads", num_workers=threads):
        da.store(out, result, lock=False)
    seconds = time.perf_counter() - start

    strip = slice(rows - 8, rows + 8)
    whole = image[rows - 9 : rows + 9].compute()
    wanted = invocupy.involution(whole[None, None], make_kernel(whole)[None, None])[0, 0, 1:-1]
    np.testing.assert_array_equal(result[strip], wanted)
    return {
        "size": size,
        "rows": rows,
        "threads": threads,
        "seconds": round(seconds, 1),
        "kernel_bytes": 4 * TAPS**2 * size**2,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=8000)
    parser.add_argument("--rows", type=int, default=125)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(folder=Path(folder), **vars(arguments)), indent=2))


if __name__ == "__main__":
    main()

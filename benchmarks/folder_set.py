"""Writes a data set of image files, for the run ``own-folder`` of the evidence.

    python benchmarks/folder_set.py DIR

The images are those of shapes10, as PNG files of different sizes and shapes in
DIR/train/CLASS/NUMBER.png (500 per class) and DIR/test/CLASS/NUMBER.png (100 per class). Each run
of the command writes the same files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from invocupy.data import SHAPES10_CLASSES, shapes10

COUNTS = {"train": 5000, "test": 1000}
SIDES = 33, 80  # pixels, of height and width


def write(folder: Path) -> None:
    """Write all files."""
    rng = np.random.default_rng(0)
    for part, count in COUNTS.items():
        for number, (image, label) in enumerate(
            zip(*shapes10(count, 0, part == "train"), strict=True)
        ):
            path = folder / part / SHAPES10_CLASSES[label] / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            width, height = rng.integers(*SIDES, size=2).tolist()
            picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            picture.resize((width, height), Image.Resampling.BICUBIC).save(path)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder to write to")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()

"""``invocupy predict``: classify image files with a trained model."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from invocupy.cli.options import Commands, add_run, command, model_from, table, tell
from invocupy.messages import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = command(
        commands, "predict", _run, help="classify image files with a trained model",
        description="Classify the centre square of each image, resized to the size of the training "
        "images (area averages, or bicubic for smaller ones). The EXIF orientation is applied, and "
        "transparent pixels are put on white. A file that cannot be read is reported on standard "
        "error, the others are classified, and the exit code is 65. Needs Pillow: pip install "
        "'invocupy[plots]'.",
    )  # fmt: skip
    add_run(parser, data=False)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument(
        "--top",
        metavar="N",
        type=int,
        default=3,
        help="how many classes to show (default 3)",
    )


def read_images(
    paths: Iterable[str], shape: tuple[int, int, int], fail: Callable[[str, str], None]
) -> dict[str, NDArray[np.uint8]]:
    """Images (C, H, W) by path; ``fail(path, reason)`` is called for files that cannot be read."""
    from invocupy.data import DataError, grey, read_image
    from invocupy.train import ConfigError

    channels, side, width = shape
    if side != width or channels not in (1, 3):
        raise ConfigError(
            f"the run was trained on images (C, H, W) = {shape}, but image files are read as grey "
            "or colour squares: use invocupy.train.predict on arrays"
        )
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # one line a bad file is enough
    images = {}
    for path in paths:
        try:
            image = read_image(path, side)
        except DataError as error:
            fail(path, str(error))
        else:
            images[path] = image if channels == 3 else grey(image)
    return images


def _run(arguments: argparse.Namespace) -> int:
    import numpy as np

    from invocupy.train import ConfigError, open_run, pick_device, predict

    if arguments.top < 1:
        raise ConfigError(f"--top must be at least 1, got {arguments.top}")
    own = model_from(arguments.model_from)
    _, model, _, about = open_run(arguments.run, arguments.checkpoint, own)
    results: dict[str, dict[str, Any]] = {}

    def fail(path: str, reason: str) -> None:
        print(f"invocupy: {printable(reason)}", file=sys.stderr)
        results[path] = {"image": path, "error": reason}

    if images := read_images(arguments.images, about.shape, fail):
        model.to(pick_device(arguments.device))
        stack = np.stack(list(images.values()))
        found = predict(model, stack, **about.style())
        names = about.names(found.shape[1])
        for path, probabilities in zip(images, found, strict=True):
            if not np.isfinite(probabilities).all():
                fail(path, f"{path} has no class: the model's output for it is not finite")
                continue
            best = np.argsort(-probabilities, kind="stable")[: arguments.top]
            classes = [{"class": names[i], "probability": probabilities[i]} for i in best]
            results[path] = {"image": path, "classes": classes}
    rows = [results[path] for path in arguments.images]
    result = {"run": arguments.run, "checkpoint": arguments.checkpoint, "images": rows}
    shown = [
        (row["image"], *(f"{c['class']} {c['probability']:.1%}" for c in row["classes"]))
        for row in rows
        if "classes" in row
    ]
    lines = [table(shown, "<" * len(shown[0]))] if shown else []
    return tell(arguments, result, *lines, code=0 if len(shown) == len(rows) else 65)

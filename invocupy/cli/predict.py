"""``invocupy predict``: what a trained model sees in image files."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from invocupy.cli.options import Commands, add_run, command, model_from, table, tell

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = command(
        commands, "predict", _run, help="ask a trained model about image files",
        description="The middle square of each image, resized to 32 x 32 pixels (area averages, or "
        "bicubic for smaller ones), transparency on white, turned as its EXIF data says. A file "
        "that cannot be read is one line on standard error and exit code 65; the others are "
        "answered. Needs Pillow: pip install 'invocupy[plots]'.",
    )  # fmt: skip
    add_run(parser, data=False)
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument(
        "--top", metavar="N", type=int, default=3, help="classes shown (default %(default)s)"
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
            f"the run is of images (C, H, W) = {shape}, and image files give squares in grey "
            "or colour: use invocupy.train.predict on arrays"
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
        print(f"invocupy: {reason}", file=sys.stderr)
        results[path] = {"image": path, "error": reason}

    if images := read_images(arguments.images, about.shape, fail):
        model.to(pick_device(arguments.device))
        stack = np.stack(list(images.values()))
        found = predict(model, stack, **about.style())
        for path, probabilities in zip(images, found, strict=True):
            if not np.isfinite(probabilities).all():
                fail(path, f"{path} has no answer: the model's numbers for it are not finite")
                continue
            best = np.argsort(-probabilities, kind="stable")[: arguments.top]
            classes = [{"class": about.classes[i], "probability": probabilities[i]} for i in best]
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

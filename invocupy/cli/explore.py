"""``invocupy explore``: the kernel at each pixel of image files, as a page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from invocupy.cli.options import (
    Commands,
    add_run,
    check_out,
    command,
    is_stdout,
    model_from,
    path,
    tell,
)
from invocupy.cli.predict import read_images
from invocupy.messages import printable


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = command(
        commands, "explore", _run,
        help="write a page that shows the kernel at the pixel under the pointer",
        description="One self-contained HTML file, which needs no network: point at a pixel of an "
        "image and see the kernel that the network generates there, for each involution layer and "
        "group, next to that of a second pixel. Images are read as by predict. Needs Pillow: "
        "pip install 'invocupy[plots]'.",
    )  # fmt: skip
    add_run(parser, data=False)
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument(
        "--out", metavar="FILE", type=path, help="default explorer.html in the run's folder"
    )
    parser.add_argument(
        "--involutions", metavar="N", type=int, nargs="+",
        help="layers whose kernels are shown, from 0 (default all)",
    )  # fmt: skip
    parser.add_argument(
        "--convolution", metavar="RUN", type=path,
        help="also show the convolution kernels of this run, of the same model with --spatial "
        "depthwise or convolution",
    )  # fmt: skip


def _run(arguments: argparse.Namespace) -> int:
    import numpy as np

    from invocupy import nn
    from invocupy.checkpoint import CheckpointError
    from invocupy.report import explore, write_explorer
    from invocupy.report.kernels import involution_layers
    from invocupy.train import ConfigError, load_run, open_run, pick_device, predict

    given = arguments.out
    out = Path(arguments.run, "explorer.html") if given is None else check_out(given)
    own = model_from(arguments.model_from)
    _, model, _, about = open_run(arguments.run, arguments.checkpoint, own)
    if not involution_layers(model):
        raise CheckpointError(f"{arguments.run} cannot be explored: its network has no involution")
    names = involution_layers(model, arguments.involutions, most=None)
    other = None
    if arguments.convolution is not None:
        other = load_run(arguments.convolution, arguments.checkpoint)[1]
        layers = dict(other.named_modules())
        if not any(isinstance(layers.get(name), nn.Conv2d) for name in names):
            raise ConfigError(
                "convolution must be a run of the same model with --spatial depthwise or "
                f"convolution: {arguments.convolution} has no convolution in place of involutions"
            )
    bad = []

    def fail(_: str, reason: str) -> None:
        print(f"invocupy: {printable(reason)}", file=sys.stderr)
        bad.append(reason)

    images = read_images(arguments.images, about.shape, fail)
    if not images:
        return 65
    model.to(pick_device(arguments.device))
    stack = np.stack(list(images.values()))
    answers = predict(model, stack, **about.style())
    classes = about.names(answers.shape[1])
    titles = [
        f"{Path(file).name} ({classes[row.argmax()]} {row.max():.0%})"
        for file, row in zip(images, answers, strict=True)
    ]
    explored = explore(model, stack, titles, names, convolutions=other, **about.style())
    write_explorer(explored, Path(arguments.run).resolve().name, out)
    code = 65 if bad else 0
    result = {"run": arguments.run, "files": [str(out)]}
    return code if is_stdout(out) else tell(arguments, result, str(out), code=code)

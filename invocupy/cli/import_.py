"""``invocupy import``: weights of other programs as a file of ours."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any

from invocupy.cli.options import Commands, add_json, print_json


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "import",
        help="turn weights of other programs into safetensors",
        description="Reads safetensors, .npz, PyTorch's zip files (.pth) and Paddle's .pdparams "
        "without PyTorch or Paddle, and runs nothing that is in them. Names that are missing or "
        "left over are errors: exit code 65, and no file is written. In Python, "
        "invocupy.weights.import_state(model, invocupy.weights.read(FILE)) loads either file.",
    )
    parser.set_defaults(command=_run)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument(
        "--model", metavar="NAME", required=True, help="rednet26, ..., resnet18, resnet50"
    )
    parser.add_argument("--out", metavar="F.safetensors", required=True)
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from invocupy import checkpoint
    from invocupy.models import NETWORKS
    from invocupy.train import ConfigError
    from invocupy.weights import WeightsError, import_state, read
    from invocupy.weights.names import network_state

    if arguments.model not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise ConfigError(f"model must be one of {known}, got {arguments.model!r}")
    out = Path(arguments.out)
    if not out.parent.is_dir():
        raise ConfigError(f"out must be in a folder that exists, got {out}")
    state = read(arguments.file)
    ours = network_state(state)
    classes, channels = (
        _size(ours, 0, "fc.weight"),
        _size(ours, 1, "stem.conv1.weight", "conv1.weight"),
    )
    try:
        model = NETWORKS[arguments.model](num_classes=classes, in_channels=channels, rng=0)
        import_state(model, state)
    except ValueError as error:
        reason = textwrap.shorten(str(error), 400, placeholder=" ...")
        raise WeightsError(
            f"{arguments.file} has no weights of {arguments.model}: {reason}"
        ) from error
    arrays = model.state_dict()
    result = {
        "file": arguments.file,
        "out": str(out),
        "model": arguments.model,
        "classes": classes,
        "in_channels": channels,
        "arrays": len(arrays),
        "parameters": sum(parameter.size for parameter in model.parameters()),
    }
    info = {name: result[name] for name in ("model", "classes", "in_channels")}
    checkpoint.save(out, arrays, info)
    if arguments.json:
        print_json(result | {"bytes": out.stat().st_size})
        return 0
    print(
        f"{out}: {arguments.model}, {result['parameters']:,} parameters in {len(arrays)} arrays, "
        f"{classes} classes, {channels} input channels, {out.stat().st_size / 1e6:.1f} MB"
    )
    return 0


def _size(state: dict[str, Any], axis: int, *names: str) -> int:
    """Of the first of these arrays that there is; 1 if there is none, which is told later."""
    shapes = (state[name].shape for name in names if name in state)
    return next((int(shape[axis]) for shape in shapes if len(shape) > axis), 1)

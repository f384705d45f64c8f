"""``invocupy import``: convert weights of other programs to invocupy's safetensors."""

from __future__ import annotations

import argparse
import inspect
import math
import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from invocupy.cli.options import Commands, check_out, command, is_stdout, path, tell

if TYPE_CHECKING:
    from invocupy.nn import Module


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = command(
        commands, "import", _run,
        help="convert weights of other programs to safetensors",
        description="Read safetensors, .npz, PyTorch's .pth and Paddle's .pdparams without PyTorch "
        "or Paddle; no code in the file is executed. Missing or unexpected names are errors: exit "
        "code 65, and no file is written. In Python, "
        "invocupy.weights.import_state(model, invocupy.weights.read(FILE)) loads either file.",
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", type=path, help="the weights to convert")
    parser.add_argument(
        "--model", metavar="NAME", required=True,
        help="simple (the article's), rednet26, ..., resnet18, resnet50",
    )  # fmt: skip
    parser.add_argument(
        "--head-relu", action=argparse.BooleanOptionalAction,
        help="simple model: whether ReLUs follow its dense layers, if the names in the file do not "
        "say it",
    )  # fmt: skip
    parser.add_argument(
        "--key", help="where a checkpoint has its weights, such as ema or checkpoint.state_dict"
    )
    parser.add_argument(
        "--no-strict", action="store_true",
        help="accept missing and unexpected names, list them, and write the rest",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="F.safetensors", type=path, required=True, help="the file to write"
    )


def _run(arguments: argparse.Namespace) -> int:
    from invocupy import checkpoint
    from invocupy.messages import did_you_mean
    from invocupy.models import NETWORKS, SimpleModel
    from invocupy.train import ConfigError
    from invocupy.weights import WeightsError, import_state, read

    networks: dict[str, Callable[..., Module]] = {"simple": SimpleModel, **NETWORKS}
    if arguments.model not in networks:
        known, near = ", ".join(networks), did_you_mean(arguments.model, networks)
        raise ConfigError(f"model must be one of {known}, got {arguments.model!r}{near}")
    if arguments.head_relu is not None and arguments.model != "simple":
        raise ConfigError(f"--head-relu is for the simple model, got {arguments.model!r}")
    out = check_out(arguments.out)
    state = read(arguments.file, arguments.key)
    try:
        if arguments.model == "simple":
            options = _of_the_article(state, arguments.head_relu)
        else:
            options = _of_a_network(state, networks[arguments.model])
        model = networks[arguments.model](**options, rng=0)
        fit = import_state(model, state, strict=not arguments.no_strict)
    except ValueError as error:
        reason = textwrap.shorten(str(error), 400, placeholder=" ...")
        names = ": missing" in str(error) or ": left over" in str(error)
        way_out = " (--no-strict writes what fits)" if names and not arguments.no_strict else ""
        raise WeightsError(
            f"{arguments.file} has no weights of {arguments.model}: {reason}{way_out}"
        ) from error
    missing = set(fit.missing)
    arrays = {name: array for name, array in model.state_dict().items() if name not in missing}
    classes = options.pop("num_classes")
    if not any(name.startswith(("head.", "fc.")) for name in missing):  # else it has no classes
        options["classes"] = classes
    info = {"model": arguments.model, **options}
    checkpoint.save(out, arrays, info)
    if is_stdout(out):
        return 0
    count = sum(p.size for name, p in model.named_parameters() if name not in missing)
    result = {
        "file": arguments.file, "out": str(out), **info, "arrays": len(arrays),
        "parameters": count, **(fit._asdict() if arguments.no_strict else {}),
        "bytes": out.stat().st_size,
    }  # fmt: skip
    lines = [
        f"{out}: {arguments.model}, {count:,} parameters in {len(arrays)} arrays, "
        f"{', '.join(f'{name}={value}' for name, value in options.items())}, "
        f"{result['bytes'] / 1e6:.1f} MB"
    ]
    for kind, names in fit._asdict().items():
        if names:
            lines.append(f"{kind.replace('_', ' ')}: {', '.join(names)}")
    return tell(arguments, result, *lines)


def _of_a_network(state: Mapping[str, Any], network: Callable[..., Any]) -> dict[str, Any]:
    """The options of the RedNet or ResNet that has these arrays."""
    from invocupy.weights.names import network_options, network_state

    found = {"num_classes": 1, "in_channels": 1} | network_options(network_state(state))
    return {name: found[name] for name in inspect.signature(network).parameters if name in found}


def _of_the_article(state: Mapping[str, Any], head_relu: bool | None) -> dict[str, Any]:
    """The options of the ``SimpleModel`` that has these arrays."""
    from invocupy.weights.names import article_state

    arrays = article_state(state, head_relu)
    # An empty array must not make a model large.
    shapes = {name: array.shape for name, array in arrays.items() if array.size}

    def size(default: int, axis: int, *names: str) -> int:
        """That of the first array that exists; else the default, and loading fails."""
        found = (shapes[name] for name in names if len(shapes.get(name, ())) > axis)
        return next((shape[axis] for shape in found), default)

    found = "head.1.weight" not in shapes  # also without a head: SimpleModel's default
    if "head.0.weight" in shapes and head_relu not in (None, found):
        raise ValueError(f"its dense layers are numbered as with head_relu={found}")
    blocks = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    hidden = size(64, 0, "blocks.0.expand.weight")
    pixels = size(3 * 32 * 32, 1, "head.0.weight") // 3
    side = math.isqrt(pixels)
    if side * side != pixels:
        raise ValueError(f"its first dense layer takes {pixels} pixels, which form no square")
    # The two largest arrays: what the file has not got is not made.
    dense = 500 * 3 * pixels if "head.0.weight" in shapes else 0
    if dense + blocks * hidden * hidden // 4 > sum(map(math.prod, shapes.values())):
        raise ValueError(
            f"{blocks} blocks of {hidden} channels and images of {side} x {side} pixels need "
            f"more than its {len(shapes)} arrays hold: some are missing or of another shape"
        )
    return {
        "num_layers": blocks, "height": side, "width": side, "hidden_channels": hidden,
        "num_classes": size(1, 0, "head.4.weight", "head.2.weight"), "head_relu": found,
        "signed": "blocks.0.signed_norm.weight" in shapes,
    }  # fmt: skip
